//! From key to an open connection: candidates in order, holding for a slot that comes back, queueing
//! for one that is full.

mod open;
mod queue;
mod upstream;

use std::{
    io::ErrorKind,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use self::open::{encrypt, open};
pub(super) use self::upstream::Upstream;
use super::{
    http::pool,
    record::{CloseReason, Home, Journey},
};
use crate::{
    affinity::{AffinityKey, SlotId},
    cluster::{Asker, Cluster, Entry, Route, Skip, SlotStats, Snapshot, is_exhaustion},
    config::{Key, OnDown, ProxyVersion},
};

/// Slots that are tried for one connection.
const MAX_CANDIDATES: usize = 4;

/// Clients that may be held for one slot; those above go on to the next candidate.
const MAX_HELD: u64 = 1024;

/// A slot that is held for although it should be up, and a Unix socket with a full queue, are
/// tried again this often.
const RETRY: Duration = Duration::from_millis(25);

/// The search for a client's backend. It remembers what failed for this client.
#[derive(Debug)]
pub(super) struct Search<'a> {
    cluster: &'a Cluster,
    key: AffinityKey,
    /// The client's slot, where it is known otherwise than by the key, and the generation that
    /// served it last.
    home: Option<(SlotId, u32)>,
    tried: Tried,
    /// Connections that carried a request before will do.
    may_reuse: bool,
    /// What is there already is not waited for.
    at_once: bool,
}

/// What was tried for a client in vain.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// Slots that could not be connected to.
    failed: Vec<Arc<str>>,
    /// Until when the client may be held; set when it is first needed.
    hold_until: Option<Instant>,
    /// Until when the client may queue; set when it first does.
    queue_until: Option<Instant>,
}

impl Tried {
    /// Notes that a slot failed this client.
    pub(super) fn note_failure(&mut self, slot: Arc<str>) -> Result<(), CloseReason> {
        self.failed.push(slot);
        if self.failed.len() > MAX_CANDIDATES {
            Err(CloseReason::ConnectFailed)
        } else {
            Ok(())
        }
    }
}

/// A backend was found and reached.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) upstream: Upstream,
    /// It wants a PROXY header.
    pub(super) send_proxy: Option<ProxyVersion>,
    /// The connection carried a request before.
    pub(super) is_reused: bool,
}

impl<'a> Search<'a> {
    pub(super) fn new(cluster: &'a Cluster, key: AffinityKey, may_hold: bool) -> Self {
        Self {
            cluster,
            key,
            home: None,
            tried: Tried {
                hold_until: (!may_hold).then(Instant::now),
                ..Tried::default()
            },
            may_reuse: false,
            at_once: false,
        }
    }

    /// Tells the client's slot, and the generation that served it last.
    pub(super) const fn at_home_in(&mut self, home: Option<(SlotId, u32)>) {
        self.home = home;
    }

    /// Whether connections that carried a request before will do.
    pub(super) const fn reuse(&mut self, may: bool) {
        self.may_reuse = may;
    }

    /// Has a connection that is there already without waiting for its event, at the price of another
    /// system call: worth it where each client gets one of its own.
    pub(super) const fn at_once(&mut self) {
        self.at_once = true;
    }

    /// Goes on with what was tried before.
    pub(super) fn after(&mut self, tried: Option<Box<Tried>>) {
        if let Some(tried) = tried {
            self.tried = *tried;
        }
    }

    /// What was tried, when anything was.
    pub(super) fn into_tried(self) -> Option<Box<Tried>> {
        let Tried {
            failed,
            hold_until,
            queue_until,
        } = &self.tried;
        let is_fresh = failed.is_empty() && hold_until.is_none() && queue_until.is_none();
        (!is_fresh).then(|| Box::new(self.tried))
    }

    /// Connects to the best slot that there is.
    pub(super) async fn connect(
        &mut self,
        journey: &mut Journey,
    ) -> Result<Connected, CloseReason> {
        loop {
            let snapshot = self.cluster.load();
            let name = |index: usize| Arc::clone(&snapshot.entries[index].slot.name);
            match self.route(&snapshot, journey) {
                Route::To { index, passed } => {
                    journey.pass(passed.map(|(home, why)| (name(home), why)));
                    if !queue::take_seat(&snapshot, index, journey) {
                        // Somebody else was faster: there is another decision to make.
                        continue;
                    }
                    match self.try_slot(&snapshot, index, journey).await? {
                        Some(connected) => return Ok(connected),
                        None => self.note_failure(name(index))?,
                    }
                }
                // Rare and large: kept out of the size of every connection's future.
                Route::Hold { index } => Box::pin(self.hold(&snapshot, index, journey)).await,
                Route::Queue { index } => Box::pin(self.queue(&snapshot, index, journey)).await,
                Route::Reject { index, why } => {
                    journey.pass(Some((name(index), why)));
                    return Err(match why {
                        Skip::Full if journey.detour().queued.is_zero() => CloseReason::SlotFull,
                        Skip::Full => CloseReason::QueueTimeout,
                        _ => CloseReason::SlotDown,
                    });
                }
                Route::Nowhere if self.tried.failed.is_empty() => {
                    return Err(CloseReason::NoBackend);
                }
                Route::Nowhere => return Err(CloseReason::ConnectFailed),
            }
        }
    }

    /// The decision of this moment.
    fn route(&self, snapshot: &Snapshot, journey: &Journey) -> Route {
        let asker = Asker {
            known: self.home.and_then(|(slot, _)| snapshot.position_of(slot)),
            seated: queue::seated(snapshot, journey),
            failed: &self.tried.failed,
            may_hold: self.may_hold(),
            may_queue: self.may_queue(),
            ..Asker::new(self.key)
        };
        snapshot.route(&asker, &snapshot.live())
    }

    /// Notes that a slot failed this client, also after it seemed to be connected.
    pub(super) fn note_failure(&mut self, slot: Arc<str>) -> Result<(), CloseReason> {
        self.tried.note_failure(slot)
    }

    /// One attempt. `None` when the backend could not be reached; an error when it was not asked,
    /// because this machine had nothing left to ask with.
    async fn try_slot(
        &self,
        snapshot: &Snapshot,
        index: usize,
        journey: &mut Journey,
    ) -> Result<Option<Connected>, CloseReason> {
        let entry = &snapshot.entries[index];
        let generation = self.generation(snapshot, entry);
        let Some(backend) = entry.serving(generation) else {
            return Ok(None);
        };
        // Counted before it is there: whoever ends the generation asks this thread first, and must then
        // find who is on the way.
        let home = Home::enter(Arc::clone(&entry.slot), Arc::clone(backend));
        let connected = |upstream, is_reused, journey: &mut Journey| {
            // Without a key nobody has a slot of its own.
            if snapshot.config.affinity.key != Key::None {
                let passed = journey.detour().passed.as_ref().map(|(_, why)| *why);
                entry.slot.stats.affinity.count(passed);
            }
            home.reached();
            journey.home = Some(home);
            Connected {
                upstream,
                send_proxy: snapshot.config.send_proxy,
                is_reused,
            }
        };
        let wants_tls = snapshot.config.tls.is_some();
        if self.may_reuse
            && let Some(upstream) = pool::take(&entry.slot.stats, backend)
            && upstream.is_encrypted() == wants_tls
        {
            return Ok(Some(connected(upstream, true, journey)));
        }
        let began = Instant::now();
        let deadline = began + snapshot.config.connect_timeout;
        let mut opened = open(&backend.address, self.at_once, deadline).await;
        if wants_tls {
            let (slot, address) = (&entry.slot.name, &backend.address);
            let encrypted = encrypt(self.cluster, slot, opened, address, deadline);
            opened = Box::pin(encrypted).await;
        }
        match opened {
            Ok(upstream) => {
                entry.slot.stats.connect.observe(began.elapsed());
                Ok(Some(connected(upstream, false, journey)))
            }
            // Ports are used up for each destination by itself: the next one may do.
            Err(error) if is_exhaustion(&error) && error.kind() != ErrorKind::AddrNotAvailable => {
                Err(CloseReason::NoResources)
            }
            Err(error) => {
                if !is_exhaustion(&error) {
                    entry.slot.stats.connect_failures.fetch_add(1, Relaxed);
                }
                Ok(None)
            }
        }
    }

    /// The generation of a slot that has served the client, if that is known: by what it shows, or
    /// by a connection of it that is relayed there while that generation drains.
    fn generation(&self, snapshot: &Snapshot, entry: &Entry) -> Option<u32> {
        let home = self.home.filter(|(slot, _)| *slot == entry.slot.id);
        let by_connection = || {
            // Who shows none of the others is new.
            let by_address = snapshot.config.affinity.key == Key::Address;
            let mut leaving = entry.leaving.iter().filter(|_| by_address);
            let its_own = leaving.find(|before| before.load.residents.has(self.key));
            its_own.map(|before| before.generation)
        };
        home.map(|(_, generation)| generation)
            .or_else(by_connection)
    }

    fn may_hold(&self) -> bool {
        self.tried
            .hold_until
            .is_none_or(|until| Instant::now() < until)
    }

    /// Waits for the slot to change, or, if it should be up, a moment.
    async fn hold(&mut self, snapshot: &Snapshot, index: usize, journey: &mut Journey) {
        let OnDown::Hold(longest) = snapshot.config.on_down else {
            return;
        };
        let began = Instant::now();
        let until = *self.tried.hold_until.get_or_insert(began + longest);
        let entry = &snapshot.entries[index];
        journey.sit(None);
        let (_held, others) = Held::enter(&entry.slot.stats);
        if others >= MAX_HELD {
            self.tried.hold_until = Some(began);
        } else if entry.skip.is_some() {
            self.cluster.changed_since(snapshot.number, until).await;
        } else {
            self.cluster
                .changed_since(snapshot.number, until.min(began + RETRY))
                .await;
        }
        self.tried.failed.retain(|name| *name != entry.slot.name);
        journey.detour_mut().held += began.elapsed();
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

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroUsize};

    use futures_util::FutureExt as _;
    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;
    use crate::{
        cluster::Controller,
        config::{self, Address, Source, StaticBackend, Workers},
    };

    /// A cluster with one slot.
    fn cluster(source: Source) -> (Cluster, Controller) {
        Cluster::new(&config::Cluster {
            on_down: OnDown::Hold(Duration::from_secs(10)),
            ..config::Cluster::new("app", source)
        })
    }

    #[tokio::test]
    async fn a_client_that_is_cut_while_it_is_held_is_not_counted_for_ever() {
        let workers = Workers::new(vec!["true".into()], NonZeroUsize::MIN);
        let (cluster, _controller) = cluster(Source::Workers(Arc::new(workers)));
        let stats = Arc::clone(&cluster.load().entries[0].slot.stats);
        let held = || stats.held.load(Relaxed);
        {
            let mut search = Search::new(&cluster, AffinityKey::from_bits(1), true);
            let mut journey = Journey::default();
            let mut connect = Box::pin(search.connect(&mut journey));
            assert!(connect.as_mut().now_or_never().is_none());
            assert_eq!(held(), 1);
        }
        assert_eq!(held(), 0);
    }

    #[tokio::test]
    async fn who_is_on_the_way_is_counted_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let socket = || Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        let address = SockAddr::unix(&path).unwrap();
        let backend = socket();
        backend.bind(&address).unwrap();
        backend.listen(0).unwrap();
        let first = socket();
        first.connect(&address).unwrap();
        assert!(socket().connect(&address).is_err(), "its queue is full");

        let (cluster, _controller) = cluster(Source::Static(vec![StaticBackend {
            name: "app/0".into(),
            address: Address::Unix(path),
            weight: NonZeroU32::MIN,
        }]));
        let snapshot = cluster.load();
        let entry = &snapshot.entries[0];
        let load = &entry.backend.as_ref().unwrap().load;
        let counts = || {
            let all = [
                &entry.slot.stats.active,
                &load.active,
                &entry.slot.stats.total,
            ];
            all.map(|count| count.load(Relaxed))
        };
        let mut journey = Journey::default();
        let mut search = Search::new(&cluster, AffinityKey::from_bits(1), true);
        let mut connect = Box::pin(search.connect(&mut journey));
        assert!(connect.as_mut().now_or_never().is_none());
        assert_eq!(counts(), [1, 1, 0]);
        drop(connect);
        assert_eq!(counts(), [0, 0, 0], "cut on the way");

        let mut connect = Box::pin(search.connect(&mut journey));
        assert!(connect.as_mut().now_or_never().is_none());
        backend.accept().unwrap();
        connect.await.unwrap();
        assert_eq!(counts(), [1, 1, 1]);
        drop(journey);
        assert_eq!(counts(), [0, 0, 1]);
    }
}
