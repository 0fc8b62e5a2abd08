//! The end of a slot's present generation, and what is told of it.

use std::{sync::Arc, time::Duration};

use super::SlotTask;
use crate::{
    cluster::{self, Cluster, Skip, Snapshot},
    supervisor::{generation::Ended, receipt::SlotReceipt, report, restart::Verdict},
};

/// What the controller gets to take a worker out of the table before that is told to end.
const TAKEN_OUT_WITHIN: Duration = Duration::from_millis(100);

impl SlotTask {
    /// The process has ended: no client may be sent to it while the rest is looked after.
    pub(super) async fn clean_up(&mut self) -> Option<Ended> {
        let generation = self.running.take()?;
        let stopping = generation.stopping(Skip::Stopping);
        self.cluster.report(stopping).await;
        let command = generation.workers.command.clone();
        let was_better = generation.channel.is_some() || generation.was_ready;
        let ended = generation.clean_up(&self.home).await;
        self.learn_from(&ended, &command, was_better);
        Some(ended)
    }

    pub(super) async fn vacated(&mut self, ended: Option<Ended>, verdict: Verdict) {
        let Some(ended) = ended else { return };
        let why = if verdict.looping {
            Skip::CrashLoop
        } else {
            Skip::Restarting
        };
        report::ended(&self.name, &ended, verdict);
        self.count_wait(verdict.delay);
        let why_not = format!("its worker ended: {}", ended.how);
        let receipt = SlotReceipt {
            stderr: ended.stderr,
            ..SlotReceipt::failed(&self.name, None, why_not)
        };
        if self
            .fresh
            .as_ref()
            .is_some_and(|(_, before)| ended.generation > *before)
        {
            self.tell_fresh(receipt);
        }
        self.gone(ended.generation, why).await;
    }

    pub(super) async fn finished(&mut self, ended: Option<Ended>) {
        self.drained_by = None;
        self.fresh = None;
        if let Some(ended) = ended {
            report::stopped(&self.name, &ended);
            self.gone(ended.generation, Skip::Stopping).await;
        }
    }

    async fn gone(&self, generation: u32, why: Skip) {
        let gone = cluster::Event::Gone {
            slot: Arc::clone(&self.name),
            generation,
            why,
        };
        self.cluster.report(gone).await;
    }
}

/// Waits until clients are sent to this generation.
pub(super) async fn stands_there(cluster: &Cluster, slot: &str, generation: u32) {
    let is_so = |snapshot: &Snapshot| {
        let backend = snapshot.entry(slot).and_then(|e| e.backend.as_ref());
        backend.is_none_or(|backend| backend.generation == generation)
    };
    let _late = cluster.wait_until(TAKEN_OUT_WITHIN, is_so).await;
}

/// Reports that a generation is leaving, and waits until no snapshot sends clients to it.
pub(super) async fn take_out(
    cluster: &Cluster,
    slot: &str,
    generation: u32,
    stopping: cluster::Event,
) {
    cluster.report(stopping).await;
    let is_out = |snapshot: &Snapshot| {
        let backend = snapshot.entry(slot).and_then(|e| e.backend.as_ref());
        backend.is_none_or(|b| b.generation != generation || b.leaving.is_some())
    };
    // A controller that is too busy, or has ended, holds up no end.
    let _late = cluster.wait_until(TAKEN_OUT_WITHIN, is_out).await;
}
