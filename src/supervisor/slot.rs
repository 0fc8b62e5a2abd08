//! The task of one slot: carries out what [`Worker`] decides, and tells it what happens.

mod notices;
mod retiring;
mod rolling;
mod saved;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use self::{
    notices::{noticed, was_not_ready},
    rolling::{Successor, settled},
    saved::Resumed,
};
pub(super) use self::{rolling::Turns, saved::SavedSlot};
use super::{
    contract::Room,
    entrance::Entrances,
    generation::{Ended, Generation},
    halt::Member,
    home::Home,
    node::{Channel, SharedSockets},
    notify::{Message, NotifySocket},
    output::printable,
    process::Process,
    report,
    restart::Verdict,
    worker::{Action, Event, Limits, Why},
};
use crate::{
    cluster::{self, Cluster, Skip, SlotStats, Snapshot},
    config::Workers,
};

/// What the controller gets to take a worker out of the table before that is told to end.
const TAKEN_OUT_WITHIN: Duration = Duration::from_millis(100);

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
    turns: Arc<Turns>,
    /// The number of the last generation; it outlives this task.
    last: Arc<AtomicU32>,
    stats: Option<Arc<SlotStats>>,
    running: Option<Generation>,
    /// The next generation beside it.
    successor: Option<Successor>,
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
        (shared, turns): (Arc<SharedSockets>, Arc<Turns>),
        index: usize,
        orders: watch::Receiver<Orders>,
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
            last,
            stats: None,
            running: None,
            successor: None,
            leaving: TaskTracker::new(),
            turns,
            drained_by: None,
            orphaned: false,
        }
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
            let outdated = self.outdated();
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
                permit = Self::turn(outdated) => self.begin_replacement(permit),
                outcome = settled(self.successor.as_mut()) => {
                    events.extend(self.succeed(outcome).await);
                    snapshots.mark_changed();
                }
                () = exited(process) => {
                    self.abandon(None).await;
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
        let want = self.orders.borrow_and_update().want;
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
        let generation =
            Generation::spawn(&self.home, &mut self.room, number, workers, &entrances)?;
        let generation = self.running.insert(generation);
        self.cluster.report(generation.started()).await;
        Ok(generation.limits())
    }

    fn next_number(&self) -> u32 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn not_spawned(&self, error: &io::Error) -> Ended {
        Ended {
            generation: self.last.load(Ordering::Relaxed),
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
                // One that took another's place was so before.
                if !std::mem::replace(&mut generation.was_ready, true) {
                    report::booted(&slot, number, generation.pid, after);
                }
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
        if backend.leaving.is_none() && entry.skip == Some(Skip::Unresponsive) {
            events.push(Event::Unresponsive);
        }
        events
    }

    /// The process has ended: no client may be sent to it while the rest is looked after.
    async fn clean_up(&mut self) -> Option<Ended> {
        let generation = self.running.take()?;
        let stopping = generation.stopping(Skip::Stopping);
        self.cluster.report(stopping).await;
        let command = generation.workers.command.clone();
        let was_better = generation.channel.is_some() || generation.was_ready;
        let ended = generation.clean_up(&self.home).await;
        self.learn_from(&ended, &command, was_better);
        Some(ended)
    }

    async fn vacated(&self, ended: Option<Ended>, verdict: Verdict) {
        let Some(ended) = ended else { return };
        let why = if verdict.looping {
            Skip::CrashLoop
        } else {
            Skip::Restarting
        };
        report::ended(&self.name, &ended, verdict);
        self.gone(ended.generation, why).await;
    }

    async fn finished(&mut self, ended: Option<Ended>) {
        self.drained_by = None;
        if let Some(ended) = ended {
            report::stopped(&self.name, &ended);
            self.gone(ended.generation, Skip::Stopping).await;
        }
    }

    async fn gone(&self, generation: u32, why: Skip) {
        let gone = cluster::Event::Gone {
            slot: Arc::clone(&self.name),
            generation,
            why,
        };
        self.cluster.report(gone).await;
    }
}

/// Reports that a generation is leaving, and waits until no snapshot sends clients to it.
async fn take_out(cluster: &Cluster, slot: &str, generation: u32, stopping: cluster::Event) {
    cluster.report(stopping).await;
    let is_out = |snapshot: &Snapshot| {
        let backend = snapshot.entry(slot).and_then(|e| e.backend.as_ref());
        backend.is_none_or(|b| b.generation != generation || b.leaving.is_some())
    };
    // A controller that is too busy, or has ended, holds up no end.
    let _late = cluster.wait_until(TAKEN_OUT_WITHIN, is_out).await;
}

async fn exited(process: Option<&Process>) {
    match process {
        Some(process) => process.exited().await,
        None => std::future::pending().await,
    }
}

async fn told(notify: Option<&mut NotifySocket>) -> io::Result<Vec<Message>> {
    match notify {
        Some(notify) => notify.next().await,
        None => std::future::pending().await,
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
