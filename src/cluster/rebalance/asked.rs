//! Who was asked to go home already.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ahash::HashMap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Stay;
use crate::{affinity::AffinityKey, handover::Moment};

/// For so long nobody is asked a second time.
pub(super) const REMEMBERED: Duration = Duration::from_secs(3600);
/// So many can be remembered, in some 4 MiB that grow as they are needed.
pub(super) const MOST: usize = 65_536;

/// Clients that were asked within the last hour.
///
/// A client that comes again has another connection and shows the same key. So who has come after
/// its key was asked for the first time is taken for one that was asked: it stays where it is. Who
/// was there before was not, and may be, also when many clients share a key.
///
/// Nobody is forgotten before the hour is over. When there is no room left, nobody else is asked until
/// there is.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<Mutex<Memory>>);

/// An [`Asked`]: when, and by which key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedAsked(Vec<(Moment, u32)>);

#[derive(Debug, Default)]
struct Memory {
    /// Everyone who was asked, the oldest first.
    all: VecDeque<(Instant, AffinityKey)>,
    by_key: HashMap<AffinityKey, Key>,
}

#[derive(Debug)]
struct Key {
    first: Instant,
    /// How many of `all` have it.
    count: usize,
}

impl Asked {
    /// What another image of the program has to know of it.
    #[must_use]
    pub fn saved(&self) -> SavedAsked {
        let memory = self.lock();
        let all = memory.all.iter();
        SavedAsked(all.map(|(at, key)| (Moment::of(*at), key.bits())).collect())
    }

    /// Knows what an earlier image knew. To be called before anybody was asked here.
    pub fn resume(&self, saved: SavedAsked) {
        for (at, key) in saved.0.into_iter().take(MOST) {
            self.note(AffinityKey::from_bits(key), at.instant());
        }
    }

    /// Forgets those who were asked long ago.
    pub(super) fn forget(&self, now: Instant) {
        self.lock().forget(now);
    }

    /// Whether a client was asked before, or may have been.
    pub(super) fn knows(&self, stay: &Stay) -> bool {
        let memory = self.lock();
        let own = memory.by_key.get(&stay.key);
        own.is_some_and(|own| own.first <= stay.since)
    }

    /// Until when there is no room to remember another one.
    pub(super) fn full_until(&self) -> Option<Instant> {
        let memory = self.lock();
        let is_full = memory.all.len() >= MOST;
        let (oldest, _) = memory.all.front().filter(|_| is_full)?;
        Some(*oldest + REMEMBERED)
    }

    /// Remembers one who is asked.
    pub(super) fn note(&self, key: AffinityKey, at: Instant) {
        self.lock().note(key, at);
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn forget(&mut self, now: Instant) {
        while let Some((_, key)) = self.all.pop_front_if(|(at, _)| *at + REMEMBERED <= now) {
            let Some(own) = self.by_key.get_mut(&key) else {
                continue;
            };
            own.count -= 1;
            if own.count == 0 {
                self.by_key.remove(&key);
            }
        }
    }

    fn note(&mut self, key: AffinityKey, at: Instant) {
        self.all.push_back((at, key));
        let own = self.by_key.entry(key);
        own.or_insert(Key {
            first: at,
            count: 0,
        })
        .count += 1;
    }
}
