//! Direct listeners at work: their groups, the task that keeps the programs true, and the sockets
//! that workers get from them.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{task::spawn_blocking, time::Instant};
use tracing::{info, warn};

use super::{StartError, cluster::RunningCluster};
use crate::{
    admin::Place,
    config::{self, Config, Mode},
    direct::{Direct, SavedDirect},
    handover::{Incoming, Outgoing},
    proxy::{DataPlane, Listener, Settings},
    supervisor::{Doors, SlotDoors},
};

/// For handshakes that have begun when everything ends; more than a round trip of most clients.
const LAST_HANDSHAKES: Duration = Duration::from_millis(250);

/// How often, at most, the connections of direct listeners are counted while everything ends.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// All direct listeners, by the cluster behind each.
#[derive(Debug, Default)]
pub(super) struct Directs {
    directs: BTreeMap<Arc<str>, Arc<Direct>>,
    /// Those whose clients are relayed when their worker does not accept, by the listener.
    rescued: BTreeMap<Arc<str>, Arc<Listener>>,
    /// That they cannot be counted was said.
    uncounted: AtomicBool,
}

impl Directs {
    /// Binds all of them; workers may have the sockets from now on.
    pub(super) fn bind(config: &Config) -> Result<Self, StartError> {
        let mut directs = BTreeMap::new();
        for listener in direct(config) {
            let cluster = config.clusters.iter().find(|c| c.name == listener.cluster);
            let Some(cluster) = cluster else {
                continue;
            };
            let direct = Direct::bind(listener, cluster);
            let direct = direct.map_err(|source| StartError::Direct {
                listener: Arc::clone(&listener.name),
                source,
            })?;
            for address in direct.addresses() {
                info!(listener = &*listener.name, %address, mode = "direct", "listening");
            }
            info!(
                "clients of listener {} are handed to their workers by the kernel (mode direct; mode \
                 tcp would relay them)",
                listener.name
            );
            directs.insert(Arc::clone(&listener.cluster), Arc::new(direct));
        }
        Ok(Self {
            directs,
            ..Self::default()
        })
    }

    /// Goes on with those of an earlier image of the program.
    pub(super) fn resume(
        config: &Config,
        saved: &[SavedDirect],
        incoming: &Incoming,
    ) -> io::Result<Self> {
        let mut directs = BTreeMap::new();
        for listener in direct(config) {
            let saved = saved.iter().find(|saved| saved.listener == listener.name);
            let saved =
                saved.ok_or_else(|| io::Error::other("a direct listener has no sockets"))?;
            let direct = Direct::resumed(listener, saved, incoming)?;
            directs.insert(Arc::clone(&listener.cluster), Arc::new(direct));
        }
        Ok(Self {
            directs,
            ..Self::default()
        })
    }

    /// What the next image has to know of them.
    pub(super) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<Vec<SavedDirect>> {
        let directs = self.directs.values();
        directs.map(|direct| direct.saved(outgoing)).collect()
    }

    /// Accepts nobody in place of a worker, until [`go_on`](Self::go_on).
    pub(super) async fn pause(&self) {
        for direct in self.directs.values() {
            direct.pause().await;
        }
    }

    /// Accepts again.
    pub(super) fn go_on(&self) {
        self.directs.values().for_each(|direct| direct.go_on());
    }

    /// The listener by which relayed clients of a direct one come in.
    pub(super) fn rescued(&self, name: &str) -> Option<&Arc<Listener>> {
        self.rescued.get(name)
    }

    /// What the workers of a cluster get their sockets from.
    pub(super) fn doors(&self, cluster: &str) -> Option<Arc<dyn Doors>> {
        let direct = self.directs.get(cluster)?;
        Some(Arc::new(PublicSockets(Arc::clone(direct))))
    }

    /// How a listener shows on the board.
    pub(super) fn place(&self, listener: &config::Listener) -> Option<Place> {
        let direct = self.directs.get(&listener.cluster)?;
        Some(Place::Direct {
            name: Arc::clone(&listener.name),
            cluster: Arc::clone(&listener.cluster),
            direct: Arc::clone(direct),
        })
    }

    /// The real addresses of the listener that leads to a cluster.
    pub(super) fn addresses_of(&self, cluster: &str) -> Option<Vec<SocketAddr>> {
        Some(self.directs.get(cluster)?.addresses())
    }

    /// Begins to lead the clients of a listener.
    pub(super) fn run(
        &mut self,
        listener: config::Listener,
        cluster: &RunningCluster,
        plane: &Arc<DataPlane>,
    ) {
        let Some(direct) = self.directs.get(&listener.cluster) else {
            return;
        };
        let rescued = Listener::without_hold(Settings {
            routed: Vec::new(),
            config: listener,
            cluster: cluster.cluster().clone(),
            tls: None,
        });
        self.rescued
            .insert(Arc::clone(rescued.name()), Arc::clone(&rescued));
        let plane = Arc::clone(plane);
        let take = move |stream, peer| plane.take(&rescued, stream, peer);
        let run = Arc::clone(direct).run(cluster.cluster().clone(), take);
        cluster.keep_running(run);
    }

    /// The real addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.directs.values().flat_map(|direct| direct.addresses())
    }

    /// How many clients are connected to workers directly; none when the kernel does not tell,
    /// which is said once.
    pub(super) async fn connections(&self) -> u64 {
        let directs: Vec<_> = self.directs.values().map(Arc::clone).collect();
        if directs.is_empty() {
            return 0;
        }
        let count = move || directs.iter().map(|direct| direct.connections()).sum();
        let counted: Result<io::Result<u64>, _> = spawn_blocking(count).await;
        match counted.map_err(io::Error::from).flatten() {
            Ok(connections) => connections,
            Err(error) => {
                if !self.uncounted.swap(true, Ordering::Relaxed) {
                    warn!(
                        %error,
                        "the kernel does not tell how many direct connections there are: nobody \
                         waits for their end"
                    );
                }
                0
            }
        }
    }

    /// Returns when no client is connected to a worker directly, or the kernel does not tell.
    pub(super) async fn wait_until_idle(&self) {
        loop {
            let began = Instant::now();
            if self.connections().await == 0 {
                return;
            }
            // With very many connections, a fifth of a processor.
            tokio::time::sleep(LOOK_AGAIN.max(4 * began.elapsed())).await;
        }
    }

    /// Lets nobody in any more: who waits to be accepted is the workers' to serve.
    pub(super) async fn close(&self) {
        for direct in self.directs.values() {
            direct.refuse();
        }
        if !self.directs.is_empty() {
            tokio::time::sleep(LAST_HANDSHAKES).await;
        }
    }
}

/// What cannot change from one configuration to the next: the workers hold the sockets.
pub(super) fn refuse_changes(old: &Config, new: &Config) -> Result<(), StartError> {
    let same = |a: &config::Listener, b: &config::Listener| {
        a.bind == b.bind && a.backlog == b.backlog && a.probes == b.probes && a.cluster == b.cluster
    };
    let missing = |from: &Config, to: &Config| {
        let gone =
            |old: &&config::Listener| !direct(to).any(|new| new.name == old.name && same(old, new));
        direct(from).find(gone).map(|found| Arc::clone(&found.name))
    };
    match missing(old, new).or_else(|| missing(new, old)) {
        Some(listener) => Err(StartError::DirectChange { listener }),
        None => Ok(()),
    }
}

fn direct(config: &Config) -> impl Iterator<Item = &config::Listener> {
    let listeners = config.listeners.iter();
    listeners.filter(|listener| listener.mode == Mode::Direct)
}

/// The sockets of a direct listener, as the supervisor asks for them.
#[derive(Debug)]
struct PublicSockets(Arc<Direct>);

impl Doors for PublicSockets {
    fn of_slot(&self, index: usize) -> io::Result<SlotDoors> {
        let address = self.0.probe(index);
        Ok(SlotDoors {
            sockets: self.0.sockets(index)?,
            address: address.ok_or_else(|| io::Error::other("it has no probe address"))?,
            backlog: self.0.backlog(),
        })
    }

    fn connections(&self, index: usize, worker: u32) -> io::Result<u64> {
        self.0.connections_of(index, worker)
    }
}
