//! The lag of a worker's event loop, measured without its doing: how long it takes to answer a
//! message that Node answers by itself. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Between two questions. What blocks a loop for longer than this shows for certain.
const EVERY: Duration = Duration::from_secs(1);

/// How late an event loop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::supervisor) enum LoopLag {
    /// It has answered after so long.
    Was(Duration),
    /// It has not answered for so long.
    Is(Duration),
}

/// When a worker is asked, one question at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Lag {
    /// When something is due; nothing before it serves.
    due: Option<Instant>,
    asked: Option<Instant>,
    /// It is about to leave, and is left in peace.
    over: bool,
}

/// The same, for the next image of the program.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct SavedLag {
    begun: bool,
    asked: bool,
    over: bool,
}

impl Lag {
    /// It serves.
    pub(super) fn begin(&mut self, now: Instant) {
        self.due.get_or_insert(now + EVERY);
    }

    /// It is asked nothing any more.
    pub(super) const fn end(&mut self) {
        self.over = true;
    }

    /// When something is due.
    pub(super) fn alarm(&self) -> Option<Instant> {
        self.due.filter(|_| !self.over)
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.alarm().is_some_and(|due| due <= now)
    }

    /// Does what is due: asks, unless it was asked and has not answered. `ask` gives whether it can
    /// be asked now.
    pub(super) fn next(&mut self, now: Instant, ask: impl FnOnce() -> bool) -> Option<LoopLag> {
        self.due = Some(now + EVERY);
        if let Some(asked) = self.asked {
            return Some(LoopLag::Is(now - asked));
        }
        self.asked = ask().then_some(now);
        None
    }

    /// It has answered.
    pub(super) fn answered(&mut self, now: Instant) -> Option<LoopLag> {
        let asked = self.asked.take()?;
        Some(LoopLag::Was(now - asked))
    }

    pub(super) const fn saved(&self) -> SavedLag {
        SavedLag {
            begun: self.due.is_some(),
            asked: self.asked.is_some(),
            over: self.over,
        }
    }

    /// The same again; what it was asked before, it was asked now.
    pub(super) fn resumed(saved: SavedLag, now: Instant) -> Self {
        Self {
            due: saved.begun.then_some(now + EVERY),
            asked: saved.asked.then_some(now),
            over: saved.over,
        }
    }
}

impl SavedLag {
    /// Whether an answer is still to come.
    pub(super) const fn is_asked(self) -> bool {
        self.asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_at_a_time() {
        let mut lag = Lag::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(lag.alarm(), None, "it does not serve yet");
        lag.begin(start);
        assert!(!lag.is_due(at(999)) && lag.is_due(at(1000)));
        assert_eq!(lag.next(at(1000), || true), None);
        let was = LoopLag::Was(Duration::from_millis(1));
        assert_eq!(lag.answered(at(1001)), Some(was));
        assert_eq!(lag.answered(at(1002)), None, "it was not asked");
        // One that stands still shows while it does so, and is not asked again.
        assert_eq!(lag.next(at(2000), || true), None);
        let again = || panic!("it was asked");
        let is = |seconds| Some(LoopLag::Is(Duration::from_secs(seconds)));
        assert_eq!(lag.next(at(3000), again), is(1));
        assert_eq!(lag.next(at(4000), again), is(2));
        let was = LoopLag::Was(Duration::from_millis(2500));
        assert_eq!(lag.answered(at(4500)), Some(was));
        // One that cannot be asked is asked the next time.
        assert_eq!(lag.next(at(5000), || false), None);
        assert_eq!(lag.answered(at(5001)), None);
        assert_eq!(lag.next(at(6000), || true), None);
        lag.end();
        assert_eq!(lag.alarm(), None);
    }

    #[test]
    fn what_was_asked_is_answered_to_the_next_image() {
        let mut lag = Lag::default();
        let start = Instant::now();
        lag.begin(start);
        assert_eq!(lag.next(start, || true), None);
        let later = start + EVERY;
        let mut lag = Lag::resumed(lag.saved(), later);
        assert!(lag.alarm().is_some());
        assert_eq!(lag.answered(later), Some(LoopLag::Was(Duration::ZERO)));
    }
}
