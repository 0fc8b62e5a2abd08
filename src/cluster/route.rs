//! From key to slot: the one decision, pure, over one snapshot.

use std::sync::Arc;

use super::{AdminState, Skip, Snapshot};
use crate::{affinity::AffinityKey, config::OnDown};

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
    /// Its home is down, and the configuration says to refuse.
    Reject {
        /// The home.
        index: usize,
        /// Why it is down.
        why: Skip,
    },
    /// No slot takes clients.
    Nowhere,
}

impl Snapshot {
    /// Decides where a client goes.
    ///
    /// `failed` are slots that could not be connected to a moment ago, by name; `may_hold` says
    /// whether there is time and room left to wait for a slot.
    #[must_use]
    pub fn route(&self, key: AffinityKey, failed: &[Arc<str>], may_hold: bool) -> Route {
        self.route_home(None, key, failed, may_hold)
    }

    /// The same for a client whose home is known otherwise, as by a cookie: `known` is the first
    /// candidate, and the key's come after it.
    #[must_use]
    pub fn route_home(
        &self,
        known: Option<usize>,
        key: AffinityKey,
        failed: &[Arc<str>],
        may_hold: bool,
    ) -> Route {
        let hashed = self.table.candidates(key);
        let others = hashed.filter(|index| Some(*index) != known);
        let mut home: Option<(usize, Skip)> = None;
        for index in known.into_iter().chain(others) {
            let Some(why) = self.skip(index, failed, Some(index) == known) else {
                return Route::To {
                    index,
                    passed: home,
                };
            };
            if home.is_some() {
                continue;
            }
            home = Some((index, why));
            match self.config.on_down {
                // Nothing is down where the operator wants it so.
                OnDown::Reject if !matches!(why, Skip::Draining | Skip::Maint) => {
                    return Route::Reject { index, why };
                }
                OnDown::Hold(_) if may_hold && self.entries[index].is_coming_back(why) => {
                    return Route::Hold { index };
                }
                OnDown::Hold(_) | OnDown::Next | OnDown::Reject => {}
            }
        }
        let coming_back = |index: &usize| {
            let entry = &self.entries[*index];
            entry.skip.is_some_and(|why| entry.is_coming_back(why))
        };
        match self.config.on_down {
            OnDown::Hold(_) if may_hold => (0..self.entries.len())
                .find(coming_back)
                .map_or(Route::Nowhere, |index| Route::Hold { index }),
            OnDown::Hold(_) | OnDown::Next | OnDown::Reject => Route::Nowhere,
        }
    }

    /// Why a slot is passed over. Whoever is at home there may come back while it drains.
    fn skip(&self, index: usize, failed: &[Arc<str>], is_at_home: bool) -> Option<Skip> {
        let entry = &self.entries[index];
        let skip = match entry.admin {
            AdminState::Drain if is_at_home => entry.down,
            _ => entry.skip,
        };
        skip.or_else(|| {
            let has_failed = failed.iter().any(|name| *name == entry.slot.name);
            has_failed.then_some(Skip::ConnectFailed)
        })
    }
}
