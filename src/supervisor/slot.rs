//! The task of one slot: carries out what [`Worker`] decides, and tells it what happens.

mod counts;
mod departure;
mod ending;
mod memory;
mod notices;
mod retiring;
mod rolling;
mod saved;
mod waits;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

pub(super) use self::saved::SavedSlot;
use self::{
    ending::take_out,
    memory::Diet,
    notices::{noticed, was_not_ready},
    rolling::{Successor, progress},
    saved::Resumed,
    waits::{asked, exited, passed, told},
};
use super::{
    contract::Room,
    entrance::Entrances,
    generation::{Ended, Generation},
    halt::Member,
    home::Home,
    node::{Channel, SharedSockets},
    notify::Message,
    output::printable,
    receipt::SlotReceipt,
    report,
    rollout::Replace,
    worker::{Action, Event, Limits, Why},
};
use crate::{
    cluster::{AdminState, Cluster, Skip, SlotStats},
    config::Workers,
};

/// What a slot is to do.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    pub workers: Arc<Workers>,
    /// Of the listeners that lead to the cluster.
    pub entrances: Entrances,
    pub want: Want,
}

/// The aim of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A worker, generation after generation.
    Run,
    /// None, once its connections have ended or this has passed.
    Retire(Duration),
    /// None.
    Stop,
    /// None, at once.
    Kill,
}

#[derive(Debug)]
pub(super) struct SlotTask {
    name: Arc<str>,
    cluster: Cluster,
    home: Arc<Home>,
    room: Room,
    orders: watch::Receiver<Orders>,
    replacements: mpsc::Receiver<Replace>,
    /// Too large ones of the cluster are replaced one after the other.
    diet: Diet,
    /// The number of the last generation; it outlives this task.
    last: Arc<AtomicU32>,
    stats: Option<Arc<SlotStats>>,
    running: Option<Generation>,
    /// The next generation beside it.
    successor: Option<Successor>,
    /// That of a slot that had none to stand beside: the first after the generation of this number.
    fresh: Option<(Replace, u32)>,
    /// Generations whose place is taken.
    leaving: TaskTracker,
    /// The end of a retired slot's drain.
    drained_by: Option<Instant>,
    /// Nobody gives orders any more.
    orphaned: bool,
    /// Its place among those who stand still for an upgrade.
    member: Member,
    /// It goes on from an earlier image of the program.
    resumed: Option<Resumed>,
}

impl SlotTask {
    pub(super) fn new(
        cluster: Cluster,
        home: Arc<Home>,
        (shared, turn): (Arc<SharedSockets>, Arc<Semaphore>),
        index: usize,
        orders: watch::Receiver<Orders>,
        replacements: mpsc::Receiver<Replace>,
    ) -> Self {
        let name: Arc<str> = format!("{}/{index}", cluster.name()).into();
        let last = home.last_generation(Arc::clone(&name));
        Self {
            member: home.halt().join(Arc::clone(&name)),
            resumed: None,
            room: Room::new(Arc::clone(&home), Arc::clone(&name), shared, index),
            name,
            cluster,
            home,
            orders,
            replacements,
            diet: Diet::new(turn),
            last,
            stats: None,
            running: None,
            successor: None,
            fresh: None,
            leaving: TaskTracker::new(),
            drained_by: None,
            orphaned: false,
        }
    }

    /// The slot's name.
    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Runs until the slot has no worker and shall have none.
    pub(super) async fn run(mut self) {
        loop {
            self.generations().await;
            // A slot may be wanted again while its last worker was being ended.
            if self.orphaned || self.orders.borrow().want != Want::Run {
                break;
            }
        }
        self.leaving.close();
        self.leaving.wait().await;
    }

    /// From the first spawn to [`Action::Finish`].
    async fn generations(&mut self) {
        let mut worker = self.first().await;
        self.member.may_begin().await;
        let mut snapshots = self.cluster.subscribe();
        snapshots.mark_changed();
        let mut ended = None;
        let mut events = VecDeque::from(self.obey().await);
        loop {
            while let Some(event) = events.pop_front() {
                let actions;
                (worker, actions) = worker.step(event, Instant::now(), fastrand::f64());
                for action in actions {
                    match action {
                        Action::Spawn => {
                            events.push_back(match self.spawn().await {
                                Ok(limits) => Event::Spawned(limits),
                                Err(error) => {
                                    ended = Some(self.not_spawned(&error));
                                    Event::SpawnFailed
                                }
                            });
                            // What the cluster says of it may have been said already.
                            snapshots.mark_changed();
                        }
                        Action::Vacate(verdict) => self.vacated(ended.take(), verdict).await,
                        Action::Finish => return self.finished(ended.take()).await,
                        action => self.act(action).await,
                    }
                }
            }
            let deadline = worker.deadline();
            let poll = self
                .drained_by
                .map(|by| by.min(Instant::now() + self.drain_poll()));
            let may_replace = self.may_replace();
            let most = self.most_memory();
            let (process, notify, channel) = match &mut self.running {
                Some(generation) => (
                    Some(&generation.process),
                    Some(&mut generation.notify),
                    generation.channel.as_mut(),
                ),
                None => (None, None, None),
            };
            tokio::select! {
                changed = self.orders.changed(), if !self.orphaned => match changed {
                    Ok(()) => events.extend(self.obey().await),
                    Err(_) => events.push_back(self.is_orphaned()),
                },
                () = self.member.called() => self.stand_still(&worker).await,
                replace = asked(&mut self.replacements, &mut self.diet, most), if may_replace => {
                    events.extend(self.begin_replacement(replace).await);
                }
                progress = progress(self.successor.as_mut(), &self.cluster) => {
                    events.extend(self.succeed(progress).await);
                    snapshots.mark_changed();
                }
                () = exited(process) => {
                    self.is_overtaken().await;
                    ended = self.clean_up().await;
                    // An empty slot that is retired needs no next generation.
                    events.extend(self.drained_by.take().map(|_| Event::Stop));
                    events.push_back(Event::Exited);
                }
                messages = told(notify) => events.extend(self.heard(messages)),
                notices = noticed(channel) => events.extend(self.take_notice(notices).await),
                _ = snapshots.changed() => events.extend(self.observe()),
                () = passed(deadline) => events.extend(self.late().await),
                () = passed(poll) => events.extend(self.drained().await),
            }
        }
    }

    /// A deadline has passed. What the worker has said in time counts, also when we come late:
    /// the runtime looks for it when this task yields.
    async fn late(&mut self) -> Vec<Event> {
        tokio::task::yield_now().await;
        let said = self.running.as_mut().map(Generation::waiting);
        let (messages, notices) = said.unwrap_or_default();
        let mut events = self.heard(Ok(messages));
        events.extend(self.take_notice(notices).await);
        events.push(Event::Tick);
        events
    }

    /// Nobody is left who could wait for an orderly end.
    const fn is_orphaned(&mut self) -> Event {
        self.orphaned = true;
        Event::Kill
    }

    /// What the present orders mean for the worker.
    async fn obey(&mut self) -> Vec<Event> {
        let orders = self.orders.borrow_and_update().clone();
        if let Some(successor) = &mut self.successor {
            successor.follow(&orders);
        }
        let limits = self.running.as_mut().map(|generation| {
            generation.follow(&orders.workers);
            Event::Limited(generation.limits())
        });
        let mut events = Vec::from_iter(limits);
        events.extend(self.obey_wish(orders.want).await);
        events
    }

    async fn obey_wish(&mut self, want: Want) -> Vec<Event> {
        let was_draining = self.drained_by.take().is_some();
        if want != Want::Run {
            self.abandon(None).await;
        }
        match (want, &self.running) {
            (Want::Run, Some(generation)) if was_draining => {
                // Its slot is in the table again, but empty: it starts once more.
                self.cluster.report(generation.started()).await;
                let mut events = vec![Event::Spawned(generation.limits())];
                events.extend(
                    generation
                        .said_ready
                        .then_some(Event::Notified(Message::Ready)),
                );
                events
            }
            (Want::Run, _) => Vec::new(),
            (Want::Retire(drain), Some(_)) => {
                self.drained_by = Some(Instant::now() + drain);
                Vec::new()
            }
            (Want::Retire(_), None) | (Want::Stop, _) => vec![Event::Stop],
            (Want::Kill, _) => vec![Event::Kill],
        }
    }

    async fn spawn(&mut self) -> io::Result<Limits> {
        let number = self.next_number();
        let Orders {
            workers, entrances, ..
        } = self.orders.borrow().clone();
        let mut generation =
            Generation::spawn(&self.home, &mut self.room, number, workers, &entrances)?;
        self.count_start(&mut generation, false);
        let generation = self.running.insert(generation);
        self.cluster.report(generation.started()).await;
        Ok(generation.limits())
    }

    fn next_number(&self) -> u32 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn last_number(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    fn not_spawned(&self, error: &io::Error) -> Ended {
        self.count_failed_start();
        Ended {
            generation: self.last_number(),
            pid: None,
            how: format!("it could not be started: {error}"),
            lived: Duration::ZERO,
            stderr: Vec::new(),
            misfit: false,
        }
    }

    async fn act(&mut self, action: Action) {
        let Some(generation) = &mut self.running else {
            return;
        };
        let number = generation.number;
        let slot = Arc::clone(&self.name);
        match action {
            Action::SayReady => {
                generation.said_ready = true;
                self.cluster.report(generation.ready()).await;
            }
            Action::Booted(after) => {
                let receipt = SlotReceipt::replaced(&slot, number, generation.pid, after);
                // One that took another's place was so before.
                if !std::mem::replace(&mut generation.was_ready, true) {
                    report::booted(&slot, number, generation.pid, after);
                    self.count_ready(after);
                }
                self.tell_fresh(receipt);
            }
            Action::End { why, grace } => {
                // Before it is told: from then on it may refuse whoever is sent to it.
                let stopping = generation.stopping(why.skip());
                take_out(&self.cluster, &slot, number, stopping).await;
                let channel = generation.channel.as_ref();
                let detail = channel.filter(|_| why == Why::NotReady);
                let detail = detail.map(Channel::why_not_ready);
                report::ending(
                    &slot,
                    number,
                    generation.pid,
                    &generation.workers,
                    (why, detail),
                    grace,
                );
                generation.count_stop(why.counted());
                if why != Why::Itself {
                    generation.told_to_end = true;
                    generation.term();
                }
                if why == Why::NotReady {
                    was_not_ready(&mut self.room, generation);
                }
            }
            Action::Term => generation.term(),
            Action::Kill => {
                info!(
                    %slot, generation = number, pid = generation.pid,
                    "{slot} is killed, with its whole process group"
                );
                generation.told_to_end = true;
                generation.process.kill();
            }
            Action::Recovered(failures) => report::recovered(&slot, failures),
            Action::Spawn | Action::Vacate(_) | Action::Finish => {}
        }
    }

    /// What a worker said of itself.
    fn heard(&self, messages: io::Result<Vec<Message>>) -> Vec<Event> {
        let messages = messages.unwrap_or_else(|error| {
            debug!(slot = %self.name, %error, "notification not received");
            Vec::new()
        });
        for message in &messages {
            if let Message::Status(status) = message {
                let status = printable(status.as_bytes());
                debug!(slot = %self.name, %status, "says");
            }
        }
        messages.into_iter().map(Event::Notified).collect()
    }

    /// What the cluster takes the worker to be.
    fn observe(&mut self) -> Vec<Event> {
        let snapshot = self.cluster.load();
        let (Some(entry), Some(generation)) = (snapshot.entry(&self.name), &self.running) else {
            return Vec::new();
        };
        self.stats = Some(Arc::clone(&entry.slot.stats));
        let present = entry.backend.as_ref();
        let Some(backend) = present.filter(|backend| backend.generation == generation.number)
        else {
            return Vec::new();
        };
        let mut events = Vec::new();
        if backend.was_ready {
            events.push(Event::BecameReady);
        }
        // One in maintenance may stand still, as under a debugger.
        let may_hang = entry.admin == AdminState::Maint;
        let hangs = entry.down == Some(Skip::Unresponsive) && !may_hang;
        if backend.leaving.is_none() && hangs {
            events.push(Event::Unresponsive);
        }
        events
    }
}
