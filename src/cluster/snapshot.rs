//! All routing state of a cluster at one moment: immutable, built whole, swapped whole.

use std::{num::NonZeroU32, sync::Arc};

use tokio::time::Instant;

use super::{AdminState, Backend, Health, Skip, Slot, SlotStats};
use crate::{
    affinity::{SlotId, Table},
    config::{self, ReadyBy, Source},
};

/// The routing state of a cluster. A connection decides on exactly one of these.
#[derive(Debug)]
pub struct Snapshot {
    /// 1 for the first, one more for each that follows.
    pub number: u64,
    /// What was configured.
    pub config: Arc<config::Cluster>,
    /// The slots, in the order of the configuration.
    pub entries: Vec<Entry>,
    /// The same slots as the hash sees them; its indices are positions in `entries`.
    pub table: Arc<Table>,
}

/// One slot in a snapshot.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The slot.
    pub slot: Arc<Slot>,
    /// What stands in it; `None` while a supervised slot has no process.
    pub backend: Option<Arc<Backend>>,
    /// The next generation beside it, at an address of its own, while it gets ready.
    pub next: Option<Arc<Backend>>,
    /// Generations before, which go on with what they have.
    pub leaving: Vec<Arc<Backend>>,
    /// Why it gets no new clients; `None` when it does.
    pub skip: Option<Skip>,
    /// The same, whatever the operator wants.
    pub down: Option<Skip>,
    /// What the operator wants.
    pub admin: AdminState,
    /// We supervise it.
    pub supervised: bool,
    /// When it last came back, where that makes a difference (`slow_start`).
    pub returned: Option<Instant>,
    /// It was added to slots that serve, and has not been ready yet: its clients are served by those
    /// until then.
    pub joins: bool,
}

impl Snapshot {
    /// The state of a cluster that was just configured: static backends are taken to be well,
    /// supervised slots are empty.
    #[must_use]
    pub fn configured(config: &config::Cluster) -> Self {
        Self::rebuilt(1, Arc::new(config.clone()), &[])
    }

    /// The same cluster under another configuration: a slot that is still named keeps what
    /// stands in it.
    pub(super) fn rebuilt(number: u64, config: Arc<config::Cluster>, old: &[Entry]) -> Self {
        let old: ahash::HashMap<&str, &Entry> =
            old.iter().map(|entry| (&*entry.slot.name, entry)).collect();
        let mut entries: Vec<Entry> = match &config.source {
            Source::Static(backends) => backends
                .iter()
                .map(|backend| {
                    let kept = old.get(&*backend.name).filter(|entry| !entry.supervised);
                    static_entry(backend, kept.copied(), config.health.is_some())
                })
                .collect(),
            Source::Workers(workers) => (0..workers.count.get())
                .map(|index| {
                    let name: Arc<str> = format!("{}/{index}", config.name).into();
                    let kept = old.get(&*name).filter(|entry| entry.supervised);
                    kept.copied().cloned().unwrap_or_else(|| Entry::empty(name))
                })
                .collect(),
        };
        let slots = entries
            .iter()
            .map(|entry| (&*entry.slot.name, entry.slot.weight));
        let table = Arc::new(Table::new(config.affinity.seed, slots));
        if entries.iter().any(|entry| entry.skip.is_none()) {
            let new = entries.iter_mut();
            let new = new.filter(|entry| !old.contains_key(&*entry.slot.name));
            new.for_each(|entry| entry.joins = entry.skip.is_some());
        }
        Self {
            number,
            config,
            entries,
            table,
        }
    }

    /// The next snapshot with one entry replaced.
    pub(super) fn with(&self, index: usize, entry: Entry) -> Self {
        let mut entries = self.entries.clone();
        entries[index] = entry;
        Self {
            number: self.number + 1,
            config: Arc::clone(&self.config),
            entries,
            table: Arc::clone(&self.table),
        }
    }

    /// The entry of a slot.
    #[must_use]
    pub fn entry(&self, slot: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| &*entry.slot.name == slot)
    }

    /// Where the slot that a cookie names stands in `entries`, if it is still there.
    #[must_use]
    pub fn position_of(&self, id: SlotId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.slot.id == id)
    }

    /// Whether any slot takes new clients.
    #[must_use]
    pub fn any_usable(&self) -> bool {
        self.entries.iter().any(|entry| entry.skip.is_none())
    }
}

impl Entry {
    fn empty(name: Arc<str>) -> Self {
        let slot = Slot {
            id: SlotId::of(&name),
            name,
            weight: NonZeroU32::MIN,
            stats: Arc::default(),
        };
        Self {
            slot: Arc::new(slot),
            backend: None,
            next: None,
            leaving: Vec::new(),
            skip: Some(Skip::Starting),
            down: Some(Skip::Starting),
            admin: AdminState::Ready,
            supervised: true,
            returned: None,
            joins: false,
        }
    }

    /// The generations that there are: the present one, the next, and those that leave.
    pub fn generations(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let present = self.backend.iter().chain(&self.next);
        present.chain(&self.leaving)
    }

    /// Where a client that was served by this generation goes: it, while it is there.
    #[must_use]
    pub fn serving(&self, generation: Option<u32>) -> Option<&Arc<Backend>> {
        let is_it = |backend: &&Arc<Backend>| Some(backend.generation) == generation;
        let before = self.leaving.iter().find(is_it);
        before.or(self.backend.as_ref())
    }

    /// The same slot with another backend in it, judged anew.
    pub(super) fn filled(&self, backend: Backend, ready_by: ReadyBy) -> Self {
        let mut backend = backend;
        let down = judge(&mut backend, self.supervised, ready_by);
        let filled = Self {
            backend: Some(Arc::new(backend)),
            ..self.clone()
        };
        filled.judged(down)
    }

    /// The same slot with another next generation beside, judged anew.
    pub(super) fn beside(&self, next: Backend, ready_by: ReadyBy) -> Self {
        let mut next = next;
        let _it_takes_nobody_yet = judge(&mut next, self.supervised, ready_by);
        Self {
            next: Some(Arc::new(next)),
            ..self.clone()
        }
    }

    /// The same slot with another generation in the place of the present one, which leaves.
    pub(super) fn replaced(&self, backend: Backend, ready_by: ReadyBy) -> Self {
        let mut leaving = self.leaving.clone();
        leaving.extend(self.backend.clone());
        let replaced = Self {
            next: None,
            leaving,
            ..self.clone()
        };
        replaced.filled(backend, ready_by)
    }

    /// The same slot without a generation that does not stand in it.
    pub(super) fn without(&self, generation: u32) -> Option<Self> {
        let is_it = |backend: &Arc<Backend>| backend.generation == generation;
        let is_there = self.next.iter().chain(&self.leaving).any(is_it);
        is_there.then(|| {
            let mut left = self.clone();
            left.next = left.next.filter(|next| !is_it(next));
            left.leaving.retain(|backend| !is_it(backend));
            left
        })
    }

    /// The same slot with nothing in it.
    pub(super) fn vacated(&self, why: Skip) -> Self {
        let vacated = Self {
            backend: None,
            ..self.clone()
        };
        vacated.judged(Some(why))
    }

    /// The same slot, as the operator wants it.
    pub(super) fn wanted(&self, admin: AdminState) -> Self {
        let wanted = Self {
            admin,
            ..self.clone()
        };
        let down = wanted.down;
        wanted.judged(down)
    }

    fn judged(self, down: Option<Skip>) -> Self {
        Self {
            down,
            skip: self.admin.skip().or(down),
            joins: self.joins && down.is_some(),
            ..self
        }
    }

    /// Whether clients whose home it is are held for it, as it is passed over for this reason.
    #[must_use]
    pub const fn is_waited_for(&self, why: Skip) -> bool {
        !self.joins && self.is_coming_back(why)
    }

    /// Whether a slot that is passed over for this reason is known to come (back) soon: only a
    /// supervised one is.
    #[must_use]
    pub const fn is_coming_back(&self, why: Skip) -> bool {
        self.supervised
            && match why {
                Skip::Starting
                | Skip::Restarting
                | Skip::Stopping
                | Skip::Unresponsive
                | Skip::ConnectFailed => true,
                Skip::CrashLoop
                | Skip::Unhealthy
                | Skip::Draining
                | Skip::Maint
                | Skip::Ejected
                | Skip::WarmingUp
                | Skip::Overloaded
                | Skip::Full => false,
            }
    }
}

fn static_entry(config: &config::StaticBackend, kept: Option<&Entry>, is_checked: bool) -> Entry {
    let stats = kept.map_or_else(Arc::<SlotStats>::default, |entry| {
        Arc::clone(&entry.slot.stats)
    });
    let slot = Slot {
        name: Arc::clone(&config.name),
        id: SlotId::of(&config.name),
        weight: config.weight,
        stats,
    };
    // Without checks nobody would ever learn that it is well again.
    let same = kept.filter(|entry| {
        let backend = entry.backend.as_ref();
        is_checked && backend.is_some_and(|b| b.address == config.address)
    });
    let (backend, down) = match same {
        Some(entry) => (entry.backend.clone(), entry.down),
        None => {
            let backend = Backend {
                address: config.address.clone(),
                generation: 0,
                pid: None,
                backlog: None,
                said_ready: false,
                was_ready: true,
                health: Health::Unknown,
                ejected: None,
                leaving: None,
                load: Arc::default(),
            };
            (Some(Arc::new(backend)), None)
        }
    };
    let entry = Entry {
        slot: Arc::new(slot),
        backend,
        next: None,
        leaving: Vec::new(),
        skip: None,
        down: None,
        admin: kept.map_or(AdminState::Ready, |entry| entry.admin),
        supervised: false,
        returned: kept.and_then(|entry| entry.returned),
        joins: false,
    };
    entry.judged(down)
}

/// Why a backend gets no new clients, if it gets none. A static one is taken to be well until
/// checks say otherwise, a worker to be not ready until it has shown that it is.
fn judge(backend: &mut Backend, supervised: bool, ready_by: ReadyBy) -> Option<Skip> {
    if backend.leaving.is_some() {
        return backend.leaving;
    }
    if supervised && !backend.was_ready {
        let checked = backend.health == Health::Healthy;
        backend.was_ready = match ready_by {
            ReadyBy::Auto => backend.said_ready || checked,
            ReadyBy::Notify => backend.said_ready,
            ReadyBy::Check => checked,
        };
        if !backend.was_ready {
            return Some(Skip::Starting);
        }
    }
    match backend.health {
        Health::Unhealthy { answers: true, .. } => Some(Skip::Unhealthy),
        Health::Unhealthy { answers: false, .. } => Some(Skip::Unresponsive),
        Health::Unknown | Health::Healthy => backend.ejected.as_ref().map(|_| Skip::Ejected),
    }
}
