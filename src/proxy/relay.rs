//! Carries bytes both ways until both sides are done.
//!
//! - A side is read only when it is readable, into one scratch buffer per thread: a connection on
//!   which nothing happens holds no buffer.
//! - What the other side does not take at once is kept, and nothing more is read before it is
//!   taken: backpressure, with at most one scratch buffer's worth per direction.
//! - The end of one side's stream becomes the end of the other's (half-close); data still flows
//!   the other way. A reset of one side becomes a reset of the other.
//! - The fast path reads no clock: the idle timer compares byte counts when it fires.

mod saved;
mod watch;

use std::{
    cell::RefCell,
    future::{Future as _, poll_fn},
    os::fd::{AsFd as _, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::sleep,
};

pub(super) use self::saved::SavedState;
use self::watch::Watch;
use super::{
    record::{CloseReason, Traffic},
    registry,
};

/// One read takes at most this much; also the most that is kept per direction for a slow reader.
const SCRATCH: usize = 64 * 1024;

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 16;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// One side of a relayed connection.
pub(super) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// Whether what is written may stay here until it is flushed.
    const BUFFERS: bool = false;

    /// Makes the coming close a reset instead of an orderly end, where the protocol has one.
    fn reset_on_close(&self);

    /// Whether the peer has reset the connection, without reading from it.
    fn was_reset(&self) -> bool;

    /// The descriptor, where that is all there is to it.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether it is a Unix socket.
    fn is_unix(&self) -> bool {
        false
    }
}

impl Side for TcpStream {
    fn reset_on_close(&self) {
        // It fails only when there is no connection to reset any more.
        let _gone = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn was_reset(&self) -> bool {
        !matches!(self.take_error(), Ok(None))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl<S: Side> Side for &mut S {
    const BUFFERS: bool = S::BUFFERS;

    fn reset_on_close(&self) {
        S::reset_on_close(self);
    }

    fn was_reset(&self) -> bool {
        S::was_reset(self)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        S::descriptor(self)
    }

    fn is_unix(&self) -> bool {
        S::is_unix(self)
    }
}

impl Side for UnixStream {
    fn reset_on_close(&self) {}

    fn was_reset(&self) -> bool {
        !matches!(self.take_error(), Ok(None))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn is_unix(&self) -> bool {
        true
    }
}

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
            to_up: Flow {
                pending: Pending::new(preface),
                ..Flow::default()
            },
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
            return Poll::Ready(None);
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

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read, but not taken by the other side yet.
    pending: Option<Box<Pending>>,
    /// The source has ended its stream.
    source_ended: bool,
    /// … and the other side has been told.
    done: bool,
    /// The sink may hold back what it took.
    unflushed: bool,
}

/// Why a direction cannot go on.
enum Fault {
    /// Reading from the source failed.
    Source,
    /// Writing to the other side failed.
    Sink,
}

impl Flow {
    /// Moves what can be moved. `last` says that the other direction is done: then the streams
    /// are closed right after this one, and need no half-close before.
    fn poll<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Side,
        sink: &mut S,
        count: &mut u64,
        last: bool,
    ) -> Poll<Result<(), Fault>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        let moved = self.poll_move(cx, source, sink, count, last);
        if S::BUFFERS && self.unflushed && moved.is_pending() {
            match Pin::new(sink).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Sink)),
                Poll::Pending => {}
            }
        }
        moved
    }

    fn poll_move<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Side,
        sink: &mut S,
        count: &mut u64,
        last: bool,
    ) -> Poll<Result<(), Fault>> {
        for _ in 0..READS_PER_TURN {
            if let Some(pending) = &mut self.pending {
                self.unflushed = true;
                if ready!(pending.poll_send(cx, sink, count))? {
                    self.pending = None;
                }
                continue;
            }
            if self.source_ended {
                if S::BUFFERS || !last {
                    // Fails when the sink has gone already; its reader will say so.
                    let _gone = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                }
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_forward(cx, source, sink, count))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and as much writing of it as is possible at once.
    fn poll_forward(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Side,
        sink: &mut impl Side,
        count: &mut u64,
    ) -> Poll<Result<(), Fault>> {
        self.unflushed = true;
        READ.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(source).poll_read(cx, &mut read)).map_err(|_| Fault::Source)?;
            let bytes = read.filled();
            if bytes.is_empty() {
                self.source_ended = true;
                return Poll::Ready(Ok(()));
            }
            let (taken, outcome) = match Pin::new(sink).poll_write(cx, bytes) {
                Poll::Ready(Ok(taken)) => (taken, Ok(())),
                Poll::Ready(Err(_)) => (0, Err(Fault::Sink)),
                Poll::Pending => (0, Ok(())),
            };
            *count += taken as u64;
            if taken < bytes.len() {
                let rest = Pending {
                    bytes: bytes[taken..].into(),
                    sent: 0,
                    ours: 0,
                };
                self.pending = Some(Box::new(rest));
            }
            Poll::Ready(outcome)
        })
    }

    const fn is_blocked(&self) -> bool {
        self.pending.is_some()
    }
}

/// Bytes that wait for the other side to take them.
#[derive(Debug)]
struct Pending {
    bytes: Box<[u8]>,
    sent: usize,
    ours: usize,
}

impl Pending {
    fn new(preface: Preface) -> Option<Box<Self>> {
        let Preface { bytes, ours } = preface;
        (!bytes.is_empty()).then(|| {
            Box::new(Self {
                bytes: bytes.into(),
                sent: 0,
                ours,
            })
        })
    }

    /// Sends some; true when all is sent.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl Side,
        count: &mut u64,
    ) -> Poll<Result<bool, Fault>> {
        let taken = ready!(Pin::new(sink).poll_write(cx, &self.bytes[self.sent..]));
        let taken = taken.ok().filter(|taken| *taken > 0).ok_or(Fault::Sink)?;
        let ours = self.ours.saturating_sub(self.sent).min(taken);
        *count += (taken - ours) as u64;
        self.sent += taken;
        Poll::Ready(Ok(self.sent == self.bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

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
