//! What leads into a cluster from outside: which ports, and in direct mode which sockets.

use std::{io, net::TcpListener, sync::Arc};

use crate::config::Address;

/// What leads into a cluster from outside, as far as its workers have to do with it.
#[derive(Clone, Debug, Default)]
pub struct Entrances {
    /// Ports of its listeners, each once: what Node workers are expected to listen on.
    pub ports: Arc<[u16]>,
    /// In direct mode.
    pub doors: Option<Arc<dyn Doors>>,
}

/// The public listening sockets of a cluster's slots, where the kernel leads clients straight to
/// their worker.
pub trait Doors: std::fmt::Debug + Send + Sync {
    /// Those of one slot.
    ///
    /// # Errors
    /// When they cannot be opened.
    fn of_slot(&self, index: usize) -> io::Result<SlotDoors>;

    /// How many connections a slot's worker has through them, accepted or not yet; `worker` is
    /// its process group. It may take some tens of milliseconds.
    ///
    /// # Errors
    /// When they cannot be counted.
    fn connections(&self, index: usize, worker: u32) -> io::Result<u64>;
}

/// The public sockets of one slot.
#[derive(Clone, Debug)]
pub struct SlotDoors {
    /// One for each address of the listener; at least one.
    pub sockets: Vec<Arc<TcpListener>>,
    /// Where this machine reaches the slot for sure.
    pub address: Address,
    /// Connections that may wait in each.
    pub backlog: u32,
}
