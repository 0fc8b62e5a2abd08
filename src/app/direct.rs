//! Direct listeners at work: their groups, the task that keeps the programs true, and the sockets
//! that workers get from them.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tracing::info;

use super::{StartError, cluster::RunningCluster};
use crate::{
    config::{self, Config, Mode},
    direct::Direct,
    proxy::{DataPlane, Listener, Settings},
    supervisor::{Doors, SlotDoors},
};

/// For handshakes that have begun when everything ends; more than a round trip of most clients.
const LAST_HANDSHAKES: Duration = Duration::from_millis(250);

/// All direct listeners, by the cluster behind each.
#[derive(Debug, Default)]
pub(super) struct Directs(BTreeMap<Arc<str>, Arc<Direct>>);

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
        Ok(Self(directs))
    }

    /// What the workers of a cluster get their sockets from.
    pub(super) fn doors(&self, cluster: &str) -> Option<Arc<dyn Doors>> {
        let direct = self.0.get(cluster)?;
        Some(Arc::new(PublicSockets(Arc::clone(direct))))
    }

    /// The real addresses of the listener that leads to a cluster.
    pub(super) fn addresses_of(&self, cluster: &str) -> Option<Vec<SocketAddr>> {
        Some(self.0.get(cluster)?.addresses())
    }

    /// Begins to lead the clients of a listener.
    pub(super) fn run(
        &self,
        listener: config::Listener,
        cluster: &RunningCluster,
        plane: &Arc<DataPlane>,
    ) {
        let Some(direct) = self.0.get(&listener.cluster) else {
            return;
        };
        let rescued = Listener::without_hold(Settings {
            config: listener,
            cluster: cluster.cluster().clone(),
        });
        let plane = Arc::clone(plane);
        let take = move |stream, peer| plane.take(&rescued, stream, peer);
        let run = Arc::clone(direct).run(cluster.cluster().clone(), take);
        cluster.keep_running(run);
    }

    /// The real addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.0.values().flat_map(|direct| direct.addresses())
    }

    /// Lets nobody in any more: who waits to be accepted is the workers' to serve.
    pub(super) async fn close(&self) {
        for direct in self.0.values() {
            direct.refuse();
        }
        if !self.0.is_empty() {
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
}
