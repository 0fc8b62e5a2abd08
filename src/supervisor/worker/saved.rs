//! The state machine of a slot's worker, for the next image of the program.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Limits, State, Why, Worker};
use crate::{handover::Moment, supervisor::restart::SavedRestarts};

/// A [`Worker`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedWorker {
    state: SavedState,
    limits: Limits,
    restarts: SavedRestarts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum SavedState {
    Waiting {
        until: Moment,
    },
    Starting {
        spawned: Moment,
        by: Moment,
    },
    Ready {
        since: Moment,
        stable: bool,
        ping_by: Option<Moment>,
    },
    Ending {
        why: Why,
        kill_at: Moment,
        stable: bool,
    },
}

impl Worker {
    /// What the next image has to know of it.
    pub(in crate::supervisor) fn saved(&self, now: Instant) -> SavedWorker {
        let of = Moment::of;
        let state = match self.state {
            State::Waiting { until } => SavedState::Waiting { until: of(until) },
            State::Starting { spawned, by } => SavedState::Starting {
                spawned: of(spawned),
                by: of(by),
            },
            State::Ready {
                since,
                stable,
                ping_by,
            } => SavedState::Ready {
                since: of(since),
                stable,
                ping_by: ping_by.map(of),
            },
            State::Ending {
                why,
                kill_at,
                stable,
            } => SavedState::Ending {
                why,
                kill_at: of(kill_at),
                stable,
            },
            // Nobody is left to say this.
            State::Finished => SavedState::Waiting { until: of(now) },
        };
        SavedWorker {
            state,
            limits: self.limits,
            restarts: self.restarts.saved(),
        }
    }

    /// The same again.
    pub(in crate::supervisor) fn resumed(saved: SavedWorker) -> Self {
        let state = match saved.state {
            SavedState::Waiting { until } => State::Waiting {
                until: until.instant(),
            },
            SavedState::Starting { spawned, by } => State::Starting {
                spawned: spawned.instant(),
                by: by.instant(),
            },
            SavedState::Ready {
                since,
                stable,
                ping_by,
            } => State::Ready {
                since: since.instant(),
                stable,
                ping_by: ping_by.map(Moment::instant),
            },
            SavedState::Ending {
                why,
                kill_at,
                stable,
            } => State::Ending {
                why,
                kill_at: kill_at.instant(),
                stable,
            },
        };
        Self {
            state,
            limits: saved.limits,
            restarts: saved.restarts.resumed(),
            asked: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::supervisor::worker::{Action, Event};

    /// In another image the same happens as would have here.
    #[test]
    fn deadlines_and_failures_go_on() {
        let now = Instant::now() + Duration::from_secs(100);
        let limits = Limits {
            ready: Duration::from_secs(60),
            stop: Duration::from_secs(30),
            watchdog: Some(Duration::from_secs(5)),
        };
        let steps = [
            Event::Tick,
            Event::SpawnFailed,
            Event::SpawnFailed,
            Event::SpawnFailed,
            Event::Spawned(limits),
            Event::BecameReady,
        ];
        let mut worker = Worker::new(now);
        let mut at = now;
        for event in steps {
            at += Duration::from_secs(1);
            worker = worker.step(event, at, 0.0).0;
            let text = serde_json::to_string(&worker.saved(at)).unwrap();
            let again = Worker::resumed(serde_json::from_str(&text).unwrap());
            assert_eq!(again.deadline(), worker.deadline());
            for next in [Event::Exited, Event::Tick, Event::Stop] {
                let later = at + Duration::from_secs(5);
                let would = worker.clone().step(next.clone(), later, 0.5).1;
                let does: Vec<Action> = again.clone().step(next, later, 0.5).1;
                assert_eq!(does, would);
            }
        }
    }
}
