//! The clients that live with a generation: those that have a connection there which is relayed.

use std::{
    collections::hash_map::Entry,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ahash::HashMap;

use crate::affinity::AffinityKey;

/// How many such connections each of them has. Asked only while the generation drains.
#[derive(Debug, Default)]
pub struct Residents(Mutex<HashMap<AffinityKey, u32>>);

impl Residents {
    /// Whether the client of this key is one.
    #[must_use]
    pub fn has(&self, key: AffinityKey) -> bool {
        self.all().contains_key(&key)
    }

    /// One more connection of the client of this key, until it [leaves](Self::leave).
    pub fn enter(&self, key: AffinityKey) {
        *self.all().entry(key).or_default() += 1;
    }

    /// One fewer.
    pub fn leave(&self, key: AffinityKey) {
        if let Entry::Occupied(mut connections) = self.all().entry(key) {
            *connections.get_mut() -= 1;
            if *connections.get() == 0 {
                connections.remove();
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<AffinityKey, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_lives_there_until_its_last_connection_has_ended() {
        let residents = Residents::default();
        let [ann, bob] = [1, 2].map(AffinityKey::from_bits);
        residents.enter(ann);
        residents.enter(ann);
        assert!(residents.has(ann) && !residents.has(bob));
        residents.leave(ann);
        assert!(residents.has(ann));
        residents.leave(ann);
        assert!(!residents.has(ann));
        assert!(residents.all().is_empty(), "nothing is left of it");
    }
}
