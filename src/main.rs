//! homescar.

use std::process::ExitCode;

use homescar::supervisor;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(supervisor::EXEC_WORKER) => supervisor::exec_worker_main(args),
        Some(supervisor::GUARD) => supervisor::guard_main(args),
        _ => ExitCode::from(64),
    }
}
