//! `homescar demo`: a chat behind a front door, to see all of homescar in a browser.

use std::{
    collections::BTreeMap,
    fs,
    io::IsTerminal as _,
    net::{Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{Exit, LogArguments, complain, complain_chain, complain_faults, serve};
use crate::{
    config::{
        CertPair, Config, Drain, Facts, Key, Log, LogLevel, Mode, ReadyBy, RunOptions, Source, Tls,
        TlsVersion,
    },
    demo::{self, hub::Hub, worker::WorkerEnv},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Address to listen on
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    listen: Vec<String>,
    /// How many workers
    #[arg(short, long, value_name = "N", default_value_t = 4)]
    workers: usize,
    /// Mode http with TLS (a certificate made for the occasion) and a cookie, in place of mode tcp
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    log: LogArguments,
}

/// A worker that has not given a sign of life for this long is replaced. It is longer than what
/// the page's hashes on the event loop take, so that the delay can be seen.
const WATCHDOG: Duration = Duration::from_secs(30);

/// Ctrl-C does not wait longer for open pages: they come back by themselves.
const DRAIN: Duration = Duration::from_secs(1);

/// One worker of the demo.
pub(super) fn worker() -> Exit {
    // Its ordinary life shows on the page; what it says here goes through the log of its parent.
    let _log = crate::log::Log::start(Log {
        level: LogLevel::Warn,
        ..Log::default()
    });
    let ended = WorkerEnv::from_env().and_then(demo::worker::run);
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain_chain(&error);
            Exit::Failure
        }
    }
}

/// The front door, four workers, and the hub that joins them.
pub(super) fn run(arguments: Arguments) -> Exit {
    let folder = match tempfile::Builder::new().prefix("homescar-demo-").tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            complain(format_args!(
                "cannot make a folder for the hub's socket: {error}"
            ));
            return Exit::Unavailable;
        }
    };
    let hub = folder.path().join("hub.sock");
    let tls = match arguments
        .tls
        .then(|| certificate(folder.path()))
        .transpose()
    {
        Ok(tls) => tls,
        Err(error) => {
            complain(format_args!("cannot make a certificate: {error}"));
            return Exit::Unavailable;
        }
    };
    match config(arguments, &hub, tls) {
        Ok(config) => serve::with_runtime(with_hub(hub, config)),
        Err(exit) => exit,
    }
}

async fn with_hub(path: PathBuf, config: Config) -> Exit {
    let hub = match Hub::bind(&path) {
        Ok(hub) => hub,
        Err(error) => {
            complain(format_args!("cannot listen on {}: {error}", path.display()));
            return Exit::Unavailable;
        }
    };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let stopped = stop.clone().cancelled_owned();
    tasks.spawn(async move {
        if let Err(error) = hub.run(stopped).await {
            warn!("the hub has failed: {error}");
        }
    });
    invite(&config);
    let exit = serve::serve(config, None, None).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    exit
}

/// A certificate for this machine that nobody but its maker has signed, in a folder of ours alone.
fn certificate(folder: &Path) -> Result<Tls, Box<dyn std::error::Error>> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names)?;
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::write(&cert, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    Ok(Tls {
        certs: vec![CertPair { cert, key }],
        client_ca: None,
        client_optional: false,
        min_version: TlsVersion::V12,
        alpn: ["h2", "http/1.1"].map(str::to_owned).into(),
    })
}

fn config(arguments: Arguments, hub: &Path, tls: Option<Tls>) -> Result<Config, Exit> {
    let Arguments {
        mut listen,
        workers,
        tls: _,
        log,
    } = arguments;
    let log = log.options().over(Log::default());
    // A second address that a browser on this machine comes from, hence a second client.
    let default = ["127.0.0.1:3000"];
    if listen == default && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        listen.push("[::1]:3000".into());
    }
    let exe = std::env::current_exe().map_err(|error| {
        complain(format_args!("cannot find this program: {error}"));
        Exit::Unavailable
    })?;
    let command = vec![exe.display().to_string(), demo::WORKER_COMMAND.into()];
    let options = RunOptions {
        mode: None,
        listen,
        workers: Some(workers),
        contract: None,
        command,
        log,
    };
    let mut config = Config::for_run(options, &Facts::of_this_process()).map_err(|faults| {
        complain_faults(&faults);
        Exit::Usage
    })?;
    for cluster in &mut config.clusters {
        cluster.name = demo::CLUSTER.into();
        cluster.drain = Drain {
            timeout: DRAIN,
            spread: DRAIN / 2,
            ..Drain::default()
        };
        if tls.is_some() {
            cluster.affinity.key = Key::Cookie(Arc::default());
        }
        if let Source::Workers(workers) = &mut cluster.source {
            let workers = Arc::make_mut(workers);
            workers.env = BTreeMap::from([(demo::HUB_VAR.into(), hub.display().to_string())]);
            workers.ready = ReadyBy::Notify;
            workers.watchdog = Some(WATCHDOG);
            workers.stop_timeout = demo::STOP_WITHIN + Duration::from_secs(1);
        }
    }
    for listener in &mut config.listeners {
        listener.cluster = demo::CLUSTER.into();
        if let Some(tls) = &tls {
            listener.mode = Mode::Http;
            listener.tls = Some(Arc::new(tls.clone()));
        }
    }
    Ok(config)
}

/// Tells the person at the terminal what to do.
#[expect(
    clippy::print_stderr,
    reason = "the command line speaks to the person who typed it"
)]
fn invite(config: &Config) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let pages = config.listeners.iter().flat_map(|listener| &listener.bind);
    let is_encrypted = config
        .listeners
        .iter()
        .any(|listener| listener.tls.is_some());
    let scheme = if is_encrypted { "https" } else { "http" };
    let pages: Vec<_> = pages
        .map(|bind| format!("{scheme}://{}", bind.addr))
        .collect();
    let warning = match is_encrypted {
        true => "\n  The browser will warn: nobody but homescar has signed the certificate.",
        false => "",
    };
    eprintln!(
        "\n  Open {} in a browser: each address is another client, with its own worker.{warning}\n  \
         Ctrl-C ends it all.\n",
        pages.join(" and ")
    );
}
