//! The idle timer of a relay, which costs nothing while bytes move.

use std::{pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep};

use crate::proxy::record::Traffic;

/// How often the source of a direction that is blocked is looked at for a reset.
const BLOCKED_CHECK: Duration = Duration::from_secs(1);

/// Notices that nothing moves, without reading a clock while something does.
#[derive(Debug)]
pub(super) struct Watch {
    idle: Option<Duration>,
    /// What the timer is set to.
    pub(super) armed_for: Duration,
    /// How long nothing has moved, as of the last tick.
    quiet: Duration,
    seen: Traffic,
    /// The timer is set to look after a blocked direction.
    minds_blocked: bool,
}

impl Watch {
    pub(super) fn new(idle: Option<Duration>, seen: Traffic) -> Self {
        let mut new = Self {
            idle,
            armed_for: Duration::ZERO,
            quiet: Duration::ZERO,
            seen,
            minds_blocked: false,
        };
        new.armed_for = new.relaxed();
        new
    }

    /// Between ticks while no direction is blocked.
    fn relaxed(&self) -> Duration {
        self.idle.map_or(NEVER, |idle| idle / 4)
    }

    /// Sets the timer sooner once a direction is blocked: its source is not read from, so that
    /// its reset would go unnoticed.
    pub(super) fn mind_blocked(&mut self, timer: Pin<&mut Sleep>, blocked: bool) {
        if blocked && !self.minds_blocked {
            self.minds_blocked = true;
            self.arm(timer);
        }
    }

    /// The timer has fired: counts the time, and sets it anew. True when the connection is idle.
    pub(super) fn tick(&mut self, timer: Pin<&mut Sleep>, now: Traffic, blocked: bool) -> bool {
        if now == self.seen {
            self.quiet += self.armed_for;
        } else {
            self.seen = now;
            self.quiet = Duration::ZERO;
        }
        self.minds_blocked = blocked;
        self.arm(timer);
        self.idle.is_some_and(|idle| self.quiet >= idle)
    }

    fn arm(&mut self, timer: Pin<&mut Sleep>) {
        let relaxed = self.relaxed();
        self.armed_for = if self.minds_blocked {
            relaxed.min(BLOCKED_CHECK)
        } else {
            relaxed
        };
        timer.reset(Instant::now() + self.armed_for);
    }
}

/// Longer than a connection lives.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
