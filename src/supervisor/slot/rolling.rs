//! Replacing a worker without a gap: the next generation beside the present one, until it is ready
//! and has stayed so for a while.
//!
//! Where homescar is on the path it gets an address of its own, so that it is checked before
//! anybody is sent to it. In direct mode both have the same sockets.

use std::{io, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{
    Orders, SlotTask,
    departure::Departure,
    ending::stands_there,
    noticed,
    waits::{exited, told},
};
use crate::{
    cluster::{self, Cluster, Entry, Health},
    config::ReadyBy,
    supervisor::{
        generation::{Ended, Generation},
        node::{Channel, Notice},
        notify::Message,
        receipt::SlotReceipt,
        report::{self, brief},
        rollout::{Reason, Replace},
        worker::Event,
    },
};

/// A worker that shares its socket and says nothing has settled when it has lived this long:
/// connections wait in the socket until it accepts.
const SETTLED: Duration = Duration::from_secs(1);

/// The next generation, while the present one still serves.
#[derive(Debug)]
pub(super) struct Successor {
    generation: Generation,
    began: Instant,
    /// It is ready by then, or given up.
    by: Instant,
    /// When it is taken to be ready although it says nothing.
    settled: Option<Instant>,
    /// Since when it is ready.
    ready: Option<Instant>,
    /// The check that is configured has passed, or there is none that could tell it from the present
    /// one.
    is_well: bool,
    replace: Replace,
}

/// What became of it, or what it has to say.
#[derive(Debug)]
pub(super) enum Progress {
    /// For the cluster.
    Said(Vec<cluster::Event>),
    /// It can take over.
    Stable,
    /// It cannot.
    Failed(String),
    /// It has ended by itself.
    Ended(String),
}

impl SlotTask {
    /// Whether the slot can be asked to replace its worker now: it serves, or it waits to start the
    /// next one.
    pub(super) fn may_replace(&self) -> bool {
        let serves_or_waits = self
            .running
            .as_ref()
            .is_none_or(|present| present.was_ready);
        serves_or_waits
            && self.successor.is_none()
            && self.fresh.is_none()
            && self.drained_by.is_none()
    }

    /// Starts the next generation beside the present one; or at once, where there is none.
    pub(super) async fn begin_replacement(&mut self, replace: Replace) -> Vec<Event> {
        let Orders {
            workers, entrances, ..
        } = self.orders.borrow().clone();
        let Some(present) = &self.running else {
            self.fresh = Some((replace, self.last_number()));
            return vec![Event::Hurry];
        };
        if replace.reason == Reason::Changed && !present.workers.runs_differently(&workers) {
            let receipt = SlotReceipt::untouched(&self.name, "it runs as configured");
            let _nobody_waits = replace.answer.send(receipt);
            return Vec::new();
        }
        let number = self.next_number();
        let spawned =
            Generation::spawn_beside(&self.home, &mut self.room, number, workers, &entrances);
        let mut generation = match spawned {
            Ok(generation) => generation,
            Err(error) => {
                self.room.clear_beside();
                let why = format!("could not be started: {error}");
                self.not_replaced(replace, number, &why, Vec::new());
                return Vec::new();
            }
        };
        self.count_start(&mut generation, true);
        let why = match replace.reason {
            Reason::Asked => "is to be restarted",
            Reason::Changed => "was started with another configuration",
            Reason::TooBig => "has more memory than max_rss",
        };
        info!(
            slot = %self.name, generation = number, pid = generation.pid,
            "{}: the worker {why}, and the next generation starts beside it", self.name
        );
        if !generation.shares {
            self.cluster.report(generation.beside()).await;
        }
        let silent = generation.channel.is_none() && generation.workers.ready != ReadyBy::Notify;
        let now = Instant::now();
        self.successor = Some(Successor {
            by: now + generation.limits().ready,
            settled: (generation.shares && silent).then_some(now + SETTLED),
            generation,
            began: now,
            ready: None,
            is_well: false,
            replace,
        });
        Vec::new()
    }

    /// What a successor has come to.
    pub(super) async fn succeed(&mut self, progress: Progress) -> Vec<Event> {
        match progress {
            Progress::Said(events) => {
                for event in events {
                    self.cluster.report(event).await;
                }
            }
            Progress::Stable => return self.replace().await,
            Progress::Failed(why) => self.abandon(Some(why)).await,
            Progress::Ended(why) => {
                if let Some((replace, ended)) = self.end_successor().await {
                    let why = format!("{why} ({})", ended.how);
                    self.not_replaced(replace, ended.generation, &why, ended.stderr);
                }
            }
        }
        Vec::new()
    }

    /// The next generation takes the place, and the present one leaves.
    async fn replace(&mut self) -> Vec<Event> {
        let Some(successor) = self.successor.take() else {
            return Vec::new();
        };
        let Successor {
            mut generation,
            began,
            ready,
            replace,
            ..
        } = successor;
        (generation.said_ready, generation.was_ready) = (true, true);
        let (number, pid) = (generation.number, generation.pid);
        let limits = generation.limits();
        let boot = ready.unwrap_or_else(Instant::now) - began;
        self.count_ready(boot);
        self.cluster.report(generation.replaced()).await;
        // From then on nobody is sent to the present one.
        stands_there(&self.cluster, &self.name, number).await;
        let Some(old) = self.running.replace(generation) else {
            return Vec::new();
        };
        info!(
            slot = %self.name, generation = number, pid,
            "{}: generation {number} has taken over from generation {}, ready after {}",
            self.name, old.number, brief(boot)
        );
        let departure = Departure {
            cluster: self.cluster.clone(),
            home: std::sync::Arc::clone(&self.home),
            place: self.room.take_over(),
            orders: self.orders.clone(),
            receipt: SlotReceipt::replaced(&self.name, number, pid, boot),
            old,
        };
        drop(self.leaving.spawn(async move {
            let receipt = departure.depart().await;
            let _nobody_waits = replace.answer.send(receipt);
        }));
        vec![Event::Spawned(limits), Event::Notified(Message::Ready)]
    }

    /// The next generation is no good, or no longer wanted: the present one stays.
    pub(super) async fn abandon(&mut self, why: Option<String>) {
        let Some((replace, ended)) = self.end_successor().await else {
            return;
        };
        if let Some(why) = why {
            self.not_replaced(replace, ended.generation, &why, ended.stderr);
        }
    }

    /// The present generation has ended while the next one was not ready. That one gives way to
    /// the slot's ordinary life, in which the next to start is the one that was asked for.
    pub(super) async fn is_overtaken(&mut self) {
        let overtaken = self.end_successor().await;
        self.fresh = overtaken.map(|(replace, ended)| (replace, ended.generation));
    }

    /// What came of the worker that was asked for where there was none.
    pub(super) fn tell_fresh(&mut self, receipt: SlotReceipt) {
        if let Some((Replace { answer, .. }, _)) = self.fresh.take() {
            let _nobody_waits = answer.send(receipt);
        }
    }

    async fn end_successor(&mut self) -> Option<(Replace, Ended)> {
        let Successor {
            mut generation,
            replace,
            ..
        } = self.successor.take()?;
        let has_ended = exited(Some(&generation.process)).now_or_never().is_some();
        generation.told_to_end |= !has_ended;
        generation.process.kill();
        exited(Some(&generation.process)).await;
        let gone = generation.gone();
        let ended = generation.clean_up(&self.home).await;
        self.cluster.report(gone).await;
        self.room.clear_beside();
        Some((replace, ended))
    }

    fn not_replaced(&self, replace: Replace, number: u32, why: &str, stderr: Vec<String>) {
        let present = self.running.as_ref();
        let tail = report::tail(&stderr);
        warn!(
            slot = %self.name, generation = number,
            "{} is not replaced: the next generation {why}; the present one goes on{tail}",
            self.name
        );
        let present = present.map(|present| (present.number, present.pid));
        let receipt = SlotReceipt {
            stderr,
            ..SlotReceipt::failed(&self.name, present, format!("the next generation {why}"))
        };
        let _nobody_waits = replace.answer.send(receipt);
    }
}

/// What becomes of a successor; never returns without one.
pub(super) async fn progress(successor: Option<&mut Successor>, cluster: &Cluster) -> Progress {
    match successor {
        Some(successor) => successor.progress(cluster).await,
        None => std::future::pending().await,
    }
}

impl Successor {
    /// Goes by this configuration, if its process is as that says; not for what has begun.
    pub(super) fn follow(&mut self, orders: &Orders) {
        self.generation.follow(&orders.workers);
    }

    /// Can be dropped and called again at any time.
    async fn progress(&mut self, cluster: &Cluster) -> Progress {
        let mut numbers = cluster.subscribe();
        loop {
            if let Some(failed) = self.look(cluster) {
                return failed;
            }
            let stable = self.generation.workers.stable;
            let due = match (self.ready, self.settled) {
                (Some(since), _) if self.is_well => since + stable,
                (Some(since), _) => self.by.max(since + stable),
                (None, Some(settled)) => settled.min(self.by),
                (None, None) => self.by,
            };
            let generation = &mut self.generation;
            let said = tokio::select! {
                () = exited(Some(&generation.process)) => return self.has_ended(),
                messages = told(Some(&mut generation.notify)) => self.hear(messages),
                notices = noticed(generation.channel.as_mut()) => self.notice(notices),
                _ = numbers.changed() => None,
                () = sleep_until(due) => match (self.ready, self.settled) {
                    (Some(_), _) if self.is_well => return Progress::Stable,
                    (Some(_), _) => {
                        let why = "was ready, and passed no check in time";
                        return Progress::Failed(why.to_owned());
                    }
                    (None, Some(settled)) if settled <= self.by => {
                        self.is_ready();
                        None
                    }
                    (None, _) => {
                        let why = self.generation.channel.as_ref().map(Channel::why_not_ready);
                        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                        return Progress::Failed(format!("was not ready in time{why}"));
                    }
                },
            };
            if let Some(said) = said {
                return said;
            }
        }
    }

    /// What the cluster takes it to be, where it has an address of its own.
    fn look(&mut self, cluster: &Cluster) -> Option<Progress> {
        let snapshot = cluster.load();
        self.is_well |= self.generation.shares || snapshot.config.health.is_none();
        let entry = snapshot.entry(self.generation.slot());
        let next = entry.and_then(|entry: &Entry| entry.next.as_ref());
        let next = next.filter(|next| next.generation == self.generation.number)?;
        if next.was_ready {
            self.is_ready();
            if let Health::Unhealthy { why, .. } = &next.health {
                return Some(Progress::Failed(format!(
                    "was ready, and is not well: {why}"
                )));
            }
            // It may say that it is ready, and know nothing of this.
            self.is_well |= next.health == Health::Healthy;
        }
        None
    }

    fn is_ready(&mut self) {
        self.ready.get_or_insert_with(Instant::now);
    }

    fn has_ended(&self) -> Progress {
        Progress::Ended(match self.ready {
            Some(since) => format!("has ended {} after it was ready", brief(since.elapsed())),
            None => "has ended before it was ready".to_owned(),
        })
    }

    /// It says that it is ready.
    fn says_ready(&mut self) -> Option<Progress> {
        if self.generation.shares {
            self.is_ready();
            return None;
        }
        self.generation.said_ready = true;
        Some(Progress::Said(vec![self.generation.ready()]))
    }

    fn hear(&mut self, messages: io::Result<Vec<Message>>) -> Option<Progress> {
        let mut said = None;
        for message in messages.unwrap_or_default() {
            match message {
                Message::Ready => said = self.says_ready(),
                Message::Stopping => {
                    return Some(Progress::Failed("says that it is stopping".to_owned()));
                }
                Message::ExtendTimeout(by) if self.ready.is_none() => {
                    self.by = self
                        .by
                        .max(Instant::now() + by.min(self.generation.limits().ready));
                }
                _ => {}
            }
        }
        said
    }

    fn notice(&mut self, notices: Vec<Notice>) -> Option<Progress> {
        let only_notify = self.generation.workers.ready == ReadyBy::Notify;
        let (mut moved, mut is_ready) = (false, false);
        for notice in notices {
            match notice {
                Notice::Ready => is_ready = true,
                Notice::Listening => is_ready |= !only_notify,
                Notice::Routed(socket, address) => {
                    moved |= self.generation.moves_to(socket, address);
                }
                // That of the slot is the present worker's.
                Notice::Lag(_) => {}
                Notice::Leaving => return Some(Progress::Failed("disconnects".to_owned())),
                Notice::Misfit(why) => return Some(Progress::Failed(why.to_owned())),
            }
        }
        let said = match is_ready {
            true => self.says_ready(),
            false => None,
        };
        if !moved || self.generation.shares {
            return said;
        }
        let mut events = vec![self.generation.beside()];
        events.extend(self.generation.said_ready.then(|| self.generation.ready()));
        Some(Progress::Said(events))
    }
}
