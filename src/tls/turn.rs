//! Handshakes on a data-plane thread take turns with the rest of what it does.
//!
//! A thread that is asked for fifty handshakes at a time would do them all before it looked at its
//! connections again. Here each one waits until the thread has looked, and done what it saw: so who is
//! connected waits for one handshake at most.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::yield_now};

thread_local! {
    /// First come, first served.
    static DOOR: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// Waits for this thread to have a handshake's time to give.
pub(super) async fn turn() {
    let door = DOOR.with(Arc::clone);
    // It is never closed.
    let _first = door.acquire().await;
    // Comes back when the runtime has asked the kernel for events, behind the tasks that those
    // woke; and who is next in line yields after this one.
    yield_now().await;
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::poll_fn, rc::Rc, task::Poll};

    use tokio::{
        io::AsyncReadExt as _,
        net::UnixStream,
        task::{JoinSet, LocalSet},
    };

    use super::*;

    const HANDSHAKES: u8 = 20;

    /// Each handshake makes a connection readable: who reads there does so before the next one.
    #[tokio::test]
    async fn what_comes_meanwhile_goes_before_the_next() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Rc::new(ours);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let local = LocalSet::new();
        let handshakes = local.run_until(async {
            let mut handshakes = JoinSet::new();
            for number in 0..HANDSHAKES {
                let (ours, seen) = (Rc::clone(&ours), Rc::clone(&seen));
                handshakes.spawn_local(async move {
                    turn().await;
                    seen.borrow_mut().push(("handshake", number));
                    assert_eq!(ours.try_write(&[number]).unwrap(), 1);
                });
            }
            for _ in 0..HANDSHAKES {
                let number = theirs.read_u8().await.unwrap();
                seen.borrow_mut().push(("message", number));
            }
            handshakes.join_all().await
        });
        handshakes.await;
        let wanted: Vec<_> = (0..HANDSHAKES)
            .flat_map(|number| [("handshake", number), ("message", number)])
            .collect();
        assert_eq!(*seen.borrow(), wanted);
    }

    #[tokio::test]
    async fn who_goes_away_holds_up_nobody() {
        let mut first = Box::pin(turn());
        let mut second = Box::pin(turn());
        let waits = poll_fn(|cx| {
            let waits =
                first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending();
            Poll::Ready(waits)
        });
        assert!(waits.await);
        drop(first);
        second.await;
    }
}
