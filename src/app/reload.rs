//! From one configuration to the next: everything that can fail is done before anything changes,
//! and what is the same in both is not touched.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ahash::{HashMap, HashSet};
use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    App, Place, StartError, bind_new, close_all,
    cluster::{RunningCluster, stop_workers},
    direct::refuse_changes,
    rebalance, secrets,
    service::PassedSockets,
};
use crate::{
    cluster::{AdminState, Cluster, Slot},
    config::{Config, Drain, Mode},
    proxy::{BoundGroup, Cut, DataPlane, Listener},
    supervisor::keep_asking,
};

impl App {
    /// Changes to another configuration. Connections on listeners and slots that stay are not
    /// touched; those on what leaves run on for the cluster's drain timeout.
    ///
    /// # Errors
    ///
    /// When a new address cannot be listened on, or a certificate not be used; then nothing has
    /// changed.
    pub(super) async fn reload(&mut self, mut config: Config) -> Result<(), StartError> {
        if config.threads != self.config.threads {
            warn!(
                "threads = {} takes effect at the next start; there are {} now",
                config.threads, self.config.threads
            );
            config.threads = self.config.threads;
        }
        refuse_changes(&self.config, &config)?;
        let staged = self.certificates.stage(&config)?;
        let signing = self.signers.read(&config)?;
        let mut groups = bind_new(&config, &self.doors, &mut PassedSockets::default())?;
        self.certificates.take(staged);

        self.keep_scales(&mut config);
        self.plane.set_max_connections(config.max_connections);
        crate::log::set_level(config.log.level);
        crate::proxy::write_records(config.log.records);
        if config.admin != self.config.admin {
            warn!("[admin] takes effect at the next start");
        }
        if config.log.format != self.config.log.format {
            warn!("log.format takes effect at the next start");
        }
        self.config = config;
        self.change_clusters(&groups).await;
        secrets::hand_out(&signing, |name| self.clusters.get(name));
        let removed = self.change_listeners(&mut groups);
        self.close_doors().await;
        // Only now: nobody comes in any more whom its end could miss.
        for listener in removed {
            self.let_go_of_listener(listener);
        }
        self.drop_clusters();
        self.show();
        Ok(())
    }

    pub(super) async fn change_clusters(&mut self, groups: &HashMap<Place, BoundGroup>) {
        for config in &self.config.clusters {
            let entrances = self.entrances(&config.name, groups);
            let connector = self.certificates.connector(&config.name);
            let Some(running) = self.clusters.get_mut(&config.name) else {
                let running = RunningCluster::start(config, connector, entrances, &self.home, None);
                rebalance::watch(&running, &self.plane);
                self.clusters.insert(Arc::clone(&config.name), running);
                continue;
            };
            let before = running.cluster().load();
            if *before.config == *config {
                running.supervise(config, entrances, &self.home);
                continue;
            }
            running
                .configure(config, connector, entrances, &self.home)
                .await;
            let cluster = running.cluster().clone();
            let supervisor = running.take_idle_supervisor();
            let drain = &before.config.drain;
            let now = cluster.load();
            let left: Vec<_> = before
                .entries
                .iter()
                .filter(|entry| now.entry(&entry.slot.name).is_none())
                .map(|entry| Arc::clone(&entry.slot))
                .collect();
            for slot in left {
                self.let_go_of_slot(cluster.clone(), slot, drain.clone());
            }
            let drain = drain.timeout;
            if let Some(supervisor) = supervisor {
                let shutdown = self.shutdown.clone();
                self.leaving.spawn(async move {
                    // At once, so that they start no next generation in a slot that may by then
                    // be another's.
                    let _cut_short = shutdown.run_until_cancelled(supervisor.retire(drain)).await;
                    stop_workers(&supervisor, &shutdown).await;
                });
            }
        }
    }

    /// Gives the listeners that the configuration no longer names.
    fn change_listeners(&mut self, groups: &mut HashMap<Place, BoundGroup>) -> Vec<Arc<Listener>> {
        let mut old = std::mem::take(&mut self.listeners);
        let listeners = self.config.listeners.iter();
        let relayed = listeners.filter(|listener| listener.mode != Mode::Direct);
        for config in relayed.cloned().collect::<Vec<_>>() {
            let settings = self.settings(config);
            let listener = match old.remove(&settings.config.name) {
                Some(listener) => {
                    listener.configure(settings);
                    listener
                }
                None => Listener::new(settings),
            };
            self.listeners
                .insert(Arc::clone(listener.name()), Arc::clone(&listener));
            self.open_doors(&listener, groups);
        }
        old.into_values().collect()
    }

    /// Closes the addresses that the configuration no longer names.
    async fn close_doors(&mut self) {
        let named: HashSet<Place> = self.config.listeners.iter().flat_map(Place::of).collect();
        let closed: Vec<_> = self
            .doors
            .extract_if(|place, _| !named.contains(place))
            .collect();
        for (_, door) in &closed {
            info!(address = %door.address(), "no longer listening");
        }
        close_all(closed.iter().map(|(_, door)| door)).await;
    }

    /// Ends the clusters that the configuration no longer names, once their slots have drained.
    fn drop_clusters(&mut self) {
        let config = &self.config;
        let (stay, leave): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.clusters)
            .into_iter()
            .partition(|(name, _)| config.clusters.iter().any(|cluster| cluster.name == *name));
        self.clusters = stay;
        for running in leave.into_values() {
            let snapshot = running.cluster().load();
            let drain = snapshot.config.drain.clone();
            let slots: Vec<_> = snapshot
                .entries
                .iter()
                .map(|e| Arc::clone(&e.slot))
                .collect();
            let (plane, shutdown) = (Arc::clone(&self.plane), self.shutdown.clone());
            self.leaving.spawn(async move {
                let empty = slots
                    .iter()
                    .map(|slot| empty(&plane, slot, drain.spread, || true));
                let empty = timeout(drain.timeout, join_all(empty));
                let _ended = shutdown.run_until_cancelled(empty).await;
                for slot in slots {
                    plane.cut(Cut::Slot(Arc::clone(&slot.stats))).await;
                }
                running.stop(&shutdown).await;
            });
        }
    }

    /// Lets the connections of a removed listener run on for its cluster's drain timeout.
    fn let_go_of_listener(&self, listener: Arc<Listener>) {
        let drain = listener.drain();
        let (plane, shutdown) = (Arc::clone(&self.plane), self.shutdown.clone());
        self.leaving.spawn(async move {
            let which = Cut::Listener(Arc::clone(&listener));
            plane.ask_to_leave(&which, drain.spread).await;
            let idle = timeout(drain.timeout, listener.wait_until_idle());
            if let Some(Err(_)) = shutdown.run_until_cancelled(idle).await {
                info!(
                    listener = &**listener.name(),
                    "cutting what is left of a removed listener"
                );
                plane.cut(which).await;
            }
        });
    }

    /// Lets the connections of a slot that is removed, or in maintenance, run on for the drain timeout,
    /// unless it comes back.
    pub(super) fn let_go_of_slot(&self, cluster: Cluster, slot: Arc<Slot>, drain: Drain) {
        let (plane, shutdown) = (Arc::clone(&self.plane), self.shutdown.clone());
        self.leaving.spawn(async move {
            let leaves = || {
                let now = cluster.load();
                let entry = now.entry(&slot.name);
                entry.is_none_or(|entry| entry.admin == AdminState::Maint)
            };
            let empty = timeout(drain.timeout, empty(&plane, &slot, drain.spread, leaves));
            let overtime = matches!(shutdown.run_until_cancelled(empty).await, Some(Err(_)));
            if overtime && leaves() {
                info!(slot = %slot.name, "cutting what is left of {}", slot.name);
                plane.cut(Cut::Slot(Arc::clone(&slot.stats))).await;
            }
        });
    }
}

/// Asks the WebSockets of a slot to go for as long as it `leaves`, and a little later those that were
/// just being opened; until it has no connections.
async fn empty(plane: &DataPlane, slot: &Slot, spread: Duration, leaves: impl Fn() -> bool) {
    let which = Cut::Slot(Arc::clone(&slot.stats));
    let ask = || {
        let leaves = leaves();
        let which = &which;
        async move {
            if leaves {
                plane.ask_to_leave(which, spread).await;
            }
        }
    };
    tokio::select! {
        biased;
        never = keep_asking(ask) => match never {},
        () = wait_until_idle(slot) => {}
    }
}

/// Connections of a slot are counted on the data plane, which tells nobody; so this looks.
async fn wait_until_idle(slot: &Slot) {
    while slot.stats.active.load(std::sync::atomic::Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
