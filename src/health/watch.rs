//! Passive checks: what clients meet is health too.
//!
//! The data plane counts what it meets, and tells nobody. This looks at the counters, every
//! [`LOOK`]: a burst of failures costs the data plane not more than one, no queue between the two
//! can fill, and a fifth of a second more is nothing beside the window.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::outlier::{Outcomes, Outliers, Sample};
use crate::cluster::{Cluster, Entry, Event, Snapshot};

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(200);

/// The passive checks of a cluster.
#[derive(Debug)]
pub struct Watch {
    cluster: Cluster,
    outliers: Outliers,
}

impl Watch {
    /// The passive checks of a cluster, as its configuration of the time says.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            outliers: Outliers::default(),
        }
    }

    /// Watches until `shutdown`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut snapshots = self.cluster.subscribe();
        tokio::pin!(shutdown);
        loop {
            let snapshot = self.cluster.load();
            self.look(&snapshot).await;
            let is_on = snapshot.config.balance.passive.is_some();
            tokio::select! {
                () = &mut shutdown => return,
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(LOOK), if is_on => {}
            }
        }
    }

    async fn look(&mut self, snapshot: &Snapshot) {
        let samples: Vec<_> = snapshot.entries.iter().filter_map(Sample::of).collect();
        let settings = snapshot.config.balance.passive.as_ref();
        for verdict in self.outliers.step(settings, &samples, Instant::now()) {
            let ejected = Event::Ejected {
                slot: verdict.slot,
                generation: verdict.generation,
                why: verdict.why,
            };
            self.cluster.report(ejected).await;
        }
    }
}

impl Sample {
    fn of(entry: &Entry) -> Option<Self> {
        let stats = &entry.slot.stats;
        let unconnected = stats.connect_failures.load(Relaxed);
        Some(Self {
            slot: Arc::clone(&entry.slot.name),
            backend: Arc::clone(entry.backend.as_ref()?),
            skip: entry.skip,
            counters: Outcomes {
                tried: stats.total.load(Relaxed) + unconnected,
                failed: stats.failures.load(Relaxed) + unconnected,
            },
        })
    }
}
