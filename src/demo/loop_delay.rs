//! How late the event loop is: the demo's `perf_hooks.monitorEventLoopDelay`.
//!
//! A timer that should fire every 20 ms measures how late it does. Of each 100 ms the worst is kept
//! for a minute, and the worst of every two such windows goes to the pages.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

const PERIOD: Duration = Duration::from_millis(20);
const WINDOW: Duration = Duration::from_millis(100);
const WINDOWS_PER_PUSH: u32 = 2;
const KEPT: usize = 600;

/// The delays of the last minute.
#[derive(Debug)]
pub(super) struct LoopDelay {
    windows: Mutex<VecDeque<Duration>>,
    latest: watch::Sender<f64>,
}

/// The delays in numbers; all times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// The length of a window.
    window_ms: u128,
    /// The worst of all.
    max_ms: f64,
    /// 95 % of the windows were not worse than this.
    p95_ms: f64,
    /// The worst of each window, oldest first.
    samples: Vec<f64>,
}

impl LoopDelay {
    /// Nothing measured yet.
    pub(super) fn new() -> Self {
        Self {
            windows: Mutex::new(VecDeque::with_capacity(KEPT)),
            latest: watch::Sender::new(0.0),
        }
    }

    /// Measures for ever; the task must run on the loop in question.
    pub(super) async fn measure(&self) {
        let started = Instant::now();
        let mut window = Window::default();
        let (mut pushed, mut worst) = (0, Duration::ZERO);
        loop {
            let due = Instant::now() + PERIOD;
            sleep_until(due).await;
            let now = Instant::now();
            let Some(max) = window.add(now - started, now - due) else {
                continue;
            };
            self.keep(max);
            worst = worst.max(max);
            pushed += 1;
            if pushed == WINDOWS_PER_PUSH {
                self.latest.send_replace(millis(worst));
                (pushed, worst) = (0, Duration::ZERO);
            }
        }
    }

    /// The worst delay in milliseconds, new about five times a second.
    pub(super) fn latest(&self) -> watch::Receiver<f64> {
        self.latest.subscribe()
    }

    /// The last minute.
    pub(super) fn report(&self) -> Report {
        let samples: Vec<f64> = self.lock().iter().copied().map(millis).collect();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() * 95).div_ceil(100).saturating_sub(1);
        Report {
            window_ms: WINDOW.as_millis(),
            max_ms: sorted.last().copied().unwrap_or_default(),
            p95_ms: sorted.get(at).copied().unwrap_or_default(),
            samples,
        }
    }

    fn keep(&self, max: Duration) {
        let mut windows = self.lock();
        if windows.len() == KEPT {
            windows.pop_front();
        }
        windows.push_back(max);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Duration>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The window that is being filled.
#[derive(Debug, Default)]
struct Window {
    since: Duration,
    max: Duration,
}

impl Window {
    /// Adds a delay measured at `now` (since the start); the worst of the window when that closes it.
    fn add(&mut self, now: Duration, late: Duration) -> Option<Duration> {
        self.max = self.max.max(late);
        if now < self.since + WINDOW {
            return None;
        }
        self.since = now;
        Some(std::mem::take(&mut self.max))
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn a_window_gives_its_worst_once() {
        let mut window = Window::default();
        assert_eq!(window.add(ms(21), ms(1)), None);
        assert_eq!(window.add(ms(50), ms(9)), None);
        assert_eq!(window.add(ms(101), ms(2)), Some(ms(9)));
        assert_eq!(window.add(ms(122), ms(1)), None);
        assert_eq!(
            window.add(ms(900), ms(750)),
            Some(ms(750)),
            "a stall closes it at once"
        );
    }

    #[tokio::test]
    async fn a_blocked_loop_is_seen_and_said() {
        let delay = LoopDelay::new();
        let mut latest = delay.latest();
        let seen = async {
            // Let the first timer be set, then hold the loop's only thread.
            tokio::time::sleep(ms(5)).await;
            let held = Instant::now();
            while held.elapsed() < ms(300) {
                std::hint::spin_loop();
            }
            *latest.wait_for(|worst| *worst >= 200.0).await.unwrap()
        };
        let worst = tokio::select! {
            () = delay.measure() => unreachable!("it measures for ever"),
            worst = tokio::time::timeout(Duration::from_secs(10), seen) => worst.unwrap(),
        };
        assert!(worst < 5_000.0, "{worst}");
        assert!(delay.report().max_ms >= 200.0);
    }
}
