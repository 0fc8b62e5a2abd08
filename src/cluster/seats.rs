//! How many clients a slot may have at one time, and the queue of those who wait for it.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::Semaphore;

use super::SlotStats;

/// The seats of a slot. Who takes one when there are any takes no lock; who leaves takes one that
/// is held for a moment, to wake the first who waits.
#[derive(Debug)]
pub struct Seats {
    free: Semaphore,
    /// How many there are.
    set: AtomicUsize,
    /// How many must go when those who sit in them leave, as there are fewer now.
    surplus: AtomicUsize,
    waiting: AtomicUsize,
}

/// A seat that is taken, until it is dropped.
#[derive(Debug)]
pub struct Seat(Arc<SlotStats>);

/// A place in the queue, until it is dropped.
#[derive(Debug)]
pub struct Waiting(Arc<SlotStats>);

impl Default for Seats {
    /// None, and nobody asks.
    fn default() -> Self {
        Self {
            free: Semaphore::const_new(0),
            set: AtomicUsize::new(0),
            surplus: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Seats {
    /// Whether none is free; then who comes has to queue behind those who wait.
    #[must_use]
    pub fn are_taken(&self) -> bool {
        self.free.available_permits() == 0
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Who waits now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// How many there are from now on. Nobody is thrown out; clients who came while there was no
    /// limit are not counted. Only the controller may.
    pub(super) fn set(&self, seats: usize) {
        let before = self.set.swap(seats, Relaxed);
        if seats > before {
            let more = seats - before;
            let due = |surplus: usize| Some(surplus.saturating_sub(more));
            let surplus = self.surplus.fetch_update(Relaxed, Relaxed, due);
            self.free.add_permits(more - more.min(surplus.unwrap_or(0)));
        } else {
            let fewer = before - seats;
            let gone = self.free.forget_permits(fewer);
            self.surplus.fetch_add(fewer - gone, Relaxed);
        }
    }

    fn leave(&self) {
        let fewer = |surplus: usize| surplus.checked_sub(1);
        if self.surplus.fetch_update(Relaxed, Relaxed, fewer).is_err() {
            self.free.add_permits(1);
        }
    }
}

impl Seat {
    /// A free seat of the slot with these counters, if there is one.
    #[must_use]
    pub fn take(stats: &Arc<SlotStats>) -> Option<Self> {
        stats.seats.free.try_acquire().ok()?.forget();
        Some(Self(Arc::clone(stats)))
    }

    /// Whether it is one of that slot.
    #[must_use]
    pub fn is_in(&self, stats: &Arc<SlotStats>) -> bool {
        Arc::ptr_eq(&self.0, stats)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.seats.leave();
    }
}

impl Waiting {
    /// Queues up for the slot with these counters, unless `length` do already.
    #[must_use]
    pub fn join(stats: &Arc<SlotStats>, length: usize) -> Option<Self> {
        // The guard is made first: when it is refused, its drop takes the count back.
        let before = stats.seats.waiting.fetch_add(1, Relaxed);
        let waiting = Self(Arc::clone(stats));
        (before < length).then_some(waiting)
    }

    /// Waits for a seat, in the order in which this was first polled.
    pub async fn seat(self) -> Seat {
        match self.0.seats.free.acquire().await {
            Ok(free) => free.forget(),
            // It is never closed.
            Err(_) => pending().await,
        }
        Seat(Arc::clone(&self.0))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.seats.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn stats(seats: usize) -> Arc<SlotStats> {
        let stats = Arc::<SlotStats>::default();
        stats.seats.set(seats);
        stats
    }

    #[test]
    fn seats_go_to_those_who_wait_in_their_order() {
        let stats = stats(2);
        let [first, second] = [(); 2].map(|()| Seat::take(&stats).unwrap());
        assert!(stats.seats.are_taken() && Seat::take(&stats).is_none());
        let mut waiting = [(); 3].map(|()| Box::pin(Waiting::join(&stats, 3).unwrap().seat()));
        assert!(Waiting::join(&stats, 3).is_none(), "three may wait");
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let [mut early, impatient, mut late] = waiting;
        drop(impatient);
        assert_eq!(stats.seats.waiting(), 2);
        drop(first);
        assert!(Seat::take(&stats).is_none(), "it is for who waited");
        assert!(late.as_mut().now_or_never().is_none());
        let early = early.as_mut().now_or_never().unwrap();
        assert!(early.is_in(&stats));
        drop(second);
        let _late = late.as_mut().now_or_never().unwrap();
        assert_eq!(stats.seats.waiting(), 0);
    }

    #[test]
    fn fewer_seats_are_reached_as_clients_leave() {
        let stats = stats(4);
        let mut taken = Vec::from([(); 3].map(|()| Seat::take(&stats)));
        stats.seats.set(1);
        assert!(stats.seats.are_taken());
        for _ in 0..2 {
            taken.pop();
            assert!(Seat::take(&stats).is_none());
        }
        taken.pop();
        let last = Seat::take(&stats);
        assert!(last.is_some() && Seat::take(&stats).is_none());
    }

    #[test]
    fn seats_that_come_and_go_are_never_too_many() {
        let stats = stats(3);
        let taken = [(); 3].map(|()| Seat::take(&stats));
        for seats in [0, 2, 1, 5, 0, 4] {
            stats.seats.set(seats);
        }
        let mut more: Vec<_> = std::iter::from_fn(|| Seat::take(&stats)).collect();
        assert_eq!(more.len(), 1, "of four");
        drop(taken);
        more.extend(std::iter::from_fn(|| Seat::take(&stats)));
        assert_eq!(more.len(), 4);
    }
}
