//! Replacing a worker without a gap: the next generation beside the present one, on the same
//! socket, until it is ready.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{Orders, SlotTask, Want, exited, noticed, told};
use crate::{
    config::{Contract, ReadyBy, Workers},
    supervisor::{
        generation::Generation,
        home::Home,
        node::{Channel, Notice},
        notify::Message,
        report,
        worker::Event,
    },
};

/// A worker under contract `fd` that says nothing has settled when it has lived this long:
/// connections wait in its socket until it accepts.
const SETTLED: Duration = Duration::from_secs(1);
/// A process that SIGKILL does not end sits in the kernel; look again after this.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// What the slots of a cluster share, so that one after the other is replaced.
#[derive(Debug)]
pub(in crate::supervisor) struct Turns {
    turn: Arc<Semaphore>,
    /// The configuration of which a worker did not get ready.
    given_up: Mutex<Option<Arc<Workers>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            given_up: Mutex::default(),
        }
    }
}

impl Turns {
    fn has_given_up(&self, workers: &Arc<Workers>) -> bool {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up
            .as_ref()
            .is_some_and(|failed| Arc::ptr_eq(failed, workers))
    }

    /// Lets no slot have its turn, until what this gives is dropped. Waits for the one that has it.
    pub(in crate::supervisor) async fn hold(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.turn).acquire_owned().await.ok()
    }

    fn give_up(&self, workers: &Arc<Workers>) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(workers));
    }
}

/// The next generation, while the present one still serves.
#[derive(Debug)]
pub(super) struct Successor {
    generation: Generation,
    began: Instant,
    /// It is ready by then, or given up.
    by: Instant,
    /// When it is taken to be ready although it says nothing.
    settled: Option<Instant>,
    permit: OwnedSemaphorePermit,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Outcome {
    Ready,
    /// Why not.
    Failed(String),
}

impl SlotTask {
    /// Waits for this slot's turn to be replaced; for ever when it need not be.
    pub(super) async fn turn(turns: Option<Arc<Turns>>) -> OwnedSemaphorePermit {
        if let Some(turns) = turns
            && let Ok(permit) = Arc::clone(&turns.turn).acquire_owned().await
        {
            return permit;
        }
        std::future::pending().await
    }

    /// Whether the present worker is to be replaced: it serves, it was started differently from
    /// what is configured now, and its socket can be shared with the next one.
    pub(super) fn outdated(&self) -> Option<Arc<Turns>> {
        let present = self.running.as_ref().filter(|present| present.was_ready)?;
        let orders = self.orders.borrow();
        let wanted = &orders.workers;
        let shared = match present.workers.contract {
            Contract::Fd => wanted.contract == Contract::Fd,
            Contract::Node => wanted.contract == Contract::Node && present.channel.is_some(),
            Contract::Port | Contract::Unix => false,
        };
        let is_so = shared
            && orders.want == Want::Run
            && self.successor.is_none()
            && self.drained_by.is_none()
            && present.workers.runs_differently(wanted)
            && !self.turns.has_given_up(wanted);
        is_so.then(|| Arc::clone(&self.turns))
    }

    /// Starts the next generation beside the present one.
    pub(super) fn begin_replacement(&mut self, permit: OwnedSemaphorePermit) {
        // While it waited for its turn, another slot's may have failed.
        if self.outdated().is_none() {
            return;
        }
        let Orders {
            workers, entrances, ..
        } = self.orders.borrow().clone();
        let number = self.next_number();
        let spawned = Generation::spawn_beside(
            &self.home,
            &mut self.room,
            number,
            Arc::clone(&workers),
            &entrances,
        );
        match spawned {
            Ok(generation) => {
                info!(
                    slot = %self.name, generation = number, pid = generation.pid,
                    "{}: the workers' configuration has changed, and the next generation starts \
                     beside the present one", self.name
                );
                let silent = generation.channel.is_none() && workers.ready != ReadyBy::Notify;
                let now = Instant::now();
                self.successor = Some(Successor {
                    by: now + generation.limits().ready,
                    settled: silent.then_some(now + SETTLED),
                    generation,
                    began: now,
                    permit,
                });
            }
            Err(error) => {
                self.turns.give_up(&workers);
                warn!(
                    slot = %self.name,
                    "{} is not replaced: the next generation could not be started: {error}",
                    self.name
                );
            }
        }
    }

    /// What a successor has come to.
    pub(super) async fn succeed(&mut self, outcome: Outcome) -> Vec<Event> {
        match outcome {
            Outcome::Ready => self.replace().await,
            Outcome::Failed(why) => {
                self.abandon(Some(why)).await;
                Vec::new()
            }
        }
    }

    /// The next generation is ready: it takes the place, and the present one leaves.
    async fn replace(&mut self) -> Vec<Event> {
        let Some(successor) = self.successor.take() else {
            return Vec::new();
        };
        let Successor {
            mut generation,
            began,
            permit,
            ..
        } = successor;
        (generation.said_ready, generation.was_ready) = (true, true);
        let (number, pid) = (generation.number, generation.pid);
        let limits = generation.limits();
        self.cluster.report(generation.replaced()).await;
        let Some(old) = self.running.replace(generation) else {
            return Vec::new();
        };
        info!(
            slot = %self.name, generation = number, pid,
            "{}: generation {number} has taken over from generation {}, ready after {}",
            self.name, old.number, report::brief(began.elapsed())
        );
        let drain = self.cluster.load().config.drain.timeout;
        let leaving = leave(
            Arc::clone(&self.name),
            old,
            Arc::clone(&self.home),
            self.orders.clone(),
            drain,
        );
        drop(self.leaving.spawn(async move {
            leaving.await;
            drop(permit);
        }));
        vec![Event::Spawned(limits), Event::Notified(Message::Ready)]
    }

    /// The next generation is no good, or no longer wanted: the present one stays.
    pub(super) async fn abandon(&mut self, why: Option<String>) {
        let Some(Successor {
            mut generation,
            permit,
            ..
        }) = self.successor.take()
        else {
            return;
        };
        let (number, pid) = (generation.number, generation.pid);
        if why.is_some() {
            self.turns.give_up(&generation.workers);
        }
        generation.told_to_end = true;
        generation.process.kill();
        exited(Some(&generation.process)).await;
        let ended = generation.clean_up(&self.home).await;
        if let Some(why) = why {
            let tail: String = ended
                .stderr
                .iter()
                .map(|line| format!("\n    | {line}"))
                .collect();
            let tail = match &*tail {
                "" => tail,
                _ => format!("; the last that it wrote to stderr:{tail}"),
            };
            warn!(
                slot = %self.name, generation = number, pid,
                "{} is not replaced, and the others are not: the next generation {why}; the \
                 present one goes on, SIGHUP tries again{tail}",
                self.name
            );
        }
        drop(permit);
    }
}

/// What becomes of a successor; never returns without one.
pub(super) async fn settled(successor: Option<&mut Successor>) -> Outcome {
    let Some(successor) = successor else {
        return std::future::pending().await;
    };
    let Successor {
        generation,
        by,
        settled,
        ..
    } = successor;
    let only_notify = generation.workers.ready == ReadyBy::Notify;
    loop {
        let ready_at = settled.unwrap_or(*by).min(*by);
        tokio::select! {
            () = exited(Some(&generation.process)) => {
                return Outcome::Failed("has ended before it was ready".to_owned());
            }
            messages = told(Some(&mut generation.notify)) => {
                let messages: io::Result<Vec<Message>> = messages;
                for message in messages.unwrap_or_default() {
                    match message {
                        Message::Ready => return Outcome::Ready,
                        Message::Stopping => {
                            return Outcome::Failed("says that it is stopping".to_owned());
                        }
                        _ => {}
                    }
                }
            }
            notices = noticed(generation.channel.as_mut()) => {
                for notice in notices {
                    match notice {
                        Notice::Ready => return Outcome::Ready,
                        Notice::Listening if !only_notify => return Outcome::Ready,
                        Notice::Listening => {}
                        Notice::Routed(socket, address) => {
                            let _news = generation.moves_to(socket, address);
                        }
                        Notice::Leaving => {
                            return Outcome::Failed("disconnects".to_owned());
                        }
                        Notice::Misfit(why) => return Outcome::Failed(why.to_owned()),
                    }
                }
            }
            () = sleep_until(ready_at) => {
                if settled.is_some_and(|at| at <= *by) {
                    return Outcome::Ready;
                }
                let why = generation.channel.as_ref().map(Channel::why_not_ready);
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                return Outcome::Failed(format!("was not ready in time{why}"));
            }
        }
    }
}

/// The end of a generation whose place is taken: under contract `node` it is asked to disconnect,
/// and ends once its connections have; else TERM tells it to finish what it has. Whoever does not
/// end in time is killed.
async fn leave(
    slot: Arc<str>,
    old: Generation,
    home: Arc<Home>,
    mut orders: watch::Receiver<Orders>,
    drain: Duration,
) {
    let mut old = old;
    old.told_to_end = true;
    let stop = old.limits().stop;
    let mut asked = old.channel.as_mut().is_some_and(Channel::ask_to_disconnect);
    let mut by = Instant::now() + if asked { drain } else { stop };
    if !asked {
        old.term();
    }
    orders.mark_changed();
    loop {
        let served_out = asked && old.channel.as_ref().is_some_and(Channel::is_closed);
        tokio::select! {
            () = exited(Some(&old.process)) => break,
            _said = old.notify.next() => {}
            _said = noticed(old.channel.as_mut()), if !served_out => {}
            changed = orders.changed() => {
                let want = orders.borrow_and_update().want;
                match want {
                    _ if changed.is_err() => old.process.kill(),
                    Want::Kill => old.process.kill(),
                    Want::Stop if asked => by = Instant::now(),
                    _ => {}
                }
                if changed.is_err() {
                    exited(Some(&old.process)).await;
                    break;
                }
            }
            () = sleep_until(by) => {
                if asked {
                    asked = false;
                    old.term();
                    by = Instant::now() + stop;
                } else {
                    old.process.kill();
                    by = Instant::now() + KILL_AGAIN;
                }
            }
        }
    }
    let ended = old.clean_up(&home).await;
    report::left(&slot, &ended);
}
