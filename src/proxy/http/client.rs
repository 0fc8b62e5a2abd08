//! The client's side of an HTTP/1 connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncWriteExt as _, ReadBuf},
    time::{Duration, Instant, timeout},
};

use super::{
    super::relay::Side,
    buffers::{self, equip, release},
    deadline::Deadline,
    out::Out,
    refusal::Refusal,
    scan::Scan,
};
use crate::config::{Limits, Timeouts};

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
    /// Heads that were read.
    pub(super) heads: u64,
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
            heads: 0,
        }
    }

    /// Waits for the next head to be whole; its length, at the front of `input`.
    pub(super) async fn next_head(
        &mut self,
        deadline: &mut Deadline,
        limits: &Limits,
        timeouts: &Timeouts,
    ) -> Result<usize, NoHead> {
        self.out.release();
        release(&mut self.input);
        let mut scan = Scan::default();
        let mut waits_for_first = self.input.is_empty();
        let patience = match waits_for_first && self.heads > 0 {
            true => timeouts.keepalive,
            false => timeouts.header,
        };
        deadline.set(Instant::now() + patience);
        poll_fn(|cx| {
            // An answer of our own may still wait.
            match self.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(NoHead::Gone)),
                Poll::Pending => return deadline.poll(cx).map(|()| Err(NoHead::Gone)),
            }
            loop {
                let found = scan.end(&self.input);
                let found = found.map_err(|_| NoHead::Refused(Refusal::LINE_FEED))?;
                let len = found.unwrap_or(self.input.len());
                if found.is_none() && !scan.has_first_line() && len > limits.target_bytes + 64 {
                    return Poll::Ready(Err(NoHead::Refused(Refusal::TARGET_LENGTH)));
                }
                if len > limits.head_bytes {
                    return Poll::Ready(Err(NoHead::Refused(Refusal::HEAD)));
                }
                if let Some(len) = found {
                    self.heads += 1;
                    return Poll::Ready(Ok(len));
                }
                if !self.input.is_empty() && waits_for_first {
                    waits_for_first = false;
                    deadline.set(Instant::now() + timeouts.header);
                }
                if self.poll_more(cx)?.is_ready() {
                    continue;
                }
                return deadline.poll(cx).map(|()| {
                    Err(match self.input.is_empty() {
                        true => NoHead::Over,
                        false => NoHead::Refused(Refusal::TIMEOUT),
                    })
                });
            }
        })
        .await
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
