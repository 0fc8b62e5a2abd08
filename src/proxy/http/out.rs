//! What waits to be taken by a socket.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Serialize};

use super::{
    super::relay::Side,
    body::Encoder,
    buffers::{equip, release},
};

/// So much of a body is sent along with what waits, usually its head, and is not copied behind it.
const LARGE: usize = 4 * 1024;

/// Bytes for one stream, in order. At most one read's worth waits here, plus heads.
#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
    sent: usize,
    unflushed: bool,
}

/// An [`Out`] for the next image of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedOut {
    #[serde(with = "crate::handover::text")]
    bytes: Vec<u8>,
    sent: usize,
}

impl Out {
    /// What the next image has to know of it.
    pub(super) fn saved(&self) -> SavedOut {
        SavedOut {
            bytes: self.bytes.clone(),
            sent: self.sent,
        }
    }

    /// The same again.
    pub(super) fn resumed(SavedOut { bytes, sent }: SavedOut) -> Self {
        Self {
            sent: sent.min(bytes.len()),
            bytes,
            unflushed: true,
        }
    }

    /// Where to write heads and the like.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
        equip(&mut self.bytes);
        &mut self.bytes
    }

    /// Sends a piece of a body, or keeps what is not taken at once.
    pub(super) fn data(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut impl Side,
        encoder: Encoder,
        mut data: &[u8],
    ) -> io::Result<()> {
        if encoder == Encoder::Plain && !self.is_waiting() {
            self.unflushed = true;
            if let Poll::Ready(taken) = Pin::new(stream).poll_write(cx, data) {
                data = &data[taken?..];
            }
        } else if encoder == Encoder::Plain && data.len() >= LARGE && stream.is_write_vectored() {
            self.unflushed = true;
            let waiting = self.waiting().len();
            let both = [IoSlice::new(self.waiting()), IoSlice::new(data)];
            if let Poll::Ready(taken) = Pin::new(stream).poll_write_vectored(cx, &both) {
                let taken = taken?;
                self.sent += taken.min(waiting);
                data = &data[taken.saturating_sub(waiting)..];
            }
        }
        if !data.is_empty() {
            encoder.data(self.buffer(), data);
        }
        Ok(())
    }

    /// Adds to what waits.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.buffer().extend_from_slice(bytes);
    }

    /// Sends what waits.
    pub(super) fn poll_flush<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        while self.is_waiting() {
            let rest = &self.bytes[self.sent..];
            let taken = ready!(Pin::new(&mut *stream).poll_write(cx, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += taken;
            self.unflushed = true;
        }
        if S::BUFFERS && self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// What waits.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// One in which this waits.
    pub(super) const fn holding(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            sent: 0,
            unflushed: true,
        }
    }

    pub(super) const fn is_waiting(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// Everything again, to another stream.
    pub(super) const fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Gives the memory back once nothing waits.
    pub(super) fn release(&mut self) {
        if !self.is_waiting() {
            self.bytes.clear();
            self.sent = 0;
            release(&mut self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// Takes so much at each call, nothing where that is 0, and all once it was told no more.
    struct Sips(Vec<usize>, Vec<u8>);

    impl Sips {
        fn sip(&mut self, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            let sip = self.0.pop().unwrap_or(usize::MAX).min(all.len());
            if sip == 0 {
                return Poll::Pending;
            }
            self.1.extend(&all[..sip]);
            Poll::Ready(Ok(sip))
        }
    }

    impl AsyncRead for Sips {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Sips {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.get_mut().sip(&[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.get_mut().sip(parts)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Side for Sips {
        fn reset_on_close(&self) {}

        fn was_reset(&self) -> bool {
            false
        }
    }

    proptest! {
        #[test]
        fn all_is_sent_in_its_order_however_it_is_taken(
            pieces in proptest::collection::vec((any::<bool>(), 1..3 * LARGE), 0..6),
            sips in proptest::collection::vec(prop_oneof![Just(0), 1..2 * LARGE], 0..12),
        ) {
            let mut cx = Context::from_waker(Waker::noop());
            let (mut out, mut stream) = (Out::default(), Sips(sips, Vec::new()));
            let mut all = Vec::new();
            for (number, (is_head, len)) in pieces.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|at| (at % 251 + number) as u8).collect();
                match is_head {
                    true => out.append(&bytes),
                    false => out.data(&mut cx, &mut stream, Encoder::Plain, &bytes).unwrap(),
                }
                all.extend(bytes);
            }
            while out.poll_flush(&mut cx, &mut stream).is_pending() {}
            prop_assert!(stream.1 == all);
            prop_assert!(!out.is_waiting());
        }
    }
}
