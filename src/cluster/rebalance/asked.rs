//! Who was asked to go home already.

use std::{collections::VecDeque, time::Duration};

use ahash::HashMap;
use tokio::time::Instant;

use super::Stay;
use crate::affinity::AffinityKey;

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
#[derive(Debug, Default)]
pub(super) struct Asked {
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
    /// Forgets those who were asked long ago.
    pub(super) fn forget(&mut self, now: Instant) {
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

    /// Whether a client was asked before, or may have been.
    pub(super) fn knows(&self, stay: &Stay) -> bool {
        let own = self.by_key.get(&stay.key);
        own.is_some_and(|own| own.first <= stay.since)
    }

    /// Until when there is no room to remember another one.
    pub(super) fn full_until(&self) -> Option<Instant> {
        let is_full = self.all.len() >= MOST;
        let (oldest, _) = self.all.front().filter(|_| is_full)?;
        Some(*oldest + REMEMBERED)
    }

    /// Remembers one who is asked.
    pub(super) fn note(&mut self, key: AffinityKey, at: Instant) {
        self.all.push_back((at, key));
        let own = self.by_key.entry(key);
        own.or_insert(Key {
            first: at,
            count: 0,
        })
        .count += 1;
    }
}
