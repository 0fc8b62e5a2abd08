//! From key to an open connection: candidates in order, holding for a slot that comes back.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::{
    bind,
    record::{CloseReason, ConnectionRecord, Home},
};
use crate::{
    affinity::AffinityKey,
    cluster::{Cluster, Route, SlotStats, Snapshot, is_exhaustion},
    config::{Address, OnDown, ProxyVersion},
};

/// Slots that are tried for one connection.
const MAX_CANDIDATES: usize = 4;

/// Clients that may be held for one slot; those above go on to the next candidate.
const MAX_HELD: u64 = 1024;

/// A slot that is held for although it should be up, and a Unix socket with a full queue, are
/// tried again this often.
const RETRY: Duration = Duration::from_millis(25);

/// An open connection to a backend.
#[derive(Debug)]
pub(super) enum Upstream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

/// The search for a client's backend. It remembers what failed for this client.
#[derive(Debug)]
pub(super) struct Search<'a> {
    cluster: &'a Cluster,
    key: AffinityKey,
    /// Slots that could not be connected to.
    failed: Vec<Arc<str>>,
    /// Until when the client may be held; set when it is first needed.
    hold_until: Option<Instant>,
}

impl<'a> Search<'a> {
    pub(super) fn new(cluster: &'a Cluster, key: AffinityKey, may_hold: bool) -> Self {
        Self {
            cluster,
            key,
            failed: Vec::new(),
            hold_until: (!may_hold).then(Instant::now),
        }
    }

    /// Connects to the best slot that there is, and says whether it wants a PROXY header.
    pub(super) async fn connect(
        &mut self,
        record: &mut ConnectionRecord,
    ) -> Result<(Upstream, Option<ProxyVersion>), CloseReason> {
        loop {
            let snapshot = self.cluster.load();
            match snapshot.route(self.key, &self.failed, self.may_hold()) {
                Route::To { index, passed } => {
                    let name = |index: usize| Arc::clone(&snapshot.entries[index].slot.name);
                    record.passed = passed.map(|(home, why)| (name(home), why));
                    match self.try_slot(&snapshot, index, record).await? {
                        Some(upstream) => return Ok((upstream, snapshot.config.send_proxy)),
                        None => self.note_failure(name(index))?,
                    }
                }
                // Rare and large: kept out of the size of every connection's future.
                Route::Hold { index } => Box::pin(self.hold(&snapshot, index, record)).await,
                Route::Reject { .. } => return Err(CloseReason::SlotDown),
                Route::Nowhere if self.failed.is_empty() => return Err(CloseReason::NoBackend),
                Route::Nowhere => return Err(CloseReason::ConnectFailed),
            }
        }
    }

    /// Notes that a slot failed this client, also after it seemed to be connected.
    pub(super) fn note_failure(&mut self, slot: Arc<str>) -> Result<(), CloseReason> {
        self.failed.push(slot);
        if self.failed.len() > MAX_CANDIDATES {
            Err(CloseReason::ConnectFailed)
        } else {
            Ok(())
        }
    }

    /// One attempt. `None` when the backend could not be reached; an error when it was not asked,
    /// because this machine had nothing left to ask with.
    async fn try_slot(
        &self,
        snapshot: &Snapshot,
        index: usize,
        record: &mut ConnectionRecord,
    ) -> Result<Option<Upstream>, CloseReason> {
        let entry = &snapshot.entries[index];
        let Some(backend) = &entry.backend else {
            return Ok(None);
        };
        let attempt = timeout(snapshot.config.connect_timeout, open(&backend.address)).await;
        match attempt.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(upstream) => {
                let slot = Arc::clone(&entry.slot);
                record.home = Some(Home::new(slot, backend.generation, backend.pid));
                Ok(Some(upstream))
            }
            // Ports are used up for each destination by itself: the next one may do.
            Err(error) if is_exhaustion(&error) && error.kind() != ErrorKind::AddrNotAvailable => {
                Err(CloseReason::NoResources)
            }
            Err(_) => {
                entry.slot.stats.connect_failures.fetch_add(1, Relaxed);
                Ok(None)
            }
        }
    }

    fn may_hold(&self) -> bool {
        self.hold_until.is_none_or(|until| Instant::now() < until)
    }

    /// Waits for the slot to change, or, if it should be up, a moment.
    async fn hold(&mut self, snapshot: &Snapshot, index: usize, record: &mut ConnectionRecord) {
        let OnDown::Hold(longest) = snapshot.config.on_down else {
            return;
        };
        let began = Instant::now();
        let until = *self.hold_until.get_or_insert(began + longest);
        let entry = &snapshot.entries[index];
        let (_held, others) = Held::enter(&entry.slot.stats);
        if others >= MAX_HELD {
            self.hold_until = Some(began);
        } else if entry.skip.is_some() {
            self.cluster.changed_since(snapshot.number, until).await;
        } else {
            self.cluster
                .changed_since(snapshot.number, until.min(began + RETRY))
                .await;
        }
        self.failed.retain(|name| *name != entry.slot.name);
        record.held += began.elapsed();
    }
}

/// One client that is held; counted until it is dropped, also when it is cut.
struct Held<'a>(&'a SlotStats);

impl<'a> Held<'a> {
    /// Gives also how many others are held.
    fn enter(stats: &'a SlotStats) -> (Self, u64) {
        let others = stats.held.fetch_add(1, Relaxed);
        (Self(stats), others)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}

/// Connects, however long it takes.
async fn open(address: &Address) -> io::Result<Upstream> {
    match address {
        Address::Tcp(addr) => {
            let stream = TcpStream::connect(addr).await?;
            if addr.ip().is_loopback() {
                // The kernel itself tells when a local peer has gone.
                stream.set_nodelay(true)?;
            } else {
                bind::set_options(SockRef::from(&stream))?;
            }
            Ok(Upstream::Tcp(stream))
        }
        Address::Probe { to, from } => {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((*from, 0)))?;
            let stream = socket.connect(*to).await?;
            stream.set_nodelay(true)?;
            Ok(Upstream::Tcp(stream))
        }
        Address::Unix(path) => loop {
            match UnixStream::connect(path).await {
                // Its queue is full. Over TCP the kernel would try again; here we do.
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(RETRY).await,
                connected => return connected.map(Upstream::Unix),
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::config::{Config, Facts};

    const CONFIG: &str = r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        on_down = "hold 10s"
        workers = { command = ["/bin/true"], count = 1 }
        "#;

    #[tokio::test]
    async fn a_client_that_is_cut_while_it_is_held_is_not_counted_for_ever() {
        let facts = Facts::of_this_process();
        let config = Config::parse(CONFIG, "test", &facts).unwrap();
        let (cluster, _controller) = Cluster::new(&config.clusters[0]);
        let stats = Arc::clone(&cluster.load().entries[0].slot.stats);
        let held = || stats.held.load(Relaxed);
        {
            let mut search = Search::new(&cluster, AffinityKey::from_bits(1), true);
            let peer = ([127, 0, 0, 1], 1).into();
            let mut record = ConnectionRecord::new("web".into(), peer);
            let mut connect = Box::pin(search.connect(&mut record));
            assert!(connect.as_mut().now_or_never().is_none());
            assert_eq!(held(), 1);
        }
        assert_eq!(held(), 0);
    }
}
