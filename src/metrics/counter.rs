//! Counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn count(&self) {
        self.add(1);
    }

    /// Counts so many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// How many were counted.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Counter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        u64::deserialize(from).map(|count| Self(AtomicU64::new(count)))
    }
}

/// A counter for each of a few kinds, which have numbers.
#[derive(Debug)]
pub struct Tally<const KINDS: usize>([Counter; KINDS]);

impl<const KINDS: usize> Default for Tally<KINDS> {
    fn default() -> Self {
        Self([const { Counter(AtomicU64::new(0)) }; KINDS])
    }
}

impl<const KINDS: usize> Tally<KINDS> {
    /// Counts one more of a kind; one that there is not is none.
    pub fn count(&self, kind: usize) {
        if let Some(counter) = self.0.get(kind) {
            counter.count();
        }
    }

    /// Counts all that another one has counted.
    pub fn add(&self, other: &Self) {
        for (counter, other) in self.0.iter().zip(&other.0) {
            counter.add(other.get());
        }
    }

    /// How many of a kind were counted.
    #[must_use]
    pub fn get(&self, kind: usize) -> u64 {
        self.0.get(kind).map_or(0, Counter::get)
    }
}

impl<const KINDS: usize> Serialize for Tally<KINDS> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(&self.0)
    }
}

/// One of other kinds is not taken for these: then it begins anew.
impl<'de, const KINDS: usize> Deserialize<'de> for Tally<KINDS> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let counters = Vec::<Counter>::deserialize(from)?;
        Ok(counters.try_into().map_or_else(|_| Self::default(), Self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart() {
        let tally = Tally::<3>::default();
        for kind in [0, 2, 2, 7] {
            tally.count(kind);
        }
        let counted: Vec<_> = (0..4).map(|kind| tally.get(kind)).collect();
        assert_eq!(counted, [1, 0, 2, 0]);
        let text = serde_json::to_string(&tally).unwrap();
        let again: Tally<3> = serde_json::from_str(&text).unwrap();
        again.add(&tally);
        assert_eq!((again.get(0), again.get(2)), (2, 4));
        let other: Tally<4> = serde_json::from_str(&text).unwrap();
        assert_eq!(other.get(0), 0);
    }
}
