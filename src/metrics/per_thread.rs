//! Counters that each thread has for itself.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// So many threads count apart; those beyond meet some of the others, which costs time and no count.
const SHARDS: usize = 8;

/// The same counters once for each of a few threads, far enough apart in memory that none waits for
/// a cache line of another.
#[derive(Debug, Default)]
pub struct PerThread<T>([Shard<T>; SHARDS]);

/// Processors fetch pairs of lines of 64 bytes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard<T>(T);

impl<T> PerThread<T> {
    /// Those of this thread.
    #[must_use]
    pub fn mine(&self) -> &T {
        &self.0[this_thread() % SHARDS].0
    }

    /// Those of all threads.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|shard| &shard.0)
    }

    /// A number of all threads together.
    pub fn sum(&self, of: impl Fn(&T) -> u64) -> u64 {
        self.all().map(of).sum()
    }
}

/// A number that is this thread's for as long as it lives; they are given out in turn.
fn this_thread() -> usize {
    const NONE: usize = usize::MAX;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(NONE) };
    }
    // A thread that is ending counts with the first.
    let mine = MINE.try_with(|mine| {
        if mine.get() == NONE {
            mine.set(NEXT.fetch_add(1, Relaxed));
        }
        mine.get()
    });
    mine.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counter;

    #[test]
    fn nothing_is_lost_between_threads() {
        let counters = PerThread::<Counter>::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| (0..100).for_each(|_| counters.mine().count()));
            }
        });
        assert_eq!(counters.sum(Counter::get), 200 * SHARDS as u64);
    }
}
