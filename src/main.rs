//! Arguments → command → exit code; nothing else.

use std::process::ExitCode;

use homescar::cli;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match cli::inner_program(&arguments) {
        Some(exit) => exit,
        None => cli::main(arguments).into(),
    }
}
