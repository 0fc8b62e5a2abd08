//! When a slot's next generation may start, and when its failures are a crash loop. Pure: time
//! and randomness are arguments.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::handover::Moment;

/// A generation that was ready for this long ran stably: what came before is forgiven.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(10);

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(30);
/// Generations in a row that ended before they ran stably.
const CRASH_LOOP: u32 = 5;
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// The failures of a slot since a generation of it last ran stably.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Restarts {
    failures: u32,
    first_failure: Option<Instant>,
    last_said: Option<Instant>,
}

/// [`Restarts`] for the next image of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedRestarts {
    failures: u32,
    first_failure: Option<Moment>,
    last_said: Option<Moment>,
}

impl SavedRestarts {
    pub(super) fn resumed(self) -> Restarts {
        Restarts {
            failures: self.failures,
            first_failure: self.first_failure.map(Moment::instant),
            last_said: self.last_said.map(Moment::instant),
        }
    }
}

/// What follows from the end of a generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    /// How long to wait before the next generation.
    pub delay: Duration,
    /// The slot crash-loops.
    pub looping: bool,
    /// How it is to be logged.
    pub say: Say,
}

/// How the end of a generation is to be logged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Say {
    /// One ordinary line.
    Line,
    /// The one loud message with which a crash loop begins.
    CrashLoop {
        /// Generations that failed in a row.
        count: u32,
        /// Since the first of them ended.
        span: Duration,
    },
    /// The crash loop goes on; at most once a minute.
    Reminder {
        /// Generations that failed in a row.
        count: u32,
        /// Since the first of them ended.
        span: Duration,
    },
    /// Nothing: it was said less than a minute ago.
    Nothing,
}

impl Restarts {
    /// What the next image has to know of it.
    pub(super) fn saved(&self) -> SavedRestarts {
        SavedRestarts {
            failures: self.failures,
            first_failure: self.first_failure.map(Moment::of),
            last_said: self.last_said.map(Moment::of),
        }
    }

    /// A generation has ended. `random` is in `0.0..1.0` and takes up to a fifth off the delay,
    /// so that slots which fail together do not start together.
    pub(super) fn ended(&mut self, stable: bool, now: Instant, random: f64) -> Verdict {
        let first = if stable {
            *self = Self::default();
            now
        } else {
            self.failures += 1;
            *self.first_failure.get_or_insert(now)
        };
        let (count, span) = (self.failures, now - first);
        let looping = count >= CRASH_LOOP;
        let say = match self.last_said {
            _ if !looping => Say::Line,
            None => Say::CrashLoop { count, span },
            Some(last) if now - last >= REMIND_EVERY => Say::Reminder { count, span },
            Some(_) => Say::Nothing,
        };
        if matches!(say, Say::CrashLoop { .. } | Say::Reminder { .. }) {
            self.last_said = Some(now);
        }
        Verdict {
            delay: delay(count, random),
            looping,
            say,
        }
    }

    /// The present generation has run stably. Gives the number of failures when that is the end
    /// of a crash loop.
    pub(super) fn ran_stably(&mut self) -> Option<u32> {
        let failures = std::mem::take(self).failures;
        (failures >= CRASH_LOOP).then_some(failures)
    }
}

/// 100 ms after the first failure (and after a stable run), doubled with each further one.
fn delay(failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST_DELAY.saturating_mul(1 << doublings).min(LAST_DELAY);
    full.mul_f64(1.0 - 0.2 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(verdict: Verdict) -> u128 {
        verdict.delay.as_millis()
    }

    #[test]
    fn delays_double_up_to_thirty_seconds() {
        let mut restarts = Restarts::default();
        let now = Instant::now();
        let delays: Vec<_> = (0..11)
            .map(|_| ms(restarts.ended(false, now, 0.0)))
            .collect();
        assert_eq!(
            delays,
            [
                100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000
            ]
        );
    }

    #[test]
    fn jitter_only_shortens_and_by_a_fifth_at_most() {
        let now = Instant::now();
        assert_eq!(ms(Restarts::default().ended(false, now, 1.0)), 80);
        assert_eq!(ms(Restarts::default().ended(false, now, 0.5)), 90);
        assert_eq!(ms(Restarts::default().ended(false, now, 7.0)), 80);
    }

    #[test]
    fn the_end_of_a_stable_generation_waits_the_first_step_only() {
        let mut restarts = Restarts::default();
        let now = Instant::now();
        for _ in 0..3 {
            restarts.ended(false, now, 0.0);
        }
        let verdict = restarts.ended(true, now, 0.0);
        assert_eq!(ms(verdict), 100);
        assert_eq!(verdict.say, Say::Line);
        assert_eq!(restarts, Restarts::default());
        assert_eq!(ms(restarts.ended(false, now, 0.0)), 100);
    }

    #[test]
    fn a_crash_loop_is_loud_once_and_then_reminds_once_a_minute() {
        let mut restarts = Restarts::default();
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        for second in 0..4 {
            assert_eq!(restarts.ended(false, at(second), 0.0).say, Say::Line);
        }
        let fifth = restarts.ended(false, at(4), 0.0);
        assert!(fifth.looping);
        let span = Duration::from_secs(4);
        assert_eq!(fifth.say, Say::CrashLoop { count: 5, span });
        assert_eq!(restarts.ended(false, at(30), 0.0).say, Say::Nothing);
        let span = Duration::from_secs(64);
        let reminder = Say::Reminder { count: 7, span };
        assert_eq!(restarts.ended(false, at(64), 0.0).say, reminder);
        assert_eq!(restarts.ended(false, at(65), 0.0).say, Say::Nothing);
        assert_eq!(restarts.ran_stably(), Some(8));
        assert_eq!(restarts.ran_stably(), None);
    }

    #[test]
    fn few_failures_and_a_stable_run_are_nothing_to_tell() {
        let mut restarts = Restarts::default();
        restarts.ended(false, Instant::now(), 0.0);
        assert_eq!(restarts.ran_stably(), None);
        assert_eq!(restarts, Restarts::default());
    }
}
