//! The clients that live with a generation: those that have a connection there which is relayed.

use std::{
    collections::hash_map::Entry,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::HashMap;

use super::Load;
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

    fn all(&self) -> MutexGuard<'_, HashMap<AffinityKey, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that stays, for as long as this is there.
#[derive(Debug)]
pub struct Resident {
    load: Arc<Load>,
    key: AffinityKey,
}

impl Resident {
    /// A connection of the client of this key.
    #[must_use]
    pub fn new(load: Arc<Load>, key: AffinityKey) -> Self {
        *load.residents.all().entry(key).or_default() += 1;
        Self { load, key }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        if let Entry::Occupied(mut connections) = self.load.residents.all().entry(self.key) {
            *connections.get_mut() -= 1;
            if *connections.get() == 0 {
                connections.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_lives_there_until_its_last_connection_has_ended() {
        let load = Arc::<Load>::default();
        let [ann, bob] = [1, 2].map(AffinityKey::from_bits);
        let first = Resident::new(Arc::clone(&load), ann);
        let second = Resident::new(Arc::clone(&load), ann);
        assert!(load.residents.has(ann) && !load.residents.has(bob));
        drop(first);
        assert!(load.residents.has(ann));
        drop(second);
        assert!(!load.residents.has(ann));
        assert!(load.residents.all().is_empty(), "nothing is left of it");
    }
}
