//! What was measured: for a reader as a table, for `bench/report.py` as JSON.

use std::time::Duration;

use serde::Serialize;

use super::{
    latency::Latencies,
    machine::Usage,
    peer::{Kind, Peer},
    row::Spec,
};

/// What happened while the proxy was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Units of work that were done.
    pub(crate) units: u64,
    /// What the proxy used.
    pub(crate) proxy: Usage,
    /// What the clients and backends used.
    pub(crate) load: Usage,
    /// What all CPUs together were busy.
    pub(crate) machine: Duration,
    /// How long it took.
    pub(crate) wall: Duration,
}

impl Load {
    /// The CPU of a unit, in microseconds, or of a gigabyte, in milliseconds.
    pub(crate) fn sample(self, spec: Spec, latencies: &Latencies) -> Sample {
        let (done, scale, unit) = match spec.work.is_bulk() {
            true => (self.units as f64 / 1e9, 1e3, "ms"),
            false => (self.units as f64, 1e6, "µs"),
        };
        let each = |cpu: Duration| cpu.as_secs_f64() * scale / done;
        let took = |share| match spec.work.is_bulk() {
            true => None,
            false => latencies.percentile(share),
        };
        let waiting = self.proxy.kept_waiting(self.wall);
        let unit = format!("{unit} a {}", spec.work.unit());
        Sample {
            machine: Some(each(self.machine)),
            rate: Some(done / self.wall.as_secs_f64()),
            p50: took(0.5),
            p99: took(0.99),
            p999: took(0.999),
            proxy_busy: Some(self.proxy.busy(self.wall)),
            load_busy: Some(self.load.busy(self.wall)),
            waiting: Some(waiting.max(self.load.kept_waiting(self.wall))),
            ..Sample::new(spec.name, &unit, each(self.proxy.cpu))
        }
    }
}

/// One figure of one round, and what belongs to it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    row: String,
    unit: String,
    /// Of the proxy, in `unit`.
    cost: f64,
    /// Of the whole machine, in `unit`.
    machine: Option<f64>,
    /// Units a second.
    rate: Option<f64>,
    /// Within which time a half, 99 % and 99.9 % of the units were done, in microseconds.
    p50: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    /// Shares of the time.
    proxy_busy: Option<f64>,
    load_busy: Option<f64>,
    waiting: Option<f64>,
    note: Option<String>,
}

impl Sample {
    pub(crate) fn new(row: &str, unit: &str, cost: f64) -> Self {
        Self {
            row: row.to_owned(),
            unit: unit.to_owned(),
            cost,
            machine: None,
            rate: None,
            p50: None,
            p99: None,
            p999: None,
            proxy_busy: None,
            load_busy: None,
            waiting: None,
            note: None,
        }
    }

    /// With something to say below the table.
    pub(crate) fn with_note(self, note: String) -> Self {
        Self {
            note: Some(note),
            ..self
        }
    }
}

/// All figures of all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    facts: String,
    seconds: f64,
    rounds: usize,
    peers: Vec<Version>,
    samples: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Version {
    peer: &'static str,
    version: String,
}

#[derive(Debug, Serialize)]
struct Measured {
    peer: &'static str,
    round: usize,
    #[serde(flatten)]
    sample: Sample,
}

impl Report {
    pub(crate) fn new(facts: String, seconds: f64, rounds: usize, peers: &[Peer]) -> Self {
        let version = |peer: &Peer| Version {
            peer: peer.kind.name(),
            version: peer.version.clone(),
        };
        Self {
            facts,
            seconds,
            rounds,
            peers: peers.iter().map(version).collect(),
            samples: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, peer: Kind, round: usize, samples: Vec<Sample>) {
        self.samples
            .extend(samples.into_iter().map(|sample| Measured {
                peer: peer.name(),
                round,
                sample,
            }));
    }
}
