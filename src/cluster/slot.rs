//! A stable home, and what stands in it now.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, atomic::AtomicU64},
};

use serde::{Deserialize, Serialize};

use super::{
    AffinityStats, Backlog, CheckStats, Health, Residents, Seats, StateStats, WorkerStats,
};
use crate::{
    affinity::SlotId,
    config::Address,
    metrics::{Counted, Counter, Histogram, Waits, under},
};

/// A stable home inside a cluster. Clients hash to its name, and to nothing else of it.
#[derive(Debug)]
pub struct Slot {
    /// `app/0`, or the configured name or address.
    pub name: Arc<str>,
    /// What cookies call it.
    pub id: SlotId,
    /// Its share of the clients.
    pub weight: NonZeroU32,
    /// Counters; they outlive generations and snapshots.
    pub stats: Arc<SlotStats>,
}

/// Counters of a slot.
#[derive(Debug, Default)]
pub struct SlotStats {
    /// Connections open now, or on the way to it.
    pub active: AtomicU64,
    /// Clients that are held for it now.
    pub held: AtomicU64,
    /// Connections ever relayed to it.
    pub total: AtomicU64,
    /// Failed attempts to connect to it.
    pub connect_failures: AtomicU64,
    /// Connections that it reset before it said a byte, and requests that it did not answer or
    /// not in HTTP.
    pub failures: AtomicU64,
    /// Room in it, where that is limited.
    pub seats: Seats,
    /// Bytes from clients.
    pub bytes_up: AtomicU64,
    /// Bytes to clients.
    pub bytes_down: AtomicU64,
    /// Whose clients they were.
    pub affinity: AffinityStats,
    /// What it took to connect to it, TLS included.
    pub connect: Histogram<Waits>,
    /// Active checks.
    pub checks: CheckStats,
    /// Its changes.
    pub states: StateStats,
    /// Its processes.
    pub worker: WorkerStats,
}

impl Counted for SlotStats {
    fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
        under("affinity", see, |see| self.affinity.each(see));
        under("connect", see, |see| self.connect.each(see));
        under("checks", see, |see| self.checks.each(see));
        under("states", see, |see| self.states.each(see));
        under("worker", see, |see| self.worker.each(see));
    }
}

/// What one generation carries: the true count of its connections, and how those that are over
/// have ended. Equal only to itself.
#[derive(Debug, Default)]
pub struct Load {
    /// Connections, or requests in HTTP mode, now; also those on the way to it.
    pub active: AtomicU64,
    /// All that ended.
    pub ended: AtomicU64,
    /// Of these, WebSockets that were closed with a goodbye of ours.
    pub goodbyes: AtomicU64,
    /// Of these, those that were cut, or could not say goodbye in time.
    pub cut: AtomicU64,
    /// Of these, those that the backend failed: reset, broken off, or no good answer.
    pub failed: AtomicU64,
    /// Clients that live with it.
    pub residents: Residents,
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Load {}

/// What the operator wants of a slot. No check and no event of a worker changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AdminState {
    /// It takes clients.
    #[default]
    Ready,
    /// It takes no new clients; whoever is at home there (a connection, a cookie) stays.
    Drain,
    /// It takes nobody, and whoever is there is asked to leave.
    Maint,
}

impl AdminState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }

    /// Why the slot is passed over, if it is.
    pub(super) const fn skip(self) -> Option<Skip> {
        match self {
            Self::Ready => None,
            Self::Drain => Some(Skip::Draining),
            Self::Maint => Some(Skip::Maint),
        }
    }
}

/// What stands in a slot: one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where it listens.
    pub address: Address,
    /// 1, 2, 3 … of a supervised slot; 0 of a static one.
    pub generation: u32,
    /// The worker's process, when we supervise it.
    pub pid: Option<u32>,
    /// The accept queue of its listening socket, when homescar holds that socket.
    pub backlog: Option<Backlog>,
    /// It said so itself (`READY=1`).
    pub said_ready: bool,
    /// It has been ready once. Until then a supervised worker is [`Skip::Starting`].
    pub was_ready: bool,
    /// What active checks say.
    pub health: Health,
    /// What its clients met that has it ejected for a while.
    pub ejected: Option<Arc<str>>,
    /// Why it takes no new clients any more.
    pub leaving: Option<Skip>,
    /// Its connections.
    pub load: Arc<Load>,
}

/// Why a slot is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Skip {
    /// Its first worker is not ready yet.
    Starting,
    /// Its worker has ended and the next generation is on its way.
    Restarting,
    /// Its workers end as soon as they start; the next one may take long.
    CrashLoop,
    /// Its worker is shutting down.
    Stopping,
    /// Checks are answered wrongly.
    Unhealthy,
    /// Checks or the watchdog are not answered.
    Unresponsive,
    /// The operator wants no new clients there.
    Draining,
    /// The operator wants nobody there.
    Maint,
    /// Too many of its clients met failures; it is tried again after a while.
    Ejected,
    /// It has just come back, and does not take this client yet.
    WarmingUp,
    /// It has much more than its share, and takes nobody who is new.
    Overloaded,
    /// It has all that it may have.
    Full,
    /// It could not be connected to just now (for this connection only).
    ConnectFailed,
}

impl Skip {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Starting,
        Self::Restarting,
        Self::CrashLoop,
        Self::Stopping,
        Self::Unhealthy,
        Self::Unresponsive,
        Self::Draining,
        Self::Maint,
        Self::Ejected,
        Self::WarmingUp,
        Self::Overloaded,
        Self::Full,
        Self::ConnectFailed,
    ];

    /// Its position among all.
    pub(super) const fn number(self) -> usize {
        self as usize
    }

    /// The name that shows in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Restarting => "restarting",
            Self::CrashLoop => "crash_loop",
            Self::Stopping => "stopping",
            Self::Unhealthy => "unhealthy",
            Self::Unresponsive => "unresponsive",
            Self::Draining => "draining",
            Self::Maint => "maint",
            Self::Ejected => "ejected",
            Self::WarmingUp => "warming_up",
            Self::Overloaded => "overloaded",
            Self::Full => "full",
            Self::ConnectFailed => "connect_failed",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
