//! homescar beside haproxy, nginx and Envoy as a relay of TCP and as a proxy of HTTP, with and without
//! TLS, measured in the same rounds. `bench/README.md` has the method, and `bench/run` runs it.
//!
//! `cargo bench --bench proxy -- [ROW…] [--rounds N] [--peers homescar,haproxy] [--json FILE]`

#[path = "proxy/backend.rs"]
mod backend;
#[path = "proxy/calls.rs"]
mod calls;
#[path = "proxy/client.rs"]
mod client;
#[path = "proxy/event.rs"]
mod event;
#[path = "proxy/http.rs"]
mod http;
#[path = "proxy/http2.rs"]
mod http2;
#[path = "proxy/idle.rs"]
mod idle;
#[path = "proxy/latency.rs"]
mod latency;
#[path = "proxy/machine.rs"]
mod machine;
#[path = "proxy/measure.rs"]
mod measure;
#[path = "proxy/pattern.rs"]
mod pattern;
#[path = "proxy/peer.rs"]
mod peer;
#[path = "proxy/process.rs"]
mod process;
#[path = "proxy/report.rs"]
mod report;
#[path = "proxy/row.rs"]
mod row;
#[path = "proxy/stream.rs"]
mod stream;
#[path = "proxy/tls.rs"]
mod tls;
#[path = "proxy/websocket.rs"]
mod websocket;
#[path = "proxy/workers.rs"]
mod workers;

use std::{error::Error, fs, path::PathBuf, time::Duration};

use clap::Parser;
use tokio::{runtime::Builder, task::LocalSet};

use self::{
    machine::Cpus,
    measure::Bench,
    peer::{Kind, Peer, Programs},
    report::Report,
    row::{Measure, Row},
};

/// A benchmark fails with a sentence for the person who started it.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Rounds of the rows of memory, system calls and changes, which hardly differ from round to round.
const STEADY_ROUNDS: usize = 2;

/// Measures proxies side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; all when nothing is named.
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Times that each row is measured with each peer, the peers taking turns; rows of memory,
    /// system calls and changes at most twice.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Which proxies, in their order within a round.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["homescar", "haproxy", "nginx", "envoy", "none"])]
    peers: Vec<Kind>,
    /// How long a row's work is measured, in seconds; a quarter of it is warm-up before.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Where to write all figures.
    #[arg(long, default_value = "target/bench/proxy.json")]
    json: PathBuf,
    #[command(flatten)]
    programs: Programs,
    /// Given by `cargo bench`, and not by `cargo test`, which must not measure.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Outcome {
    let arguments = Arguments::parse();
    if !arguments.bench {
        progress("nothing is measured without --bench: start it with `cargo bench --bench proxy`");
        return Ok(());
    }
    if !(0.1..=600.0).contains(&arguments.seconds) || arguments.rounds == 0 {
        return Err("--seconds must be from 0.1 to 600, and --rounds at least 1".into());
    }
    machine::raise_descriptor_limit()?;
    let cpus = Cpus::choose()?;
    cpus.take_load()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, measure(&arguments, cpus))
}

/// Rounds outside, peers inside: what changes on the machine meanwhile hits all peers alike.
async fn measure(arguments: &Arguments, cpus: Cpus) -> Outcome {
    let peers = arguments
        .peers
        .iter()
        .map(|&kind| Peer::find(kind, &arguments.programs))
        .collect::<Outcome<Vec<_>>>()?;
    let rows = match &*arguments.rows {
        [] => Row::ALL,
        rows => rows,
    };
    let (seconds, rounds) = (arguments.seconds, arguments.rounds);
    let bench = Bench::start(cpus, Duration::from_secs_f64(seconds))?;
    let mut report = Report::new(machine::facts()?, seconds, rounds, &peers);
    for &row in rows {
        let spec = row.spec();
        let is_steady = spec.measure != Measure::Cpu;
        let rounds = if is_steady {
            rounds.min(STEADY_ROUNDS)
        } else {
            rounds
        };
        for round in 1..=rounds {
            let here = |peer: &&Peer| spec.is_for(peer.kind);
            for peer in peers.iter().filter(here) {
                progress(&format!(
                    "{} · round {round} · {}",
                    spec.name,
                    peer.kind.name()
                ));
                let samples = bench
                    .measure(row, peer)
                    .await
                    .map_err(|error| format!("{} with {}: {error}", spec.name, peer.kind.name()))?;
                report.add(peer.kind, round, samples);
            }
        }
    }
    if let Some(folder) = arguments.json.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&arguments.json, serde_json::to_string_pretty(&report)?)?;
    progress(&format!("all figures: {}", arguments.json.display()));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "it takes minutes, and somebody waits")]
fn progress(line: &str) {
    eprintln!("{line}");
}
