//! How long units of work took, in buckets of 1.6 % width, so that recording one allocates nothing.

use std::{fmt, time::Duration};

/// Buckets to a doubling of the time: 2 to the power of this.
const STEPS: u32 = 6;
/// Up to 2⁴⁰ ns, 18 minutes.
const BUCKETS: usize = (40 - STEPS as usize + 1) << STEPS;

/// The times of some units.
pub(crate) struct Latencies {
    counts: Vec<u32>,
    all: u64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            all: 0,
        }
    }

    pub(crate) fn add(&mut self, took: Duration) {
        let bucket = bucket_of(took.as_nanos().try_into().unwrap_or(u64::MAX));
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.all += 1;
    }

    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
        self.all = 0;
    }

    /// The time that this share of the units did not exceed, in microseconds; `None` of none.
    pub(crate) fn percentile(&self, share: f64) -> Option<f64> {
        let wanted = (self.all as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|&count| {
            seen += u64::from(count);
            seen >= wanted
        });
        Some(end_of(bucket?) as f64 / 1e3)
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latencies of {}", self.all)
    }
}

fn bucket_of(nanos: u64) -> usize {
    let shift = nanos.max(1).ilog2().saturating_sub(STEPS);
    let octave = usize::try_from(shift).unwrap_or(0) << STEPS;
    octave + usize::try_from(nanos >> shift).unwrap_or(usize::MAX / 2)
}

/// The greatest time of a bucket, in nanoseconds.
const fn end_of(bucket: usize) -> u64 {
    let steps = 1 << STEPS;
    if bucket < 2 * steps {
        return bucket as u64;
    }
    let shift = bucket / steps - 1;
    ((bucket - shift * steps + 1) as u64) << shift
}
