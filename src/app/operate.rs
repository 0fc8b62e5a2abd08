//! What an operator does to a running homescar: restart, scale, take slots out and back.

use std::{num::NonZeroUsize, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::App;
use crate::{
    admin::{Refused, view::Scaled},
    cluster::{AdminState, Event, Slot},
    config::{Cluster, Config, Facts, MAX_DIRECT_SLOTS, MAX_WORKERS, Mode, Source, Workers},
    supervisor::SlotReceipt,
};

/// A number of workers that was chosen while homescar ran, in place of the configured one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Scale {
    configured: NonZeroUsize,
    chosen: NonZeroUsize,
}

impl App {
    /// Replaces the workers of a cluster, slot after slot.
    pub(super) fn restart(
        &mut self,
        cluster: &str,
        parallel: NonZeroUsize,
    ) -> Result<mpsc::Receiver<SlotReceipt>, Refused> {
        self.workers_of(cluster)?;
        let running = self.clusters.get_mut(cluster);
        let restarted = running.and_then(|running| running.restart(parallel));
        match restarted {
            Some(Ok(receipts)) => {
                info!(cluster, parallel, "rolling restart of {cluster}");
                Ok(receipts)
            }
            Some(Err(busy)) => Err(Refused::Conflict(format!("{cluster}: {busy}"))),
            None => Err(Refused::Unknown(self.no_cluster(cluster))),
        }
    }

    /// Changes the number of a cluster's workers, at the high end.
    pub(super) async fn scale(&mut self, cluster: &str, count: usize) -> Result<Scaled, Refused> {
        let workers = self.workers_of(cluster)?;
        let before = workers.count;
        let most = match self.is_direct(cluster) {
            true => MAX_DIRECT_SLOTS,
            false => MAX_WORKERS,
        };
        let chosen = NonZeroUsize::new(count).filter(|count| count.get() <= most);
        let chosen = chosen.ok_or_else(|| {
            Refused::Invalid(format!(
                "{cluster} can have 1 to {most} workers, not {count}"
            ))
        })?;
        let scaled = Scaled {
            cluster: cluster.to_owned(),
            before: before.get(),
            now: count,
        };
        if chosen == before {
            return Ok(scaled);
        }
        let configured = self.scales.get(cluster).map(|scale| scale.configured);
        let configured = configured.unwrap_or(before);
        if chosen == configured {
            self.scales.remove(cluster);
        } else {
            let scale = Scale { configured, chosen };
            self.scales.insert(cluster.into(), scale);
        }
        for config in &mut self.config.clusters {
            if &*config.name == cluster {
                set_count(config, chosen);
            }
        }
        fit_connections(&mut self.config);
        self.plane.set_max_connections(self.config.max_connections);
        info!(
            cluster,
            "{cluster} is scaled from {before} to {chosen} workers"
        );
        self.change_clusters(&ahash::HashMap::default()).await;
        Ok(scaled)
    }

    /// One worker more or fewer in every cluster that has workers.
    pub(super) async fn scale_all(&mut self, by: isize) {
        let clusters = self.config.clusters.iter();
        let counts: Vec<_> = clusters
            .filter_map(|cluster| Some((Arc::clone(&cluster.name), cluster.supervised()?.count)))
            .collect();
        for (cluster, count) in counts {
            let count = count.get().saturating_add_signed(by);
            if let Err(refused) = self.scale(&cluster, count).await {
                warn!("{refused}");
            }
        }
    }

    /// A new configuration keeps the numbers that were chosen while homescar ran, but for clusters
    /// whose configured number has changed.
    pub(super) fn keep_scales(&mut self, config: &mut Config) {
        self.scales.retain(|name, Scale { configured, chosen }| {
            let mut clusters = config.clusters.iter_mut();
            let Some(cluster) = clusters.find(|cluster| cluster.name == *name) else {
                return false;
            };
            let is_same = cluster.supervised().is_some_and(|w| w.count == *configured);
            if is_same {
                info!(
                    cluster = &**name,
                    "{name} keeps the {chosen} workers that it was scaled to; the file says \
                     {configured}"
                );
                set_count(cluster, *chosen);
            }
            is_same
        });
        fit_connections(config);
    }

    /// Notes what the operator wants of a slot. In maintenance, whoever is there is asked to leave,
    /// and cut when time is up.
    pub(super) async fn set_admin(&self, slot: &str, state: AdminState) -> Result<(), Refused> {
        let (cluster, entry) = self.find_slot(slot)?;
        let event = Event::Admin {
            slot: Arc::clone(&entry.name),
            state,
        };
        cluster.report(event).await;
        let is_so = |now: &crate::cluster::Snapshot| {
            now.entry(slot).is_none_or(|entry| entry.admin == state)
        };
        let _late = cluster
            .wait_until(std::time::Duration::from_secs(1), is_so)
            .await;
        if state == AdminState::Maint {
            let drain = cluster.load().config.drain.clone();
            self.let_go_of_slot(cluster, entry, drain);
        }
        Ok(())
    }

    fn find_slot(&self, slot: &str) -> Result<(crate::cluster::Cluster, Arc<Slot>), Refused> {
        let mut names = Vec::new();
        for running in self.clusters.values() {
            let snapshot = running.cluster().load();
            if let Some(entry) = snapshot.entry(slot) {
                return Ok((running.cluster().clone(), Arc::clone(&entry.slot)));
            }
            names.extend(
                snapshot
                    .entries
                    .iter()
                    .map(|entry| entry.slot.name.to_string()),
            );
        }
        let known = names.join(", ");
        Err(Refused::Unknown(format!(
            "there is no slot {slot:?}; there are {known}"
        )))
    }

    fn workers_of(&self, cluster: &str) -> Result<&Arc<Workers>, Refused> {
        let found = self.config.clusters.iter().find(|c| &*c.name == cluster);
        match found.map(|cluster| &cluster.source) {
            Some(Source::Workers(workers)) => Ok(workers),
            Some(Source::Static(_)) => Err(Refused::Invalid(format!(
                "{cluster} has backends that somebody else runs, not workers"
            ))),
            None => Err(Refused::Unknown(self.no_cluster(cluster))),
        }
    }

    fn no_cluster(&self, cluster: &str) -> String {
        let names: Vec<_> = self.config.clusters.iter().map(|c| &*c.name).collect();
        format!(
            "there is no cluster {cluster:?}; there are {}",
            names.join(", ")
        )
    }

    fn is_direct(&self, cluster: &str) -> bool {
        let listeners = self.config.listeners.iter();
        let mut direct = listeners.filter(|listener| listener.mode == Mode::Direct);
        direct.any(|listener| &*listener.cluster == cluster)
    }
}

/// More workers need more descriptors, and leave fewer for connections.
fn fit_connections(config: &mut Config) {
    let workers = config.clusters.iter().map(Cluster::workers).sum();
    let allowed = Facts::of_this_process().max_connections(workers);
    config.max_connections = config.max_connections.min(allowed);
}

fn set_count(cluster: &mut Cluster, count: NonZeroUsize) {
    if let Source::Workers(workers) = &mut cluster.source {
        Arc::make_mut(workers).count = count;
    }
}
