//! Workers that have more memory than they may are replaced: gracefully, not killed.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep_until},
};

use super::SlotTask;
use crate::supervisor::{
    process::resident,
    receipt::SlotReceipt,
    rollout::{Reason, Replace},
};

/// How often a worker is weighed.
const WEIGH_EVERY: Duration = Duration::from_secs(1);
/// One that was not replaced, or is too large again, is not before this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Whether a worker has become too large.
#[derive(Debug)]
pub(super) struct Diet {
    /// The slots of a cluster have one turn between them.
    turn: Arc<Semaphore>,
    /// The turn, while its worker is being replaced.
    under_way: Option<(OwnedSemaphorePermit, oneshot::Receiver<SlotReceipt>)>,
    /// When it is weighed next.
    at: Option<Instant>,
}

/// What a worker may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pid: u32,
    bytes: u64,
}

impl SlotTask {
    /// What the present worker may have, if that is limited.
    pub(super) fn most_memory(&self) -> Option<Most> {
        let present = self.running.as_ref()?;
        let bytes = self.orders.borrow().workers.max_rss?;
        Some(Most {
            pid: present.pid,
            bytes,
        })
    }
}

impl Diet {
    pub(super) const fn new(turn: Arc<Semaphore>) -> Self {
        Self {
            turn,
            under_way: None,
            at: None,
        }
    }

    /// Waits until the worker has too much, and it is this slot's turn. Can be dropped and called
    /// again at any time.
    pub(super) async fn too_big(&mut self, most: Option<Most>) -> Replace {
        let Some(Most { pid, bytes }) = most else {
            return std::future::pending().await;
        };
        if let Some((_turn, receipt)) = &mut self.under_way {
            // The next generation serves; the turn is over when the old one is gone.
            let _receipt = receipt.await;
            self.under_way = None;
        }
        loop {
            sleep_until(*self.at.get_or_insert_with(Instant::now)).await;
            self.at = Some(Instant::now() + WEIGH_EVERY);
            if resident(pid).is_none_or(|resident| resident <= bytes) {
                continue;
            }
            let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else {
                return std::future::pending().await;
            };
            let (answer, receipt) = oneshot::channel();
            self.under_way = Some((turn, receipt));
            self.at = Some(Instant::now() + AGAIN_AFTER);
            let reason = Reason::TooBig;
            return Replace { reason, answer };
        }
    }
}
