//! A cluster and its clients, in a world whose time is told.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{HOUR, RATE, Rebalance, STABLE, Standing, Stay, Step};
use crate::{
    affinity::{AffinityKey, SlotId},
    cluster::{AdminState, Asker, Event, Route, SlotStats, Snapshot, View, controller::step},
    config,
};

/// A cluster, its clients, and what was done to them.
pub(super) struct World {
    pub(super) snapshot: Snapshot,
    pub(super) now: Instant,
    pub(super) seats: usize,
    pub(super) clients: Vec<Client>,
    pub(super) rebalance: Rebalance<usize>,
    pub(super) random: fastrand::Rng,
    /// Who was sent home, and when.
    pub(super) sent: Vec<(usize, Instant)>,
    pub(super) looks: usize,
    /// Since when each slot takes clients without a break.
    pub(super) up_since: Vec<Option<Instant>>,
}

pub(super) struct Client {
    pub(super) key: AffinityKey,
    /// What its cookie says.
    pub(super) known: Option<SlotId>,
    pub(super) stay: Arc<Stay>,
}

impl View for World {
    fn now(&self) -> Instant {
        self.now
    }

    fn active(&self, index: usize) -> u64 {
        let slot = &self.snapshot.entries[index].slot.stats;
        let all = self.clients.iter();
        all.filter(|client| Arc::ptr_eq(&client.stay.slot, slot))
            .count() as u64
    }

    fn free(&self, index: usize) -> usize {
        self.seats.saturating_sub(self.active(index) as usize)
    }
}

impl World {
    pub(super) fn new(config: &config::Cluster) -> Self {
        let now = Instant::now();
        let snapshot = Snapshot::configured(config);
        Self {
            up_since: vec![Some(now); snapshot.entries.len()],
            snapshot,
            now,
            seats: usize::MAX,
            clients: Vec::new(),
            rebalance: Rebalance::default(),
            random: fastrand::Rng::with_seed(1),
            sent: Vec::new(),
            looks: 0,
        }
    }

    /// So many clients, `shared` of each key.
    pub(super) fn crowded(config: &config::Cluster, clients: u32, shared: u32) -> Self {
        let mut world = Self::new(config);
        for client in 0..clients {
            world.come((client / shared).wrapping_mul(0x9e37_79b1), None);
        }
        world
    }

    pub(super) fn event(&mut self, event: Event) {
        let Some(next) = step(&self.snapshot, event) else {
            return;
        };
        self.snapshot = next.with_returns(&self.snapshot, self.now);
        self.up_since
            .resize(self.snapshot.entries.len(), Some(self.now));
        for (entry, since) in self.snapshot.entries.iter().zip(&mut self.up_since) {
            match entry.skip {
                None => _ = since.get_or_insert(self.now),
                Some(_) => *since = None,
            }
        }
        // As the driver does, which is woken by every snapshot.
        self.run(Duration::ZERO);
    }

    pub(super) fn eject(&mut self, index: usize, is_out: bool) {
        self.event(Event::Ejected {
            slot: Arc::clone(&self.snapshot.entries[index].slot.name),
            generation: 0,
            why: is_out.then(|| "tests".into()),
        });
        if is_out {
            self.leave(index);
        }
    }

    pub(super) fn admin(&mut self, index: usize, state: AdminState) {
        let slot = Arc::clone(&self.snapshot.entries[index].slot.name);
        self.event(Event::Admin { slot, state });
    }

    /// Those in a slot lose their connections, and come again.
    pub(super) fn leave(&mut self, index: usize) {
        let slot = Arc::clone(&self.snapshot.entries[index].slot.stats);
        for client in 0..self.clients.len() {
            if Arc::ptr_eq(&self.clients[client].stay.slot, &slot) {
                self.come_again(client);
            }
        }
    }

    pub(super) fn route(&self, key: AffinityKey, known: Option<SlotId>) -> Option<usize> {
        let asker = Asker {
            known: known.and_then(|slot| self.snapshot.position_of(slot)),
            ..Asker::new(key)
        };
        match self.snapshot.route(&asker, self) {
            Route::To { index, .. } => Some(index),
            _ => None,
        }
    }

    pub(super) fn stay(&self, key: AffinityKey, known: Option<SlotId>) -> Option<Arc<Stay>> {
        let entry = &self.snapshot.entries[self.route(key, known)?];
        Some(Arc::new(Stay {
            slot: Arc::clone(&entry.slot.stats),
            load: Arc::clone(&entry.backend.as_ref()?.load),
            key,
            known,
            config: Arc::clone(&self.snapshot.config),
            since: self.now,
        }))
    }

    pub(super) fn come(&mut self, key: u32, known: Option<SlotId>) {
        let key = AffinityKey::from_bits(key);
        if let Some(stay) = self.stay(key, known) {
            self.clients.push(Client { key, known, stay });
            self.note(self.clients.len() - 1);
        }
    }

    pub(super) fn come_again(&mut self, client: usize) {
        let Client { key, known, .. } = self.clients[client];
        if let Some(stay) = self.stay(key, known) {
            self.clients[client].stay = stay;
            self.note(client);
        }
    }

    /// As [`Cluster::note_stay`](crate::cluster::Cluster::note_stay).
    pub(super) fn note(&mut self, client: usize) {
        let standing = self.snapshot.standing(&self.clients[client].stay, self);
        if matches!(standing, Standing::Away(_) | Standing::Later) {
            self.rebalance.strayed(self.now);
        }
    }

    /// Does what is to be done, up to this time.
    pub(super) fn run(&mut self, for_so_long: Duration) {
        let until = self.now + for_so_long;
        loop {
            let mut rebalance = std::mem::take(&mut self.rebalance);
            let step = rebalance.step(&self.snapshot, self);
            self.rebalance = rebalance;
            match step {
                Step::Look => self.look(),
                Step::Ask(client, stay, home) => self.ask(client, &stay, home),
                Step::Wait(at) if at < until => self.now = at.max(self.now),
                Step::Wait(_) | Step::Rest => return self.now = until,
            }
        }
    }

    pub(super) fn look(&mut self) {
        self.looks += 1;
        let (mut away, mut later) = (Vec::new(), false);
        for (index, client) in self.clients.iter().enumerate() {
            match self.snapshot.standing(&client.stay, self) {
                Standing::Away(_) => away.push((index, Arc::clone(&client.stay))),
                standing => later |= standing == Standing::Later,
            }
        }
        self.rebalance
            .found(away, later, self.now, &mut self.random);
    }

    pub(super) fn ask(&mut self, client: usize, stay: &Arc<Stay>, home: Arc<SlotStats>) {
        if !Arc::ptr_eq(stay, &self.clients[client].stay) {
            return;
        }
        // As if it came now: to its first choice, which is another one and has been well for a time.
        let Client { key, known, .. } = self.clients[client];
        let to = self.route(key, known).expect("a slot");
        let entry = &self.snapshot.entries[to];
        assert!(Arc::ptr_eq(&entry.slot.stats, &home) && entry.skip.is_none());
        assert!(!Arc::ptr_eq(&home, &stay.slot), "it was at home");
        let first = known.and_then(|slot| self.snapshot.position_of(slot));
        let first = first.or_else(|| self.snapshot.table.home(key));
        assert_eq!(first, Some(to), "only a first choice is home");
        let up_since = self.up_since[to].expect("it takes clients");
        assert!(self.now >= up_since + STABLE, "it has just come back");
        self.sent.push((client, self.now));
        let rebalance = &mut self.rebalance;
        rebalance.was_asked(&self.snapshot, stay, home, self.now);
        self.come_again(client);
    }

    pub(super) fn away(&self) -> usize {
        let all = self.clients.iter();
        all.filter(|client| {
            let home = self.snapshot.table.home(client.key);
            home.is_some_and(|home| {
                let home = &self.snapshot.entries[home].slot.stats;
                !Arc::ptr_eq(home, &client.stay.slot)
            })
        })
        .count()
    }

    /// What holds whatever happened.
    pub(super) fn check(&self) {
        let second = Duration::from_secs(1);
        for window in self.sent.windows(RATE as usize + 1) {
            let [(_, first), .., (_, last)] = window else {
                unreachable!("a window of {RATE} + 1");
            };
            assert!(*last >= *first + second);
        }
        for (index, (client, at)) in self.sent.iter().enumerate() {
            let mut later = self.sent[index + 1..].iter();
            let again = later.find(|(other, _)| other == client);
            assert!(again.is_none_or(|(_, again)| *again >= *at + HOUR));
        }
    }
}
