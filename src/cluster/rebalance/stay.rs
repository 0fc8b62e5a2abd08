//! A WebSocket in its slot, and whether it is at home there.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    affinity::{AffinityKey, SlotId},
    cluster::{AdminState, Asker, Load, Skip, SlotStats, Snapshot, View},
    config::{self, Key},
};

/// A WebSocket in a slot: what is to be known to say where it would go now.
#[derive(Clone, Debug)]
pub struct Stay {
    /// The slot's counters, which tell it apart for life.
    pub slot: Arc<SlotStats>,
    /// The generation.
    pub load: Arc<Load>,
    /// What identifies the client.
    pub key: AffinityKey,
    /// The slot that it will name when it comes again, as by its cookie.
    pub known: Option<SlotId>,
    /// By what configuration that is its key.
    pub config: Arc<config::Cluster>,
    /// When it came.
    pub since: Instant,
}

/// Where a WebSocket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in its own slot.
    AtHome,
    /// Its own slot is the one at this index, and would take it now.
    Away(usize),
    /// Its own slot is another one, which may take it without a change of the snapshot.
    Later,
    /// There is nothing to be done, or others do it, as long as the snapshot is this one.
    Settled,
}

impl Snapshot {
    /// Where a WebSocket stands: it is away when it would be brought to another slot, and that as
    /// its first choice, if it came now.
    pub fn standing(&self, stay: &Stay, view: &impl View) -> Standing {
        let affinity = &self.config.affinity;
        if affinity.key == Key::None {
            return Standing::Settled;
        }
        let mut entries = self.entries.iter();
        let here = entries.position(|entry| Arc::ptr_eq(&entry.slot.stats, &stay.slot));
        // Of a slot that is gone, the reload takes care.
        let Some(here) = here else {
            return Standing::Settled;
        };
        let known = stay.known.and_then(|slot| self.position_of(slot));
        let home = known.or_else(|| self.table.home(stay.key));
        if home == Some(here) {
            return Standing::AtHome;
        }
        let is_its_key =
            Arc::ptr_eq(&stay.config, &self.config) || stay.config.affinity == *affinity;
        if !is_its_key || self.is_leaving(here, &stay.load) {
            return Standing::Settled;
        }
        let asker = Asker {
            known,
            ..Asker::new(stay.key)
        };
        match self.candidates(&asker, view).next() {
            // To who has its cookie a slot that drains is open, and a reason to leave too.
            Some((home, None)) if self.takes_clients(home) => Standing::Away(home),
            Some((_, Some(Skip::WarmingUp | Skip::Overloaded | Skip::Full))) => Standing::Later,
            _ => Standing::Settled,
        }
    }

    /// Whether it is decided already that this generation's connections go.
    fn is_leaving(&self, index: usize, load: &Arc<Load>) -> bool {
        let entry = &self.entries[index];
        let present = entry.backend.as_ref();
        let stays = present.is_some_and(|backend| backend.leaving.is_none())
            && entry.leaving.iter().all(|backend| backend.load != *load);
        !stays || entry.next.is_some() || entry.admin != AdminState::Ready
    }

    /// Whether a slot takes clients, and its generation is not about to be replaced.
    fn takes_clients(&self, index: usize) -> bool {
        let entry = &self.entries[index];
        entry.skip.is_none() && entry.next.is_none()
    }
}
