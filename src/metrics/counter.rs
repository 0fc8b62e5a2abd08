//! Counters.

use std::{
    fmt::Display,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

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

    /// Forgets what was counted.
    pub fn forget(&self) {
        for counter in &self.0 {
            counter.0.store(0, Relaxed);
        }
    }

    /// Shows the counter of each kind, under these names of theirs.
    pub fn each<N: Display>(
        &self,
        names: impl IntoIterator<Item = N>,
        see: &mut dyn FnMut(&str, &Counter),
    ) {
        for (name, counter) in names.into_iter().zip(&self.0) {
            see(&name.to_string(), counter);
        }
    }

    /// How many of a kind were counted.
    #[must_use]
    pub fn get(&self, kind: usize) -> u64 {
        self.0.get(kind).map_or(0, Counter::get)
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
    }
}
