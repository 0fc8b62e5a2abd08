//! The life of a slot's worker as a pure state machine: `step(state, event, now)`.
//!
//! ```text
//! Waiting ─spawn→ Starting ─ready→ Ready
//!    ↑               │ exits, late   │ exits, hangs, says STOPPING
//!    └──backoff──────┴──── Ending ←──┘            (asked to stop: Finished)
//! ```

mod saved;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub(super) use self::saved::SavedWorker;
use super::{
    notify::Message,
    restart::{Restarts, STABLE_AFTER, Verdict},
};
use crate::cluster::{Skip, StopReason};

/// A hung worker is not going to use a long grace.
const HUNG_GRACE: Duration = Duration::from_secs(5);
/// A process that SIGKILL does not end sits in the kernel; look again after this.
const KILL_AGAIN: Duration = Duration::from_secs(10);
/// What one `EXTEND_TIMEOUT_USEC` may ask for.
const LONGEST_EXTENSION: Duration = Duration::from_secs(3600);

/// What a slot's worker does, generation after generation.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    state: State,
    limits: Limits,
    restarts: Restarts,
    /// It shall end and have no next generation.
    asked: bool,
}

/// Deadlines of one generation.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Limits {
    /// From spawn to ready.
    pub ready: Duration,
    /// From TERM to KILL.
    pub stop: Duration,
    /// Between two `WATCHDOG=1`, when that is asked of the worker.
    pub watchdog: Option<Duration>,
}

#[derive(Clone, Debug)]
enum State {
    /// No process; the next one is due at `until`.
    Waiting { until: Instant },
    /// A process that has not been ready yet.
    Starting { spawned: Instant, by: Instant },
    /// It takes clients, or could.
    Ready {
        since: Instant,
        stable: bool,
        ping_by: Option<Instant>,
    },
    /// It is leaving; killed at `kill_at`.
    Ending {
        why: Why,
        kill_at: Instant,
        stable: bool,
    },
    /// The end.
    Finished,
}

/// What happened to a worker.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// [`Worker::deadline`] has passed.
    Tick,
    /// Its process runs.
    Spawned(Limits),
    /// These hold from now on, for what has not begun.
    Limited(Limits),
    /// It could not even be spawned.
    SpawnFailed,
    /// The next process is wanted now.
    Hurry,
    /// It said something on its `NOTIFY_SOCKET`.
    Notified(Message),
    /// The cluster takes it to be ready.
    BecameReady,
    /// The cluster takes it to be hung.
    Unresponsive,
    /// Contract `node` is not for it.
    Misfit,
    /// Its process has ended, for whatever reason.
    Exited,
    /// It shall end in good order.
    Stop,
    /// It shall end now.
    Kill,
}

impl PartialEq for Limits {
    fn eq(&self, other: &Self) -> bool {
        (self.ready, self.stop, self.watchdog) == (other.ready, other.stop, other.watchdog)
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    /// Start the next generation, and answer with [`Event::Spawned`] or [`Event::SpawnFailed`].
    Spawn,
    /// Tell the cluster that the worker says it is ready.
    SayReady,
    /// It became ready this long after its spawn.
    Booted(Duration),
    /// Its end has begun: no new clients, TERM (unless it goes by itself).
    End {
        /// Why.
        why: Why,
        /// Until it is killed.
        grace: Duration,
    },
    /// TERM, for one that was leaving by itself and is now asked to.
    Term,
    /// KILL the whole group.
    Kill,
    /// The slot is empty and its next generation waits.
    Vacate(Verdict),
    /// The slot is empty and stays so.
    Finish,
    /// A crash loop is over after so many failures.
    Recovered(u32),
}

/// Why a worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Why {
    /// We want it to.
    Asked,
    /// It said `STOPPING=1`.
    Itself,
    /// It did not become ready in time.
    NotReady,
    /// It missed its watchdog, or pulled it.
    Watchdog,
    /// It does not answer checks.
    Unresponsive,
    /// Contract `node` is not for it.
    Misfit,
}

impl Why {
    /// What the cluster is told.
    #[must_use]
    pub(super) const fn skip(self) -> Skip {
        match self {
            Self::Asked | Self::Itself | Self::NotReady | Self::Misfit => Skip::Stopping,
            Self::Watchdog | Self::Unresponsive => Skip::Unresponsive,
        }
    }

    /// What is counted.
    #[must_use]
    pub(super) const fn counted(self) -> StopReason {
        match self {
            Self::Asked => StopReason::Asked,
            Self::Itself => StopReason::Itself,
            Self::NotReady => StopReason::NotReady,
            Self::Watchdog => StopReason::Watchdog,
            Self::Unresponsive => StopReason::Unresponsive,
            Self::Misfit => StopReason::Misfit,
        }
    }

    const fn is_hung(self) -> bool {
        matches!(self, Self::Watchdog | Self::Unresponsive)
    }
}

impl Worker {
    /// A worker whose first process is due at once.
    #[must_use]
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Waiting { until: now },
            limits: Limits::default(),
            restarts: Restarts::default(),
            asked: false,
        }
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Starting { by, .. } => Some(by),
            State::Ready {
                since,
                stable,
                ping_by,
            } => {
                let stable_at = (!stable).then_some(since + STABLE_AFTER);
                [stable_at, ping_by].into_iter().flatten().min()
            }
            State::Ending { kill_at, .. } => Some(kill_at),
            State::Finished => None,
        }
    }

    /// What the worker is after `event`, and what is to be done. `random` is in `0.0..1.0`.
    #[must_use]
    pub(super) fn step(mut self, event: Event, now: Instant, random: f64) -> (Self, Vec<Action>) {
        let actions = match event {
            Event::Tick => self.tick(now),
            Event::Spawned(limits) => self.spawned(limits, now),
            Event::Limited(limits) => {
                self.limits = limits;
                Vec::new()
            }
            Event::Hurry => self.hurry(now),
            Event::SpawnFailed | Event::Exited => self.exited(now, random),
            Event::Notified(message) => self.notified(&message, now),
            Event::BecameReady => self.became_ready(now),
            Event::Unresponsive => self.end(Why::Unresponsive, now),
            Event::Misfit => self.end(Why::Misfit, now),
            Event::Stop => self.stop(now),
            Event::Kill => self.kill(now),
        };
        (self, actions)
    }

    fn tick(&mut self, now: Instant) -> Vec<Action> {
        match &mut self.state {
            State::Waiting { until } if *until <= now => vec![Action::Spawn],
            State::Starting { by, .. } if *by <= now => self.end(Why::NotReady, now),
            State::Ready {
                since,
                stable,
                ping_by,
            } => {
                let mut actions = Vec::new();
                if !*stable && *since + STABLE_AFTER <= now {
                    *stable = true;
                    actions.extend(self.restarts.ran_stably().map(Action::Recovered));
                }
                if ping_by.is_some_and(|by| by <= now) {
                    actions.extend(self.end(Why::Watchdog, now));
                }
                actions
            }
            State::Ending { kill_at, .. } if *kill_at <= now => {
                *kill_at = now + KILL_AGAIN;
                vec![Action::Kill]
            }
            _ => Vec::new(),
        }
    }

    fn hurry(&mut self, now: Instant) -> Vec<Action> {
        match &mut self.state {
            State::Waiting { until } => {
                *until = now;
                vec![Action::Spawn]
            }
            _ => Vec::new(),
        }
    }

    fn spawned(&mut self, limits: Limits, now: Instant) -> Vec<Action> {
        self.limits = limits;
        self.state = State::Starting {
            spawned: now,
            by: now + limits.ready,
        };
        Vec::new()
    }

    fn exited(&mut self, now: Instant, random: f64) -> Vec<Action> {
        let stable = match self.state {
            State::Ready { since, stable, .. } => stable || since + STABLE_AFTER <= now,
            State::Ending { stable, .. } => stable,
            State::Waiting { .. } | State::Starting { .. } | State::Finished => false,
        };
        if self.asked {
            self.state = State::Finished;
            return vec![Action::Finish];
        }
        let verdict = self.restarts.ended(stable, now, random);
        self.state = State::Waiting {
            until: now + verdict.delay,
        };
        vec![Action::Vacate(verdict)]
    }

    fn notified(&mut self, message: &Message, now: Instant) -> Vec<Action> {
        match (message, &mut self.state) {
            (Message::Ready, State::Starting { .. }) => vec![Action::SayReady],
            (Message::Stopping, State::Starting { .. } | State::Ready { .. }) => {
                self.end(Why::Itself, now)
            }
            (Message::Watchdog, State::Ready { ping_by, .. }) => {
                *ping_by = self.limits.watchdog.map(|every| now + every);
                Vec::new()
            }
            (Message::WatchdogTrigger, State::Ready { .. }) => self.end(Why::Watchdog, now),
            (Message::ExtendTimeout(by), State::Starting { by: deadline, .. }) => {
                *deadline = (*deadline).max(now + (*by).min(LONGEST_EXTENSION));
                Vec::new()
            }
            (Message::ExtendTimeout(by), State::Ending { why, kill_at, .. }) if !why.is_hung() => {
                *kill_at = (*kill_at).max(now + (*by).min(LONGEST_EXTENSION));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn became_ready(&mut self, now: Instant) -> Vec<Action> {
        let State::Starting { spawned, .. } = self.state else {
            return Vec::new();
        };
        self.state = State::Ready {
            since: now,
            stable: false,
            ping_by: self.limits.watchdog.map(|every| now + every),
        };
        vec![Action::Booted(now - spawned)]
    }

    /// Begins the end of a running worker.
    fn end(&mut self, why: Why, now: Instant) -> Vec<Action> {
        let stable = match self.state {
            State::Starting { .. } => false,
            State::Ready { since, stable, .. } => stable || since + STABLE_AFTER <= now,
            State::Waiting { .. } | State::Ending { .. } | State::Finished => return Vec::new(),
        };
        let grace = match why {
            _ if why.is_hung() => self.limits.stop.min(HUNG_GRACE),
            _ => self.limits.stop,
        };
        self.state = State::Ending {
            why,
            kill_at: now + grace,
            stable,
        };
        vec![Action::End { why, grace }]
    }

    fn stop(&mut self, now: Instant) -> Vec<Action> {
        self.asked = true;
        match &mut self.state {
            State::Waiting { .. } => {
                self.state = State::Finished;
                vec![Action::Finish]
            }
            State::Ending { why, .. } if *why == Why::Itself => {
                *why = Why::Asked;
                vec![Action::Term]
            }
            _ => self.end(Why::Asked, now),
        }
    }

    fn kill(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.stop(now);
        if let State::Ending { kill_at, .. } = &mut self.state {
            *kill_at = now + KILL_AGAIN;
            actions.push(Action::Kill);
        }
        actions
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
