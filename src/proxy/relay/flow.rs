//! One direction of a relay.

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{Interest, ReadBuf};

use super::{Preface, Side, pipe::Pipe};

/// One read takes at most this much; also the most that is kept per direction for a slow reader,
/// unless it is bulk: then that is what a [`Pipe`] takes.
const SCRATCH: usize = 64 * 1024;

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 16;

/// Full reads in a row that make a stream bulk, which no longer passes through here …
const BULK: u8 = 3;

/// … until less comes at once: to copy that is as cheap.
const SMALL: usize = 16 * 1024;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Read, but not taken by the other side yet.
    pub(super) pending: Option<Box<Pending>>,
    /// The source has ended its stream.
    pub(super) source_ended: bool,
    /// … and the other side has been told.
    pub(super) done: bool,
    /// The sink may not have sent what it took.
    unflushed: bool,
    /// Full reads in a row, up to [`BULK`].
    full_reads: u8,
    /// It has been bulk, and more than a little, since the source last had nothing.
    is_much: bool,
}

/// How it is with the other direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opposite {
    /// Then the streams are closed right after this one, and need no half-close before.
    pub(super) is_done: bool,
    /// It has something for the source that the source did not take.
    pub(super) is_blocked: bool,
}

/// Why a direction cannot go on.
pub(super) enum Fault {
    /// Reading from the source failed.
    Source,
    /// Writing to the other side failed.
    Sink,
}

impl Flow {
    pub(super) fn new(preface: Preface) -> Self {
        Self::waiting(preface.bytes, preface.ours)
    }

    /// One that has these bytes to send first, of which so many are ours.
    pub(super) fn waiting(bytes: Vec<u8>, ours: usize) -> Self {
        let copied = Copied {
            bytes: bytes.into(),
            sent: 0,
            ours,
        };
        let pending = (!copied.bytes.is_empty()).then(|| Box::new(Pending::Copied(copied)));
        Self {
            pending,
            ..Self::default()
        }
    }

    /// Moves what can be moved.
    pub(super) fn poll<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Side,
        sink: &mut S,
        count: &mut u64,
        opposite: Opposite,
    ) -> Poll<Result<(), Fault>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..READS_PER_TURN {
            if S::BUFFERS && self.unflushed {
                // It has taken more than it can send: nothing more is read for it before it has sent that.
                ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(|_| Fault::Sink)?;
                self.unflushed = false;
            }
            if let Some(pending) = &mut self.pending {
                self.unflushed = S::BUFFERS;
                ready!(pending.poll_send(cx, sink, count))?;
                if let Some(pending) = self.pending.take() {
                    pending.put_back();
                }
                continue;
            }
            if self.source_ended {
                // Who was reset has ended its stream, too, for who reads after the fault was told to
                // who wrote: and a splice that moved something does not pass it on.
                if opposite.is_blocked && source.is_gone() {
                    return Poll::Ready(Err(Fault::Source));
                }
                if S::BUFFERS || !opposite.is_done {
                    // Fails when the sink has gone already; its reader will say so.
                    let _gone = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                }
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if self.full_reads == BULK {
                ready!(self.poll_splice(cx, source, sink, count))?;
            } else {
                ready!(self.poll_forward(cx, source, sink, count))?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and as much writing of it as is possible at once.
    fn poll_forward<S: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
        count: &mut u64,
    ) -> Poll<Result<(), Fault>> {
        READ.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *source).poll_read(cx, &mut read)).map_err(|_| Fault::Source)?;
            let bytes = read.filled();
            if bytes.is_empty() {
                self.source_ended = true;
                return Poll::Ready(Ok(()));
            }
            let written = match *count {
                0 => poll_write_first(cx, sink, bytes),
                _ => Pin::new(&mut *sink).poll_write(cx, bytes),
            };
            let (taken, outcome) = match written {
                Poll::Ready(Ok(taken)) => (taken, Ok(())),
                Poll::Ready(Err(_)) => (0, Err(Fault::Sink)),
                Poll::Pending => (0, Ok(())),
            };
            *count += taken as u64;
            self.unflushed = T::BUFFERS;
            if taken < bytes.len() {
                let rest = Copied {
                    bytes: bytes[taken..].into(),
                    sent: 0,
                    ours: 0,
                };
                self.pending = Some(Box::new(Pending::Copied(rest)));
            }
            let is_full = bytes.len() == SCRATCH;
            self.full_reads = match is_full && can_be_spliced(source, sink) {
                true => self.full_reads + 1,
                false => 0,
            };
            Poll::Ready(outcome)
        })
    }

    /// The same without reading.
    fn poll_splice<S: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        source: &S,
        sink: &mut T,
        count: &mut u64,
    ) -> Poll<Result<(), Fault>> {
        let Some(mut pipe) = Pipe::take() else {
            self.full_reads = 0;
            return Poll::Ready(Ok(()));
        };
        match source.poll_io(cx, Interest::READABLE, |from| pipe.fill(from)) {
            Poll::Ready(Ok(taken)) if taken > 0 => {
                self.is_much |= taken > SMALL;
                let mut pending = Pending::Piped(pipe);
                match pending.poll_send(cx, sink, count) {
                    Poll::Ready(Ok(())) => pending.put_back(),
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                    Poll::Pending => self.pending = Some(Box::new(pending)),
                }
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(error)) if error.kind() != ErrorKind::Unsupported => {
                return Poll::Ready(Err(Fault::Source));
            }
            // The end, unless something is in the way that a read knows of (urgent data).
            Poll::Ready(_) => self.full_reads = 0,
            Poll::Pending => {
                pipe.put();
                if !self.is_much {
                    self.full_reads = 0;
                }
                self.is_much = false;
                return Poll::Pending;
            }
        }
        pipe.put();
        Poll::Ready(Ok(()))
    }

    pub(super) const fn is_blocked(&self) -> bool {
        self.pending.is_some() || self.unflushed
    }

    /// How it is, for the other direction.
    pub(super) const fn as_opposite(&self) -> Opposite {
        Opposite {
            is_done: self.done,
            is_blocked: self.is_blocked(),
        }
    }

    /// Takes what stands in a pipe out of it.
    pub(super) fn leave_pipe(&mut self) -> io::Result<()> {
        let pending = self.pending.take_if(|pending| pending.is_piped());
        if let Some(Pending::Piped(pipe)) = pending.map(|pending| *pending) {
            self.pending = Self::waiting(pipe.read_out()?, 0).pending;
        }
        Ok(())
    }
}

/// The first write to a socket, which may have been opened a moment ago.
fn poll_write_first(
    cx: &mut Context<'_>,
    sink: &mut impl Side,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match sink.try_send(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Pin::new(sink).poll_write(cx, bytes),
        done => Poll::Ready(done),
    }
}

fn can_be_spliced(source: &impl Side, sink: &impl Side) -> bool {
    source.descriptor().is_some() && sink.descriptor().is_some()
}

/// Bytes that wait for the other side to take them.
#[derive(Debug)]
pub(super) enum Pending {
    Copied(Copied),
    Piped(Box<Pipe>),
}

/// Bytes, of which some may be sent already.
#[derive(Debug)]
pub(super) struct Copied {
    bytes: Box<[u8]>,
    sent: usize,
    ours: usize,
}

impl Pending {
    /// Sends all of them.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl Side,
        count: &mut u64,
    ) -> Poll<Result<(), Fault>> {
        match self {
            Self::Copied(copied) => copied.poll_send(cx, sink, count),
            Self::Piped(pipe) => sink
                .poll_io(cx, Interest::WRITABLE, |to| pipe.empty(to, count))
                .map_err(|_| Fault::Sink),
        }
    }

    const fn is_piped(&self) -> bool {
        matches!(self, Self::Piped(_))
    }

    /// Gives back what they stood in.
    fn put_back(self) {
        if let Self::Piped(pipe) = self {
            pipe.put();
        }
    }
}

impl Copied {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl Side,
        count: &mut u64,
    ) -> Poll<Result<(), Fault>> {
        while self.sent < self.bytes.len() {
            let taken = ready!(Pin::new(&mut *sink).poll_write(cx, &self.bytes[self.sent..]));
            let taken = taken.ok().filter(|taken| *taken > 0).ok_or(Fault::Sink)?;
            let ours = self.left_of_ours().min(taken);
            *count += (taken - ours) as u64;
            self.sent += taken;
        }
        Poll::Ready(Ok(()))
    }

    /// What is left to send.
    pub(super) fn left(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// How many of that, from the front, are ours.
    pub(super) const fn left_of_ours(&self) -> usize {
        self.ours.saturating_sub(self.sent)
    }
}
