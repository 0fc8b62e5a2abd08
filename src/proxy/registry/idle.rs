//! Connections of this thread on which no byte moves: told from the others by looking at all of them
//! from time to time, so that none needs a timer of its own.

use std::{cell::Cell, convert::Infallible, rc::Rc, task::Waker, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Farewell, OPEN, Passage, Ticket};

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

    /// How long it may still be quiet, where that is limited.
    fn patience(&self) -> Option<Duration> {
        let so_far = if self.has_moved { 0 } else { self.so_far };
        let left = self.limit.saturating_sub(so_far);
        (self.limit > 0).then(|| Duration::from_millis(left.into()))
    }

    /// It may only be quiet for so long this time.
    fn has_patience(&mut self, left: Duration) {
        // Some of what the next look counts as quiet has passed already.
        let unknown = self.limit / LOOKS;
        self.so_far = self
            .limit
            .saturating_sub(millis(left).saturating_add(unknown));
        self.has_moved = false;
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

/// What there is to know of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::proxy) struct Look {
    /// No byte has moved for too long.
    pub(in crate::proxy) is_idle: bool,
    /// It was asked to go.
    pub(in crate::proxy) is_asked: bool,
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
                open.is_noted &= !can_be_carried;
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

    /// How long the connection may still be quiet, where that is limited.
    pub(in crate::proxy) fn patience(&self) -> Option<Duration> {
        OPEN.with_borrow(|open| open.get(self.place())?.quiet.patience())
    }

    /// Notes that it may only be quiet for so long this time: it has been before.
    pub(in crate::proxy) fn has_patience(&self, left: Duration) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.place()) {
                open.quiet.has_patience(left);
            }
        });
    }

    /// What a connection that can be asked to go has to know, unless something has just moved.
    pub(in crate::proxy) fn look(&self, has_moved: bool) -> Look {
        OPEN.with_borrow_mut(|open| {
            let Some(open) = open.get_mut(self.place()) else {
                return Look::default();
            };
            open.quiet.has_moved |= has_moved;
            Look {
                is_idle: open.quiet.is_too_long(),
                is_asked: open.farewell.as_ref().is_some_and(Farewell::was_said),
            }
        })
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

    #[test]
    fn who_was_quiet_before_may_be_so_for_the_rest() {
        let millis = |left| Some(Duration::from_millis(left));
        let mut quiet = Quiet {
            limit: 80,
            so_far: 50,
            has_moved: false,
        };
        assert_eq!(quiet.patience(), millis(30));
        quiet.has_moved = true;
        assert_eq!(quiet.patience(), millis(80));
        quiet.has_patience(Duration::from_millis(30));
        assert!(!(0..3).any(|_| quiet.look(10)), "as if it came just now");
        assert!(quiet.look(10));
        quiet.has_patience(Duration::MAX);
        assert_eq!(quiet.patience(), millis(80));
        assert_eq!(Quiet::default().patience(), None);
    }
}
