//! What the next image of the program has to know.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{Program, execute};
use crate::{
    admin::Past,
    app::{App, Place, cluster::RunningCluster, operate::Scale},
    cluster::{AdminState, Health, SavedAsked, SavedLearned, SlotStats},
    direct::SavedDirect,
    handover::{Number, Outgoing},
    metrics::Counts,
    proxy::Carried,
    supervisor::Saved,
    tls::SavedTickets,
};

/// What this image writes, and reads. One that does not read it says so before it takes over.
pub(super) const FORMAT: u32 = 3;

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub format: u32,
    /// Of the image that has written this.
    pub version: String,
    /// What the next upgrade executes.
    pub program: std::path::PathBuf,
    /// The image that has written this, to go back to.
    pub old_image: Option<Number>,
    /// All descriptors that are passed on.
    pub descriptors: Vec<Number>,
    /// The whole effective configuration.
    pub config: String,
    /// What signs cookies where no file says it.
    pub secret: [u8; 32],
    /// The keys of session tickets, by listener.
    pub tickets: BTreeMap<Arc<str>, SavedTickets>,
    /// Ids that backends gave their clients, by cluster.
    pub learned: BTreeMap<Arc<str>, SavedLearned>,
    /// WebSockets that were asked to go home, by cluster.
    pub asked: BTreeMap<Arc<str>, SavedAsked>,
    pub workers: Saved,
    pub doors: Vec<SavedDoor>,
    pub directs: Vec<SavedDirect>,
    pub slots: Vec<SavedSlot>,
    /// What was counted of listeners.
    pub listeners: BTreeMap<Arc<str>, Counts>,
    /// Since when homescar is there, and how its file was read.
    pub past: Option<Past>,
    /// Numbers of workers that were chosen while homescar ran.
    pub scales: BTreeMap<Arc<str>, Scale>,
    pub connections: Vec<Carried>,
    /// Connections that had to be cut.
    pub cut: usize,
    /// Since when nobody is let in.
    pub shut: SystemTime,
}

/// The sockets of one address of a listener, in the order of the threads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedDoor {
    pub listener: Arc<str>,
    /// Which of its addresses.
    pub index: usize,
    pub sockets: Vec<Number>,
}

/// What was counted of a slot, and found out of a static one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedSlot {
    pub cluster: Arc<str>,
    pub slot: Arc<str>,
    pub health: Option<Health>,
    /// What the operator wants of it.
    pub admin: AdminState,
    total: u64,
    connect_failures: u64,
    bytes_up: u64,
    bytes_down: u64,
    /// All else.
    counts: Counts,
}

impl SavedSlot {
    /// Counts on from here. How the slot came to be in the table of this image is no change of it.
    pub(super) fn add_to(&self, stats: &SlotStats) {
        stats.states.forget();
        self.counts.add_to(stats);
        stats.total.fetch_add(self.total, Relaxed);
        stats
            .connect_failures
            .fetch_add(self.connect_failures, Relaxed);
        stats.bytes_up.fetch_add(self.bytes_up, Relaxed);
        stats.bytes_down.fetch_add(self.bytes_down, Relaxed);
    }
}

impl App {
    /// All but sockets and connections.
    pub(super) fn state(&self, program: &Program, workers: Saved) -> State {
        State {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: program.path.clone(),
            old_image: None,
            descriptors: Vec::new(),
            config: self.config.to_toml(),
            secret: self.signers.secret(),
            tickets: self.certificates.tickets(),
            learned: self.saved_learned(),
            asked: self.saved_asked(),
            workers,
            doors: Vec::new(),
            directs: Vec::new(),
            slots: self.saved_slots(),
            listeners: self.saved_listeners(),
            past: Some(self.office.board.past()),
            scales: self.scales.clone(),
            connections: Vec::new(),
            cut: 0,
            shut: SystemTime::now(),
        }
    }

    fn saved_learned(&self) -> BTreeMap<Arc<str>, SavedLearned> {
        let clusters = self.clusters.values().map(RunningCluster::cluster);
        let learned = clusters.filter_map(|cluster| {
            let saved = cluster.learned().saved()?;
            Some((Arc::clone(cluster.name()), saved))
        });
        learned.collect()
    }

    fn saved_asked(&self) -> BTreeMap<Arc<str>, SavedAsked> {
        let clusters = self.clusters.values().map(RunningCluster::cluster);
        let asked = clusters.map(|cluster| (Arc::clone(cluster.name()), cluster.asked().saved()));
        asked.collect()
    }

    fn saved_slots(&self) -> Vec<SavedSlot> {
        let mut slots = Vec::new();
        for running in self.clusters.values() {
            let cluster = running.cluster();
            for entry in &cluster.load().entries {
                let stats = &entry.slot.stats;
                let backend = entry.backend.as_ref().filter(|_| !entry.supervised);
                slots.push(SavedSlot {
                    cluster: Arc::clone(cluster.name()),
                    slot: Arc::clone(&entry.slot.name),
                    health: backend.map(|backend| backend.health.clone()),
                    admin: entry.admin,
                    total: stats.total.load(Relaxed),
                    connect_failures: stats.connect_failures.load(Relaxed),
                    bytes_up: stats.bytes_up.load(Relaxed),
                    bytes_down: stats.bytes_down.load(Relaxed),
                    counts: Counts::of([&**stats]),
                });
            }
        }
        slots
    }

    fn saved_listeners(&self) -> BTreeMap<Arc<str>, Counts> {
        let listeners = self.listeners.iter();
        let counted = listeners
            .map(|(name, listener)| (Arc::clone(name), Counts::of(listener.stats().all())));
        counted.collect()
    }

    /// Adds the sockets, lets every descriptor pass through the next `execve(2)`, and gives the
    /// state as a file.
    pub(super) fn pass_on(
        &self,
        state: &mut State,
        doors: Vec<(Place, Vec<OwnedFd>)>,
        outgoing: &mut Outgoing,
    ) -> io::Result<Number> {
        for (place, sockets) in doors {
            let Some((listener, index)) = self.listener_at(&place) else {
                continue;
            };
            let sockets = sockets.iter().map(|socket| outgoing.add(socket));
            state.doors.push(SavedDoor {
                listener,
                index,
                sockets: sockets.collect::<io::Result<_>>()?,
            });
        }
        state.directs = self.directs.saved(outgoing)?;
        state.old_image = Some(outgoing.add(&execute::this_image()?)?);
        state.descriptors = outgoing.numbers().collect();
        let connections = state.connections.iter();
        state
            .descriptors
            .extend(connections.flat_map(Carried::descriptors));
        let memory = outgoing.add(&execute::in_memory(state)?)?;
        outgoing.let_pass()?;
        Ok(memory)
    }

    /// Which listener has this address, as which of its addresses.
    fn listener_at(&self, wanted: &Place) -> Option<(Arc<str>, usize)> {
        self.config.listeners.iter().find_map(|listener| {
            let index = Place::of(listener).position(|place| place == *wanted)?;
            Some((Arc::clone(&listener.name), index))
        })
    }
}
