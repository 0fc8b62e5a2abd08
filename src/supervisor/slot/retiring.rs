//! A slot that leaves: its worker stays until its last connection has ended.

use std::{io, sync::atomic::Ordering, time::Duration};

use tokio::{task::spawn_blocking, time::Instant};
use tracing::warn;

use super::SlotTask;
use crate::supervisor::worker::Event;

/// How often a retired slot is asked whether its last connection has ended.
const DRAIN_POLL: Duration = Duration::from_millis(50);
/// The same where the kernel has to be asked, which costs more.
const DIRECT_DRAIN_POLL: Duration = Duration::from_millis(250);

impl SlotTask {
    /// Whether a retired slot has served its last connection.
    pub(super) async fn drained(&mut self) -> Option<Event> {
        let by = self.drained_by?;
        let active = self
            .stats
            .as_ref()
            .map_or(0, |stats| stats.active.load(Ordering::Relaxed));
        if Instant::now() < by && (active > 0 || self.has_direct_connections().await) {
            return None;
        }
        self.drained_by = None;
        Some(Event::Stop)
    }

    async fn has_direct_connections(&self) -> bool {
        let doors = self.orders.borrow().entrances.doors.clone();
        let (Some(doors), Some(generation)) = (doors, &self.running) else {
            return false;
        };
        let (index, pid) = (self.room.index(), generation.pid);
        let counted = spawn_blocking(move || doors.connections(index, pid)).await;
        match counted.map_err(io::Error::from).flatten() {
            Ok(connections) => connections > 0,
            Err(error) => {
                warn!(slot = %self.name, %error, "its connections cannot be counted: it ends now");
                false
            }
        }
    }

    pub(super) fn drain_poll(&self) -> Duration {
        match self.orders.borrow().entrances.doors {
            Some(_) => DIRECT_DRAIN_POLL,
            None => DRAIN_POLL,
        }
    }
}
