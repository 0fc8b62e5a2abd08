//! Direct mode: the kernel itself sends clients home, and homescar is not on the path.
//!
//! A listener has, on each of its addresses, a group of sockets (`SO_REUSEPORT`), one for each slot
//! of its cluster, all kept open for as long as the slot exists, and one for clients whom no slot
//! takes: those homescar accepts, to refuse them as in the other modes. The kernel runs the group's
//! program for the SYN of each client and puts the connection into the backlog of the socket that
//! it picks; see [`Table::program`](crate::affinity::Table::program). The slot's worker accepts it
//! there; while it restarts, connections wait.
//!
//! `standing` decides from each snapshot which slots the program has; [`attach`] is the hot swap;
//! `rescue` accepts what waits for a worker that does not come back in time; `usage` is what the
//! kernel tells of connections that nobody but the workers sees.

mod attach;
mod diag;
mod group;
mod rescue;
mod saved;
mod standing;
mod usage;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

pub use attach::{AttachError, attach};
pub use group::{Group, NotLed};
pub use saved::SavedDirect;
pub use usage::Usage;

use self::{
    rescue::{Pause, Rescue, Take},
    standing::{Decision, Standings},
};
use crate::{
    affinity::Table,
    cluster::{Backlog, Cluster, Snapshot},
    config::{self, Address, MAX_DIRECT_SLOTS},
    proxy::BindError,
};

/// Why a direct listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// An address could not be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The kernel does not do the sticking.
    #[error("{0}; mode = \"tcp\" does without the kernel's help")]
    NotLed(#[from] NotLed),
}

/// The groups of one direct listener, one for each of its addresses.
pub struct Direct {
    listener: Arc<str>,
    probes: Ipv4Addr,
    backlog: u32,
    groups: Mutex<Vec<Group>>,
    /// Whether a client was ever accepted in place of a worker.
    has_relayed: AtomicBool,
    pause: Arc<Pause>,
}

impl Direct {
    /// Binds every address of a listener for the slots of a cluster as configured. The first
    /// client is led already.
    ///
    /// # Errors
    /// When an address cannot be bound, or the kernel does not take a program; then none is.
    pub fn bind(config: &config::Listener, cluster: &config::Cluster) -> Result<Self, DirectError> {
        let first = Snapshot::configured(cluster);
        let slots = NonZeroUsize::new(first.entries.len()).unwrap_or(NonZeroUsize::MIN);
        let groups = config
            .bind
            .iter()
            .map(|bind| Group::reserve(*bind, config.backlog, slots));
        let groups = groups.collect::<Result<Vec<_>, _>>()?;
        let decision = Standings::default().decide(&first, Instant::now());
        for group in &groups {
            group.attach(&first, &decision, config.probes)?;
            group.listen()?;
        }
        Ok(Self {
            listener: Arc::clone(&config.name),
            probes: config.probes,
            backlog: config.backlog,
            groups: Mutex::new(groups),
            has_relayed: AtomicBool::new(false),
            pause: Arc::default(),
        })
    }

    /// Connections that may wait in each socket.
    #[must_use]
    pub const fn backlog(&self) -> u32 {
        self.backlog
    }

    /// The real addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.groups().iter().map(Group::address).collect()
    }

    /// Lets nobody knock any more, on any address; handshakes that have begun go on.
    pub fn refuse(&self) {
        for group in &*self.groups() {
            if let Err(error) = group.refuse() {
                warn!(listener = &*self.listener, %error, "clients may still knock");
            }
        }
    }

    /// The sockets of a slot, one for each address; they are made when they are first asked for.
    ///
    /// # Errors
    /// When a socket cannot join its group.
    pub fn sockets(&self, slot: usize) -> io::Result<Vec<Arc<TcpListener>>> {
        let mut groups = self.groups();
        groups.iter_mut().map(|group| group.socket(slot)).collect()
    }

    /// Where a slot is reached, whatever the hash says.
    #[must_use]
    pub fn probe(&self, slot: usize) -> Option<Address> {
        let groups = self.groups();
        let to = groups.iter().find_map(Group::reached_at)?;
        let slot = u32::try_from(slot).ok()?;
        let from = Ipv4Addr::from_bits(self.probes.to_bits().checked_add(slot)?);
        Some(Address::Probe { to, from })
    }

    /// Keeps the programs true to the cluster, until it is dropped. `take` gets the clients that
    /// are rescued.
    pub async fn run(
        self: Arc<Self>,
        cluster: Cluster,
        take: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) {
        let direct = Arc::clone(&self);
        // A check is for the worker alone: from us it gets a reset, and so an answer.
        let take: Take = Arc::new(move |stream, peer: SocketAddr| {
            if direct.is_probe(peer.ip().to_canonical()) {
                let _gone = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            } else {
                direct.has_relayed.store(true, Ordering::Relaxed);
                take(stream, peer);
            }
        });
        let mut numbers = cluster.subscribe();
        let mut standings = Standings::default();
        let mut attached: Option<(Vec<bool>, Arc<Table>, usize)> = None;
        let mut rescues = BTreeMap::new();
        // From when it is first needed: who has come to it shall not wait for ever.
        let mut refusing = None;
        loop {
            let _number = *numbers.borrow_and_update();
            let snapshot = cluster.load();
            let decision = standings.decide(&snapshot, Instant::now());
            let sockets = self.groups().iter().map(Group::len).sum();
            let same = attached.as_ref().is_some_and(|(led_to, table, of)| {
                let same_table = Arc::ptr_eq(table, &snapshot.table);
                *led_to == decision.led_to && same_table && *of == sockets
            });
            if !same && self.lead(&snapshot, &decision) {
                let table = Arc::clone(&snapshot.table);
                attached = Some((decision.led_to.clone(), table, sockets));
            }
            self.rescue(&snapshot, &decision, &mut rescues, &take);
            if refusing.is_none() && (decision.leads_nowhere() || self.is_sink_in_use()) {
                refusing = self.refuse_all(&take);
            }
            let again = async {
                match decision.again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = numbers.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    }

    /// Gives every group the program for these slots. Whether all took it.
    fn lead(&self, snapshot: &Snapshot, decision: &Decision) -> bool {
        let mut taken = true;
        for group in &*self.groups() {
            if let Err(why) = group.attach(snapshot, decision, self.probes) {
                taken = false;
                warn!(listener = &*self.listener, address = %group.address(), "{why}");
            }
        }
        taken
    }

    fn rescue(
        &self,
        snapshot: &Snapshot,
        decision: &Decision,
        rescues: &mut BTreeMap<usize, Rescue>,
        take: &Take,
    ) {
        rescues.retain(|slot, _| decision.rescued.get(*slot) == Some(&true));
        for (slot, _) in decision.rescued.iter().enumerate().filter(|(_, is)| **is) {
            if rescues.contains_key(&slot) {
                continue;
            }
            let entry = &snapshot.entries[slot];
            let name = &entry.slot.name;
            let begun = self.sockets(slot).and_then(|sockets| {
                Rescue::begin(name, sockets, Arc::clone(take), Arc::clone(&self.pause))
            });
            match begun {
                Ok(rescue) => {
                    match entry.skip {
                        Some(_) => {
                            info!(slot = &**name, "clients of {name} go to their next choice")
                        }
                        None => info!(slot = &**name, "clients of {name} are relayed to it"),
                    }
                    rescues.insert(slot, rescue);
                }
                Err(error) => warn!(slot = &**name, %error, "cannot accept in its place"),
            }
        }
    }

    /// Somebody was led there, perhaps before an upgrade.
    fn is_sink_in_use(&self) -> bool {
        let groups = self.groups();
        let mut sinks = groups
            .iter()
            .map(|group| Backlog::new(Arc::clone(group.sink())));
        sinks.any(|sink| sink.waiting().is_ok_and(|waiting| waiting > 0))
    }

    /// Accepts those whom no slot takes.
    fn refuse_all(&self, take: &Take) -> Option<Rescue> {
        let sinks = self
            .groups()
            .iter()
            .map(|group| Arc::clone(group.sink()))
            .collect();
        let begun = Rescue::begin("nobody", sinks, Arc::clone(take), Arc::clone(&self.pause));
        let failed = |error: &io::Error| {
            warn!(listener = &*self.listener, %error, "clients whom no slot takes are left to wait");
        };
        begun.inspect_err(failed).ok()
    }

    fn is_probe(&self, peer: IpAddr) -> bool {
        let first = self.probes.to_bits();
        let probes = first..=first + MAX_DIRECT_SLOTS as u32;
        matches!(peer, IpAddr::V4(ip) if probes.contains(&ip.to_bits()))
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}
