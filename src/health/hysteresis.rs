//! From single checks to a verdict: `rise` successes or `fall` failures in a row. Pure.

use std::sync::Arc;

use crate::cluster::Health;

/// Why one check failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Something came back, only not what it should be.
    pub answered: bool,
    /// For people.
    pub why: Arc<str>,
}

/// What the checks of one backend add up to.
#[derive(Clone, Debug)]
pub(super) struct Hysteresis {
    rise: u32,
    fall: u32,
    health: Health,
    successes: u32,
    failures: u32,
    /// Failures in a row without any answer.
    silences: u32,
}

impl Hysteresis {
    /// Begins with what was known of the backend before.
    pub(super) const fn new(rise: u32, fall: u32, health: Health) -> Self {
        Self {
            rise,
            fall,
            health,
            successes: 0,
            failures: 0,
            silences: 0,
        }
    }

    /// Counts one check; gives the backend's health when that has changed. While it is
    /// `starting`, one success is enough and failures are nothing to tell: it is waited for.
    pub(super) fn record(
        &mut self,
        outcome: Result<(), Failure>,
        starting: bool,
    ) -> Option<Health> {
        let next = match outcome {
            Ok(()) => self.success(starting),
            Err(failure) => self.failure(failure, starting),
        }?;
        self.health = next.clone();
        Some(next)
    }

    fn success(&mut self, starting: bool) -> Option<Health> {
        (self.failures, self.silences) = (0, 0);
        self.successes = self.successes.saturating_add(1);
        let enough = starting || self.successes >= self.rise;
        (enough && self.health != Health::Healthy).then_some(Health::Healthy)
    }

    fn failure(&mut self, failure: Failure, starting: bool) -> Option<Health> {
        let Failure { answered, why } = failure;
        self.successes = 0;
        if starting {
            (self.failures, self.silences) = (0, 0);
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.silences = match answered {
            true => 0,
            false => self.silences.saturating_add(1),
        };
        let answers = match &self.health {
            // A wrong answer now and then is still an answer: only when all of the last ones
            // were missing is it taken to be gone.
            Health::Unhealthy { answers: true, .. } if self.silences < self.fall => return None,
            Health::Unhealthy { answers: true, .. } => false,
            Health::Unhealthy { answers: false, .. } if !answered => return None,
            Health::Unhealthy { answers: false, .. } => true,
            Health::Unknown | Health::Healthy if self.failures < self.fall => return None,
            Health::Unknown | Health::Healthy => self.silences < self.fall,
        };
        Some(Health::Unhealthy { answers, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Result<(), Failure> {
        Err(Failure {
            answered: false,
            why: "no answer".into(),
        })
    }

    fn wrong() -> Result<(), Failure> {
        Err(Failure {
            answered: true,
            why: "503".into(),
        })
    }

    fn unhealthy(answers: bool) -> Option<Health> {
        let why = if answers { "503" } else { "no answer" };
        Some(Health::Unhealthy {
            answers,
            why: why.into(),
        })
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_successes_in_a_row_healthy() {
        let mut checks = Hysteresis::new(2, 3, Health::Unknown);
        let mut record = |outcome| checks.record(outcome, false);
        assert_eq!(record(silent()), None);
        assert_eq!(record(silent()), None);
        assert_eq!(record(Ok(())), None);
        assert_eq!(record(silent()), None);
        assert_eq!(record(silent()), None);
        assert_eq!(record(silent()), unhealthy(false));
        assert_eq!(record(silent()), None, "only changes are told");
        assert_eq!(record(Ok(())), None);
        assert_eq!(record(silent()), None);
        assert_eq!(record(Ok(())), None);
        assert_eq!(record(Ok(())), Some(Health::Healthy));
        assert_eq!(record(Ok(())), None);
    }

    #[test]
    fn while_starting_one_success_counts_and_failures_do_not() {
        let mut checks = Hysteresis::new(2, 1, Health::Unknown);
        for _ in 0..10 {
            assert_eq!(checks.record(silent(), true), None);
        }
        assert_eq!(checks.record(Ok(()), true), Some(Health::Healthy));
        assert_eq!(checks.record(silent(), false), unhealthy(false));
    }

    #[test]
    fn it_answers_unless_every_failure_in_the_row_was_silent() {
        let mut checks = Hysteresis::new(2, 3, Health::Healthy);
        let mut record = |outcome| checks.record(outcome, false);
        assert_eq!(record(silent()), None);
        assert_eq!(record(wrong()), None);
        let mixed = record(silent());
        assert!(
            matches!(mixed, Some(Health::Unhealthy { answers: true, .. })),
            "{mixed:?}"
        );
        assert_eq!(record(silent()), None);
        assert_eq!(record(silent()), unhealthy(false));
        assert_eq!(record(wrong()), unhealthy(true));
        assert_eq!(record(wrong()), None);
    }

    #[test]
    fn a_changed_check_goes_on_from_what_was_known() {
        let known = unhealthy(true).unwrap();
        let mut checks = Hysteresis::new(1, 1, known);
        assert_eq!(checks.record(wrong(), false), None);
        assert_eq!(checks.record(Ok(()), false), Some(Health::Healthy));
    }
}
