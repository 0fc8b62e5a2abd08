//! From what clients met to a verdict: which backends are ejected, and for how long. Pure.
//!
//! The data plane only counts. Samples of its counters come in here, and what has changed from one
//! to the next is what has happened between them.

use std::{sync::Arc, time::Duration};

use ahash::HashMap;
use tokio::time::Instant;

use crate::{
    cluster::{Backend, Skip},
    config::{Address, Passive},
};

/// What is seen of a slot at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// The slot.
    pub(super) slot: Arc<str>,
    /// What stands in it.
    pub(super) backend: Arc<Backend>,
    /// Why it takes no clients, if it takes none.
    pub(super) skip: Option<Skip>,
    /// Connections or requests ever, and how many of them failed.
    pub(super) counters: Outcomes,
}

/// How attempts ended, or whether they began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    /// All that began.
    pub(super) tried: u64,
    /// Those that failed.
    pub(super) failed: u64,
}

/// A change of mind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) slot: Arc<str>,
    pub(super) generation: u32,
    /// Why it is ejected; `None` when it is tried again.
    pub(super) why: Option<Arc<str>>,
}

/// What is held against the slots of a cluster.
#[derive(Debug, Default)]
pub(super) struct Outliers {
    settings: Passive,
    slots: HashMap<Arc<str>, Outlier>,
}

/// What is held against one slot.
#[derive(Debug)]
struct Outlier {
    /// Whom it is held against: another one in the slot has done nothing yet.
    generation: u32,
    address: Address,
    seen: Outcomes,
    window: Window,
    /// Ejections in a row.
    row: u32,
    /// When the present ejection ends, or when the present good stretch began.
    since: Instant,
    /// Why it is ejected now.
    why: Option<Arc<str>>,
}

impl Outliers {
    /// Looks at all slots once; says which verdicts differ from what the samples show. `None` for
    /// settings means that nothing is held against anybody.
    pub(super) fn step(
        &mut self,
        settings: Option<&Passive>,
        samples: &[Sample],
        now: Instant,
    ) -> Vec<Verdict> {
        match settings {
            None => self.slots.clear(),
            // Windows of another length cannot go on.
            Some(settings) if *settings != self.settings => {
                self.slots.clear();
                self.settings = settings.clone();
            }
            Some(_) => {}
        }
        if settings.is_some() {
            self.judge(samples, now);
        }
        let verdicts = samples.iter().filter_map(|sample| {
            let why = self.slots.get(&sample.slot).and_then(|own| own.why.clone());
            let is_news = why.is_some() != sample.backend.ejected.is_some();
            is_news.then(|| Verdict {
                slot: Arc::clone(&sample.slot),
                generation: sample.backend.generation,
                why,
            })
        });
        verdicts.collect()
    }

    fn judge(&mut self, samples: &[Sample], now: Instant) {
        self.slots
            .retain(|slot, _| samples.iter().any(|sample| sample.slot == *slot));
        let mut suspects = Vec::new();
        for sample in samples {
            let own = self
                .slots
                .entry(Arc::clone(&sample.slot))
                .or_insert_with(|| Outlier::new(sample, now));
            if !own.is_of(sample) {
                *own = Outlier::new(sample, now);
            }
            own.look(sample.counters, &self.settings, now);
            let met = own.window.sum();
            if own.why.is_none() && self.settings.condemns(met) {
                suspects.push((met, sample));
            }
        }
        // Those with the most failures first, as there may not be room for all.
        suspects.sort_by_key(|(met, _)| std::cmp::Reverse(met.failed));
        let mut out = self.slots.values().filter(|own| own.why.is_some()).count();
        let most = self.settings.most(samples.len());
        let mut usable: Vec<&Sample> = samples.iter().filter(|s| s.skip.is_none()).collect();
        for (met, suspect) in suspects {
            let would_be_left = usable.iter().any(|other| other.slot != suspect.slot);
            if out >= most || !would_be_left {
                continue;
            }
            if let Some(own) = self.slots.get_mut(&suspect.slot) {
                own.eject(met, &self.settings, now);
                out += 1;
                usable.retain(|other| other.slot != suspect.slot);
            }
        }
        // What is only thought to be bad is better than what is known to be.
        if usable.is_empty() {
            for own in self.slots.values_mut() {
                own.readmit(now);
            }
        }
    }
}

impl Passive {
    /// Whether so much has failed that it is no accident.
    fn condemns(&self, met: Outcomes) -> bool {
        met.failed >= u64::from(self.failures.get())
            && met.failed as f64 >= self.failure_rate * met.tried as f64
    }

    /// How many of so many slots may be out.
    fn most(&self, slots: usize) -> usize {
        let share = (self.max_share * slots as f64).floor() as usize;
        share.max(1).min(slots.saturating_sub(1))
    }

    /// How long the ejection lasts that is this one in a row.
    fn lasting(&self, row: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(row.saturating_sub(1));
        self.eject.saturating_mul(doubled).min(self.max_eject)
    }
}

impl Outlier {
    fn new(sample: &Sample, now: Instant) -> Self {
        Self {
            generation: sample.backend.generation,
            address: sample.backend.address.clone(),
            seen: sample.counters,
            window: Window::new(now),
            row: 0,
            since: now,
            why: None,
        }
    }

    fn is_of(&self, sample: &Sample) -> bool {
        self.generation == sample.backend.generation && self.address == sample.backend.address
    }

    /// Takes note of what has happened since the last look.
    fn look(&mut self, counters: Outcomes, settings: &Passive, now: Instant) {
        let new = Outcomes {
            tried: counters.tried.saturating_sub(self.seen.tried),
            failed: counters.failed.saturating_sub(self.seen.failed),
        };
        self.seen = counters;
        if self.why.is_some() {
            if now < self.since {
                return;
            }
            self.readmit(now);
        }
        self.window.add(new, settings.window, now);
        // As long a good stretch as the last ejection was makes good for it.
        let stretch = settings.lasting(self.row);
        if self.row > 0 && now.saturating_duration_since(self.since) >= stretch {
            self.row -= 1;
            self.since = now;
        }
    }

    fn eject(&mut self, met: Outcomes, settings: &Passive, now: Instant) {
        self.row = self.row.saturating_add(1);
        let lasting = settings.lasting(self.row);
        self.since = now + lasting;
        let (within, lasting) = (settings.window, lasting);
        let Outcomes { tried, failed } = met;
        let why = format!("{failed} of {tried} failed within {within:?}; for {lasting:?}");
        self.why = Some(why.into());
    }

    /// Begins anew, but remembers that it was ejected.
    fn readmit(&mut self, now: Instant) {
        if self.why.take().is_some() {
            self.since = now;
            self.window = Window::new(now);
        }
    }
}

/// What was met lately, in tenths of the window: the oldest goes as the newest begins.
#[derive(Debug)]
struct Window {
    began: Instant,
    /// The tenth, counted from the beginning, that is the newest.
    newest: u128,
    tenths: [Outcomes; 10],
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            newest: 0,
            tenths: [Outcomes::default(); 10],
        }
    }

    fn add(&mut self, new: Outcomes, length: Duration, now: Instant) {
        let tenth = (length / 10).as_nanos().max(1);
        let present = now.saturating_duration_since(self.began).as_nanos() / tenth;
        let passed = present.saturating_sub(self.newest).min(10);
        for past in 0..passed {
            self.tenths[((present - past) % 10) as usize] = Outcomes::default();
        }
        self.newest = self.newest.max(present);
        let newest = &mut self.tenths[(self.newest % 10) as usize];
        newest.tried += new.tried;
        newest.failed += new.failed;
    }

    fn sum(&self) -> Outcomes {
        let all = self.tenths.iter();
        all.fold(Outcomes::default(), |sum, tenth| Outcomes {
            tried: sum.tried + tenth.tried,
            failed: sum.failed + tenth.failed,
        })
    }
}

#[cfg(test)]
mod tests;
