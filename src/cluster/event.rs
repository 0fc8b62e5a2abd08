//! What the controller is told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AdminState, Backlog, Load, Skip};
use crate::config::{self, Address};

/// A worker that was spawned.
#[derive(Debug)]
pub struct Started {
    /// The slot's name.
    pub slot: Arc<str>,
    /// 1, 2, 3 …
    pub generation: u32,
    /// Where it is going to listen.
    pub address: Address,
    /// The worker's process.
    pub pid: u32,
    /// The accept queue of its listening socket, when homescar holds that socket.
    pub backlog: Option<Backlog>,
    /// Its connections.
    pub load: Arc<Load>,
}

/// Something that happened to a cluster. Events that name a generation which is no longer the
/// slot's are late news and change nothing.
#[derive(Debug)]
pub enum Event {
    /// A new configuration: slots that are still named keep what stands in them.
    Configure(Arc<config::Cluster>),
    /// A worker was spawned: the slot's next generation, not ready yet.
    Started(Started),
    /// The slot's next generation was spawned beside the present one, at an address of its own.
    Beside(Started),
    /// The slot's next generation stood beside the present one, is ready, and takes its place; that
    /// one goes on with what it has.
    Replaced(Started),
    /// The operator has made up their mind about a slot.
    Admin {
        /// The slot's name.
        slot: Arc<str>,
        /// What they want of it.
        state: AdminState,
    },
    /// The worker itself said that it is ready.
    Ready {
        /// The slot's name.
        slot: Arc<str>,
        /// Of which generation.
        generation: u32,
    },
    /// Active checks have changed their mind about a backend.
    Checked {
        /// The slot's name.
        slot: Arc<str>,
        /// Of which generation.
        generation: u32,
        /// What they say now.
        health: Health,
    },
    /// Passive checks have changed their mind about a backend.
    Ejected {
        /// The slot's name.
        slot: Arc<str>,
        /// Of which generation.
        generation: u32,
        /// Why it is ejected; `None` when it is tried again.
        why: Option<Arc<str>>,
    },
    /// No new clients for this generation: it is leaving, or must be ended.
    Stopping {
        /// The slot's name.
        slot: Arc<str>,
        /// Of which generation.
        generation: u32,
        /// Why: [`Skip::Stopping`] or [`Skip::Unresponsive`].
        why: Skip,
    },
    /// The process has ended.
    Gone {
        /// The slot's name.
        slot: Arc<str>,
        /// Of which generation.
        generation: u32,
        /// What the slot is now: [`Skip::Restarting`] when the next generation is due soon,
        /// [`Skip::CrashLoop`] when it may take long.
        why: Skip,
    },
}

/// What active checks say of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// Nothing yet.
    Unknown,
    /// `rise` checks in a row went well.
    Healthy,
    /// `fall` checks in a row failed.
    Unhealthy {
        /// It does answer, only not as it should (a wrong status); a worker that does not
        /// answer at all is taken for hung and replaced.
        answers: bool,
        /// The last failure, for people.
        why: Arc<str>,
    },
}
