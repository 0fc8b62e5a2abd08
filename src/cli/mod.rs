//! The command line: a file a command.

mod check;
mod demo;
mod explain;
mod restart;
mod run;
mod serve;
mod signals;
mod simulate;
mod socket;
mod status;
mod top;
mod upgrade;

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    admin::view::{Done, Scale, Scaled, SlotState, State},
    app::{self, ConfigFile, Takeover},
    config::{LogFormat, LogLevel, LogOptions},
    supervisor,
};

/// How a command ends. The numbers are those of sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// Something else failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 64,
    /// Nothing could be bound or started.
    Unavailable = 69,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Starts your worker processes, keeps them alive, and sends every client to its own one.
#[derive(Debug, Parser)]
#[command(name = "homescar", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start workers from a command and put a front door before them; no configuration file
    Run(run::Arguments),
    /// Serve what a configuration file says
    Serve {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        log: LogArguments,
    },
    /// Find all faults of a configuration file, or print the whole effective configuration
    Check {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show listeners, clusters and slots of a running homescar
    Status(socket::Arguments),
    /// Watch connections, rates, processors and memory of a running homescar, slot by slot
    Top(top::Arguments),
    /// Replace the workers of a cluster one after the other, without a gap; stops, and fails, at the
    /// first that does not get ready
    Restart(restart::Arguments),
    /// Change the number of a cluster's workers
    Scale {
        /// The cluster
        cluster: String,
        /// How many workers
        count: usize,
        #[command(flatten)]
        socket: socket::Arguments,
    },
    /// Give a slot no new clients; whoever is at home there (a connection, a cookie) stays
    Drain(SlotArguments),
    /// Give a slot clients again
    Ready(SlotArguments),
    /// Give a slot nobody, and ask whoever is there to leave; who has not by drain.timeout is cut
    Maint(SlotArguments),
    /// Show the way from a client's address to its slot, and why it goes there
    Explain(explain::Arguments),
    /// Show who of the clients that are connected now would move, if slots went or came; changes
    /// nothing
    Simulate(simulate::Arguments),
    /// Have a running homescar read its configuration again, as SIGHUP does, and hear what came of it
    Reload(socket::Arguments),
    /// Have a running homescar become the program that now stands in its place, as SIGUSR2 does
    Upgrade(socket::Arguments),
    /// Drain and end a running homescar, as SIGTERM does; again to end sooner
    Stop(socket::Arguments),
    /// A chat behind a front door with four workers, to see all of it in a browser
    Demo(demo::Arguments),
    /// One worker of the demo's chat
    #[command(hide = true)]
    DemoWorker,
}

/// A slot of a running homescar.
#[derive(Debug, clap::Args)]
struct SlotArguments {
    /// The slot, such as app/0
    slot: String,
    #[command(flatten)]
    socket: socket::Arguments,
}

impl SlotArguments {
    fn tell(self, state: State) -> Exit {
        let Self { slot, socket } = self;
        socket.tell("/slot", &SlotState { slot, state }, done)
    }
}

/// Options of the log, which beat the configuration.
#[derive(Clone, Copy, Debug, clap::Args)]
struct LogArguments {
    /// How log lines look
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// The least severe level that is logged
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

/// Runs the command that the arguments of this process ask for.
pub fn main(arguments: Vec<OsString>) -> Exit {
    let mut arguments = arguments;
    let takeover = match Takeover::of(&mut arguments) {
        Ok(takeover) => takeover,
        Err(error) => {
            complain(error);
            return Exit::Failure;
        }
    };
    match Arguments::try_parse_from(&arguments) {
        Ok(parsed) => parsed.command.run(Launch {
            arguments,
            takeover,
        }),
        Err(error) => {
            // Help and version are answers and go to standard output.
            let _closed = error.print();
            if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            }
        }
    }
}

/// The programs inside this one, which homescar starts and nobody types: they are told by their
/// first argument, before there is a command line to speak of.
pub fn inner_program(arguments: &[OsString]) -> Option<ExitCode> {
    let rest = || arguments.iter().skip(2).cloned();
    match arguments.get(1)?.to_str()? {
        supervisor::EXEC_WORKER => Some(supervisor::exec_worker_main(rest())),
        supervisor::GUARD => Some(supervisor::guard_main(rest())),
        supervisor::CHECK_UPGRADE => Some(check_upgrade(rest()).into()),
        _ => None,
    }
}

/// How this process was started.
struct Launch {
    /// All of the command line, from the program's name on.
    arguments: Vec<OsString>,
    /// It goes on with what an earlier image of the program has left.
    takeover: Option<Takeover>,
}

impl Command {
    fn run(self, launch: Launch) -> Exit {
        match self {
            Self::Run(arguments) => run::run(arguments, launch),
            Self::Serve { config, log } => serve::run(config, log, launch),
            Self::Check { config } => check::run(&config),
            Self::Status(arguments) => status::run(&arguments),
            Self::Top(arguments) => top::run(&arguments),
            Self::Restart(arguments) => restart::run(&arguments),
            Self::Scale {
                cluster,
                count,
                socket,
            } => socket.tell("/scale", &Scale { cluster, count }, scaled),
            Self::Drain(arguments) => arguments.tell(State::Drain),
            Self::Ready(arguments) => arguments.tell(State::Ready),
            Self::Maint(arguments) => arguments.tell(State::Maint),
            Self::Explain(arguments) => explain::run(&arguments),
            Self::Simulate(arguments) => simulate::run(&arguments),
            Self::Reload(arguments) => arguments.tell("/reload", &(), done),
            Self::Upgrade(arguments) => upgrade::run(&arguments),
            Self::Stop(arguments) => arguments.tell("/stop", &(), done),
            Self::Demo(arguments) => demo::run(arguments),
            Self::DemoWorker => demo::worker(),
        }
    }
}

/// The answer to something that was told.
fn done(answer: &Done) -> String {
    format!("{}\n", answer.done)
}

fn scaled(scaled: &Scaled) -> String {
    let Scaled {
        cluster,
        before,
        now,
    } = scaled;
    format!("{cluster}: {before} → {now} workers\n")
}

/// Writes an answer. A reader that has seen enough (`| head`) is no failure.
fn print(text: &[u8]) {
    let _closed = io::stdout().write_all(text);
}

/// Says whether this program could take over from a homescar with these arguments, whose state is in
/// stdin.
fn check_upgrade(rest: impl Iterator<Item = OsString>) -> Exit {
    let arguments = std::iter::once("homescar".into()).chain(rest);
    let file = match Arguments::try_parse_from(arguments).map(|parsed| parsed.command) {
        Ok(Command::Serve { config, log }) => Some(ConfigFile {
            path: config,
            log: log.options(),
        }),
        Ok(_) => None,
        Err(error) => {
            complain(format_args!(
                "does not understand the command line: {error}"
            ));
            return Exit::Usage;
        }
    };
    match app::check_upgrade(file.as_ref()) {
        Ok(()) => {
            let version = env!("CARGO_PKG_VERSION");
            // Without the answer there is no upgrade, and so it is no failure here.
            let _closed = writeln!(io::stdout(), "{}{version}", supervisor::CAN_TAKE_OVER);
            Exit::Ok
        }
        Err(why) => {
            complain_faults(why);
            Exit::Config
        }
    }
}

/// Writes what a person at the terminal must see.
#[expect(
    clippy::print_stderr,
    reason = "the command line speaks to the person who typed it"
)]
fn complain(message: impl fmt::Display) {
    eprintln!("homescar: {message}");
}

/// Writes an error with its causes, in one line.
fn complain_chain(error: &dyn std::error::Error) {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    complain(causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}")));
}

/// Writes all faults of a configuration, or of its files, a line each.
#[expect(
    clippy::print_stderr,
    reason = "the command line speaks to the person who typed it"
)]
fn complain_faults(faults: impl fmt::Display) {
    eprintln!("{faults}");
}

impl LogArguments {
    const fn options(self) -> LogOptions {
        LogOptions {
            format: self.log_format,
            level: self.log_level,
        }
    }
}
