//! A stable home, and what stands in it now.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, atomic::AtomicU64},
};

use serde::{Deserialize, Serialize};

use super::{Backlog, Health};
use crate::{affinity::SlotId, config::Address};

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
    /// Connections open now.
    pub active: AtomicU64,
    /// Clients that are held for it now.
    pub held: AtomicU64,
    /// Connections ever relayed to it.
    pub total: AtomicU64,
    /// Failed attempts to connect to it.
    pub connect_failures: AtomicU64,
    /// Bytes from clients.
    pub bytes_up: AtomicU64,
    /// Bytes to clients.
    pub bytes_down: AtomicU64,
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
    /// Why it takes no new clients any more.
    pub leaving: Option<Skip>,
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
    /// It could not be connected to just now (for this connection only).
    ConnectFailed,
}

impl Skip {
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
            Self::ConnectFailed => "connect_failed",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
