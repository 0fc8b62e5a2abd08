//! What is counted of a slot's workers.

use std::{sync::Arc, time::Duration};

use super::SlotTask;
use crate::{
    cluster::{SlotStats, StartReason},
    supervisor::generation::Generation,
};

impl SlotTask {
    /// The counters of this slot, as long as the cluster has it or has had it.
    pub(super) fn counters(&self) -> Option<Arc<SlotStats>> {
        let snapshot = self.cluster.load();
        let entry = snapshot.entry(&self.name);
        let stats = entry.map(|entry| Arc::clone(&entry.slot.stats));
        stats.or_else(|| self.stats.clone())
    }

    /// Counts a generation that was started, and has it count its end.
    pub(super) fn count_start(&self, generation: &mut Generation, why: StartReason) {
        let Some(stats) = self.counters() else {
            return;
        };
        stats.worker.started(why);
        generation.stats = Some(stats);
    }

    /// Counts how long a generation took to become ready.
    pub(super) fn count_ready(&self, after: Duration) {
        if let Some(stats) = self.counters() {
            stats.worker.ready.observe(after);
        }
    }
}
