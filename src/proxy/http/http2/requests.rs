//! The requests of a connection, counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// Counts the requests of a connection.
#[derive(Debug)]
pub(super) struct Requests {
    begun: Instant,
    open: AtomicUsize,
    total: AtomicU64,
    /// Milliseconds after the beginning, when the last one ended.
    idle_since: AtomicU64,
    none_open: Notify,
}

/// One open request.
#[derive(Debug)]
pub(super) struct RequestGuard(Arc<Requests>);

impl Requests {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            open: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            none_open: Notify::new(),
        }
    }

    pub(super) fn begin(self: &Arc<Self>) -> RequestGuard {
        self.open.fetch_add(1, Relaxed);
        self.total.fetch_add(1, Relaxed);
        RequestGuard(Arc::clone(self))
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Since when none has been open, if none is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let since = Duration::from_millis(self.idle_since.load(Relaxed));
        (self.open.load(Relaxed) == 0).then(|| self.begun + since)
    }

    /// Waits until none is open.
    pub(super) async fn none_open(&self) {
        loop {
            let ended = self.none_open.notified();
            if self.open.load(Relaxed) == 0 {
                return;
            }
            ended.await;
        }
    }

    fn end(&self) {
        if self.open.fetch_sub(1, Relaxed) == 1 {
            let since = self.begun.elapsed().as_millis();
            let since = u64::try_from(since).unwrap_or(u64::MAX);
            self.idle_since.store(since, Relaxed);
            self.none_open.notify_waiters();
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_idle_from_the_end_of_the_last_one() {
        let begun = Instant::now();
        let requests = Arc::new(Requests::new(begun));
        assert_eq!(requests.idle_since(), Some(begun));
        let [one, other] = [requests.begin(), requests.begin()];
        advance(Duration::from_secs(1)).await;
        drop(one);
        assert_eq!(requests.idle_since(), None);
        advance(Duration::from_secs(1)).await;
        drop(other);
        advance(Duration::from_secs(1)).await;
        assert_eq!(requests.idle_since(), Some(begun + Duration::from_secs(2)));
        assert_eq!(requests.total(), 2);
        requests.none_open().await;
    }
}
