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
//! - The fast path reads no clock: the idle timer compares byte counts when it fires.

mod flow;
mod pipe;
mod saved;
mod side;
mod watch;

use std::{
    future::{Future as _, poll_fn},
    task::Poll,
    time::Duration,
};

use tokio::time::sleep;

use self::{
    flow::{Fault, Flow},
    watch::Watch,
};
pub(super) use self::{saved::SavedState, side::Side};
use super::{
    record::{CloseReason, Traffic},
    registry,
};

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
    /// Ends a connection on which no byte moved for that long, at most a quarter later.
    idle: Option<Duration>,
}

impl State {
    /// One that has not begun.
    pub(super) fn new(preface: Preface, idle: Option<Duration>) -> Self {
        Self {
            idle,
            nothing_early: preface.bytes.len() == preface.ours,
            to_up: Flow::new(preface),
            to_down: Flow::default(),
            client_ended_first: None,
        }
    }
}

/// What goes to the backend before anything that the client sends from now on.
#[derive(Debug, Default)]
pub(super) struct Preface {
    /// The bytes.
    pub(super) bytes: Vec<u8>,
    /// How many of them, from the front, are ours (a PROXY header) and not the client's.
    pub(super) ours: usize,
}

/// Relays between a client (`down`) and a backend (`up`) until the connection is over, counting
/// bytes into `traffic` as they are taken. When the end is a reset, the caller passes it on.
///
/// Where both sides are nothing but descriptors, it stands still when it has to, and gives nothing: it
/// goes on from `state`.
pub(super) async fn relay<D: Side, U: Side>(
    down: &mut D,
    up: &mut U,
    state: &mut State,
    traffic: &mut Traffic,
) -> Option<End> {
    let State {
        to_up,
        to_down,
        client_ended_first,
        nothing_early,
        idle,
    } = state;
    let can_be_carried = down.descriptor().is_some() && up.descriptor().is_some();
    let mut watch = Watch::new(*idle, *traffic);
    let timer = sleep(watch.armed_for);
    tokio::pin!(timer);

    let reason = poll_fn(|cx| {
        if can_be_carried && registry::is_frozen() {
            let left = to_up.leave_pipe().and(to_down.leave_pipe());
            return Poll::Ready(left.err().map(|_| CloseReason::NoResources));
        }
        // Downwards first: what the backend said before it was reset still reaches the client.
        let downwards = to_down.poll(cx, up, down, &mut traffic.down, to_up.done);
        let upwards = to_up.poll(cx, down, up, &mut traffic.up, to_down.done);
        if client_ended_first.is_none() {
            let by_client = || to_up.source_ended.then_some(true);
            *client_ended_first = to_down.source_ended.then_some(false).or_else(by_client);
        }
        match (upwards, downwards) {
            (Poll::Ready(Err(Fault::Source)), _) | (_, Poll::Ready(Err(Fault::Sink))) => {
                return Poll::Ready(Some(CloseReason::ClientReset));
            }
            (_, Poll::Ready(Err(Fault::Source))) => {
                return Poll::Ready(Some(CloseReason::BackendReset));
            }
            (Poll::Ready(Err(Fault::Sink)), _) => {
                // It may have said why before it went, and the end of its stream is no end now.
                let _last_words = to_down.poll(cx, up, down, &mut traffic.down, true);
                return Poll::Ready(Some(CloseReason::BackendReset));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                return Poll::Ready(Some(match client_ended_first {
                    Some(false) => CloseReason::BackendClosed,
                    Some(true) | None => CloseReason::ClientClosed,
                }));
            }
            (Poll::Pending, _) | (_, Poll::Pending) => {}
        }
        let blocked = to_up.is_blocked() || to_down.is_blocked();
        watch.mind_blocked(timer.as_mut(), blocked);
        while timer.as_mut().poll(cx).is_ready() {
            if to_up.is_blocked() && down.was_reset() {
                return Poll::Ready(Some(CloseReason::ClientReset));
            }
            if to_down.is_blocked() && up.was_reset() {
                return Poll::Ready(Some(CloseReason::BackendReset));
            }
            if watch.tick(timer.as_mut(), *traffic, blocked) {
                return Poll::Ready(Some(CloseReason::IdleTimeout));
            }
        }
        Poll::Pending
    })
    .await?;

    let untouched = *nothing_early && !to_up.is_blocked() && traffic.up == 0 && traffic.down == 0;
    Some(End { reason, untouched })
}

#[cfg(test)]
mod tests {
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
        let mut state = State::new(Preface::default(), None);
        let end = relay(&mut down, &mut up, &mut state, &mut traffic).await;
        let end = end.unwrap();
        assert_eq!(end.reason, CloseReason::BackendReset);
        assert!(!end.untouched, "they were read");
    }
}
