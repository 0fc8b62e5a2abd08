//! What the running homescar shows of itself: pointers to what is at work, so that a question costs
//! whoever is asked nothing.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::{
    Refused,
    view::{Reloads, unix_seconds},
};
use crate::{
    cluster::Cluster,
    config::Mode,
    direct::Direct,
    metrics::{Histogram, Waits},
    proxy::{DataPlane, Listener},
};

/// What is at work.
#[derive(Debug)]
pub struct Board {
    since: SystemTime,
    file: Option<PathBuf>,
    plane: Arc<DataPlane>,
    is_draining: AtomicBool,
    reloads: Mutex<Reloads>,
    /// When the configuration in use was taken on.
    configured: Mutex<SystemTime>,
    certificates: ArcSwap<Vec<Certificate>>,
    /// How late the control plane comes to what is due.
    lag: Histogram<Waits>,
    now: ArcSwap<Now>,
}

/// What a board has to know of the time before it was there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past {
    /// When homescar was started.
    since: SystemTime,
    /// When the configuration in use was taken on.
    configured: SystemTime,
    reloads: Reloads,
}

impl Past {
    /// That of a homescar that starts now.
    #[must_use]
    pub fn none() -> Self {
        let now = SystemTime::now();
        Self {
            since: now,
            configured: now,
            reloads: Reloads::default(),
        }
    }
}

/// What a reload may change.
#[derive(Debug, Default)]
struct Now {
    places: Vec<Place>,
    clusters: Vec<Cluster>,
}

/// A certificate at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whether a `listener` or a `cluster` shows it.
    pub kind: &'static str,
    /// The name of that.
    pub owner: String,
    /// The first DNS name that it is for, or its file.
    pub name: String,
    /// The last moment of its time.
    pub not_after: SystemTime,
}

/// A listener at work.
#[derive(Clone, Debug)]
pub enum Place {
    /// homescar is on the path.
    Relayed {
        /// Its addresses, as they really are.
        addresses: Vec<std::net::SocketAddr>,
        /// The listener.
        listener: Arc<Listener>,
    },
    /// The kernel leads to the workers.
    Direct {
        /// Its name.
        name: Arc<str>,
        /// The cluster behind it.
        cluster: Arc<str>,
        /// Its groups of sockets.
        direct: Arc<Direct>,
    },
}

/// What homescar is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Running,
    /// It is ending.
    Draining,
}

impl Board {
    /// The board of a homescar with this past.
    #[must_use]
    pub fn new(file: Option<PathBuf>, plane: Arc<DataPlane>, past: Past) -> Self {
        let Past {
            since,
            configured,
            reloads,
        } = past;
        Self {
            since,
            file,
            plane,
            is_draining: AtomicBool::new(false),
            reloads: Mutex::new(reloads),
            configured: Mutex::new(configured),
            certificates: ArcSwap::default(),
            lag: Histogram::default(),
            now: ArcSwap::default(),
        }
    }

    /// What the board of the next image has to know.
    #[must_use]
    pub fn past(&self) -> Past {
        Past {
            since: self.since,
            configured: self.configured(),
            reloads: self.reloads().clone(),
        }
    }

    /// Shows what is at work from now on.
    pub fn show(&self, places: Vec<Place>, clusters: Vec<Cluster>) {
        self.now.store(Arc::new(Now { places, clusters }));
    }

    /// Shows how a reload went.
    pub fn reloaded(&self, how: Result<(), String>) {
        let mut reloads = self.reloads();
        match &how {
            Ok(()) => {
                reloads.succeeded += 1;
                *self
                    .configured
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
            }
            Err(_) => reloads.failed += 1,
        }
        reloads.last = Some(unix_seconds(SystemTime::now()));
        reloads.error = how.err();
    }

    /// Shows which certificates are in use from now on.
    pub fn show_certificates(&self, certificates: Vec<Certificate>) {
        self.certificates.store(Arc::new(certificates));
    }

    pub(super) fn certificates(&self) -> Arc<Vec<Certificate>> {
        self.certificates.load_full()
    }

    pub(super) fn configured(&self) -> SystemTime {
        *self
            .configured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn lag(&self) -> &Histogram<Waits> {
        &self.lag
    }

    /// Shows that the end has begun.
    pub fn drains(&self) {
        self.is_draining.store(true, Relaxed);
    }

    /// What homescar is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.is_draining.load(Relaxed) {
            true => Phase::Draining,
            false => Phase::Running,
        }
    }

    /// Whether clients are served: no end has begun, and each cluster that a listener leads to has
    /// a slot that takes some.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let now = self.now.load();
        let serves = |cluster: &Cluster| {
            let is_used = now
                .places
                .iter()
                .any(|place| place.leads_to(cluster.name()));
            !is_used || cluster.load().any_usable()
        };
        self.phase() == Phase::Running && now.clusters.iter().all(serves)
    }

    /// The configuration file.
    pub(super) const fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }

    pub(super) fn uptime(&self) -> Duration {
        self.since.elapsed().unwrap_or_default()
    }

    pub(super) const fn since(&self) -> SystemTime {
        self.since
    }

    pub(super) fn plane(&self) -> &DataPlane {
        &self.plane
    }

    pub(super) fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clusters of this moment.
    #[must_use]
    pub fn clusters(&self) -> Vec<Cluster> {
        self.now.load().clusters.clone()
    }

    /// The cluster of this name, or, without one, the only one.
    pub(super) fn cluster(&self, name: Option<&str>) -> Result<Cluster, Refused> {
        let clusters = self.clusters();
        let known: Vec<_> = clusters.iter().map(|one| &**one.name()).collect();
        let known = known.join(", ");
        match (name, &*clusters) {
            (Some(name), all) => {
                let named = all.iter().find(|one| &**one.name() == name);
                let unknown =
                    || Refused::Unknown(format!("there is no cluster {name}; there are {known}"));
                named.cloned().ok_or_else(unknown)
            }
            (None, [only]) => Ok(only.clone()),
            (None, _) => Err(Refused::Invalid(format!(
                "which cluster? there are {known}"
            ))),
        }
    }

    /// Whether the kernel leads clients of this cluster past homescar.
    pub(super) fn is_direct(&self, cluster: &str) -> bool {
        let places = self.places();
        let mut places = places.iter();
        places.any(|place| place.mode() == Mode::Direct && place.leads_to(cluster))
    }

    /// The listeners of this moment.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        self.now.load().places.clone()
    }
}

impl Place {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Relayed { listener, .. } => listener.name(),
            Self::Direct { name, .. } => name,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Relayed { listener, .. } => listener.settings().config.mode,
            Self::Direct { .. } => Mode::Direct,
        }
    }

    pub(super) fn cluster(&self) -> Arc<str> {
        match self {
            Self::Relayed { listener, .. } => Arc::clone(listener.settings().cluster.name()),
            Self::Direct { cluster, .. } => Arc::clone(cluster),
        }
    }

    fn leads_to(&self, name: &str) -> bool {
        match self {
            Self::Relayed { listener, .. } => {
                let settings = listener.settings();
                let mut clusters = settings.routed.iter().chain([&settings.cluster]);
                clusters.any(|cluster| &**cluster.name() == name)
            }
            Self::Direct { cluster, .. } => &**cluster == name,
        }
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        let addresses = match self {
            Self::Relayed { addresses, .. } => addresses.clone(),
            Self::Direct { direct, .. } => direct.addresses(),
        };
        addresses.iter().map(ToString::to_string).collect()
    }
}
