//! The connections of this thread for the moment of an upgrade: those that can be carried over stand
//! still and say what they are; the others have to be gone by then.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{task::yield_now, time::Instant};

use super::{OPEN, Places, Ticket};
use crate::proxy::{carried::Carried, relay::Side};

/// For all to stand still; they only have to be woken.
const STILL_WITHIN: Duration = Duration::from_secs(1);

/// Whether a connection can pass to another image of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Passage {
    /// No.
    Never,
    /// Once it has done what it is about.
    Later,
    /// At any moment.
    Now,
}

impl Passage {
    /// That of a client's connection by itself.
    pub(in crate::proxy) fn of(client: &impl Side) -> Self {
        match client.descriptor() {
            Some(_) => Self::Now,
            None => Self::Never,
        }
    }

    /// That of one which is about something that does not come along.
    pub(in crate::proxy) fn after(client: &impl Side) -> Self {
        match client.descriptor() {
            Some(_) => Self::Later,
            None => Self::Never,
        }
    }
}

/// What connections of this thread may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Motion {
    Free,
    /// No request begins where there is one after the other.
    Resting,
    /// Nothing moves that can be carried over.
    Frozen,
}

thread_local! {
    static MOTION: Cell<Motion> = const { Cell::new(Motion::Free) };
    static OFFERED: RefCell<Vec<io::Result<Carried>>> = const { RefCell::new(Vec::new()) };
}

/// Whether connections that can be carried over have to stand still.
pub(in crate::proxy) fn is_frozen() -> bool {
    MOTION.get() == Motion::Frozen
}

/// Whether no request begins any more on a connection that can be carried over between two.
pub(in crate::proxy) fn is_resting() -> bool {
    MOTION.get() != Motion::Free
}

/// Lets no request begin from now on, where connections can be carried over between two.
pub(in crate::proxy) fn rest() {
    MOTION.set(Motion::Resting);
}

/// Says what a connection is that stands still.
pub(in crate::proxy) fn offer(carried: io::Result<Carried>) {
    OFFERED.with_borrow_mut(|offered| offered.push(carried));
}

/// Waits until connections go on.
pub(in crate::proxy) async fn thawed() {
    // Who thaws wakes everybody that stands still.
    poll_fn(|_| match is_frozen() {
        true => Poll::Pending,
        false => Poll::Ready(()),
    })
    .await;
}

/// Lets all that can be carried over stand still, and gives what they say.
pub(in crate::proxy) async fn freeze() -> io::Result<Vec<Carried>> {
    MOTION.set(Motion::Frozen);
    wake_all();
    let deadline = Instant::now() + STILL_WITHIN;
    while OFFERED.with_borrow(Vec::len) < OPEN.with_borrow(Places::len) {
        if Instant::now() > deadline {
            return Err(io::Error::other("connections do not come to rest"));
        }
        yield_now().await;
    }
    OFFERED.take().into_iter().collect()
}

/// Lets them go on.
pub(in crate::proxy) fn thaw() {
    MOTION.set(Motion::Free);
    drop(OFFERED.take());
    wake_all();
}

/// How many cannot be carried over; only of those that were there at the last [`note`], or all.
pub(in crate::proxy) fn others(only_noted: bool) -> usize {
    OPEN.with_borrow(|open| {
        let others = open.iter().filter(|open| open.passage != Passage::Now);
        others.filter(|open| open.is_noted || !only_noted).count()
    })
}

/// Notes who is there and cannot be carried over as it is.
pub(in crate::proxy) fn note() {
    OPEN.with_borrow_mut(|open| {
        for open in open.iter_mut() {
            open.is_noted = open.passage != Passage::Now;
        }
    });
}

/// Cuts those that cannot be carried over; how many.
pub(in crate::proxy) fn cut_others() -> usize {
    OPEN.with_borrow(|open| {
        let others = open.iter().filter(|open| open.passage != Passage::Now);
        let tasks = others.filter_map(|open| open.task.as_ref());
        tasks.map(tokio::task::AbortHandle::abort).count()
    })
}

fn wake_all() {
    OPEN.with_borrow(|open| {
        let wakers = open.iter().filter_map(|open| open.waker.as_ref());
        wakers.for_each(Waker::wake_by_ref);
    });
}

impl Ticket {
    /// Notes whether the connection can be carried over from now on. Who can has finished what it was
    /// to finish.
    pub(in crate::proxy) fn passes(&self, passage: Passage) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.passage = passage;
                open.is_noted &= passage != Passage::Now;
            }
        });
    }
}
