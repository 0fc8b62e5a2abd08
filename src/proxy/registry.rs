//! The open connections of this thread, so that they can be cut.

mod freeze;
mod idle;
mod places;
mod strays;

use std::{
    cell::RefCell,
    future::poll_fn,
    mem,
    sync::{Arc, OnceLock},
    task::{Poll, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use serde::{Deserialize, Serialize};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

pub(super) use self::{
    freeze::{
        Passage, cut_others, freeze, is_frozen, is_resting, note, offer, others, rest, thaw, thawed,
    },
    idle::wake_the_idle,
    strays::{send_home, strays},
};
use self::{idle::Quiet, places::Places};
use super::{admit::Permit, listener::Listener, record::Home};
use crate::{
    affinity::{AffinityKey, SlotId},
    cluster::{Cluster, Load, SlotStats, Stay},
};

thread_local! {
    static OPEN: RefCell<Places<Open>> = const { RefCell::new(Places::new()) };
}

/// Which connections to cut.
#[derive(Clone, Debug)]
pub enum Cut {
    /// All.
    All,
    /// Those that came in by a listener.
    Listener(Arc<Listener>),
    /// Those that go to a slot, by its counters: they are its own for life, where names come
    /// again in other clusters.
    Slot(Arc<SlotStats>),
    /// Those that go to a generation of a slot.
    Generation(Arc<Load>),
}

/// Where a connection goes now, and by which key it was sent there.
#[derive(Clone, Debug)]
pub struct Whereabouts {
    /// The counters of the slot, which tell it apart for life.
    pub slot: Arc<SlotStats>,
    /// The generation.
    pub load: Arc<Load>,
    /// What identifies the client.
    pub key: AffinityKey,
}

#[derive(Debug)]
struct Open {
    listener: Arc<Listener>,
    /// It is one of those that there may be of all listeners together.
    _permit: Option<Permit>,
    goes_to: Option<Whereabouts>,
    task: Option<AbortHandle>,
    /// It can be asked to go …
    can_leave: bool,
    /// … by this, which is not there for everybody all the time.
    farewell: Option<Farewell>,
    /// It carries a WebSocket.
    is_tunnel: bool,
    /// What is to be known to send that home, should it come to be away.
    stay: Option<Arc<Stay>>,
    /// Wakes it to stand still, to end as it is idle, or to go.
    waker: Option<Waker>,
    quiet: Quiet,
    /// It is relayed, and so stays where it goes. (Requests of HTTP go one by one, and WebSockets are
    /// asked to come again.)
    is_resident: bool,
    /// To another image of the program.
    passage: Passage,
    /// It was there when that was noted.
    is_noted: bool,
}

/// The way to ask a connection to go, when it can say goodbye.
#[derive(Clone, Debug, Default)]
pub(super) struct Farewell(Arc<Leave>);

#[derive(Debug, Default)]
struct Leave {
    said: OnceLock<Said>,
    waker: AtomicWaker,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    /// When it has to go.
    at: Instant,
    why: Leaving,
}

/// Why a connection is asked to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Leaving {
    /// What it came by, or goes to, ends.
    Drain,
    /// Its own slot takes it again.
    Home,
}

/// Who is asked to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Who can.
    All,
    /// Of those, who cannot be carried over to another image of the program, now or later.
    Others,
    /// Of those, who were there at the last [`note`].
    Noted,
}

impl Farewell {
    /// Waits until it is time to go. One task at a time can.
    pub(super) async fn wait(&self) -> Leaving {
        let asked = poll_fn(|cx| {
            self.0.waker.register(cx.waker());
            match self.0.said.get() {
                Some(said) => Poll::Ready(*said),
                None => Poll::Pending,
            }
        });
        let Said { at, why } = asked.await;
        // Rare and large: kept out of the size of every connection's future.
        Box::pin(sleep_until(at)).await;
        why
    }

    /// Whether it was asked to go.
    pub(super) fn was_said(&self) -> bool {
        self.0.said.get().is_some()
    }

    /// When and why it has to go, if it was asked to.
    pub(super) fn said(&self) -> Option<(Instant, Leaving)> {
        self.0.said.get().map(|said| (said.at, said.why))
    }

    /// Asks it to go.
    pub(super) fn say(&self, at: Instant, why: Leaving) {
        let _again = self.0.said.set(Said { at, why });
        self.0.waker.wake();
    }
}

/// A connection's place in the registry, for as long as it is open.
#[derive(Debug)]
pub(super) struct Ticket(u32);

/// Runs a connection as a task of this thread. The registry owns it: it can be cut, and the
/// thread's runtime ends with it.
pub(super) fn spawn<F>(
    listener: Arc<Listener>,
    permit: Option<Permit>,
    connection: impl FnOnce(Ticket) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let place = OPEN.with_borrow_mut(|open| {
        open.insert(Open {
            listener,
            _permit: permit,
            goes_to: None,
            task: None,
            can_leave: false,
            farewell: None,
            is_tunnel: false,
            stay: None,
            waker: None,
            quiet: Quiet::default(),
            is_resident: false,
            passage: Passage::Never,
            is_noted: false,
        })
    });
    let ticket = Ticket(u32::try_from(place).expect("there are not as many descriptors"));
    let future = connection(ticket);
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the owner of connection tasks"
    )]
    let task = tokio::spawn(future).abort_handle();
    OPEN.with_borrow_mut(|open| {
        if let Some(open) = open.get_mut(place) {
            open.task = Some(task);
        }
    });
}

/// Asks those of this thread's connections to go that can say goodbye: tunnels one after the other
/// over `spread`, evenly and in random order, the others at once.
pub(super) fn ask_to_leave(which: &Cut, spread: Duration, asked: Asked) {
    let now = Instant::now();
    let mut tunnels = Vec::new();
    OPEN.with_borrow_mut(|open| {
        let open = open.iter_mut().filter(|open| open.is_asked(asked));
        for open in open.filter(|open| open.is_one_of(which)) {
            match (open.is_tunnel, which) {
                (true, _) => {
                    let farewell = open.farewell().filter(|farewell| !farewell.was_said());
                    tunnels.extend(farewell.zip(open.waker.clone()));
                }
                // Its next request may go to another slot.
                (false, Cut::Slot(_) | Cut::Generation(_)) => {}
                (false, _) => {
                    if let Some(farewell) = open.farewell() {
                        farewell.say(now, Leaving::Drain);
                    }
                    open.waker.iter().for_each(Waker::wake_by_ref);
                }
            }
        }
    });
    fastrand::shuffle(&mut tunnels);
    let share = spread / u32::try_from(tunnels.len().max(1)).unwrap_or(u32::MAX);
    let mut at = now;
    for (farewell, waker) in tunnels {
        farewell.say(at + share.mul_f64(fastrand::f64()), Leaving::Drain);
        waker.wake();
        at += share;
    }
}

/// Cuts connections of this thread. They are gone, and recorded, at the next turn of its runtime.
pub(super) fn cut(which: &Cut) {
    OPEN.with_borrow(|open| {
        for open in open.iter().filter(|open| open.is_one_of(which)) {
            if let Some(task) = &open.task {
                task.abort();
            }
        }
    });
}

/// What wakes the task that asks.
pub(super) async fn own_waker() -> Waker {
    poll_fn(|cx| Poll::Ready(cx.waker().clone())).await
}

/// Where this thread's connections go.
pub(super) fn whereabouts() -> Vec<Whereabouts> {
    OPEN.with_borrow(|open| {
        let all = open.iter().filter_map(|open| open.goes_to.clone());
        all.collect()
    })
}

impl Open {
    /// It goes nowhere any more.
    fn leave(&mut self) -> Option<Whereabouts> {
        let left = self.goes_to.take();
        if mem::take(&mut self.is_resident)
            && let Some(left) = &left
        {
            left.load.residents.leave(left.key);
        }
        left
    }

    fn is_asked(&self, asked: Asked) -> bool {
        self.can_leave
            && match asked {
                Asked::All => true,
                Asked::Others => self.passage == Passage::Never,
                Asked::Noted => self.passage == Passage::Never && self.is_noted,
            }
    }

    /// The way to ask it to go, if it can.
    fn farewell(&mut self) -> Option<Farewell> {
        let farewell = || self.farewell.get_or_insert_default().clone();
        self.can_leave.then(farewell)
    }

    fn is_one_of(&self, which: &Cut) -> bool {
        match which {
            Cut::All => true,
            Cut::Listener(listener) => Arc::ptr_eq(&self.listener, listener),
            Cut::Slot(slot) => {
                let own = self.goes_to.as_ref();
                own.is_some_and(|own| Arc::ptr_eq(&own.slot, slot))
            }
            Cut::Generation(load) => {
                let own = self.goes_to.as_ref();
                own.is_some_and(|own| Arc::ptr_eq(&own.load, load))
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Ticket {
    /// One that stands for no connection.
    #[cfg(test)]
    pub(super) const fn of_nobody() -> Self {
        Self(u32::MAX)
    }

    const fn place(&self) -> usize {
        self.0 as usize
    }

    /// Makes the connection one that can be asked to go, and waits for that.
    pub(super) fn farewell(&self) -> Farewell {
        OPEN.with_borrow_mut(|open| {
            let open = open.get_mut(self.place());
            let farewell = open.and_then(|open| {
                open.can_leave = true;
                open.farewell()
            });
            farewell.unwrap_or_default()
        })
    }

    /// Makes it one that can be asked to go, and is woken then.
    pub(super) fn can_leave(&self, waker: Waker) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.can_leave = true;
                open.waker = Some(waker);
            }
        });
    }

    /// When and why it has to go, if it was asked to.
    pub(super) fn said(&self) -> Option<(Instant, Leaving)> {
        OPEN.with_borrow(|open| open.get(self.place())?.farewell.as_ref()?.said())
    }

    /// What was noted of it as a WebSocket in a slot.
    pub(super) fn stay(&self) -> Option<Arc<Stay>> {
        OPEN.with_borrow(|open| open.get(self.place())?.stay.clone())
    }

    /// Whether it was asked to go.
    pub(super) fn is_asked(&self) -> bool {
        OPEN.with_borrow(|open| {
            let farewell = open
                .get(self.place())
                .and_then(|open| open.farewell.as_ref());
            farewell.is_some_and(Farewell::was_said)
        })
    }

    /// Notes that the connection carries a WebSocket from now on; `known` is the slot that its client
    /// will name when it comes again.
    pub(super) fn is_tunnel(
        &self,
        cluster: &Cluster,
        home: Option<&Home>,
        key: AffinityKey,
        known: Option<SlotId>,
    ) {
        let stay = home.map(|home| Stay {
            slot: Arc::clone(&home.slot().stats),
            load: Arc::clone(home.load()),
            key,
            known,
            config: Arc::clone(&cluster.load().config),
            since: Instant::now(),
        });
        let stay = stay.map(Arc::new);
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.is_tunnel = true;
                open.stay.clone_from(&stay);
            }
        });
        if let Some(stay) = stay {
            // Only now would a look find it.
            cluster.note_stay(&stay);
        }
    }

    /// Notes that the connection goes to no slot any more.
    pub(super) fn goes_nowhere(&self) {
        let before = OPEN.with_borrow_mut(|open| {
            let open = open.get_mut(self.place())?;
            open.leave()
        });
        drop(before);
    }

    /// Notes where the connection, or a request, goes, and by which key.
    pub(super) fn goes_to(&self, home: &Home, key: AffinityKey) {
        self.goes(home, key, false);
    }

    /// Notes where the connection goes, and by which key, to stay there for as long as it lasts.
    pub(super) fn lives_with(&self, home: &Home, key: AffinityKey) {
        self.goes(home, key, true);
    }

    fn goes(&self, home: &Home, key: AffinityKey, is_resident: bool) {
        let goes_to = Whereabouts {
            slot: Arc::clone(&home.slot().stats),
            load: Arc::clone(home.load()),
            key,
        };
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.leave();
                open.is_resident = is_resident;
                if open.is_resident {
                    goes_to.load.residents.enter(key);
                }
                open.goes_to = Some(goes_to);
            }
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Taken out first: dropping it inside the borrow could come back here.
        let open = OPEN.with_borrow_mut(|open| open.remove(self.place()));
        drop(open);
    }
}
