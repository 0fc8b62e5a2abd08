//! A rolling restart of a cluster: slot after slot, until one does not get ready.

use std::{num::NonZeroUsize, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::receipt::{Outcome, SlotReceipt};

/// What a slot is asked to do.
#[derive(Debug)]
pub(super) struct Replace {
    pub reason: Reason,
    /// Dropped when the slot leaves meanwhile.
    pub answer: oneshot::Sender<SlotReceipt>,
}

/// Why a worker is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Somebody asked for it.
    Asked,
    /// The workers' configuration has changed; one that runs as it says is left alone.
    Changed,
    /// It has more memory than it may.
    TooBig,
}

/// A slot that takes part.
#[derive(Clone, Debug)]
pub(super) struct Participant {
    pub slot: Arc<str>,
    pub ask: mpsc::Sender<Replace>,
}

/// Replaces the workers of these slots, at most `parallel` at a time, and tells what came of each.
/// The first that fails is the last that is begun; `stop` ends it after those that are under way, and `ended` is dropped at its end.
pub(super) async fn roll(
    cluster: Arc<str>,
    slots: Vec<Participant>,
    parallel: NonZeroUsize,
    reason: Reason,
    progress: mpsc::Sender<SlotReceipt>,
    (stop, ended): (CancellationToken, DropGuard),
) {
    let mut waiting = slots.into_iter();
    let mut under_way = JoinSet::new();
    let (mut replaced, mut failed) = (0, false);
    loop {
        while under_way.len() < parallel.get() && !failed && !stop.is_cancelled() {
            let Some(slot) = waiting.next() else { break };
            under_way.spawn(replace(slot, reason));
        }
        let Some(receipt) = under_way.join_next().await else {
            break;
        };
        let Ok(Some(receipt)) = receipt else { continue };
        failed |= receipt.outcome == Outcome::Failed;
        replaced += usize::from(receipt.outcome == Outcome::Replaced);
        // Whoever asked may have gone; it goes on.
        let _nobody_looks = progress.send(receipt).await;
    }
    for slot in waiting {
        let receipt = SlotReceipt::untouched(&slot.slot, "another slot was not replaced");
        let _nobody_looks = progress.send(receipt).await;
    }
    drop(ended);
    match failed {
        true => warn!(
            %cluster,
            "rolling restart of {cluster} aborted after {replaced} slots; those not replaced go on \
             as they were"
        ),
        false if replaced > 0 => {
            info!(%cluster, "rolling restart of {cluster}: {replaced} replaced")
        }
        false => {}
    }
}

/// `None` for a slot that has left meanwhile.
async fn replace(slot: Participant, reason: Reason) -> Option<SlotReceipt> {
    let (answer, answered) = oneshot::channel();
    slot.ask.send(Replace { reason, answer }).await.ok()?;
    answered.await.ok()
}
