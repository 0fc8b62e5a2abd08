//! The only writer of snapshots: one task, one inbox.

use std::sync::Arc;

use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use super::{Backend, Cluster, Entry, Event, Health, Skip, Snapshot, Started};
use crate::config::{ReadyBy, Source};

/// Turns events into snapshots, one at a time.
#[derive(Debug)]
pub struct Controller {
    cluster: Cluster,
    events: mpsc::Receiver<Event>,
}

impl Controller {
    pub(super) const fn new(cluster: Cluster, events: mpsc::Receiver<Event>) -> Self {
        Self { cluster, events }
    }

    /// Handles events until nobody is left to send any (which, as the cluster itself can send,
    /// means: until it is dropped).
    pub async fn run(mut self) {
        while let Some(event) = self.events.recv().await {
            self.handle(event);
        }
    }

    fn handle(&self, event: Event) {
        let now = self.cluster.load();
        let next = step(&now, event);
        let Some(next) = next else { return };
        self.cluster
            .publish(next.with_returns(&now, Instant::now()));
        // Only now is it true.
        log_changes(&now, &self.cluster.load());
    }
}

/// What a snapshot becomes by an event; `None` when nothing changes.
pub(super) fn step(now: &Snapshot, event: Event) -> Option<Snapshot> {
    let ready_by = match &now.config.source {
        Source::Workers(workers) => workers.ready,
        Source::Static(_) => ReadyBy::Auto,
    };
    match event {
        Event::Configure(config) => Some(Snapshot::rebuilt(now.number + 1, config, &now.entries)),
        Event::Started(started) => put(now, started, |entry, backend| {
            entry.filled(backend, ready_by)
        }),
        Event::Beside(started) => put(now, started, |entry, backend| {
            entry.beside(backend, ready_by)
        }),
        Event::Replaced(started) => put(now, started, |entry, backend| {
            let ready = Backend {
                said_ready: true,
                was_ready: true,
                ..backend
            };
            entry.replaced(ready, ready_by)
        }),
        Event::Admin { slot, state } => {
            let index = index_of(now, &slot)?;
            let entry = &now.entries[index];
            (entry.admin != state).then(|| now.with(index, entry.wanted(state)))
        }
        Event::Ready { slot, generation } => {
            changed(now, &slot, generation, ready_by, |backend| Backend {
                said_ready: true,
                ..backend
            })
        }
        Event::Checked {
            slot,
            generation,
            health,
        } => changed(now, &slot, generation, ready_by, |backend| {
            let supervised = now.config.supervised().is_some();
            let is_checked = supervised || now.config.health.is_some();
            // The last word of checks that are no longer configured would stand for ever.
            let health = if is_checked { health } else { Health::Unknown };
            Backend { health, ..backend }
        }),
        Event::Ejected {
            slot,
            generation,
            why: ejected,
        } => changed(now, &slot, generation, ready_by, |backend| Backend {
            ejected,
            ..backend
        }),
        Event::Stopping {
            slot,
            generation,
            why,
        } => changed(now, &slot, generation, ready_by, |backend| {
            let leaving = Some(backend.leaving.unwrap_or(why));
            Backend { leaving, ..backend }
        }),
        Event::Gone {
            slot,
            generation,
            why,
        } => gone(now, &slot, generation, why),
    }
}

/// The next snapshot without a generation whose process has ended.
fn gone(now: &Snapshot, slot: &str, generation: u32, why: Skip) -> Option<Snapshot> {
    let index = index_of(now, slot)?;
    let entry = &now.entries[index];
    if let Some(left) = entry.without(generation) {
        return Some(now.with(index, left));
    }
    let present = entry.backend.as_ref();
    if present.is_some_and(|backend| backend.generation != generation) {
        return None;
    }
    // Of a slot that is empty already it is news too: a generation that could not even be spawned
    // was never in it.
    (present.is_some() || entry.down != Some(why)).then(|| now.with(index, entry.vacated(why)))
}

/// The next snapshot with a generation that was just spawned in the slot, or beside it.
fn put(
    now: &Snapshot,
    started: Started,
    put: impl FnOnce(&Entry, Backend) -> Entry,
) -> Option<Snapshot> {
    let Started {
        slot,
        generation,
        address,
        pid,
        backlog,
        load,
    } = started;
    let index = index_of(now, &slot)?;
    let backend = Backend {
        address,
        generation,
        pid: Some(pid),
        backlog,
        said_ready: false,
        was_ready: false,
        health: Health::Unknown,
        ejected: None,
        leaving: None,
        load,
    };
    Some(now.with(index, put(&now.entries[index], backend)))
}

/// The next snapshot with a generation changed that stands in the slot or beside it, unless it has
/// left.
fn changed(
    now: &Snapshot,
    slot: &str,
    generation: u32,
    ready_by: ReadyBy,
    change: impl FnOnce(Backend) -> Backend,
) -> Option<Snapshot> {
    let index = index_of(now, slot)?;
    let entry = &now.entries[index];
    let is_it = |backend: &&Arc<Backend>| backend.generation == generation;
    if let Some(backend) = entry.backend.as_ref().filter(is_it) {
        let backend = change(Backend::clone(backend));
        return Some(now.with(index, entry.filled(backend, ready_by)));
    }
    let next = change(Backend::clone(entry.next.as_ref().filter(is_it)?));
    Some(now.with(index, entry.beside(next, ready_by)))
}

fn index_of(now: &Snapshot, slot: &str) -> Option<usize> {
    now.entries
        .iter()
        .position(|entry| &*entry.slot.name == slot)
}

/// One line for each slot that begins or ceases to take clients.
fn log_changes(before: &Snapshot, after: &Snapshot) {
    for entry in &after.entries {
        let slot = &entry.slot.name;
        let was = before.entry(slot).map(|entry| entry.skip);
        if was == Some(entry.skip) {
            continue;
        }
        entry.slot.stats.states.count(entry.skip);
        let backend = entry.backend.as_ref();
        let generation = backend.map(|b| b.generation);
        let pid = backend.and_then(|b| b.pid);
        match (entry.skip, backend.map(|b| &b.health)) {
            // Whoever started a worker says itself that it got ready.
            (None, _) if matches!(was, None | Some(Some(Skip::Starting))) => {}
            (None, _) => info!(%slot, generation, pid, "takes clients again"),
            (Some(skip), Some(Health::Unhealthy { why, .. })) => {
                warn!(%slot, generation, pid, %why, "takes no clients: {skip}");
            }
            (Some(skip @ (Skip::Draining | Skip::Maint)), _) => {
                info!(%slot, generation, pid, "takes no clients: {skip}");
            }
            (Some(Skip::Ejected), _) => {
                let why = backend.and_then(|b| b.ejected.as_deref());
                warn!(%slot, generation, pid, why, "takes no clients: ejected");
            }
            (Some(Skip::Starting | Skip::Restarting | Skip::Stopping), _) | (Some(_), None) => {}
            (Some(skip), _) => warn!(%slot, generation, pid, "takes no clients: {skip}"),
        }
    }
    for entry in &before.entries {
        if after.entry(&entry.slot.name).is_none() {
            info!(slot = %entry.slot.name, "left the table");
        }
    }
}
