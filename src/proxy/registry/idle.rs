//! Connections of this thread on which no byte moves: told from the others by looking at all of them
//! from time to time, so that none needs a timer of its own.

use std::{cell::Cell, convert::Infallible, rc::Rc, task::Waker, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{OPEN, Passage, Ticket};

/// So many looks within the time after which a connection is idle: it is ended at most a quarter of
/// that later.
const LOOKS: u32 = 8;

/// What is waited for while nobody can become idle, in milliseconds.
const SELDOM: u32 = 3_600_000;

thread_local! {
    /// The shortest of these times, in milliseconds.
    static SHORTEST: Cell<u32> = const { Cell::new(SELDOM) };
    /// It has become shorter.
    static SHORTER: Rc<Notify> = Rc::default();
}

/// How long a connection has been quiet, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// This long is idle; never, where this is zero.
    limit: u32,
    so_far: u32,
    /// Something has moved since the last look.
    has_moved: bool,
}

impl Quiet {
    /// From now on, and this long is idle.
    fn begin(idle: Option<Duration>) -> Self {
        let limit = idle.map_or(0, |idle| millis(idle).max(1));
        if limit > 0 && limit < SHORTEST.get() {
            SHORTEST.set(limit);
            SHORTER.with(|shorter| shorter.notify_one());
        }
        Self {
            limit,
            so_far: 0,
            has_moved: true,
        }
    }

    /// Another look, so long after the last one. True when it has been quiet for too long.
    const fn look(&mut self, passed: u32) -> bool {
        if self.has_moved {
            self.so_far = 0;
        } else {
            self.so_far = self.so_far.saturating_add(passed);
        }
        self.has_moved = false;
        self.is_too_long()
    }

    const fn is_too_long(&self) -> bool {
        self.limit > 0 && self.so_far >= self.limit && !self.has_moved
    }
}

impl Ticket {
    /// Notes that the connection is relayed from now on, by whom it is woken, after how long it is
    /// idle, and whether it can be carried over to another image of the program.
    pub(in crate::proxy) fn is_relayed(
        &self,
        waker: Waker,
        idle: Option<Duration>,
        can_be_carried: bool,
    ) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.waker = Some(waker);
                open.passage = match can_be_carried {
                    true => Passage::Now,
                    false => Passage::Never,
                };
                open.quiet = Quiet::begin(idle);
            }
        });
    }

    /// Notes that the connection waits for a request, for so long at most, and whether it can be carried
    /// over meanwhile.
    pub(in crate::proxy) fn waits(&self, patience: Duration, passage: Passage) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.passage = passage;
                open.is_noted &= passage != Passage::Now;
                open.quiet = Quiet::begin(Some(patience));
            }
        });
    }

    /// Notes that it does not wait any more, and whether it can be carried over as it is now.
    pub(in crate::proxy) fn is_busy(&self, passage: Passage) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.passage = passage;
                open.is_noted &= passage != Passage::Now;
                open.quiet = Quiet::default();
            }
        });
    }

    /// Whether the connection is idle, unless something has just moved.
    pub(in crate::proxy) fn is_idle(&self, has_moved: bool) -> bool {
        OPEN.with_borrow_mut(|open| {
            let quiet = open.get_mut(self.place()).map(|open| &mut open.quiet);
            quiet.is_some_and(|quiet| {
                quiet.has_moved |= has_moved;
                quiet.is_too_long()
            })
        })
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Wakes those that are idle, for as long as the thread lives.
pub(in crate::proxy) async fn wake_the_idle() -> Infallible {
    let shorter = SHORTER.with(Rc::clone);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(last + Duration::from_millis(SHORTEST.get().into()) / LOOKS) => {}
            () = shorter.notified() => continue,
        }
        let passed = last.elapsed();
        last += passed;
        look(millis(passed)).iter().for_each(Waker::wake_by_ref);
    }
}

/// Looks at all; gives the wakers of those that are idle.
fn look(passed: u32) -> Vec<Waker> {
    let (mut idle, mut shortest) = (Vec::new(), SELDOM);
    OPEN.with_borrow_mut(|open| {
        for open in open.iter_mut() {
            let limit = open.quiet.limit;
            if limit == 0 {
                continue;
            }
            shortest = shortest.min(limit);
            if open.quiet.look(passed) {
                idle.extend(open.waker.clone());
            }
        }
    });
    SHORTEST.set(shortest);
    idle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_who_was_quiet_for_the_whole_of_the_time() {
        let mut quiet = Quiet {
            limit: 80,
            so_far: 0,
            has_moved: true,
        };
        let mut look = |moved: bool| {
            quiet.has_moved |= moved;
            quiet.look(10)
        };
        assert!(
            !(0..8).any(|_| look(false)),
            "it began since the look before the first"
        );
        assert!(!look(true), "it moved just in time");
        assert!(!(0..7).any(|_| look(false)));
        assert!(look(false));
    }
}
