//! Who is sent home, and when: WebSockets that are in another slot than their own, which takes
//! clients again. Pure: time and randomness come in, and what is to be done goes out.
//!
//! One of these decides for a whole cluster, over all threads of the data plane, so that its rate is
//! that of the cluster. It looks at all WebSockets only when the snapshot has changed or somebody has
//! come who cannot be at home yet; with nobody away from home it rests.

mod asked;
mod stay;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::{
    asked::{Asked, SavedAsked},
    stay::{Standing, Stay},
};
use super::{Entry, Load, SlotStats, Snapshot, View};

/// Between two looks, at least; twice as long each time that nobody could be sent home.
const PAUSE: Duration = Duration::from_secs(1);
/// At most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a static backend must have taken clients before any are sent to it. Of workers it is
/// their `stable`.
const STABLE: Duration = Duration::from_secs(5);
/// For who was sent home to be there, and in its slot's counters.
const ON_THE_WAY: Duration = Duration::from_secs(5);
const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// WebSockets that are judged in one step, so that a step is short.
const JUDGED_AT_ONCE: usize = 256;

/// What is to be done next. `H` is the way to a WebSocket.
#[derive(Clone, Debug)]
pub enum Step<H> {
    /// Nothing, until there is another snapshot or somebody strays.
    Rest,
    /// Nothing before this time, unless there is another snapshot or somebody strays.
    Wait(Instant),
    /// Find those that are away from home; see [`Rebalance::found`].
    Look,
    /// Ask this one to go home; see [`Rebalance::was_asked`].
    Ask(H, Arc<Stay>, Arc<SlotStats>),
}

/// Sends the WebSockets of a cluster home.
#[derive(Debug)]
pub struct Rebalance<H> {
    /// The number of the snapshot that was seen last.
    seen: u64,
    /// Slots that take clients, and since when.
    settled: Vec<Settled>,
    /// Those that were away from home at the last look, the next one last.
    away: Vec<(H, Arc<Stay>)>,
    /// When to look again.
    look_at: Option<Instant>,
    /// The table has changed since the last look.
    is_outdated: bool,
    looked_at: Option<Instant>,
    pause: Duration,
    /// When the next one may be asked.
    next_at: Option<Instant>,
    /// When the present one is asked.
    asking_at: Option<Instant>,
    asked: Asked,
    /// To which slots some are on their way, and since when.
    coming: Vec<(Arc<SlotStats>, VecDeque<Instant>)>,
}

/// A generation that takes clients.
#[derive(Debug)]
struct Settled {
    slot: Arc<SlotStats>,
    load: Arc<Load>,
    since: Instant,
}

/// What is to become of a WebSocket that was away from home.
enum Verdict {
    Ask(Arc<SlotStats>),
    /// It is to be looked at again.
    Again(Instant),
    /// It stays where it is.
    Leave,
}

impl<H> Default for Rebalance<H> {
    fn default() -> Self {
        Self {
            seen: 0,
            settled: Vec::new(),
            away: Vec::new(),
            look_at: None,
            is_outdated: false,
            looked_at: None,
            pause: PAUSE,
            next_at: None,
            asking_at: None,
            asked: Asked::default(),
            coming: Vec::new(),
        }
    }
}

impl<H> Rebalance<H> {
    /// One that knows who was asked before.
    #[must_use]
    pub fn new(asked: Asked) -> Self {
        Self {
            asked,
            ..Self::default()
        }
    }

    /// What is to be done with this snapshot, at the time of the view.
    pub fn step(&mut self, snapshot: &Snapshot, view: &impl View) -> Step<H> {
        let now = view.now();
        self.see(snapshot, now);
        if snapshot.config.balance.rebalance.is_none() {
            self.away.clear();
            return Step::Rest;
        }
        self.asked.forget(now);
        self.coming.retain_mut(|(_, since)| {
            since.retain(|since| now < *since + ON_THE_WAY);
            !since.is_empty()
        });
        let is_due = self.look_at.is_some_and(|at| at <= now);
        if is_due && (self.away.is_empty() || self.is_outdated) {
            return Step::Look;
        }
        if let Some(next_at) = self.next_at.filter(|at| now < *at)
            && !self.away.is_empty()
        {
            let look_at = self.look_at.filter(|_| self.is_outdated);
            return Step::Wait(look_at.map_or(next_at, |at| at.min(next_at)));
        }
        for _ in 0..JUDGED_AT_ONCE {
            let Some((handle, stay)) = self.away.pop() else {
                return self.look_at.map_or(Step::Rest, Step::Wait);
            };
            match self.judge(snapshot, &stay, view) {
                Verdict::Ask(home) => {
                    self.asking_at = Some(now);
                    return Step::Ask(handle, stay, home);
                }
                Verdict::Again(at) => self.look_again(at),
                Verdict::Leave => {}
            }
        }
        Step::Wait(now)
    }

    /// Somebody has come to another slot than its home.
    pub fn strayed(&mut self, now: Instant) {
        let soonest = self.looked_at.map(|looked| looked + self.pause);
        self.look_again(soonest.unwrap_or(now).max(now));
    }

    /// Takes those that are away from home, as a look has found them. They go home in random order,
    /// so that no slot that they leave, and no thread, comes first. `later` says that there are
    /// others, who may be taken later.
    pub fn found(
        &mut self,
        away: Vec<(H, Arc<Stay>)>,
        later: bool,
        now: Instant,
        random: &mut fastrand::Rng,
    ) {
        self.away = away;
        random.shuffle(&mut self.away);
        self.looked_at = Some(now);
        self.look_at = None;
        self.is_outdated = false;
        if later {
            self.look_again(now + self.pause);
        }
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }

    /// Notes that the one that was to be asked was: it was there, and will go.
    pub fn was_asked(
        &mut self,
        snapshot: &Snapshot,
        stay: &Stay,
        home: Arc<SlotStats>,
        now: Instant,
    ) {
        let Some(rate) = snapshot.config.balance.rebalance else {
            return;
        };
        // Rounded up, or one too many would fit into a second.
        let apart = NANOS_PER_SECOND.div_ceil(u64::from(rate.get()));
        self.next_at = Some(now + Duration::from_nanos(apart));
        self.pause = PAUSE;
        // It may be back before anybody can note that it was asked.
        self.asked.note(stay.key, self.asking_at.unwrap_or(now));
        match self
            .coming
            .iter_mut()
            .find(|(to, _)| Arc::ptr_eq(to, &home))
        {
            Some((_, since)) => since.push_back(now),
            None => self.coming.push((home, [now].into())),
        }
    }

    /// Notes which slots take clients, and that there is reason to look when that has changed.
    fn see(&mut self, snapshot: &Snapshot, now: Instant) {
        if self.seen == snapshot.number {
            return;
        }
        self.seen = snapshot.number;
        let before = std::mem::take(&mut self.settled);
        let settled = snapshot.entries.iter().filter_map(|entry| {
            let backend = entry.backend.as_ref().filter(|_| entry.skip.is_none())?;
            let (slot, load) = (&entry.slot.stats, &backend.load);
            let same = |other: &&Settled| Arc::ptr_eq(&other.slot, slot) && other.load == *load;
            Some(Settled {
                slot: Arc::clone(slot),
                load: Arc::clone(load),
                since: before.iter().find(same).map_or(now, |same| same.since),
            })
        });
        self.settled = settled.collect();
        self.is_outdated = true;
        self.pause = PAUSE;
        let soonest = self.looked_at.map_or(now, |looked| looked + PAUSE);
        self.look_again(soonest.max(now));
    }

    fn judge(&self, snapshot: &Snapshot, stay: &Stay, view: &impl View) -> Verdict {
        let now = view.now();
        let expecting = Expecting {
            snapshot,
            view,
            coming: &self.coming,
        };
        // As it is, and as it will be when those are there who are on their way: some of them may be by
        // now, and are counted twice.
        let home = match [
            snapshot.standing(stay, view),
            snapshot.standing(stay, &expecting),
        ] {
            [Standing::Away(home), Standing::Away(_)] => &snapshot.entries[home],
            [
                Standing::Away(_) | Standing::Later,
                Standing::Away(_) | Standing::Later,
            ] => {
                return Verdict::Again(self.looked_at.unwrap_or(now) + self.pause);
            }
            _ => return Verdict::Leave,
        };
        let settles_at = self.settles_at(snapshot, home, now);
        if now < settles_at {
            return Verdict::Again(settles_at);
        }
        if let Some(room_at) = self.asked.full_until() {
            return Verdict::Again(room_at);
        }
        match self.asked.knows(stay) {
            true => Verdict::Leave,
            false => Verdict::Ask(Arc::clone(&home.slot.stats)),
        }
    }

    /// When a slot has taken clients for long enough. Somebody who is sent to a worker that dies of
    /// the same fault again has lost its connection for nothing.
    fn settles_at(&self, snapshot: &Snapshot, home: &Entry, now: Instant) -> Instant {
        let stable = snapshot.config.supervised().map(|workers| workers.stable);
        let mut all = self.settled.iter();
        let own = all.find(|own| Arc::ptr_eq(&own.slot, &home.slot.stats));
        own.map_or(now, |own| own.since) + stable.unwrap_or(STABLE)
    }

    fn look_again(&mut self, at: Instant) {
        self.look_at = Some(self.sooner(at));
    }

    fn sooner(&self, at: Instant) -> Instant {
        self.look_at.map_or(at, |look_at| look_at.min(at))
    }
}

/// Slots as they will be when those are there who are on their way.
struct Expecting<'a, V> {
    snapshot: &'a Snapshot,
    view: &'a V,
    coming: &'a [(Arc<SlotStats>, VecDeque<Instant>)],
}

impl<V> Expecting<'_, V> {
    fn coming(&self, index: usize) -> usize {
        let slot = &self.snapshot.entries[index].slot.stats;
        let mut all = self.coming.iter();
        let own = all.find(|(to, _)| Arc::ptr_eq(to, slot));
        own.map_or(0, |(_, since)| since.len())
    }
}

impl<V: View> View for Expecting<'_, V> {
    fn now(&self) -> Instant {
        self.view.now()
    }

    fn active(&self, index: usize) -> u64 {
        self.view.active(index) + self.coming(index) as u64
    }

    fn free(&self, index: usize) -> usize {
        self.view.free(index).saturating_sub(self.coming(index))
    }
}
