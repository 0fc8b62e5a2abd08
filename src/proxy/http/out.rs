//! What waits to be taken by a socket.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Serialize};

use super::{
    super::relay::Side,
    body::Encoder,
    buffers::{equip, release},
};

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
