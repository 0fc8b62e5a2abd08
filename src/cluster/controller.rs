//! The only writer of snapshots: one task, one inbox.

use tokio::sync::mpsc;
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
        self.cluster.publish(next);
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
        Event::Started(started) => filled(now, started, false, ready_by),
        Event::Replaced(started) => filled(now, started, true, ready_by),
        Event::Ready { slot, generation } => changed(now, &slot, generation, |entry, backend| {
            entry.filled(
                Backend {
                    said_ready: true,
                    ..backend
                },
                ready_by,
            )
        }),
        Event::Checked {
            slot,
            generation,
            health,
        } => changed(now, &slot, generation, |entry, backend| {
            let is_checked = entry.supervised || now.config.health.is_some();
            // The last word of checks that are no longer configured would stand for ever.
            let health = if is_checked { health } else { Health::Unknown };
            entry.filled(Backend { health, ..backend }, ready_by)
        }),
        Event::Stopping {
            slot,
            generation,
            why,
        } => changed(now, &slot, generation, |entry, backend| {
            let leaving = Some(backend.leaving.unwrap_or(why));
            entry.filled(Backend { leaving, ..backend }, ready_by)
        }),
        Event::Gone {
            slot,
            generation,
            why,
        } => {
            // Of a slot that is empty already it is news too: a generation that could not even
            // be spawned was never in it.
            let index = index_of(now, &slot)?;
            let entry = &now.entries[index];
            let present = entry.backend.as_ref();
            if present.is_some_and(|backend| backend.generation != generation) {
                return None;
            }
            (present.is_some() || entry.skip != Some(why))
                .then(|| now.with(index, entry.vacated(why)))
        }
    }
}

/// The next snapshot with another generation in the slot.
fn filled(now: &Snapshot, started: Started, ready: bool, ready_by: ReadyBy) -> Option<Snapshot> {
    let Started {
        slot,
        generation,
        address,
        pid,
        backlog,
    } = started;
    let index = index_of(now, &slot)?;
    let backend = Backend {
        address,
        generation,
        pid: Some(pid),
        backlog,
        said_ready: ready,
        was_ready: ready,
        health: Health::Unknown,
        leaving: None,
    };
    Some(now.with(index, now.entries[index].filled(backend, ready_by)))
}

/// The next snapshot with the slot's entry changed, unless this generation has left it.
fn changed(
    now: &Snapshot,
    slot: &str,
    generation: u32,
    change: impl FnOnce(&Entry, Backend) -> Entry,
) -> Option<Snapshot> {
    let index = index_of(now, slot)?;
    let entry = &now.entries[index];
    let backend = entry
        .backend
        .as_ref()
        .filter(|backend| backend.generation == generation)?;
    Some(now.with(index, change(entry, Backend::clone(backend))))
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
