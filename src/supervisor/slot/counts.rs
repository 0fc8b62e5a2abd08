//! What is counted of a slot's workers.

use std::{sync::Arc, time::Duration};

use super::SlotTask;
use crate::{
    cluster::{ExitKind, SlotStats, StartReason, StopReason},
    supervisor::{generation::Generation, node::LoopLag},
};

impl SlotTask {
    /// The counters of this slot, as long as the cluster has it or has had it.
    pub(super) fn counters(&self) -> Option<Arc<SlotStats>> {
        let snapshot = self.cluster.load();
        let entry = snapshot.entry(&self.name);
        let stats = entry.map(|entry| Arc::clone(&entry.slot.stats));
        stats.or_else(|| self.stats.clone())
    }

    /// Counts a generation that was started, `beside` the present one or not, and has it count its
    /// end.
    pub(super) fn count_start(&self, generation: &mut Generation, beside: bool) {
        let why = match (beside, generation.number) {
            (true, _) => StartReason::Replacement,
            (false, 1) => StartReason::First,
            (false, _) => StartReason::Restart,
        };
        let Some(stats) = self.counters() else {
            return;
        };
        stats.worker.started(why);
        generation.stats = Some(stats);
    }

    /// Counts a generation that could not be started.
    pub(super) fn count_failed_start(&self) {
        if let Some(stats) = self.counters() {
            stats.worker.exited(ExitKind::Unknown);
        }
    }

    /// Notes how long the next generation is waited for.
    pub(super) fn count_wait(&self, backoff: Duration) {
        if let Some(stats) = self.counters() {
            stats.worker.waits(backoff);
        }
    }

    /// Counts how long a generation took to become ready.
    pub(super) fn count_ready(&self, after: Duration) {
        if let Some(stats) = self.counters() {
            stats.worker.ready.observe(after);
            stats.worker.lag.forget();
        }
    }
}

impl Generation {
    /// Notes how late its event loop is.
    pub(super) fn count_lag(&self, lag: LoopLag) {
        if let Some(stats) = &self.stats {
            match lag {
                LoopLag::Was(lag) => stats.worker.lag.was(lag),
                LoopLag::Is(lag) => stats.worker.lag.is(lag),
            }
        }
    }

    /// Counts that its end has begun.
    pub(super) fn count_stop(&self, why: StopReason) {
        if let Some(stats) = &self.stats {
            stats.worker.stops(why);
        }
    }
}
