//! One timer for all that a connection waits for.

use std::{
    cell::RefCell,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Duration, Instant, Sleep, sleep_until};

/// Longer than anything lasts.
pub(super) const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Spare ones that are kept.
const KEPT: usize = 256;

thread_local! {
    static SPARE: RefCell<Vec<Deadline>> = const { RefCell::new(Vec::new()) };
}

/// A point in time that moves. Moving it further away, which happens at every request, costs
/// nothing: the timer finds out when it fires.
#[derive(Debug)]
pub(super) struct Deadline {
    at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Deadline {
    pub(super) fn new(at: Instant) -> Self {
        Self {
            at,
            timer: Box::pin(sleep_until(at)),
        }
    }

    /// A spare one of this thread if there is one: its timer runs already, and is not set up and taken
    /// down again for what is over in a moment.
    pub(super) fn spare(at: Instant) -> Self {
        match SPARE.with_borrow_mut(Vec::pop) {
            Some(mut spare) => {
                spare.set(at);
                spare
            }
            None => Self::new(at),
        }
    }

    /// Keeps it for the next one who needs it. Whoever polled it last may be woken for nothing, once.
    pub(super) fn keep(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(self);
            }
        });
    }

    pub(super) fn set(&mut self, at: Instant) {
        self.at = at;
        if at < self.timer.deadline() {
            self.timer.as_mut().reset(at);
        }
    }

    /// When the time comes.
    pub(super) const fn at(&self) -> Instant {
        self.at
    }

    /// Ready when the time has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.timer.deadline() >= self.at {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.at);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_moves_both_ways() {
        let start = Instant::now();
        let seconds = |s| start + Duration::from_secs(s);
        let mut deadline = Deadline::new(seconds(10));
        deadline.set(seconds(30));
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 30);
        deadline.set(seconds(90));
        deadline.set(seconds(40));
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn a_spare_one_is_as_good_as_new() {
        let start = Instant::now();
        let seconds = |s| start + Duration::from_secs(s);
        let mut before = 0;
        // Its timer is set for later, for before, and has fired already.
        for (first, second) in [(60, 10), (10, 60), (0, 5)] {
            let begun = start + Duration::from_secs(before);
            let mut deadline = Deadline::spare(begun + Duration::from_secs(first));
            poll_fn(|cx| Poll::Ready(deadline.poll(cx).is_ready())).await;
            deadline.keep();
            let mut deadline = Deadline::spare(begun + Duration::from_secs(second));
            assert_eq!(SPARE.with_borrow(Vec::len), 0, "the same");
            poll_fn(|cx| deadline.poll(cx)).await;
            before += second;
            assert_eq!(Instant::now(), seconds(before));
            deadline.keep();
        }
        // For whoever has this thread next.
        SPARE.take();
    }
}
