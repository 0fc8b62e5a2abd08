//! How much a slot may be given at a moment: what it has, what it may have, and how long it has
//! been back.

use std::{cell::OnceCell, sync::atomic::Ordering::Relaxed};

use tokio::time::Instant;

use super::{Entry, Skip, Snapshot};
use crate::affinity::AffinityKey;

/// So many are never too many for a slot: of so few, chance or a single client's own decide.
const FLOOR: u64 = 16;

/// What a decision looks at beyond its snapshot.
pub trait View {
    /// The time.
    fn now(&self) -> Instant;
    /// What the slot at this index has now: connections, or in HTTP requests.
    fn active(&self, index: usize) -> u64;
    /// Whether it has no seat to give.
    fn is_full(&self, index: usize) -> bool {
        self.free(index) == 0
    }
    /// How many seats it has to give.
    fn free(&self, index: usize) -> usize;
}

/// The slots of a snapshot as they are now.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a>(&'a Snapshot);

impl View for Live<'_> {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn active(&self, index: usize) -> u64 {
        self.0.entries[index].slot.stats.active.load(Relaxed)
    }

    fn free(&self, index: usize) -> usize {
        self.0.entries[index].slot.stats.seats.free()
    }
}

impl Snapshot {
    /// What the counters of its slots say.
    #[must_use]
    pub const fn live(&self) -> Live<'_> {
        Live(self)
    }

    /// The same, with `now` noted for slots that were down `before` and have come back. One that
    /// has never taken clients does not come back.
    pub(super) fn with_returns(mut self, before: &Self, now: Instant) -> Self {
        if self.config.balance.slow_start.is_none() {
            return self;
        }
        for entry in &mut self.entries {
            if entry.skip.is_some() {
                continue;
            }
            let was = before.entry(&entry.slot.name).and_then(|entry| entry.skip);
            let is_first = entry.backend.as_ref().is_some_and(|b| b.generation == 1);
            if was.is_some_and(|why| !(why == Skip::Starting && is_first)) {
                entry.returned = Some(now);
            }
        }
        self
    }

    /// Gives every slot the number of seats that is configured.
    pub(super) fn set_seats(&self) {
        let capacity = self.config.balance.capacity.as_ref();
        let seats = capacity.map_or(0, |capacity| capacity.per_slot.get());
        for entry in &self.entries {
            entry.slot.stats.seats.set(seats);
        }
    }
}

/// Judges slots by their load, for one decision.
#[derive(Debug)]
pub(super) struct Scales<'a, V> {
    snapshot: &'a Snapshot,
    view: &'a V,
    /// What there is in all usable slots for each unit of weight, with the one to come.
    level: OnceCell<f64>,
}

impl<'a, V: View> Scales<'a, V> {
    pub(super) const fn new(snapshot: &'a Snapshot, view: &'a V) -> Self {
        Self {
            snapshot,
            view,
            level: OnceCell::new(),
        }
    }

    /// Whether the slot has room for nobody at all.
    pub(super) fn is_full(&self, index: usize) -> bool {
        self.snapshot.config.balance.capacity.is_some() && self.view.is_full(index)
    }

    /// Whether the slot has not been back for long enough to take this client: as time goes by, it
    /// takes one after the other of them, in the order of their ranks.
    pub(super) fn is_warming_up(&self, index: usize, key: AffinityKey) -> bool {
        let Some(slow_start) = self.snapshot.config.balance.slow_start else {
            return false;
        };
        let Some(returned) = self.snapshot.entries[index].returned else {
            return false;
        };
        let progress = self.view.now().saturating_duration_since(returned);
        key.rank() >= progress.div_duration_f64(slow_start)
    }

    /// Whether the slot has its bound already.
    pub(super) fn is_overloaded(&self, index: usize) -> bool {
        let Some(max_load) = self.snapshot.config.balance.max_load else {
            return false;
        };
        let active = self.view.active(index);
        if active < FLOOR {
            return false;
        }
        let level = *self.level.get_or_init(|| self.level());
        let weight = f64::from(self.snapshot.entries[index].slot.weight.get());
        active >= bound(max_load, level * weight)
    }

    fn level(&self) -> f64 {
        let entries = self.snapshot.entries.iter().enumerate();
        let usable = entries.filter(|(_, entry): &(usize, &Entry)| entry.skip.is_none());
        let (all, weights) = usable.fold((1, 0), |(all, weights), (index, entry)| {
            let weight = u64::from(entry.slot.weight.get());
            (all + self.view.active(index), weights + weight)
        });
        all as f64 / weights.max(1) as f64
    }
}

/// The most that a slot may have when its fair share of all, with the one to come, is `share`
/// (Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", 2016).
///
/// A hash is no dealer of cards: a slot whose share is n gets n ± √n of even clients. So the bound
/// is never nearer to the share than three of these deviations, or it would move clients of slots
/// that are loaded as evenly as can be; `max_load` = 1.25 is the greater from 144 on.
fn bound(max_load: f64, share: f64) -> u64 {
    let most = (share * max_load).max(3.0_f64.mul_add(share.sqrt(), share));
    (most.ceil() as u64).max(FLOOR)
}

#[cfg(test)]
mod tests;
