//! homescar beside haproxy as a relay of TCP and as a proxy of HTTP/1.1, measured in the same rounds: the proxy's CPU per unit
//! of work, its memory per idle connection, and its system calls. `bench/README.md` has the method.
//!
//! `cargo bench --bench proxy -- [ROW…] [--rounds N] [--peers homescar,haproxy]`

#[path = "proxy/backend.rs"]
mod backend;
#[path = "proxy/calls.rs"]
mod calls;
#[path = "proxy/client.rs"]
mod client;
#[path = "proxy/http.rs"]
mod http;
#[path = "proxy/machine.rs"]
mod machine;
#[path = "proxy/pattern.rs"]
mod pattern;
#[path = "proxy/peer.rs"]
mod peer;
#[path = "proxy/report.rs"]
mod report;
#[path = "proxy/row.rs"]
mod row;

use std::{error::Error, path::PathBuf, time::Duration};

use clap::Parser;
use tokio::{runtime::Builder, task::LocalSet};

use self::{
    machine::Cpus,
    peer::Peer,
    report::Report,
    row::{Bench, Row},
};

/// A benchmark fails with a sentence for the person who started it.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Measures proxies side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; all but the counts of system calls when nothing is named.
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Times that each row is measured with each peer, the peers taking turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Which proxies, in their order within a round.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["homescar", "haproxy"])]
    peers: Vec<peer::Kind>,
    /// How long a row's work is measured, in seconds; a quarter of it is warm-up before.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The homescar to measure; the one built with this benchmark when not given.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_homescar"))]
    homescar: PathBuf,
    /// The haproxy to measure.
    #[arg(long, default_value = "/usr/sbin/haproxy")]
    haproxy: PathBuf,
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
        .map(|&kind| Peer::find(kind, arguments))
        .collect::<Outcome<Vec<_>>>()?;
    let rows = if arguments.rows.is_empty() {
        Row::MEASURED
    } else {
        &arguments.rows
    };
    let bench = Bench::start(cpus, Duration::from_secs_f64(arguments.seconds))?;
    let mut report = Report::default();
    for &row in rows {
        for round in 1..=arguments.rounds {
            for peer in &peers {
                progress(&format!(
                    "{} · round {round} · {}",
                    row.name(),
                    peer.kind.name()
                ));
                let samples = bench.measure(row, peer).await.map_err(|error| {
                    format!("{} with {}: {error}", row.name(), peer.kind.name())
                })?;
                report.add(peer.kind, samples);
            }
        }
    }
    report.print(&machine::facts()?, &peers);
    Ok(())
}

#[expect(clippy::print_stderr, reason = "standard output is the table's")]
fn progress(line: &str) {
    eprintln!("{line}");
}
