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
    mem::{self, MaybeUninit},
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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::Session;

/// Room for one read of a handshake: most of its flights.
const RESERVE: usize = 2 * 1024;
/// A close_notify, and a change of keys before it.
const NOTICE: usize = 256;
/// What one write takes at most: four records of the greatest length.
const PLAIN: usize = 64 * 1024;
/// The same encrypted; and a change of keys before.
const SEALED: usize = PATIENT + PLAIN + 1024;
/// What may wait for a write at most, to go with it.
const PATIENT: usize = 4 * 1024;
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
    /// … but for so many …
    sent: usize,
    /// … and it may wait for what is written next.
    is_patient: bool,
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
            is_patient: false,
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
    fn decrypt(&mut self, bytes: &mut [u8], plain: &mut ReadBuf<'_>) -> Result<usize, Error> {
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
        self.is_patient = false;
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
    /// Shakes hands, until both sides can speak; or no further than `is_enough`, which leaves unsent
    /// what that brought about. Each step that may cost something waits for its `turn`.
    pub(super) async fn shake(
        &mut self,
        turn: impl AsyncFn(),
        is_enough: impl Fn(&CommonState) -> bool,
    ) -> io::Result<()> {
        loop {
            turn().await;
            let mut bytes = mem::take(&mut self.incoming);
            match self.decrypt(&mut bytes, &mut ReadBuf::new(&mut [])) {
                Ok(taken) => drop(bytes.drain(..taken)),
                Err(error) => {
                    let error = self.refuse(error);
                    // Said as well as can be done without waiting.
                    poll_fn(|cx| Poll::Ready(self.poll_send(cx).is_ready())).await;
                    return Err(error);
                }
            }
            self.incoming = bytes;
            if is_enough(self.session.state()) {
                self.is_patient = self.is_sending();
                break;
            }
            if !self.session.state().is_handshaking() {
                poll_fn(|cx| self.poll_send(cx)).await?;
                break;
            }
            if self.incoming.len() >= READ {
                return Err(too_long());
            }
            if self.is_over || poll_fn(|cx| self.poll_more(cx)).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.incoming.shrink_to_fit();
        Ok(())
    }

    /// Sends what waits as far as that goes, and reads: the other side may want either first.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(sent) = self.poll_send(cx) {
            sent?;
        }
        let mut room = [const { MaybeUninit::uninit() }; RESERVE];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        self.incoming.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Reads once, and decrypts what came.
    fn poll_decrypt(
        &mut self,
        cx: &mut Context<'_>,
        plain: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
            let taken = self
                .decrypt(bytes, plain)
                .map_err(|error| self.refuse(error));
            if !self.is_patient {
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
        self.is_patient = false;
        Poll::Ready(Ok(()))
    }

    const fn is_sending(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Encrypts, and sends what the connection takes at once; the rest waits.
    fn poll_seal(&mut self, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        let plain = &plain[..plain.len().min(PLAIN)];
        if plain.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !self.is_patient || self.outgoing.len() > PATIENT {
            ready!(self.poll_send(cx))?;
        }
        OUTGOING.with_borrow_mut(|buffer| {
            let before = self.outgoing.len();
            buffer[..before].copy_from_slice(&self.outgoing);
            let sealed = self.seal(|mut writer| writer.encrypt(plain, &mut buffer[before..]))?;
            let sealed = &buffer[..before + sealed];
            if before > 0 {
                self.outgoing = Vec::new();
                self.is_patient = false;
            }
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
            ready!(this.poll_decrypt(cx, buffer))?;
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
        self.get_mut().poll_seal(cx, bytes)
    }

    /// In records that they share.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
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

#[cfg(test)]
mod tests;
