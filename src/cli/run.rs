//! `homescar run`: the whole job without a configuration file.

use super::{Exit, Launch, LogArguments, complain_faults, serve};
use crate::config::{Config, ContractChoice, Facts, Log, Mode, RunOptions};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Address to listen on, such as 127.0.0.1:3000 or :3000 (all addresses); may be repeated
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    listen: Vec<String>,
    /// How many workers [default: WEB_CONCURRENCY, else one per core]
    #[arg(short, long, value_name = "N")]
    workers: Option<usize>,
    /// How a worker gets its socket: `port` (PORT is a port), `unix` (PORT is a path), `fd`
    /// (LISTEN_FDS), `node` (Node's cluster protocol) or `auto` (`node` for node, else `port`)
    #[arg(long, value_name = "CONTRACT", default_value = "auto")]
    contract: ContractChoice,
    /// How clients are brought to it: `direct` (the kernel hands them over; needs contract `fd` or
    /// `node`), `tcp` (a relay) or `http` (request by request) [default: direct where it can be,
    /// else tcp]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    #[command(flatten)]
    log: LogArguments,
    /// The worker's program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) fn run(arguments: Arguments, launch: Launch) -> Exit {
    let Arguments {
        listen,
        workers,
        contract,
        mode,
        log,
        command,
    } = arguments;
    let log = log.options().over(Log::default());
    let options = RunOptions {
        listen,
        workers,
        contract: contract.0,
        mode,
        command,
        log,
    };
    if launch.takeover.is_some() {
        return serve::go_on(None, launch);
    }
    match Config::for_run(options, &Facts::of_this_process()) {
        Ok(config) => serve::with_runtime(serve::serve(config, None, launch.program())),
        Err(faults) => {
            complain_faults(&faults);
            Exit::Usage
        }
    }
}
