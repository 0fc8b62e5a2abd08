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

use super::{OPEN, Ticket, own_waker};
use crate::proxy::carried::Carried;

/// For all to stand still; they only have to be woken.
const STILL_WITHIN: Duration = Duration::from_secs(1);

thread_local! {
    static FROZEN: Cell<bool> = const { Cell::new(false) };
    static OFFERED: RefCell<Vec<io::Result<Carried>>> = const { RefCell::new(Vec::new()) };
}

/// Whether connections that can be carried over have to stand still.
pub(in crate::proxy) fn is_frozen() -> bool {
    FROZEN.get()
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
    FROZEN.set(true);
    let wakers = wakers();
    wakers.iter().for_each(Waker::wake_by_ref);
    let deadline = Instant::now() + STILL_WITHIN;
    while OFFERED.with_borrow(Vec::len) < carried() {
        if Instant::now() > deadline {
            return Err(io::Error::other("connections do not come to rest"));
        }
        yield_now().await;
    }
    OFFERED.take().into_iter().collect()
}

/// Lets them go on.
pub(in crate::proxy) fn thaw() {
    FROZEN.set(false);
    drop(OFFERED.take());
    wakers().iter().for_each(Waker::wake_by_ref);
}

/// How many cannot be carried over; only of those that were there at the last [`note`], or all.
pub(in crate::proxy) fn others(only_noted: bool) -> usize {
    OPEN.with_borrow(|open| {
        let others = open.iter().filter(|open| !open.can_be_carried);
        others.filter(|open| open.is_noted || !only_noted).count()
    })
}

/// Notes who is there.
pub(in crate::proxy) fn note() {
    OPEN.with_borrow_mut(|open| {
        open.iter_mut().for_each(|open| open.is_noted = true);
    });
}

/// Cuts those that cannot be carried over; how many.
pub(in crate::proxy) fn cut_others() -> usize {
    OPEN.with_borrow(|open| {
        let others = open.iter().filter(|open| !open.can_be_carried);
        let tasks = others.filter_map(|open| open.task.as_ref());
        tasks.map(tokio::task::AbortHandle::abort).count()
    })
}

fn wakers() -> Vec<Waker> {
    OPEN.with_borrow(|open| {
        let carried = open.iter().filter(|open| open.can_be_carried);
        carried.filter_map(|open| open.waker.clone()).collect()
    })
}

fn carried() -> usize {
    OPEN.with_borrow(|open| open.iter().filter(|open| open.can_be_carried).count())
}

impl Ticket {
    /// Notes that the connection can be carried over from now on, and by whom it is woken. It need
    /// not go any more if it was to only because it could not.
    pub(in crate::proxy) async fn can_be_carried(&self) {
        let waker = own_waker().await;
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.waker = Some(waker);
                open.can_be_carried = true;
                open.farewell
                    .take_if(|farewell| farewell.was_said_unless_carried());
            }
        });
    }

    /// Notes that it no longer can.
    pub(in crate::proxy) fn cannot_be_carried(&self) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.can_be_carried = false;
            }
        });
    }
}
