//! Arguments → command → exit code; nothing else.

use std::process::ExitCode;

use homescar::{
    demo::{
        self,
        worker::{self, WorkerEnv},
    },
    supervisor,
};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(supervisor::EXEC_WORKER) => supervisor::exec_worker_main(args),
        Some(supervisor::GUARD) => supervisor::guard_main(args),
        Some(demo::WORKER_COMMAND) => match WorkerEnv::from_env().and_then(worker::run) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        _ => ExitCode::from(64),
    }
}
