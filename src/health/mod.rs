//! Finds out whether backends are well, by asking them and by what their clients meet.
//!
//! The [`Checker`] follows the snapshots of a cluster and keeps one task for each backend that is
//! to be checked; only changes of mind are reported. What follows from them (no new clients, the
//! end of a hung worker) is not its business. The [`Watch`] asks nobody: it looks at what clients
//! meet.

mod hysteresis;
mod outlier;
mod probe;
mod watch;

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use ahash::HashMap;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};

pub use watch::Watch;

use crate::{
    cluster::{Backend, CheckResult, Cluster, Entry, Event, Health, Snapshot},
    config,
};
use hysteresis::{Failure, Hysteresis};
use probe::Target;

/// Between two checks of a worker that is not ready yet.
const WHILE_STARTING: Duration = Duration::from_millis(100);

/// The active checks of a cluster.
#[derive(Debug)]
pub struct Checker {
    cluster: Cluster,
    /// By the name of the slot, and the generation.
    running: HashMap<(Arc<str>, u32), Running>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Running {
    subject: Subject,
    task: AbortHandle,
}

/// What is checked, and how; a change of any of it needs another task.
#[derive(Clone, Debug, PartialEq)]
struct Subject {
    backend: Arc<Backend>,
    settings: config::Health,
    supervised: bool,
}

impl Subject {
    /// What is to be checked of what stands in a slot or beside, if anything: static backends only
    /// when that is configured, workers always unless they are leaving.
    fn of(
        entry: &Entry,
        backend: &Arc<Backend>,
        configured: Option<&config::Health>,
    ) -> Option<Self> {
        if backend.leaving.is_some() {
            return None;
        }
        let settings = match configured {
            Some(settings) => settings.clone(),
            None if entry.supervised => config::Health::of_workers(),
            None => return None,
        };
        Some(Self {
            backend: Arc::clone(backend),
            settings,
            supervised: entry.supervised,
        })
    }

    /// Whether the same process is checked in the same way.
    fn is_still(&self, other: &Self) -> bool {
        let (this, that) = (&self.backend, &other.backend);
        this.generation == that.generation
            && this.pid == that.pid
            && this.address == that.address
            && self.settings == other.settings
    }
}

impl Checker {
    /// The checks of a cluster, as its configuration of the time says.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            running: HashMap::default(),
            tasks: JoinSet::new(),
        }
    }

    /// Checks until `shutdown`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut snapshots = self.cluster.subscribe();
        tokio::pin!(shutdown);
        loop {
            self.follow(&self.cluster.load());
            tokio::select! {
                () = &mut shutdown => break,
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                // Tasks end by being aborted only.
                Some(_) = self.tasks.join_next() => {}
            }
        }
        self.tasks.shutdown().await;
    }

    /// Starts and ends tasks so that they are what the snapshot needs.
    fn follow(&mut self, snapshot: &Snapshot) {
        let configured = snapshot.config.health.as_ref();
        let mut wanted = HashMap::default();
        for entry in &snapshot.entries {
            for backend in entry.backend.iter().chain(&entry.next) {
                if let Some(subject) = Subject::of(entry, backend, configured) {
                    let name = Arc::clone(&entry.slot.name);
                    wanted.insert((name, backend.generation), subject);
                }
            }
        }
        self.running.retain(|place, running| {
            let same = wanted
                .get(place)
                .is_some_and(|subject: &Subject| subject.is_still(&running.subject));
            if same {
                wanted.remove(place);
            } else {
                running.task.abort();
            }
            same
        });
        for (place, subject) in wanted {
            let slot = Arc::clone(&place.0);
            let task = check(self.cluster.clone(), slot, subject.clone());
            let task = self.tasks.spawn(task);
            self.running.insert(place, Running { subject, task });
        }
    }
}

/// Checks one backend for as long as it is let.
async fn check(cluster: Cluster, slot: Arc<str>, subject: Subject) {
    let Subject {
        backend,
        settings,
        supervised,
    } = subject;
    let known = backend.health.clone();
    let mut hysteresis = Hysteresis::new(settings.rise.get(), settings.fall.get(), known);
    let mut target = Target {
        address: backend.address.clone(),
        backlog: backend.backlog.clone(),
        check: settings.check,
        tls: None,
        timeout: settings.timeout,
        knock: Mutex::default(),
    };
    let generation = backend.generation;
    let is_starting = || supervised && !was_ready(&cluster.load(), &slot, generation);
    loop {
        let began = Instant::now();
        let snapshot = cluster.load();
        let speaks_tls = snapshot.config.tls.is_some();
        target.tls = cluster.connector().filter(|_| speaks_tls);
        let outcome = target.probe().await;
        count(&snapshot, &slot, outcome.as_ref(), began.elapsed());
        drop(snapshot);
        if let Some(outcome) = outcome
            && let Some(health) = hysteresis.record(outcome, is_starting())
        {
            report(&cluster, &slot, generation, health).await;
        }
        let interval = match is_starting() {
            true => WHILE_STARTING,
            false => jittered(settings.interval, fastrand::f64()),
        };
        tokio::time::sleep_until(began + interval).await;
    }
}

/// Counts a check; `None` was not asked.
fn count(snapshot: &Snapshot, slot: &str, outcome: Option<&Result<(), Failure>>, took: Duration) {
    let result = match outcome {
        None => CheckResult::NotAsked,
        Some(Ok(())) => CheckResult::Passed,
        Some(Err(failure)) if failure.answered => CheckResult::Wrong,
        Some(Err(_)) => CheckResult::Silent,
    };
    if let Some(entry) = snapshot.entry(slot) {
        entry.slot.stats.checks.count(result, took);
    }
}

async fn report(cluster: &Cluster, slot: &Arc<str>, generation: u32, health: Health) {
    let checked = Event::Checked {
        slot: Arc::clone(slot),
        generation,
        health,
    };
    cluster.report(checked).await;
}

fn was_ready(snapshot: &Snapshot, slot: &str, generation: u32) -> bool {
    let is_it = |backend: &&Arc<Backend>| backend.generation == generation;
    let mut generations = snapshot
        .entry(slot)
        .into_iter()
        .flat_map(Entry::generations);
    generations
        .find(is_it)
        .is_some_and(|backend| backend.was_ready)
}

/// The interval ± 10 %, so that the checks of many slots spread; `random` is in `0.0..1.0`.
fn jittered(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_a_tenth_each_way() {
        let of = |random| jittered(Duration::from_secs(10), random).as_millis();
        assert_eq!((of(0.0), of(0.5), of(1.0)), (9_000, 10_000, 11_000));
    }
}
