//! How things stand: from what is at work to what the API answers.

use std::{collections::BTreeMap, io, sync::atomic::Ordering::Relaxed};

use tokio::task::spawn_blocking;

use super::{
    Board, Phase, Place,
    view::{self, unix_seconds},
};
use crate::{
    cluster::{self, Entry, Health},
    direct::Usage,
    supervisor,
};

impl view::Status {
    /// How things stand now.
    pub(super) async fn of(board: &Board) -> Self {
        let usages = usages(board).await;
        let clusters = board.clusters();
        let clusters = clusters.iter().map(|cluster| {
            let usage = usages.get(&**cluster.name());
            view::Cluster::of(cluster, usage.map_or(&[], Vec::as_slice))
        });
        let places = board.places();
        let listeners = places.iter().map(|place| listener(place, &usages));
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: unix_seconds(board.since()),
            uptime: board.uptime().as_secs(),
            phase: match board.phase() {
                Phase::Running => "running".to_owned(),
                Phase::Draining => "draining".to_owned(),
            },
            config: board.file().map(|file| file.display().to_string()),
            reloads: board.reloads().clone(),
            connections: board.plane().open(),
            listeners: listeners.collect(),
            clusters: clusters.collect(),
        }
    }
}

/// What the kernel tells of direct connections, by cluster and slot.
pub(super) async fn usages(board: &Board) -> BTreeMap<String, Vec<Usage>> {
    let mut asked = Vec::new();
    for place in board.places() {
        let Place::Direct {
            cluster, direct, ..
        } = place
        else {
            continue;
        };
        let snapshot = board
            .clusters()
            .iter()
            .find(|known| *known.name() == cluster)
            .map(cluster::Cluster::load);
        let Some(snapshot) = snapshot else { continue };
        let pid = |entry: &Entry| entry.backend.as_ref().and_then(|backend| backend.pid);
        let pids: Vec<_> = snapshot.entries.iter().map(pid).collect();
        asked.push((cluster.to_string(), direct, pids));
    }
    let look = move || {
        let looked = asked.into_iter().filter_map(|(cluster, direct, pids)| {
            let usage: io::Result<_> = direct.usage(&pids);
            Some((cluster, usage.ok()?))
        });
        looked.collect()
    };
    spawn_blocking(look).await.unwrap_or_default()
}

fn listener(place: &Place, usages: &BTreeMap<String, Vec<Usage>>) -> view::Listener {
    view::Listener {
        name: place.name().to_owned(),
        mode: place.mode().to_string(),
        addresses: place.addresses(),
        cluster: place.cluster().to_string(),
        connections: connections(place, usages),
    }
}

/// The connections of a listener now, as far as they are known.
pub(super) fn connections(place: &Place, usages: &BTreeMap<String, Vec<Usage>>) -> Option<u64> {
    match place {
        Place::Relayed { listener, .. } => Some(listener.open()),
        Place::Direct { cluster, .. } => usages.get(&**cluster).map(|slots| {
            let all = slots.iter().map(|slot| slot.connections + slot.waiting);
            all.sum()
        }),
    }
}

impl view::Cluster {
    fn of(cluster: &cluster::Cluster, usage: &[Usage]) -> Self {
        let snapshot = cluster.load();
        let slots = snapshot.entries.iter().enumerate();
        Self {
            name: cluster.name().to_string(),
            snapshot: snapshot.number,
            affinity: snapshot.config.affinity.key.to_string(),
            supervised: snapshot.config.supervised().is_some(),
            slots: slots
                .map(|(index, entry)| view::Slot::of(entry, usage.get(index)))
                .collect(),
        }
    }
}

impl view::Slot {
    fn of(entry: &Entry, direct: Option<&Usage>) -> Self {
        let stats = &entry.slot.stats;
        let backend = entry.backend.as_deref();
        let why = backend.and_then(|backend| match &backend.health {
            Health::Unhealthy { why, .. } => Some(why.to_string()),
            Health::Unknown | Health::Healthy => None,
        });
        let direct = direct.copied().unwrap_or_default();
        let lag = backend.and_then(|_| stats.worker.lag.last());
        Self {
            name: entry.slot.name.to_string(),
            state: entry.skip.map_or("ready", cluster::Skip::as_str).to_owned(),
            why,
            weight: entry.slot.weight.get(),
            backend: backend.map(view::Backend::of),
            next: entry.next.as_deref().map(view::Backend::of),
            leaving: entry
                .leaving
                .iter()
                .map(|one| view::Backend::of(one))
                .collect(),
            active: stats.active.load(Relaxed) + direct.connections + direct.waiting,
            held: stats.held.load(Relaxed),
            total: stats.total.load(Relaxed),
            connect_failures: stats.connect_failures.load(Relaxed),
            bytes_up: stats.bytes_up.load(Relaxed) + direct.received,
            bytes_down: stats.bytes_down.load(Relaxed) + direct.sent,
            loop_lag_ms: lag.and_then(|lag| u64::try_from(lag.as_millis()).ok()),
        }
    }
}

impl view::Backend {
    pub(super) fn of(backend: &cluster::Backend) -> Self {
        Self {
            address: backend.address.to_string(),
            generation: backend.generation,
            pid: backend.pid,
            active: backend.load.active.load(Relaxed),
            rss: backend.pid.and_then(supervisor::resident),
            cpu: backend
                .pid
                .and_then(supervisor::processor_time)
                .and_then(|used| used.as_millis().try_into().ok()),
        }
    }
}
