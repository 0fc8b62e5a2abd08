//! A connection, and the TLS on it.
//!
//! All bytes pass through two buffers of the thread, one for each direction. A connection of its own
//! keeps only what could not go on: a part of a record, or what the other side does not take. So one
//! on which nothing happens is keys and little else, and what is read or written at once goes
//! through the kernel at once.

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{
    CommonState, Error, InvalidMessage,
    unbuffered::{
        AppDataRecord, ConnectionState, EncodeError, EncodeTlsData, EncryptError,
        InsufficientSizeError, UnbufferedStatus, WriteTraffic,
    },
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::session::Session;

/// Room for one read of a handshake: most of its flights.
const RESERVE: usize = 2 * 1024;
/// A close_notify, and a change of keys before it.
const NOTICE: usize = 256;
/// What one write takes at most: four records of the greatest length.
const PLAIN: usize = 64 * 1024;
/// The same encrypted; and a change of keys before, and an alert behind.
const SEALED: usize = PLAIN + 1024;
/// A record on the wire at most (RFC 5246 §6.2.3).
const RECORD: usize = 5 + 16 * 1024 + 2048;
/// One read takes at most this much, with what is there of a record; so no message of a handshake,
/// which may be many records, is longer.
const READ: usize = 64 * 1024;

thread_local! {
    static INCOMING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
    static OUTGOING: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEALED].into());
}

/// Both ends of what a [`Session`] stands between.
pub(super) struct Channel<S, T> {
    io: S,
    session: T,
    /// Read, and of no use before more of the record comes.
    incoming: Vec<u8>,
    /// Decrypted, and not taken yet.
    plain: Vec<u8>,
    /// Encrypted, and not sent yet …
    outgoing: Vec<u8>,
    /// … but for so many.
    sent: usize,
    /// The other side says no more.
    is_over: bool,
    /// Neither does this one.
    has_ended: bool,
}

impl<S: fmt::Debug, T> fmt::Debug for Channel<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("io", &self.io)
            .finish_non_exhaustive()
    }
}

impl<S, T: Session> Channel<S, T> {
    /// One whose first bytes are already there.
    pub(super) const fn new(io: S, session: T, incoming: Vec<u8>) -> Self {
        Self {
            io,
            session,
            incoming,
            plain: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            is_over: false,
            has_ended: false,
        }
    }

    /// The connection.
    pub(super) const fn io(&self) -> &S {
        &self.io
    }

    /// What both sides have agreed on.
    pub(super) fn state(&self) -> &CommonState {
        self.session.state()
    }

    /// Takes what can be taken of `bytes`: how many those were. What they say goes into `plain`, and
    /// what is not taken there is kept.
    fn take(&mut self, bytes: &mut [u8], plain: &mut ReadBuf<'_>) -> Result<usize, Error> {
        let mut taken = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.session.process(&mut bytes[taken..]);
            let mut needs_more = false;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let AppDataRecord {
                            discard: more,
                            payload,
                        } = record?;
                        discard += more;
                        let (now, later) = payload.split_at(payload.len().min(plain.remaining()));
                        plain.put_slice(now);
                        self.plain.extend_from_slice(later);
                    }
                }
                ConnectionState::EncodeTlsData(data) => encode(data, &mut self.outgoing),
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.is_over = true,
                _ => needs_more = true,
            }
            taken += discard;
            if needs_more {
                return Ok(taken);
            }
        }
    }

    /// The error as one of the stream; what the other side is told of it waits to be sent.
    fn refuse(&mut self, error: Error) -> io::Error {
        while self.session.state().wants_write() {
            match self.session.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.outgoing),
                _ => break,
            }
        }
        io::Error::new(ErrorKind::InvalidData, error)
    }

    /// Encrypts what `write` writes, into a buffer that is large enough; how long it is then.
    fn seal(
        &mut self,
        write: impl FnOnce(WriteTraffic<'_, T::Data>) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        let UnbufferedStatus { discard, state } = self.session.process(&mut self.incoming);
        let sealed = match state {
            Ok(ConnectionState::WriteTraffic(writer)) => write(writer).map_err(io::Error::other),
            Ok(_) => Err(ErrorKind::BrokenPipe.into()),
            Err(error) => Err(io::Error::new(ErrorKind::InvalidData, error)),
        };
        self.incoming.drain(..discard);
        sealed
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, T: Session> Channel<S, T> {
    /// Shakes hands, until both sides can speak or `is_enough`.
    pub(super) async fn shake(
        &mut self,
        is_enough: impl Fn(&CommonState) -> bool,
    ) -> io::Result<()> {
        loop {
            let mut bytes = mem::take(&mut self.incoming);
            let taken = self.take(&mut bytes, &mut ReadBuf::new(&mut []));
            match taken {
                Ok(taken) => drop(bytes.drain(..taken)),
                Err(error) => {
                    let error = self.refuse(error);
                    // Said as well as can be done without waiting.
                    poll_fn(|cx| Poll::Ready(self.poll_send(cx).is_ready())).await;
                    return Err(error);
                }
            }
            self.incoming = bytes;
            poll_fn(|cx| self.poll_send(cx)).await?;
            let state = self.session.state();
            if !state.is_handshaking() || is_enough(state) {
                self.incoming.shrink_to_fit();
                return Ok(());
            }
            if self.incoming.len() >= READ {
                return Err(too_long());
            }
            self.incoming.reserve(RESERVE);
            if self.is_over || self.io.read_buf(&mut self.incoming).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads once, and decrypts what came.
    fn poll_take(&mut self, cx: &mut Context<'_>, plain: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        INCOMING.with_borrow_mut(|buffer| {
            let known = self.incoming.len();
            // What comes of so much is taken whole, if it is more than a record.
            let room = plain.remaining().max(RECORD).max(known + RESERVE);
            let buffer = &mut buffer[..room.min(READ)];
            buffer
                .get_mut(..known)
                .filter(|_| known < READ)
                .ok_or_else(too_long)?
                .copy_from_slice(&self.incoming);
            let mut read = ReadBuf::new(buffer);
            read.set_filled(known);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            let bytes = read.filled_mut();
            if bytes.len() == known {
                self.is_over = true;
                return Poll::Ready(Ok(()));
            }
            let taken = self.take(bytes, plain).map_err(|error| self.refuse(error));
            if self.is_sending() {
                // Who cannot be told anything has gone, which the next read tells.
                let _gone = self.poll_send(cx);
            }
            keep(&mut self.incoming, &bytes[taken?..]);
            Poll::Ready(Ok(()))
        })
    }

    /// Sends what waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.is_sending() {
            let rest = &self.outgoing[self.sent..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                taken => self.sent += taken,
            }
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    const fn is_sending(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    fn poll_seal(&mut self, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        let plain = &plain[..plain.len().min(PLAIN)];
        if plain.is_empty() {
            return Poll::Ready(Ok(0));
        }
        OUTGOING.with_borrow_mut(|buffer| {
            let sealed = self.seal(|mut writer| writer.encrypt(plain, buffer))?;
            let sealed = &buffer[..sealed];
            let taken = match Pin::new(&mut self.io).poll_write(cx, sealed) {
                Poll::Ready(taken) => taken?,
                Poll::Pending => 0,
            };
            self.outgoing.extend_from_slice(&sealed[taken..]);
            Poll::Ready(Ok(plain.len()))
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, T: Session + Unpin> AsyncRead for Channel<S, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let now = this.plain.len().min(buffer.remaining());
        buffer.put_slice(&this.plain[..now]);
        this.plain.drain(..now);
        if this.plain.is_empty() {
            this.plain = Vec::new();
        }
        while buffer.filled().len() == before && buffer.remaining() > 0 && !this.is_over {
            ready!(this.poll_take(cx, buffer))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, T: Session + Unpin> AsyncWrite for Channel<S, T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        this.poll_seal(cx, bytes)
    }

    /// In records that they share.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        INCOMING.with_borrow_mut(|buffer| {
            let mut len = 0;
            for slice in slices {
                let part = slice.len().min(buffer.len() - len);
                buffer[len..len + part].copy_from_slice(&slice[..part]);
                len += part;
            }
            this.poll_seal(cx, &buffer[..len])
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !mem::replace(&mut this.has_ended, true) {
            let mut notice = [0; NOTICE];
            let sealed = this.seal(|mut writer| writer.queue_close_notify(&mut notice));
            // Where nothing can be said any more, there is nothing to end either.
            this.outgoing
                .extend_from_slice(&notice[..sealed.unwrap_or(0)]);
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// Adds a record that is ready to those that go out.
fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) {
    let start = outgoing.len();
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        data.encode(&mut [])
    else {
        return;
    };
    outgoing.resize(start + required_size, 0);
    let _fits = data.encode(&mut outgoing[start..]);
}

/// Makes these bytes those that are kept.
fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        *kept = Vec::new();
    } else {
        kept.clear();
        kept.extend_from_slice(bytes);
    }
}

fn too_long() -> io::Error {
    let error = Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge);
    io::Error::new(ErrorKind::InvalidData, error)
}
