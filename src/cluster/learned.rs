//! Ids that backends gave their clients, and the generation of a slot that each came from.
//!
//! Such an id says nothing of its home, so it is remembered when it goes by. One that is not known
//! (any more) is hashed like every other: what is forgotten costs one client its place, at most.

use std::{
    mem,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use ahash::HashMap;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use tokio::time::Instant;

use crate::{
    affinity::SlotId,
    handover::{Moment, text},
};

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
    /// Set when it is first needed, or by an earlier image of the program.
    secret: OnceLock<[u64; 2]>,
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
            secret: OnceLock::new(),
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
        let [first, second] = *self.secret.get_or_init(random);
        let hash = SipHasher13::new_with_keys(first, second).hash(id);
        use_it(&mut lock(&self.shards[hash as usize % SHARDS]), hash)
    }

    /// What another image of the program has to know of it, when there is anything.
    #[must_use]
    pub fn saved(&self) -> Option<SavedLearned> {
        let secret = *self.secret.get()?;
        let shards = self.shards.iter().map(|shard| {
            let shard = lock(shard);
            SavedShard {
                young: packed(&shard.young),
                old: packed(&shard.old),
                turned: shard.turned.map(Moment::of),
            }
        });
        Some(SavedLearned {
            secret,
            shards: shards.collect(),
        })
    }

    /// Knows what an earlier image knew. To be called before anything was learned here.
    pub fn resume(&self, saved: SavedLearned) {
        if saved.shards.len() != SHARDS || self.secret.set(saved.secret).is_err() {
            return;
        }
        for (shard, saved) in self.shards.iter().zip(saved.shards) {
            *lock(shard) = Shard {
                young: unpacked(&saved.young),
                old: unpacked(&saved.old),
                turned: saved.turned.map(Moment::instant),
            };
        }
    }
}

/// A [`Learned`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedLearned {
    secret: [u64; 2],
    shards: Vec<SavedShard>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedShard {
    #[serde(with = "text")]
    young: Vec<u8>,
    #[serde(with = "text")]
    old: Vec<u8>,
    turned: Option<Moment>,
}

/// Nobody outside shall know which ids meet in a shard.
fn random() -> [u64; 2] {
    [(); 2].map(|()| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the kernel has random bytes");
        u64::from_ne_bytes(bytes)
    })
}

/// Ids, slots and generations: eight, eight and four bytes each.
fn packed(ids: &HashMap<u64, Giver>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ids.len() * 20);
    for (id, giver) in ids {
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(&giver.slot.bits().to_be_bytes());
        bytes.extend_from_slice(&giver.generation.to_be_bytes());
    }
    bytes
}

fn unpacked(bytes: &[u8]) -> HashMap<u64, Giver> {
    let (all, _) = bytes.as_chunks::<20>();
    let all = all.iter().take(YOUNG);
    all.filter_map(|one| {
        let (id, rest) = one.split_first_chunk()?;
        let (slot, rest) = rest.split_first_chunk()?;
        let giver = Giver {
            slot: SlotId::from_bits(u64::from_be_bytes(*slot)),
            generation: u32::from_be_bytes(rest.try_into().ok()?),
        };
        Some((u64::from_be_bytes(*id), giver))
    })
    .collect()
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn another_image_knows_what_this_one_knew() {
        let learned = Learned::new();
        let now = Instant::now();
        assert!(learned.saved().is_none());
        for id in 0..20_000_u32 {
            learned.note(&id.to_le_bytes(), slot(id % 7), now);
        }
        let text = serde_json::to_string(&learned.saved().unwrap()).unwrap();
        let next = Learned::new();
        next.resume(serde_json::from_str(&text).unwrap());
        for id in 0..20_000_u32 {
            let found = next.find(&id.to_le_bytes(), now + AGE / 2);
            assert_eq!(found, Some(slot(id % 7)), "{id}");
        }
        assert_eq!(next.find(b"never", now), None);
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
