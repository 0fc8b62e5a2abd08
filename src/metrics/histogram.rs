//! How long things take: how many took how long.

use std::{iter, marker::PhantomData, ops::AddAssign, time::Duration};

use super::Counter;

/// How many bounds a histogram has.
pub const STEPS: usize = 14;

/// The upper bounds of a histogram's buckets, in microseconds, rising.
pub trait Scale {
    /// The bounds.
    const BOUNDS: [u64; STEPS];
}

/// For what somebody waits for: half a millisecond to ten seconds.
#[derive(Clone, Copy, Debug)]
pub enum Waits {}

impl Scale for Waits {
    const BOUNDS: [u64; STEPS] = [
        500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
        2_500_000, 5_000_000, 10_000_000,
    ];
}

/// For what lasts: ten milliseconds to a day.
#[derive(Clone, Copy, Debug)]
pub enum Lives {}

impl Scale for Lives {
    const BOUNDS: [u64; STEPS] = [
        10_000,
        100_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
        1_800_000_000,
        3_600_000_000,
        14_400_000_000,
        86_400_000_000,
    ];
}

/// Counts durations. An observation is two additions.
#[derive(Debug)]
pub struct Histogram<S> {
    /// The last one is for what is longer than all bounds.
    buckets: [Counter; STEPS + 1],
    nanos: Counter,
    scale: PhantomData<fn() -> S>,
}

impl<S> Default for Histogram<S> {
    fn default() -> Self {
        Self {
            buckets: Default::default(),
            nanos: Counter::default(),
            scale: PhantomData,
        }
    }
}

impl<S: Scale> Histogram<S> {
    /// Counts one that took so long.
    pub fn observe(&self, duration: Duration) {
        let micros = duration.as_nanos().div_ceil(1_000);
        let bounds = S::BOUNDS.iter();
        let bucket = bounds.take_while(|bound| micros > u128::from(**bound));
        self.buckets[bucket.count()].count();
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.add(nanos);
    }

    /// Shows its counters: a bucket by its upper bound in microseconds.
    pub fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
        let bounds = S::BOUNDS.iter().map(|bound| format!("le{bound}"));
        let names = bounds.chain(iter::once("more".to_owned()));
        for (name, counter) in names.zip(&self.buckets) {
            see(&name, counter);
        }
        see("nanos", &self.nanos);
    }

    /// What was counted so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let bounds = S::BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
        let bounds = bounds.chain(iter::once(f64::INFINITY));
        let buckets = bounds.zip(self.buckets.iter().map(Counter::get));
        Seen {
            buckets: buckets.collect(),
            sum: self.nanos.get() as f64 / 1e9,
        }
    }
}

/// What a histogram has counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The upper bound of each in seconds, and how many fell into it and not into the one before.
    pub buckets: Vec<(f64, u64)>,
    /// All durations together, in seconds.
    pub sum: f64,
}

impl Seen {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// Of the same scale.
impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        if self.buckets.is_empty() {
            *self = other;
            return;
        }
        for ((_, count), (_, more)) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::<Waits>::default();
        for micros in [0, 500, 501, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        histogram.observe(Duration::from_nanos(500_001));
        let seen = histogram.seen();
        let counts: Vec<_> = seen.buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(seen.count(), 6);
        assert!((seen.sum - 20.001_502_001).abs() < 1e-9, "{}", seen.sum);
    }

    #[test]
    fn bounds_rise() {
        for bounds in [Waits::BOUNDS, Lives::BOUNDS] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }

    #[test]
    fn histograms_are_added_bucket_by_bucket() {
        let histogram = Histogram::<Lives>::default();
        histogram.observe(Duration::from_secs(2));
        let mut all = Seen::default();
        all += histogram.seen();
        all += histogram.seen();
        assert_eq!((all.count(), all.sum), (2, 4.0));
        assert_eq!(all.buckets.len(), STEPS + 1);
    }
}
