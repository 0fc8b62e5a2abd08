//! Waiting in front of a slot that has all the clients that it may have.

use std::sync::Arc;

use tokio::time::Instant;

use super::Search;
use crate::{
    cluster::{Seat, Snapshot, Waiting},
    proxy::record::Journey,
};

/// The slot in which the client has a seat.
pub(super) fn seated(snapshot: &Snapshot, journey: &Journey) -> Option<usize> {
    let seat = journey.seat()?;
    let mut entries = snapshot.entries.iter();
    entries.position(|entry| seat.is_in(&entry.slot.stats))
}

/// Sees to it that the client has a seat in the slot, where seats are counted. False when the last
/// one was taken a moment ago.
pub(super) fn take_seat(snapshot: &Snapshot, index: usize, journey: &mut Journey) -> bool {
    let stats = &snapshot.entries[index].slot.stats;
    if snapshot.config.balance.capacity.is_none() {
        journey.sit(None);
        return true;
    }
    if !journey.seat().is_some_and(|seat| seat.is_in(stats)) {
        journey.sit(Seat::take(stats));
    }
    journey.seat().is_some()
}

impl Search<'_> {
    pub(super) fn may_queue(&self) -> bool {
        self.tried
            .queue_until
            .is_none_or(|until| Instant::now() < until)
    }

    /// Waits for a seat, for as long as the slot takes clients and the client has time.
    pub(super) async fn queue(&mut self, snapshot: &Snapshot, index: usize, journey: &mut Journey) {
        let Some(capacity) = &snapshot.config.balance.capacity else {
            return;
        };
        let began = Instant::now();
        let longest = began + capacity.queue_timeout;
        let until = *self.tried.queue_until.get_or_insert(longest);
        let stats = &snapshot.entries[index].slot.stats;
        let Some(waiting) = Waiting::join(stats, capacity.queue_length) else {
            self.tried.queue_until = Some(began);
            return;
        };
        let is_over = |now: &Snapshot| {
            let mut entries = now.entries.iter();
            let is_open = entries.any(|entry| {
                let is_same = Arc::ptr_eq(&entry.slot.stats, stats);
                is_same && entry.skip.is_none()
            });
            !is_open || !Arc::ptr_eq(&now.config, &snapshot.config)
        };
        let left = until.saturating_duration_since(began);
        journey.sit(None);
        tokio::select! {
            biased;
            seat = waiting.seat() => journey.sit(Some(seat)),
            _over = self.cluster.wait_until(left, is_over) => {}
        }
        journey.detour_mut().queued += began.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::config::{Capacity, Cluster, Source, Workers};

    #[test]
    fn who_was_too_late_for_the_last_seat_has_none() {
        let workers = Workers::new(vec!["true".into()], NonZeroUsize::MIN);
        let mut config = Cluster::new("app", Source::Workers(Arc::new(workers)));
        config.balance.capacity = Some(Capacity::of(NonZeroUsize::MIN));
        let (cluster, _controller) = crate::cluster::Cluster::new(&config);
        let snapshot = cluster.load();
        let [mut fast, mut late] = [(); 2].map(|()| Journey::default());
        assert!(take_seat(&snapshot, 0, &mut fast));
        assert_eq!(seated(&snapshot, &fast), Some(0));
        assert!(take_seat(&snapshot, 0, &mut fast), "the same");
        assert!(!take_seat(&snapshot, 0, &mut late));
        drop(fast);
        assert!(take_seat(&snapshot, 0, &mut late));
    }
}
