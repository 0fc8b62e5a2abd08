//! A front door: its settings and its counts.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{
    admit::{Clients, Gauge},
    identify::Complaints,
    stats::ListenerStats,
};
use crate::{
    cluster::Cluster,
    config::{self, Drain},
    metrics::PerThread,
    tls::Acceptor,
};

/// A front door: what its connections share. The addresses that lead to it are
/// [`Door`](super::Door)s.
#[derive(Debug)]
pub struct Listener {
    name: Arc<str>,
    settings: ArcSwap<Settings>,
    pub(super) open: Arc<Gauge>,
    pub(super) clients: Arc<Clients>,
    pub(super) complaints: Complaints,
    stats: PerThread<ListenerStats>,
    /// Whether its clients may be held for their slot.
    pub(super) holds: bool,
}

/// What a new connection is treated by. A connection keeps those it began with.
#[derive(Debug)]
pub struct Settings {
    /// As configured.
    pub config: config::Listener,
    /// The cluster behind it.
    pub cluster: Cluster,
    /// The clusters of its routes, in their order.
    pub routed: Vec<Cluster>,
    /// What encrypts its connections, where `config.tls` says so.
    pub tls: Option<Arc<Acceptor>>,
}

impl Settings {
    /// All clusters that its requests may go to.
    pub(super) fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        std::iter::once(&self.cluster).chain(&self.routed)
    }

    /// The cluster that a request goes to: of the routes that fit, the one with the longest path.
    pub(super) fn cluster_for(&self, host: &str, target: &str) -> &Cluster {
        let routes = self.config.routes.iter().zip(&self.routed);
        routes
            .filter(|(route, _)| route.fits(host, target))
            .max_by_key(|(route, _)| route.rank())
            .map_or(&self.cluster, |(_, cluster)| cluster)
    }
}

impl Listener {
    /// A listener without an address.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self::with(settings, true))
    }

    /// A listener for clients that have waited for their slot already.
    #[must_use]
    pub fn without_hold(settings: Settings) -> Arc<Self> {
        Arc::new(Self::with(settings, false))
    }

    fn with(settings: Settings, holds: bool) -> Self {
        Self {
            name: Arc::clone(&settings.config.name),
            settings: ArcSwap::from_pointee(settings),
            open: Arc::default(),
            clients: Arc::new(Clients::new()),
            complaints: Complaints::default(),
            stats: PerThread::default(),
            holds,
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Changes what new connections are treated by.
    pub fn configure(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// What is counted of it.
    #[must_use]
    pub const fn stats(&self) -> &PerThread<ListenerStats> {
        &self.stats
    }

    /// Its connections now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.open()
    }

    /// Waits until none of its connections is open.
    pub async fn wait_until_idle(&self) {
        self.open.wait_until_none().await;
    }

    /// How its connections are ended when it is removed.
    #[must_use]
    pub fn drain(&self) -> Drain {
        self.settings().cluster.load().config.drain.clone()
    }

    /// What new connections are treated by.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }
}
