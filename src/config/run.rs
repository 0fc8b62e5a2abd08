//! The configuration of `homescar run`, which needs no file.

use std::{num::NonZeroUsize, sync::Arc};

use super::{
    Admin, Bind, Cluster, Config, Contract, Facts, Faults, Limits, Listener, Log, MAX_DIRECT_SLOTS,
    Mode, Source, Timeouts, Workers, address, defaults, fault::Ledger, resolve::MAX_COUNT, value,
    word,
};

/// What was typed after `homescar run`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunOptions {
    /// `--listen`, once or more. Default: 127.0.0.1:3000.
    pub listen: Vec<String>,
    /// `--workers`. Default: `WEB_CONCURRENCY`, else one per core.
    pub workers: Option<usize>,
    /// `--contract`. Default: [`Contract::of_command`].
    pub contract: Option<Contract>,
    /// `--mode`. Default: [`Mode::Direct`] where that can be, else [`Mode::Tcp`].
    pub mode: Option<Mode>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `--log-format` and `--log-level`.
    pub log: Log,
}

/// One listener named `web` before one cluster named `app`.
pub(super) fn resolve(options: RunOptions, facts: &Facts) -> Result<Config, Faults> {
    let ledger = Ledger::default();
    let bind = binds(&options.listen, &ledger);
    let count = count(options.workers, facts, &ledger);
    check_command(&options.command, facts, &ledger);
    let workers = Workers::new(options.command, count);
    let workers = Workers {
        contract: options.contract.unwrap_or(workers.contract),
        ..workers
    };
    let mode = mode(options.mode, &workers, &bind, &ledger);
    ledger.close(None, "")?;
    let cluster = Cluster::new("app", Source::Workers(Arc::new(workers)));
    let listener = Listener {
        name: "web".into(),
        bind,
        mode,
        backlog: defaults::BACKLOG,
        probes: defaults::PROBES,
        cluster: Arc::clone(&cluster.name),
        accept_proxy: false,
        trusted: Vec::new(),
        tls: None,
        routes: Vec::new(),
        limits: Limits::default(),
        timeouts: Timeouts::default(),
    };
    Ok(Config {
        threads: at_most(facts.cores),
        max_connections: facts.max_connections(cluster.workers()),
        listeners: vec![listener],
        clusters: vec![cluster],
        admin: Admin::at(facts.socket.clone()),
        log: options.log,
    })
}

/// Direct mode wherever nothing speaks against it.
fn mode(wanted: Option<Mode>, workers: &Workers, bind: &[Bind], ledger: &Ledger) -> Mode {
    match (wanted, not_direct(workers, bind)) {
        (Some(Mode::Direct), Some(why)) => {
            ledger.add(0, "--mode direct", why);
            Mode::Direct
        }
        (Some(mode), _) => mode,
        (None, Some(_)) => Mode::Tcp,
        (None, None) => Mode::Direct,
    }
}

/// Why the kernel cannot hand clients to these workers.
fn not_direct(workers: &Workers, bind: &[Bind]) -> Option<String> {
    let (contract, count) = (workers.contract, workers.count.get());
    let takes_ipv4 = |bind: &Bind| bind.addr.is_ipv4() || bind.dual_stack;
    match contract {
        Contract::Port | Contract::Unix => Some(format!(
            "hands the listening socket to the workers, and contract {} does not; say --contract \
             fd (LISTEN_FDS) or node if they take it, or leave --mode out",
            word::word_of(contract)
        )),
        Contract::Node if bind.len() > 1 => Some(
            "has one socket for each address, and a Node server listens on one; give one --listen \
             (:PORT is IPv4 and IPv6), or leave --mode out"
                .to_owned(),
        ),
        _ if count > MAX_DIRECT_SLOTS => Some(format!(
            "has room for {MAX_DIRECT_SLOTS} workers in the kernel's program, not for {count}; \
             leave --mode out"
        )),
        _ if !bind.iter().any(takes_ipv4) => Some(
            "reaches its workers for checks by IPv4; listen on :PORT (both versions) or on an \
             IPv4 address as well, or leave --mode out"
                .to_owned(),
        ),
        _ => None,
    }
}

fn at_most(cores: NonZeroUsize) -> NonZeroUsize {
    cores.min(NonZeroUsize::new(MAX_COUNT).unwrap_or(NonZeroUsize::MIN))
}

fn binds(listen: &[String], ledger: &Ledger) -> Vec<Bind> {
    let default = [defaults::LISTEN.to_owned()];
    let listen = if listen.is_empty() { &default } else { listen };
    let mut binds: Vec<Bind> = Vec::new();
    for text in listen {
        let bind = match address::bind(text) {
            Ok(bind) => bind,
            Err(why) => {
                ledger.add(0, "--listen", why);
                continue;
            }
        };
        match binds.iter().find(|first| first.clashes_with(bind)) {
            None => binds.push(bind),
            Some(first) if *first == bind => {
                ledger.add(
                    0,
                    "--listen",
                    format!("\"{bind}\" is given twice; remove one"),
                );
            }
            Some(first) => ledger.add(
                0,
                "--listen",
                format!("\"{bind}\" overlaps \"{first}\"; remove one of the two"),
            ),
        }
    }
    binds
}

fn count(workers: Option<usize>, facts: &Facts, ledger: &Ledger) -> NonZeroUsize {
    let valid = |count: usize| NonZeroUsize::new(count).filter(|count| count.get() <= MAX_COUNT);
    let set = facts.web_concurrency.as_deref().map(str::trim);
    let count = match (workers, set.filter(|set| !set.is_empty())) {
        (Some(count), _) => valid(count).ok_or_else(|| ("--workers", count.to_string())),
        (None, Some(set)) => {
            let count = set.parse().ok().and_then(valid);
            count.ok_or_else(|| ("WEB_CONCURRENCY", value::quoted(set)))
        }
        (None, None) => Ok(at_most(facts.cores)),
    };
    count.unwrap_or_else(|(key, typed)| {
        let mut message = format!("must be a number between 1 and {MAX_COUNT}, is {typed}");
        if key == "WEB_CONCURRENCY" {
            message += "; unset the variable, or say --workers N";
        }
        ledger.add(1, key, message);
        NonZeroUsize::MIN
    })
}

fn check_command(command: &[String], facts: &Facts, ledger: &Ledger) {
    let checked = match command.first().map(String::as_str) {
        None => Err("is missing: write it after --, as in `homescar run -- node server.js`".into()),
        Some("") => Err("the program's name is empty; write one".into()),
        Some(program) => facts.check_program(program, None, None),
    };
    if let Err(why) = checked {
        ledger.add(2, "command", why);
    }
}
