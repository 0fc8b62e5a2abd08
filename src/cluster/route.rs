//! From key to slot: the one decision, pure, over one snapshot and a view of the moment.

use std::sync::Arc;

use super::{AdminState, Skip, Snapshot, View, load::Scales};
use crate::{
    affinity::AffinityKey,
    config::{OnDown, OnFull},
};

/// Who is looking for a slot.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// What it hashes by.
    pub key: AffinityKey,
    /// Its home, where that is known otherwise, as by a cookie: the first candidate, and one that
    /// it is no newcomer to; those of the key come after it.
    pub known: Option<usize>,
    /// The slot in which it has a seat already.
    pub seated: Option<usize>,
    /// Slots that could not be connected to a moment ago, by name.
    pub failed: &'a [Arc<str>],
    /// There is time and room left to wait for a slot that is down.
    pub may_hold: bool,
    /// There is time and room left to wait for a slot that is full.
    pub may_queue: bool,
}

/// Where a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the entry at this index. `passed` is the client's home and why it was passed over,
    /// when it was.
    To {
        /// Position in [`Snapshot::entries`].
        index: usize,
        /// The first choice and its reason, when this is not it.
        passed: Option<(usize, Skip)>,
    },
    /// Its home is known to come back: wait for a newer snapshot.
    Hold {
        /// The slot that is waited for.
        index: usize,
    },
    /// Its slot is full: wait for a seat.
    Queue {
        /// The slot that is waited for.
        index: usize,
    },
    /// Its slot is down or full, and there is nothing that it may wait for or go to.
    Reject {
        /// The slot.
        index: usize,
        /// Why it cannot go there.
        why: Skip,
    },
    /// No slot takes clients.
    Nowhere,
}

impl<'a> Asker<'a> {
    /// A client of whom only the key is known; it waits for nothing.
    #[must_use]
    pub const fn new(key: AffinityKey) -> Self {
        Self {
            key,
            known: None,
            seated: None,
            failed: &[],
            may_hold: false,
            may_queue: false,
        }
    }
}

impl Snapshot {
    /// All slots in the order in which they are this client's, each with why it is passed over.
    pub fn candidates<'s, V: View>(
        &'s self,
        asker: &'s Asker<'_>,
        view: &'s V,
    ) -> impl Iterator<Item = (usize, Option<Skip>)> + 's {
        let scales = Scales::new(self, view);
        let hashed = self.table.candidates(asker.key);
        let others = hashed.filter(|index| Some(*index) != asker.known);
        let order = asker.known.into_iter().chain(others);
        order.map(move |index| (index, self.skip(index, asker, &scales)))
    }

    /// Decides where a client goes.
    #[must_use]
    pub fn route(&self, asker: &Asker<'_>, view: &impl View) -> Route {
        let (on_down, on_full) = (self.config.on_down, self.on_full());
        let mut passed = Passed::default();
        for (index, why) in self.candidates(asker, view) {
            let Some(why) = why else {
                return Route::To {
                    index,
                    passed: passed.home,
                };
            };
            let is_home = passed.home.is_none();
            let is_first_choice = passed.newcomer.is_none() && passed.full.is_none();
            passed.note(index, why);
            match why {
                Skip::Full => match on_full {
                    OnFull::Reject if is_first_choice => return Route::Reject { index, why },
                    OnFull::Queue if is_first_choice && asker.may_queue => {
                        return Route::Queue { index };
                    }
                    OnFull::Queue | OnFull::Next | OnFull::Reject => {}
                },
                Skip::WarmingUp | Skip::Overloaded => {}
                _ if !is_home => {}
                _ => match on_down {
                    // Nothing is down where the operator wants it so.
                    OnDown::Reject if !matches!(why, Skip::Draining | Skip::Maint) => {
                        return Route::Reject { index, why };
                    }
                    OnDown::Hold(_) if asker.may_hold && self.entries[index].is_waited_for(why) => {
                        return Route::Hold { index };
                    }
                    OnDown::Hold(_) | OnDown::Next | OnDown::Reject => {}
                },
            }
        }
        self.last_resort(&passed, asker)
    }

    /// Where a client goes when every slot was passed over.
    fn last_resort(&self, passed: &Passed, asker: &Asker<'_>) -> Route {
        let to = |index: usize| Route::To {
            index,
            passed: passed.home.filter(|(home, _)| *home != index),
        };
        if let Some(index) = passed.newcomer {
            return to(index);
        }
        if let Some(index) = passed.full {
            let why = Skip::Full;
            return match asker.may_queue && self.on_full() != OnFull::Reject {
                true => Route::Queue { index },
                false => Route::Reject { index, why },
            };
        }
        if let Some(index) = passed.ejected {
            return to(index);
        }
        let coming_back = |index: &usize| {
            let entry = &self.entries[*index];
            entry.skip.is_some_and(|why| entry.is_coming_back(why))
        };
        match self.config.on_down {
            OnDown::Hold(_) if asker.may_hold => (0..self.entries.len())
                .find(coming_back)
                .map_or(Route::Nowhere, |index| Route::Hold { index }),
            OnDown::Hold(_) | OnDown::Next | OnDown::Reject => Route::Nowhere,
        }
    }

    fn on_full(&self) -> OnFull {
        let capacity = self.config.balance.capacity.as_ref();
        capacity.map_or(OnFull::Next, |capacity| capacity.on_full)
    }

    fn skip<V: View>(
        &self,
        index: usize,
        asker: &Asker<'_>,
        scales: &Scales<'_, V>,
    ) -> Option<Skip> {
        let entry = &self.entries[index];
        let is_at_home = asker.known == Some(index);
        let skip = match entry.admin {
            // Whoever is at home there may come back while it drains.
            AdminState::Drain if is_at_home => entry.down,
            _ => entry.skip,
        };
        if let None | Some(Skip::Ejected) = skip
            && asker.failed.contains(&entry.slot.name)
        {
            return Some(Skip::ConnectFailed);
        }
        if skip.is_some() {
            return skip;
        }
        if asker.seated == Some(index) {
            return None;
        }
        if scales.is_full(index) {
            return Some(Skip::Full);
        }
        if is_at_home {
            return None;
        }
        if scales.is_warming_up(index, asker.key) {
            return Some(Skip::WarmingUp);
        }
        scales.is_overloaded(index).then_some(Skip::Overloaded)
    }
}

/// Slots that were passed over: the first of each kind.
#[derive(Debug, Default)]
struct Passed {
    /// Of any kind.
    home: Option<(usize, Skip)>,
    /// One that takes nobody who is new, though it could.
    newcomer: Option<usize>,
    full: Option<usize>,
    /// One that is only thought to be bad.
    ejected: Option<usize>,
}

impl Passed {
    fn note(&mut self, index: usize, why: Skip) {
        self.home.get_or_insert((index, why));
        match why {
            Skip::WarmingUp | Skip::Overloaded => _ = self.newcomer.get_or_insert(index),
            Skip::Full => _ = self.full.get_or_insert(index),
            Skip::Ejected => _ = self.ejected.get_or_insert(index),
            _ => {}
        }
    }
}
