//! `homescar serve`, and what every command that serves does.

use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{Exit, LogArguments, complain, complain_faults, signals};
use crate::{
    app::{App, ConfigFile, StartError},
    config::{Config, Facts},
    log::Log,
};

/// This very program, also after its file was replaced by a newer one.
const THIS_PROGRAM: &str = "/proc/self/exe";

pub(super) fn run(file: PathBuf, log: LogArguments) -> Exit {
    let config = match load(&file) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let source = ConfigFile {
        path: file,
        log: log.options(),
    };
    with_runtime(serve(config, Some(source)))
}

pub(super) fn load(file: &Path) -> Result<Config, Exit> {
    Config::load(file, &Facts::of_this_process()).map_err(|faults| {
        complain_faults(&faults);
        Exit::Config
    })
}

/// Runs a command on the control plane's runtime. It is made on the main thread, which lives as
/// long as the process: workers die with the thread that spawned them.
pub(super) fn with_runtime(command: impl Future<Output = Exit>) -> Exit {
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            complain(format_args!("cannot start: {error}"));
            Exit::Unavailable
        }
    }
}

/// Starts everything, serves until told to end, and drains.
pub(super) async fn serve(mut config: Config, file: Option<ConfigFile>) -> Exit {
    if let Some(file) = &file {
        config.log = file.log.over(config.log);
    }
    let tasks = TaskTracker::new();
    // Before there is another thread, so that no thread has them unblocked.
    let signals = match signals::block().and_then(|()| signals::receive(&tasks)) {
        Ok(signals) => signals,
        Err(error) => {
            complain(format_args!("cannot receive signals: {error}"));
            return Exit::Unavailable;
        }
    };
    let log = Log::start(config.log);
    let app = match App::start(config, file, PathBuf::from(THIS_PROGRAM)) {
        Ok(app) => app,
        Err(faults @ (StartError::Tls(_) | StartError::Secrets(_))) => {
            complain_faults(&faults);
            return Exit::Config;
        }
        Err(error) => {
            complain(error);
            return Exit::Unavailable;
        }
    };
    // After the start, which notes the limit that workers are to get.
    raise_descriptor_limit();
    tokio::select! {
        () = app.run(signals) => {}
        () = log.report_dropped() => {}
    }
    Exit::Ok
}

/// A proxy needs two descriptors a connection, and the soft limit is often 1,024.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!("cannot raise the limit of open descriptors: {error}");
    }
}
