//! What is counted of a slot beyond its connections. Counters outlive generations and snapshots.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Skip;
use crate::metrics::{Counted, Counter, Histogram, Lives, Tally, Waits, under};

/// How often clients were served by their own slot. Counted at the slot that served them.
#[derive(Debug, Default)]
pub struct AffinityStats {
    kept: Counter,
    moved: Tally<{ Skip::ALL.len() }>,
}

impl AffinityStats {
    /// Counts a client; `passed` is why its own slot was passed over, if it was.
    pub fn count(&self, passed: Option<Skip>) {
        match passed {
            None => self.kept.count(),
            Some(why) => self.moved.count(why.number()),
        }
    }

    /// Clients of its own.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept.get()
    }

    /// Clients of others, whose slot was passed over for this reason.
    #[must_use]
    pub fn moved(&self, why: Skip) -> u64 {
        self.moved.get(why.number())
    }
}

/// How often a slot began to take clients, and to take none.
#[derive(Debug, Default)]
pub struct StateStats(Tally<{ 1 + Skip::ALL.len() }>);

impl StateStats {
    /// Counts a change to this state; `None` is ready.
    pub(super) fn count(&self, state: Option<Skip>) {
        self.0.count(state.map_or(0, |why| 1 + why.number()));
    }

    /// Forgets all of them: how a slot has come to where it was before it was taken over.
    pub fn forget(&self) {
        self.0.forget();
    }

    /// How often it became so.
    #[must_use]
    pub fn get(&self, state: Option<Skip>) -> u64 {
        self.0.get(state.map_or(0, |why| 1 + why.number()))
    }
}

/// How one active check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// Well.
    Passed,
    /// It was answered otherwise than it should be.
    Wrong,
    /// It was not answered.
    Silent,
    /// This machine had nothing left to ask with.
    NotAsked,
}

impl CheckResult {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Passed, Self::Wrong, Self::Silent, Self::NotAsked];

    /// The name that shows in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Wrong => "wrong",
            Self::Silent => "silent",
            Self::NotAsked => "not_asked",
        }
    }
}

/// Active checks of a slot.
#[derive(Debug, Default)]
pub struct CheckStats {
    results: Tally<{ CheckResult::ALL.len() }>,
    /// Of those that passed.
    pub latency: Histogram<Waits>,
}

impl CheckStats {
    /// Counts a check that took so long.
    pub fn count(&self, result: CheckResult, took: Duration) {
        self.results.count(result as usize);
        if result == CheckResult::Passed {
            self.latency.observe(took);
        }
    }

    /// How many went so.
    #[must_use]
    pub fn get(&self, result: CheckResult) -> u64 {
        self.results.get(result as usize)
    }
}

/// Why a worker was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartReason {
    /// It is its slot's first.
    First,
    /// The one before had ended.
    Restart,
    /// It is to take the place of one that runs.
    Replacement,
}

impl StartReason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::First, Self::Restart, Self::Replacement];

    /// The name that shows in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Restart => "restart",
            Self::Replacement => "replacement",
        }
    }
}

impl Counted for AffinityStats {
    fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
        see("kept", &self.kept);
        under("moved", see, |see| self.moved.each(Skip::ALL, see));
    }
}

impl Counted for StateStats {
    fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
        let skips = Skip::ALL.iter().map(|skip| skip.as_str());
        self.0.each(["ready"].into_iter().chain(skips), see);
    }
}

impl Counted for CheckStats {
    fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
        self.results
            .each(CheckResult::ALL.map(CheckResult::as_str), see);
        under("latency", see, |see| self.latency.each(see));
    }
}

impl Counted for WorkerStats {
    fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
        let (starts, stops) = (
            StartReason::ALL.map(StartReason::as_str),
            StopReason::ALL.map(StopReason::as_str),
        );
        under("starts", see, |see| self.starts.each(starts, see));
        under("stops", see, |see| self.stops.each(stops, see));
        let exits = ExitKind::ALL.map(ExitKind::as_str);
        under("exits", see, |see| self.exits.each(exits, see));
        under("ready", see, |see| self.ready.each(see));
    }
}

/// How a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// With code 0.
    Success,
    /// With another code.
    Failure,
    /// By a signal.
    Signal,
    /// Killed by the kernel, for want of memory.
    Oom,
    /// It could not even be started, or its end not be learned.
    Unknown,
}

impl ExitKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Success,
        Self::Failure,
        Self::Signal,
        Self::Oom,
        Self::Unknown,
    ];

    /// The name that shows in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Signal => "signal",
            Self::Oom => "oom",
            Self::Unknown => "unknown",
        }
    }
}

/// Why the end of a worker was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// homescar or its operator wanted it.
    Asked,
    /// It said that it is stopping.
    Itself,
    /// It was not ready in time.
    NotReady,
    /// It missed its watchdog.
    Watchdog,
    /// It did not answer checks.
    Unresponsive,
    /// It does not speak its contract.
    Misfit,
}

impl StopReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Asked,
        Self::Itself,
        Self::NotReady,
        Self::Watchdog,
        Self::Unresponsive,
        Self::Misfit,
    ];

    /// The name that shows in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Itself => "itself",
            Self::NotReady => "not_ready",
            Self::Watchdog => "watchdog",
            Self::Unresponsive => "unresponsive",
            Self::Misfit => "misfit",
        }
    }
}

/// How late the event loop of a slot's worker is, where that can be measured.
#[derive(Debug, Default)]
pub struct LagStats {
    /// All that was measured.
    pub seen: Histogram<Waits>,
    /// One more than the nanoseconds that are known last of the present worker; 0 for none.
    last: AtomicU64,
}

impl LagStats {
    /// Notes that it was so late.
    pub fn was(&self, lag: Duration) {
        self.seen.observe(lag);
        self.is(lag);
    }

    /// Notes that it is so late, and will be later.
    pub fn is(&self, lag: Duration) {
        let nanos = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos.saturating_add(1), Relaxed);
    }

    /// Another worker is the present one.
    pub fn forget(&self) {
        self.last.store(0, Relaxed);
    }

    /// How late it was last, or is now.
    #[must_use]
    pub fn last(&self) -> Option<Duration> {
        let nanos = self.last.load(Relaxed).checked_sub(1)?;
        Some(Duration::from_nanos(nanos))
    }
}

/// The processes of a supervised slot.
#[derive(Debug, Default)]
pub struct WorkerStats {
    starts: Tally<{ StartReason::ALL.len() }>,
    stops: Tally<{ StopReason::ALL.len() }>,
    exits: Tally<{ ExitKind::ALL.len() }>,
    /// From start to ready.
    pub ready: Histogram<Lives>,
    /// Of its event loop.
    pub lag: LagStats,
    backoff_millis: AtomicU64,
}

impl WorkerStats {
    /// Counts a start; whoever waited for it waits no longer.
    pub fn started(&self, why: StartReason) {
        self.starts.count(why as usize);
        if why != StartReason::Replacement {
            self.lag.forget();
        }
        self.backoff_millis.store(0, Relaxed);
    }

    /// Counts the beginning of an end.
    pub fn stops(&self, why: StopReason) {
        self.stops.count(why as usize);
    }

    /// Counts an end.
    pub fn exited(&self, how: ExitKind) {
        self.exits.count(how as usize);
    }

    /// Notes how long its slot waits for the next one.
    pub fn waits(&self, backoff: Duration) {
        let millis = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX);
        self.backoff_millis.store(millis, Relaxed);
    }

    /// Starts for this reason.
    #[must_use]
    pub fn starts(&self, why: StartReason) -> u64 {
        self.starts.get(why as usize)
    }

    /// Ends that were begun for this reason.
    #[must_use]
    pub fn stopped(&self, why: StopReason) -> u64 {
        self.stops.get(why as usize)
    }

    /// Ends of this kind.
    #[must_use]
    pub fn exits(&self, how: ExitKind) -> u64 {
        self.exits.get(how as usize)
    }

    /// How long the slot waits for its next worker; zero while it has one.
    #[must_use]
    pub fn backoff(&self) -> Duration {
        Duration::from_millis(self.backoff_millis.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lag_is_that_of_the_present_worker() {
        let stats = WorkerStats::default();
        assert_eq!(stats.lag.last(), None);
        stats.lag.was(Duration::ZERO);
        assert_eq!(stats.lag.last(), Some(Duration::ZERO));
        stats.lag.is(Duration::from_secs(3));
        assert_eq!(stats.lag.last(), Some(Duration::from_secs(3)));
        stats.started(StartReason::Replacement);
        assert!(stats.lag.last().is_some());
        stats.started(StartReason::Restart);
        assert_eq!(stats.lag.last(), None);
        assert_eq!(stats.lag.seen.seen().count(), 1, "what is, will be counted");
    }

    #[test]
    fn every_reason_has_a_number_of_its_own() {
        for (number, why) in Skip::ALL.into_iter().enumerate() {
            assert_eq!(why.number(), number, "{why}");
        }
        for (number, of) in CheckResult::ALL.into_iter().enumerate() {
            assert_eq!(of as usize, number);
        }
        for (number, of) in StartReason::ALL.into_iter().enumerate() {
            assert_eq!(of as usize, number);
        }
        for (number, of) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(of as usize, number);
        }
        for (number, of) in StopReason::ALL.into_iter().enumerate() {
            assert_eq!(of as usize, number);
        }
    }
}
