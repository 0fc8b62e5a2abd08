//! Carries bytes both ways until both sides are done.
//!
//! - A side is read only when it is readable, into one scratch buffer per thread: a connection on
//!   which nothing happens holds no buffer.
//! - What the other side does not take at once is kept, and nothing more is read before it is
//!   taken: backpressure, with at most one scratch buffer's worth per direction.
//! - Bulk between two bare sockets goes through a pipe, and never comes here; what stands in the pipe
//!   is kept as the rest is.
//! - The end of one side's stream becomes the end of the other's (half-close); data still flows
//!   the other way. A reset of one side becomes a reset of the other.
//! - It has no timer of its own, unless a direction is blocked: `registry/idle.rs` looks after idle
//!   ones, and the fast path reads no clock.

mod flow;
mod pipe;
mod saved;
mod side;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use self::flow::{Fault, Flow, Opposite};
pub(super) use self::{
    saved::SavedState,
    side::{Side, as_inside},
};
use super::{
    record::{CloseReason, Traffic},
    registry::{self, Ticket},
};

/// How often the source of a direction that is blocked is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How a relay ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Why, and by whom.
    pub(super) reason: CloseReason,
    /// Not one byte of the client's went to the backend, nor of the backend's to the client: the
    /// client can be taken to another backend without noticing.
    pub(super) untouched: bool,
}

/// A relay between two of its moments.
#[derive(Debug)]
pub(super) struct State {
    to_up: Flow,
    to_down: Flow,
    /// Whether that was the client, once a side has ended its stream.
    client_ended_first: Option<bool>,
    /// The preface had nothing of the client's.
    nothing_early: bool,
    /// Looks after the source of a blocked direction: it is not read from, so that its reset would go
    /// unnoticed.
    look: Option<Pin<Box<Sleep>>>,
}

/// What goes to the backend before anything that the client sends from now on.
#[derive(Debug, Default)]
pub(super) struct Preface {
    /// The bytes.
    pub(super) bytes: Vec<u8>,
    /// How many of them, from the front, are ours (a PROXY header) and not the client's.
    pub(super) ours: usize,
}

impl State {
    /// One that has not begun.
    pub(super) fn new(preface: Preface) -> Self {
        Self {
            nothing_early: preface.bytes.len() == preface.ours,
            to_up: Flow::new(preface),
            to_down: Flow::default(),
            client_ended_first: None,
            look: None,
        }
    }

    /// Relays between a client (`down`) and a backend (`up`) until the connection is over, counting
    /// bytes into `traffic` as they are taken. When the end is a reset, the caller passes it on.
    ///
    /// Where both sides are nothing but descriptors, it stands still when it has to, and gives
    /// nothing: it goes on from there.
    pub(super) fn poll<D: Side, U: Side>(
        &mut self,
        cx: &mut Context<'_>,
        (down, up): (&mut D, &mut U),
        traffic: &mut Traffic,
        ticket: &Ticket,
    ) -> Poll<Option<End>> {
        let can_be_carried = down.descriptor().is_some() && up.descriptor().is_some();
        if can_be_carried && registry::is_frozen() {
            let left = self
                .to_up
                .leave_pipe()
                .and_then(|()| self.to_down.leave_pipe());
            let lost = left
                .err()
                .map(|_| self.end(CloseReason::NoResources, *traffic));
            return Poll::Ready(lost);
        }
        let before = *traffic;
        let mut moved = self.poll_move(cx, down, up, traffic);
        if moved.is_pending() && ticket.is_idle(*traffic != before) {
            moved = Poll::Ready(CloseReason::IdleTimeout);
        }
        moved.map(|reason| Some(self.end(reason, *traffic)))
    }

    fn poll_move<D: Side, U: Side>(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut D,
        up: &mut U,
        traffic: &mut Traffic,
    ) -> Poll<CloseReason> {
        let (to_up, to_down) = (&mut self.to_up, &mut self.to_down);
        // Downwards first: what the backend said before it was reset still reaches the client.
        let downwards = to_down.poll(cx, up, down, &mut traffic.down, to_up.as_opposite());
        if let Poll::Ready(Err(Fault::Sink)) = downwards {
            // Told once: to read from it now looks like an orderly end.
            return Poll::Ready(CloseReason::ClientReset);
        }
        let upwards = to_up.poll(cx, down, up, &mut traffic.up, to_down.as_opposite());
        if self.client_ended_first.is_none() {
            let by_client = || to_up.source_ended.then_some(true);
            self.client_ended_first = to_down.source_ended.then_some(false).or_else(by_client);
        }
        match (upwards, downwards) {
            (Poll::Ready(Err(Fault::Source)), _) => Poll::Ready(CloseReason::ClientReset),
            (_, Poll::Ready(Err(_))) => Poll::Ready(CloseReason::BackendReset),
            (Poll::Ready(Err(Fault::Sink)), _) => {
                // It may have said why before it went, and the end of its stream is no end now.
                let opposite = Opposite {
                    is_done: true,
                    is_blocked: false,
                };
                let _last_words = to_down.poll(cx, up, down, &mut traffic.down, opposite);
                Poll::Ready(CloseReason::BackendReset)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                Poll::Ready(match self.client_ended_first {
                    Some(false) => CloseReason::BackendClosed,
                    Some(true) | None => CloseReason::ClientClosed,
                })
            }
            (Poll::Pending, _) | (_, Poll::Pending) => self.poll_look(cx, down, up),
        }
    }

    /// Looks from time to time whether the source of a blocked direction was reset.
    fn poll_look(
        &mut self,
        cx: &mut Context<'_>,
        down: &impl Side,
        up: &impl Side,
    ) -> Poll<CloseReason> {
        let [up_blocked, down_blocked] = [&self.to_up, &self.to_down].map(Flow::is_blocked);
        let is_blocked = up_blocked || down_blocked;
        if is_blocked && self.look.is_none() {
            self.look = Some(Box::pin(sleep(LOOK)));
        }
        while let Some(look) = &mut self.look {
            ready!(look.as_mut().poll(cx));
            if up_blocked && down.was_reset() {
                return Poll::Ready(CloseReason::ClientReset);
            }
            if down_blocked && up.was_reset() {
                return Poll::Ready(CloseReason::BackendReset);
            }
            match is_blocked {
                true => look.as_mut().reset(Instant::now() + LOOK),
                false => self.look = None,
            }
        }
        Poll::Pending
    }

    fn end(&self, reason: CloseReason, traffic: Traffic) -> End {
        let nothing_read = self.nothing_early && !self.to_up.is_blocked();
        End {
            reason,
            untouched: nothing_read && traffic == Traffic::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap());
        let (here, there) = tokio::join!(here, listener.accept());
        (here.unwrap(), there.unwrap().0)
    }

    /// Else the client would be taken to another backend, which would wait for them for ever.
    #[tokio::test]
    async fn a_connection_whose_first_bytes_no_backend_took_is_not_untouched() {
        let ((mut client, mut down), (mut up, backend)) = (pair().await, pair().await);
        client.write_all(b"hello").await.unwrap();
        backend.reset_on_close();
        drop(backend);
        down.readable().await.unwrap();
        up.readable().await.unwrap();
        let mut traffic = Traffic::default();
        let mut state = State::new(Preface::default());
        let ticket = Ticket::of_nobody();
        let relay = poll_fn(|cx| state.poll(cx, (&mut down, &mut up), &mut traffic, &ticket));
        let end = relay.await.unwrap();
        assert_eq!(end.reason, CloseReason::BackendReset);
        assert!(!end.untouched, "they were read");
    }
}
