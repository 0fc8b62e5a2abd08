//! The end of a generation whose place is taken.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::info;

use super::{Orders, Want, noticed, waits::exited};
use crate::{
    cluster::{Cluster, Snapshot, StopReason},
    config::{self, Key},
    supervisor::{
        entrance::keep_asking,
        generation::Generation,
        home::Home,
        node::Channel,
        place::Place,
        receipt::{Connections, SlotReceipt, millis},
        report,
    },
};

/// How often its connections are counted.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A client with a cookie may be between two requests: it has left when it is away this long.
const AWAY: Duration = Duration::from_secs(1);
/// For the table to forget it, and at least for whoever was on the way to it then.
const FORGOTTEN_WITHIN: Duration = Duration::from_millis(500);
/// A process that SIGKILL does not end sits in the kernel; look again after this.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// A generation that leaves.
#[derive(Debug)]
pub(super) struct Departure {
    pub cluster: Cluster,
    pub home: Arc<Home>,
    /// Where it listens: kept for as long as it lives.
    pub place: Option<Place>,
    pub orders: watch::Receiver<Orders>,
    pub receipt: SlotReceipt,
    pub old: Generation,
}

impl Departure {
    /// Lets its connections finish, by the drain's deadline, and ends it. Where the kernel leads
    /// clients to it, it is told at once, and finishes them itself.
    pub(super) async fn depart(mut self) -> SlotReceipt {
        let began = Instant::now();
        let before = Connections::of(self.old.load());
        if !self.old.shares {
            self.finish_connections().await;
        }
        self.old.told_to_end = true;
        self.old.count_stop(StopReason::Asked);
        self.end().await;
        let Self {
            cluster,
            home,
            place,
            mut receipt,
            old,
            ..
        } = self;
        receipt.before = Some(old.number);
        cluster.report(old.gone()).await;
        let load = Arc::clone(old.load());
        let ended = old.clean_up(&home).await;
        receipt.connections = Connections::of(&load).since(before);
        drop(place);
        receipt.drain_ms = Some(millis(began.elapsed()));
        report::left(&receipt, &ended);
        receipt
    }

    /// Lets its connections finish, until time is up, and cuts what is left.
    async fn finish_connections(&mut self) {
        let config = Arc::clone(&self.cluster.load().config);
        let guests = self.orders.borrow().entrances.guests.clone();
        let load = Arc::clone(self.old.load());
        let ask = || async {
            if let Some(guests) = &guests {
                guests.ask_to_leave(&load, config.drain.spread).await;
            }
        };
        let finishing = async {
            let by = self.not_after(Instant::now() + config.drain.timeout);
            if !self.until_empty(away(&config), by).await {
                return false;
            }
            self.is_forgotten().await;
            // Each thread does this between two turns of its connections, and from looking the way up to
            // being counted is within one: whoever had found the way here before is counted then, and has
            // what time is left. Another request of the same client goes to the next generation already.
            ask().await;
            let soon = Instant::now() + FORGOTTEN_WITHIN;
            let by = self.not_after(by).max(soon);
            load.active.load(Relaxed) == 0 || self.until_empty(Duration::ZERO, by).await
        };
        let is_there = tokio::select! {
            never = keep_asking(ask) => match never {},
            is_there = finishing => is_there,
        };
        if !is_there {
            return;
        }
        let left = load.active.load(Relaxed);
        if left > 0 {
            info!(
                slot = %self.old.slot(), generation = self.old.number,
                "{}: cutting {left} connections that generation {} still has or awaits",
                self.old.slot(), self.old.number
            );
        }
        if let Some(guests) = &guests {
            // Also those that only wait for another request.
            guests.cut(&load).await;
        }
    }

    /// Waits until it has had no connections for some time, time is up, or there is something more urgent
    /// than there was before. False when the process has ended.
    async fn until_empty(&mut self, away: Duration, by: Instant) -> bool {
        let load = Arc::clone(self.old.load());
        let was_urgent = self.is_urgent();
        let (mut empty_since, mut ended) = (None, 0);
        loop {
            // What came and went between two looks was there too.
            let before = std::mem::replace(&mut ended, load.ended.load(Relaxed));
            if load.active.load(Relaxed) > 0 || before != ended {
                empty_since = None;
            } else if empty_since.get_or_insert_with(Instant::now).elapsed() >= away {
                return true;
            }
            tokio::select! {
                () = exited(Some(&self.old.process)) => return false,
                _said = self.old.notify.next() => {}
                _said = noticed(self.old.channel.as_mut()), if !is_closed(&self.old) => {}
                _changed = self.orders.changed(), if !was_urgent => {
                    if self.is_urgent() {
                        return true;
                    }
                }
                () = sleep(LOOK_EVERY) => {}
                () = sleep_until(by) => return true,
            }
        }
    }

    /// Nobody is sent to it any more.
    async fn is_forgotten(&self) {
        let (slot, number) = (self.old.slot(), self.old.number);
        self.cluster.report(self.old.gone()).await;
        let is_out = |snapshot: &Snapshot| {
            let entry = snapshot.entry(slot);
            entry.is_none_or(|entry| entry.generations().all(|one| one.generation != number))
        };
        let _late = self.cluster.wait_until(FORGOTTEN_WITHIN, is_out).await;
    }

    /// When to stop waiting: at once, where something is more urgent.
    fn not_after(&self, by: Instant) -> Instant {
        match self.is_urgent() {
            true => Instant::now(),
            false => by,
        }
    }

    fn is_urgent(&self) -> bool {
        let want = self.orders.borrow().want;
        matches!(want, Want::Stop | Want::Kill) || self.orders.has_changed().is_err()
    }

    /// TERM, `stop_timeout`, KILL; a Node worker is asked to disconnect first.
    async fn end(&mut self) {
        self.old.follow(&self.orders.borrow().workers);
        let stop = self.old.limits().stop;
        let channel = self.old.channel.as_mut();
        let mut asked = channel.is_some_and(Channel::ask_to_disconnect);
        let mut by = Instant::now();
        by += match asked && self.old.shares {
            // It has its connections still.
            true => self.cluster.load().config.drain.timeout,
            false => stop,
        };
        if !asked {
            self.old.term();
        }
        self.orders.mark_changed();
        loop {
            let served_out = asked && is_closed(&self.old);
            tokio::select! {
                () = exited(Some(&self.old.process)) => return,
                _said = self.old.notify.next() => {}
                _said = noticed(self.old.channel.as_mut()), if !served_out => {}
                changed = self.orders.changed() => {
                    let want = self.orders.borrow_and_update().want;
                    match want {
                        _ if changed.is_err() => self.old.process.kill(),
                        Want::Kill => self.old.process.kill(),
                        Want::Stop if asked => by = Instant::now(),
                        _ => {}
                    }
                    if changed.is_err() {
                        return exited(Some(&self.old.process)).await;
                    }
                }
                () = sleep_until(by) => {
                    if asked {
                        asked = false;
                        self.old.term();
                        by = Instant::now() + stop;
                    } else {
                        self.old.process.kill();
                        by = Instant::now() + KILL_AGAIN;
                    }
                }
            }
        }
    }
}

/// For how long a client may be away and still be one of its clients.
fn away(config: &config::Cluster) -> Duration {
    match config.affinity.key {
        Key::Cookie(_) | Key::Query(_) => AWAY,
        Key::Address | Key::Header(_) | Key::None => Duration::ZERO,
    }
}

fn is_closed(generation: &Generation) -> bool {
    generation.channel.as_ref().is_some_and(Channel::is_closed)
}
