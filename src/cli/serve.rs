//! `homescar serve`, and what every command that serves does.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{net::unix::pipe, runtime::Builder};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{Exit, Launch, LogArguments, complain, complain_faults, signals};
use crate::{
    app::{App, ConfigFile, Program, StartError},
    config::{self, Config, Facts},
    log::Log,
};

/// This very program, also after its file was replaced by a newer one.
const THIS_PROGRAM: &str = "/proc/self/exe";

pub(super) fn run(file: PathBuf, log: LogArguments, launch: Launch) -> Exit {
    let source = ConfigFile {
        path: file,
        log: log.options(),
    };
    if launch.takeover.is_some() {
        return go_on(Some(source), launch);
    }
    match load(&source.path) {
        Ok(config) => with_runtime(serve(config, Some(source), launch.program())),
        Err(exit) => exit,
    }
}

/// Goes on with what an earlier image of the program has left.
pub(super) fn go_on(file: Option<ConfigFile>, launch: Launch) -> Exit {
    let Launch {
        mut arguments,
        takeover,
    } = launch;
    let Some(takeover) = takeover else {
        return Exit::Failure;
    };
    arguments.drain(..1.min(arguments.len()));
    let config = match takeover.config() {
        Ok(config) => config,
        Err(why) => return complain_failure(takeover.go_back(&why)),
    };
    with_runtime(async {
        let (log, signals) = match begin(config.log) {
            Ok(begun) => begun,
            Err(error) => return complain_failure(takeover.go_back(&error.to_string())),
        };
        let exe = PathBuf::from(THIS_PROGRAM);
        match App::resume(takeover, config, file, exe, arguments).await {
            Ok(app) => serve_until_end(app, &log, signals).await,
            Err(error) => complain_failure(error),
        }
    })
}

fn complain_failure(error: impl fmt::Display) -> Exit {
    complain(error);
    Exit::Failure
}

impl Launch {
    /// What an upgrade is to execute.
    pub(super) fn program(mut self) -> Option<Program> {
        let name = (!self.arguments.is_empty()).then(|| self.arguments.remove(0))?;
        Some(Program::of(&name, self.arguments))
    }
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
pub(super) async fn serve(
    mut config: Config,
    file: Option<ConfigFile>,
    program: Option<Program>,
) -> Exit {
    if let Some(file) = &file {
        config.log = file.log.over(config.log);
    }
    let (log, signals) = match begin(config.log) {
        Ok(begun) => begun,
        Err(error) => {
            complain(format_args!("cannot receive signals: {error}"));
            return Exit::Unavailable;
        }
    };
    let app = match App::start(config, file, PathBuf::from(THIS_PROGRAM), program) {
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
    serve_until_end(app, &log, signals).await
}

/// Lets signals wait to be received, and starts the log.
fn begin(log: config::Log) -> io::Result<(Log, pipe::Receiver)> {
    // Before there is another thread, so that no thread has them unblocked.
    signals::block()?;
    let signals = signals::open()?;
    Ok((Log::start(log), signals))
}

async fn serve_until_end(app: App, log: &Log, signals: pipe::Receiver) -> Exit {
    // After the start, which notes the limit that workers are to get.
    raise_descriptor_limit();
    let signals = signals::receive(signals, &TaskTracker::new());
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
