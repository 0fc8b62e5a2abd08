//! Ids that backends gave their clients, and the generation of a slot that each came from.
//!
//! Such an id says nothing of its home, so it is remembered when it goes by. One that is not known
//! (any more) is hashed like every other: what is forgotten costs one client its place, at most.

use std::{
    hash::{BuildHasher as _, RandomState},
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ahash::HashMap;
use tokio::time::Instant;

use crate::affinity::SlotId;

/// Locks, so that threads rarely meet at one.
const SHARDS: usize = 16;
/// Ids of a shard that came or were used since its last turn: as many as a map of 8192 places
/// takes without growing.
const YOUNG: usize = 7168;
/// Between two turns of a shard that does not fill up before.
const AGE: Duration = Duration::from_secs(3600);

/// Who gave out an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Giver {
    /// The slot, whose next generations stand for it when it has gone.
    pub slot: SlotId,
    /// Its generation, which alone knows the id for as long as it is there.
    pub generation: u32,
}

/// Who gave out which id.
///
/// At most 229,376 of them, in 6.3 MiB (29 bytes each): a flood of new ids pushes out those that
/// were not used for longest, and an id that was used is safe from the next 7,168 that fall into
/// its shard, which is one of 16 by a hash that nobody outside knows. What was not used for two
/// hours is forgotten. An id is kept as 64 bits of its hash; no id is ever taken for another but by
/// a chance of one in 10^13.
#[derive(Debug)]
pub struct Learned {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

/// A part of the ids. Those that were not used between one turn and the next are dropped whole, so
/// that nothing needs to be kept in the order of its use.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<u64, Giver>,
    /// What was young before the last turn, and was not used since.
    old: HashMap<u64, Giver>,
    turned: Option<Instant>,
}

impl Learned {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: Default::default(),
        }
    }

    /// Remembers who gave out an id. Who gave it first made it; who says it later may be
    /// telling of somebody's session, as a page for its operators would.
    pub fn note(&self, id: &[u8], giver: Giver, now: Instant) {
        self.with_shard(id, |shard, hash| shard.note(hash, giver, now));
    }

    /// Who gave out an id.
    #[must_use]
    pub fn find(&self, id: &[u8], now: Instant) -> Option<Giver> {
        self.with_shard(id, |shard, hash| shard.find(hash, now))
    }

    fn with_shard<T>(&self, id: &[u8], use_it: impl FnOnce(&mut Shard, u64) -> T) -> T {
        let hash = self.hasher.hash_one(id);
        let shard = &self.shards[hash as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(&mut shard, hash)
    }
}

impl Shard {
    fn note(&mut self, id: u64, giver: Giver, now: Instant) {
        if self.find(id, now).is_none() {
            self.insert(id, giver, now);
        }
    }

    fn insert(&mut self, id: u64, giver: Giver, now: Instant) {
        if self.young.len() >= YOUNG {
            self.turn(now);
        }
        self.young.insert(id, giver);
    }

    fn find(&mut self, id: u64, now: Instant) -> Option<Giver> {
        self.grow_old(now);
        if let Some(giver) = self.young.get(&id) {
            return Some(*giver);
        }
        let giver = self.old.remove(&id)?;
        self.insert(id, giver, now);
        Some(giver)
    }

    /// Makes the turns that were due since anybody looked.
    fn grow_old(&mut self, now: Instant) {
        let turned = *self.turned.get_or_insert(now);
        let age = now.saturating_duration_since(turned);
        if age >= 2 * AGE {
            self.turn(now);
            self.turn(now);
        } else if age >= AGE {
            self.turn(turned + AGE);
        }
    }

    fn turn(&mut self, at: Instant) {
        self.old = mem::take(&mut self.young);
        self.turned = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: u32) -> Giver {
        Giver {
            slot: SlotId::of(&format!("app/{index}")),
            generation: index,
        }
    }

    #[test]
    fn an_id_leads_to_the_slot_that_gave_it_first() {
        let learned = Learned::new();
        let now = Instant::now();
        assert_eq!(learned.find(b"ann", now), None);
        learned.note(b"ann", slot(1), now);
        learned.note(b"bob", slot(2), now);
        assert_eq!(learned.find(b"ann", now), Some(slot(1)));
        learned.note(b"ann", slot(3), now);
        assert_eq!(learned.find(b"ann", now), Some(slot(1)));
        assert_eq!(learned.find(b"bob", now), Some(slot(2)));
        let later = now + 3 * AGE;
        learned.note(b"ann", slot(3), later);
        assert_eq!(
            learned.find(b"ann", later),
            Some(slot(3)),
            "it was forgotten"
        );
        assert_eq!(learned.find(b"", now), None);
    }

    #[test]
    fn what_is_used_stays_and_what_is_not_is_forgotten() {
        let mut shard = Shard::default();
        let start = Instant::now();
        shard.note(1, slot(1), start);
        shard.note(2, slot(2), start);
        for half_hours in 1..20 {
            let now = start + half_hours * AGE / 2;
            assert_eq!(shard.find(1, now), Some(slot(1)), "{half_hours}");
        }
        assert_eq!(shard.find(2, start + 10 * AGE), None);
        assert_eq!(shard.young.len() + shard.old.len(), 1);
        assert_eq!(
            shard.find(1, start + 20 * AGE),
            None,
            "nobody came for long"
        );
    }

    #[test]
    fn an_id_is_known_for_one_age_at_least_and_two_at_most() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        for used in [Duration::ZERO, second, AGE / 2, AGE - second] {
            let known_after = |since_use: Duration| {
                let mut shard = Shard::default();
                shard.note(2, slot(2), start);
                shard.note(1, slot(1), start + used);
                // Others keep the shard turning.
                let mut now = start + used;
                while now < start + used + since_use {
                    let _other = shard.find(2, now);
                    now += 60 * second;
                }
                shard.find(1, start + used + since_use).is_some()
            };
            assert!(known_after(AGE), "{used:?}");
            assert!(!known_after(2 * AGE), "{used:?}");
        }
    }

    #[test]
    fn a_flood_pushes_out_only_what_was_not_used_for_longest() {
        let mut shard = Shard::default();
        let now = Instant::now();
        let (lively, idle) = (u64::MAX, u64::MAX - 1);
        shard.note(lively, slot(1), now);
        shard.note(idle, slot(2), now);
        for id in 0..100_000 {
            shard.note(id, slot(9), now);
            assert!(shard.young.len() <= YOUNG && shard.old.len() <= YOUNG);
            if id % 5000 == 0 {
                assert_eq!(shard.find(lively, now), Some(slot(1)), "{id}");
            }
        }
        assert_eq!(shard.find(idle, now), None);
        assert!(
            shard.young.capacity() <= YOUNG,
            "{}",
            shard.young.capacity()
        );
    }

    #[test]
    fn the_table_is_bounded() {
        let learned = Learned::new();
        let now = Instant::now();
        for id in 0..400_000_u32 {
            learned.note(&id.to_le_bytes(), slot(1), now);
        }
        let known = learned.shards.iter().map(|shard| {
            let shard = shard.lock().unwrap();
            shard.young.len() + shard.old.len()
        });
        let known: usize = known.sum();
        assert!(
            known <= 2 * YOUNG * SHARDS && known > YOUNG * SHARDS,
            "{known}"
        );
        assert_eq!(learned.find(&399_999_u32.to_le_bytes(), now), Some(slot(1)));
        assert_eq!(learned.find(&0_u32.to_le_bytes(), now), None);
    }
}
