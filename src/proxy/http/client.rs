//! The client's side of an HTTP/1 connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncWriteExt as _, ReadBuf},
    time::{Duration, timeout},
};

use super::{
    super::relay::Side,
    buffers::{self, equip, release},
    out::Out,
    refusal::Refusal,
    scan::Scan,
};
use crate::config::Limits;

/// For a client to take the last words, and to stop talking, before the connection is closed.
const LINGER: Duration = Duration::from_secs(2);
/// What is read ahead of a client that sends its next request already.
const READ_AHEAD: usize = 4 * 1024;
/// What is read of a client meanwhile.
const LINGER_BYTES: usize = 1024 * 1024;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Client<S> {
    pub(super) stream: S,
    /// Read, and not used yet.
    pub(super) input: Vec<u8>,
    pub(super) out: Out,
    /// Of the input.
    scan: Scan,
    /// Heads that were read, up to all that can be counted here.
    pub(super) heads: u32,
}

/// Why there is no next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHead {
    /// The client ended the connection between two requests, or was silent for long.
    Over,
    /// The client went away within a head.
    Gone,
    /// What came is refused.
    Refused(Refusal),
}

impl<S: Side> Client<S> {
    /// `early` was read already.
    pub(super) fn new(stream: S, early: Vec<u8>) -> Self {
        Self {
            stream,
            input: early,
            out: Out::default(),
            scan: Scan::default(),
            heads: 0,
        }
    }

    /// Begins to wait for the next head.
    pub(super) fn begin_head(&mut self) {
        self.scan = Scan::default();
        release(&mut self.input);
    }

    /// Waits for the next head to be whole; its length, at the front of `input`.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
    ) -> Poll<Result<usize, NoHead>> {
        // An answer of our own may still wait.
        if ready!(self.poll_flush(cx)).is_err() {
            return Poll::Ready(Err(NoHead::Gone));
        }
        self.out.release();
        loop {
            let found = self.scan.end(&self.input);
            let found = found.map_err(|_| NoHead::Refused(Refusal::LINE_FEED))?;
            let len = found.unwrap_or(self.input.len());
            if found.is_none() && !self.scan.has_first_line() && len > limits.target_bytes + 64 {
                return Poll::Ready(Err(NoHead::Refused(Refusal::TARGET_LENGTH)));
            }
            if len > limits.head_bytes {
                return Poll::Ready(Err(NoHead::Refused(Refusal::HEAD)));
            }
            if let Some(len) = found {
                self.heads = self.heads.saturating_add(1);
                return Poll::Ready(Ok(len));
            }
            if self.poll_more(cx)?.is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// What it means that no head has come in time.
    pub(super) const fn too_late(&self) -> NoHead {
        match (self.out.is_waiting(), self.input.is_empty()) {
            (true, _) => NoHead::Gone,
            (false, true) => NoHead::Over,
            (false, false) => NoHead::Refused(Refusal::TIMEOUT),
        }
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, NoHead> {
        buffers::scratch(|scratch| {
            let mut read = ReadBuf::new(scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Pending => Ok(Poll::Pending),
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    equip(&mut self.input);
                    self.input.extend_from_slice(read.filled());
                    Ok(Poll::Ready(()))
                }
                Poll::Ready(Ok(())) if self.input.is_empty() => Err(NoHead::Over),
                Poll::Ready(_) => Err(NoHead::Gone),
            }
        })
    }

    /// Notices a client that goes while nothing is expected of it. What it sends meanwhile is kept
    /// for later; with that, it is not watched any more.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.is_empty() {
            return Poll::Pending;
        }
        buffers::scratch(|scratch| {
            let mut read = ReadBuf::new(&mut scratch[..READ_AHEAD]);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    equip(&mut self.input);
                    self.input.extend_from_slice(read.filled());
                    Poll::Pending
                }
                polled => polled.map(|_| ()),
            }
        })
    }

    /// Waits for the client to go.
    pub(super) async fn gone(&mut self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_flush(cx, &mut self.stream)
    }

    /// Ends the connection, of which all was read.
    pub(super) async fn close(&mut self) {
        if S::BUFFERS {
            let _gone = timeout(LINGER, self.stream.shutdown()).await;
        }
    }

    /// Sends what waits, and ends the connection so that the client can read it all: closing
    /// while something of the client's is unread would be a reset, which overtakes the answer.
    pub(super) async fn linger(&mut self) {
        let farewell = async {
            poll_fn(|cx| self.poll_flush(cx)).await?;
            self.stream.shutdown().await?;
            let mut read = 0;
            while read < LINGER_BYTES {
                let more = poll_fn(|cx| {
                    buffers::scratch(|scratch| {
                        let mut buf = ReadBuf::new(scratch);
                        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
                        polled.map_ok(|()| buf.filled().len())
                    })
                });
                match more.await? {
                    0 => break,
                    more => read += more,
                }
            }
            io::Result::Ok(())
        };
        let _gone = timeout(LINGER, farewell).await;
    }
}
