//! What the API's answers look like.

use std::{num::NonZeroUsize, time::SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{cluster::AdminState, supervisor::SlotReceipt};

/// Everything at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Of homescar.
    pub version: String,
    /// Of homescar itself.
    pub pid: u32,
    /// When it was started, in seconds since 1970.
    pub since: u64,
    /// Seconds since then.
    pub uptime: u64,
    /// `running` or `draining`.
    pub phase: String,
    /// The configuration file, if there is one.
    pub config: Option<String>,
    /// Reloads so far.
    pub reloads: Reloads,
    /// Connections that homescar holds now.
    pub connections: u64,
    /// The front doors.
    pub listeners: Vec<Listener>,
    /// The groups of slots.
    pub clusters: Vec<Cluster>,
}

/// Reloads of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloads {
    /// Those that went well.
    pub succeeded: u64,
    /// Those that changed nothing.
    pub failed: u64,
    /// When the last one was, in seconds since 1970.
    pub last: Option<u64>,
    /// Why the last one changed nothing, if it did.
    pub error: Option<String>,
}

/// A front door.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listener {
    /// Its name in the configuration.
    pub name: String,
    /// `tcp`, `http` or `direct`.
    pub mode: String,
    /// Its real addresses.
    pub addresses: Vec<String>,
    /// The cluster behind it.
    pub cluster: String,
    /// Connections open now; in `direct`, as far as the kernel tells.
    pub connections: Option<u64>,
}

/// A group of slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// Its name in the configuration.
    pub name: String,
    /// The number of its routing state; it grows with every change.
    pub snapshot: u64,
    /// What tells clients apart: `address`, `cookie`, `header:NAME`, `query:NAME` or `none`.
    pub affinity: String,
    /// Whether homescar runs its workers.
    pub supervised: bool,
    /// The slots, in their order.
    pub slots: Vec<Slot>,
}

/// A stable home, and what stands in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// `ready` when it takes new clients, else why it takes none.
    pub state: String,
    /// More about that, where checks told it.
    pub why: Option<String>,
    /// Its share of the clients, relative to the others.
    pub weight: u32,
    /// What stands in it, if anything does.
    pub backend: Option<Backend>,
    /// The next generation, while it gets ready beside.
    pub next: Option<Backend>,
    /// Generations before, which go on with what they have.
    pub leaving: Vec<Backend>,
    /// Connections or requests now, those on the way to it with them.
    pub active: u64,
    /// Clients that wait for it now.
    pub held: u64,
    /// Connections or requests ever.
    pub total: u64,
    /// Failed attempts to connect to it.
    pub connect_failures: u64,
    /// Bytes from clients.
    pub bytes_up: u64,
    /// Bytes to clients.
    pub bytes_down: u64,
    /// How late the worker's event loop was when it was last asked, or is now if it stands still, in
    /// milliseconds; under contract `node`.
    pub loop_lag_ms: Option<u64>,
}

/// What stands in a slot: one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backend {
    /// Where it listens.
    pub address: String,
    /// 1, 2, 3 … of a worker; 0 of what somebody else runs.
    pub generation: u32,
    /// The worker's process.
    pub pid: Option<u32>,
    /// Its connections or requests now, those on the way to it with them, as far as homescar relays them.
    pub active: u64,
    /// Its resident memory in bytes.
    pub rss: Option<u64>,
    /// The processor time that it has used, in milliseconds.
    pub cpu: Option<u64>,
}

/// Which cluster to restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Its name.
    pub cluster: String,
    /// Slots at a time. Default 1.
    #[schema(value_type = Option<usize>, minimum = 1)]
    pub parallel: Option<NonZeroUsize>,
}

/// A line of the answer to a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// What came of a slot, as soon as that is known.
    Slot(SlotReceipt),
    /// The last line: the whole.
    Receipt(Receipt),
}

/// What came of a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// Which cluster.
    pub cluster: String,
    /// Whether no slot failed.
    pub ok: bool,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// What came of each slot, in the order in which it was known.
    pub slots: Vec<SlotReceipt>,
}

/// How many workers a cluster is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Its name.
    pub cluster: String,
    /// How many.
    pub count: usize,
}

/// How many workers a cluster has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scaled {
    /// Its name.
    pub cluster: String,
    /// How many there were.
    pub before: usize,
    /// How many there are to be.
    pub now: usize,
}

/// What is wanted of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotState {
    /// Its name.
    pub slot: String,
    /// What is wanted of it.
    pub state: State,
}

/// What is wanted of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It takes clients.
    Ready,
    /// No new clients; whoever is at home there stays.
    Drain,
    /// Nobody; whoever is there is asked to leave, and cut when `drain.timeout` is over.
    Maint,
}

impl From<State> for AdminState {
    fn from(state: State) -> Self {
        match state {
            State::Ready => Self::Ready,
            State::Drain => Self::Drain,
            State::Maint => Self::Maint,
        }
    }
}

/// The way from a client to its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The client's address.
    pub client: String,
    /// The cluster.
    pub cluster: String,
    /// The number of the routing state that was asked.
    pub snapshot: u64,
    /// What the cluster tells clients apart by.
    pub affinity: String,
    /// What it was for this client: `address`, `cookie`, `header`, `query`, `learned` or `none`.
    pub by: String,
    /// How that was found, a sentence each.
    pub steps: Vec<String>,
    /// The key, in hexadecimal.
    pub key: String,
    /// All slots in the order in which they are this client's.
    pub candidates: Vec<Candidate>,
    /// What becomes of the client.
    pub outcome: Outlook,
    /// The slot that it goes to, is held or queues for, or is refused at.
    pub slot: Option<String>,
    /// What serves it there, if it goes to one.
    pub backend: Option<Backend>,
    /// The same, and why, in words.
    pub verdict: String,
}

/// A slot as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    /// Its name.
    pub slot: String,
    /// What it scores for the key, in hexadecimal: the greatest is the home.
    pub score: String,
    /// `ready` when it takes new clients, else why it takes none.
    pub state: String,
    /// Why this client does not go there, if it would not.
    pub skip: Option<String>,
}

/// What becomes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outlook {
    /// It goes to the slot.
    Goes,
    /// It waits for the slot to come back.
    Held,
    /// It waits for a seat in the slot.
    Queues,
    /// It is refused.
    Refused,
}

/// Who would move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Simulation {
    /// The cluster.
    pub cluster: String,
    /// How many slots there are.
    pub before: usize,
    /// How many there would be.
    pub after: usize,
    /// Clients that are connected now and have a home. Those of one key are one.
    pub clients: usize,
    /// Of these, those that would get another home.
    pub moved: usize,
    /// From where to where.
    pub moves: Vec<Move>,
    /// What is not in these numbers.
    pub note: Option<String>,
}

/// Clients that would move from one slot to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Move {
    /// Their slot now.
    pub from: String,
    /// Their slot then.
    pub to: String,
    /// How many.
    pub clients: usize,
}

/// Something was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// What.
    pub done: String,
}

/// Something was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// Why, and what to do.
    pub error: String,
}

/// Seconds since 1970.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
