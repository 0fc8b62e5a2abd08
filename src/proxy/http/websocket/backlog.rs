//! What one side of a WebSocket has not taken yet.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use crate::proxy::{http::out::Out, relay::Side};

/// Bytes for one side, in order: none, most of the time, and then it is one word.
#[derive(Debug, Default)]
pub(super) struct Backlog(Option<Box<Out>>);

impl From<Out> for Backlog {
    fn from(out: Out) -> Self {
        Self(Some(Box::new(out)))
    }
}

impl Backlog {
    /// One in which this waits.
    pub(super) fn holding(bytes: Vec<u8>) -> Self {
        match bytes.is_empty() {
            true => Self::default(),
            false => Out::holding(bytes).into(),
        }
    }

    /// Sends some, or keeps what is not taken at once.
    pub(super) fn data(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut impl Side,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        if self.0.is_none() {
            // Nearly always there is room: whoever waits for that has more to do.
            let taken = match stream.try_send(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    Pin::new(stream).poll_write(cx, bytes)
                }
                sent => Poll::Ready(sent),
            };
            if let Poll::Ready(taken) = taken {
                bytes = &bytes[taken?..];
            }
        }
        self.append(bytes);
        Ok(())
    }

    /// Adds to what waits.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.get_or_insert_default().append(bytes);
        }
    }

    /// Sends what waits, and gives its memory back.
    pub(super) fn poll_flush<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        if let Some(out) = &mut self.0 {
            ready!(out.poll_flush(cx, stream))?;
            out.release();
            self.0 = None;
        }
        if S::BUFFERS {
            ready!(Pin::new(stream).poll_flush(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// What waits.
    pub(super) fn waiting(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |out| out.waiting())
    }
}
