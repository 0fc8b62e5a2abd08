//! What leads into a cluster from outside: which ports, and in direct mode which sockets.

use std::{convert::Infallible, io, net::TcpListener, pin::Pin, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{cluster::Load, config::Address};

/// What leads into a cluster from outside, as far as its workers have to do with it.
#[derive(Clone, Debug, Default)]
pub struct Entrances {
    /// Ports of its listeners, each once: what Node workers are expected to listen on.
    pub ports: Arc<[u16]>,
    /// In direct mode.
    pub doors: Option<Arc<dyn Doors>>,
    /// Those who are carried to its workers.
    pub guests: Option<Arc<dyn Guests>>,
}

/// The connections that are relayed to workers.
pub trait Guests: std::fmt::Debug + Send + Sync {
    /// Asks those of one generation to leave that can say goodbye, one after the other over
    /// `spread`. Done when all are asked.
    fn ask_to_leave(&self, generation: &Arc<Load>, spread: Duration) -> Asked;

    /// Cuts those of one generation. Done when all are cut.
    fn cut(&self, generation: &Arc<Load>) -> Asked;
}

/// How often those are asked to go who were not yet asked: a WebSocket that was being opened, or that
/// came by its cookie, when the others were.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Asks those to go who are there, and again and again who came since.
pub async fn keep_asking<F: Future<Output = ()>>(mut ask: impl FnMut() -> F) -> Infallible {
    loop {
        ask().await;
        sleep(ASK_AGAIN).await;
    }
}

/// What is done when it is done.
pub type Asked = Pin<Box<dyn Future<Output = ()> + Send>>;

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
