//! One request and its response, carried both ways at once between an HTTP/1 client and a backend.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::ReadBuf,
    time::{Duration, Instant},
};

use super::{
    super::{
        registry::{self, Passage, Ticket},
        relay::Side,
    },
    answer::{Answer, Download},
    backend::{Backend, Failure},
    body::{Decoder, Encoder, Piece},
    buffers::{self, equip},
    client::Client,
    deadline::{Deadline, NEVER},
    dispatch::Extra,
    refusal::Refusal,
    request::Terms,
};
use crate::config::Timeouts;

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 16;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Exchange<'a, S> {
    pub(super) client: &'a mut Client<S>,
    pub(super) backend: &'a mut Backend,
    pub(super) terms: &'a Terms,
    /// Fields that homescar adds to the final head.
    pub(super) extra: &'a Extra<'a>,
    pub(super) upload: &'a mut Upload,
    pub(super) answer: &'a mut Answer,
    pub(super) ticket: &'a Ticket,
    pub(super) timeouts: &'a Timeouts,
    /// For the response to begin.
    pub(super) response: Option<Duration>,
    /// Until when something has to happen, where it does not begin here.
    pub(super) until: Option<Instant>,
}

/// The request's body on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upload {
    decoder: Decoder,
    encoder: Encoder,
    /// Bytes that may still come.
    left: u64,
    is_done: bool,
    /// The backend takes no more of it.
    is_broken: bool,
    pub(super) bytes: u64,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The response is complete.
    Done,
    /// The connection speaks WebSocket from now on.
    Switched,
    /// The client went away.
    ClientGone,
    /// The client's body cannot be carried on, and nothing was answered yet.
    Refused(Refusal),
    /// The backend's connection ended before it answered anything.
    BackendGone,
    /// What the backend said is no response.
    NotHttp,
    /// The backend did not answer in time.
    ResponseTimeout,
    /// The response broke off.
    Broken,
    /// The client did not take the response in time.
    SlowClient,
    /// The response stood still for too long.
    Idle,
}

impl End {
    /// Whether the backend is to blame. A connection on which it has answered before it may end at
    /// any time.
    pub(super) const fn is_failure(self, is_reused: bool) -> bool {
        match self {
            Self::BackendGone => !is_reused,
            Self::NotHttp | Self::ResponseTimeout => true,
            _ => false,
        }
    }
}

impl Upload {
    pub(super) fn new(terms: &Terms, limit: Option<u64>) -> Self {
        Self {
            decoder: Decoder::new(terms.framing),
            encoder: Encoder::new(terms.framing),
            left: limit.unwrap_or(u64::MAX),
            is_done: terms.framing.is_empty(),
            is_broken: false,
            bytes: 0,
        }
    }

    pub(super) const fn is_done(&self) -> bool {
        self.is_done
    }
}

impl<S: Side> Exchange<'_, S> {
    /// Carries it to its end. Where both sides are nothing but descriptors, it stands still when it has
    /// to, and gives nothing: it goes on from here.
    pub(super) async fn run(&mut self) -> Option<End> {
        let client = &self.client.stream;
        let passage = match self.backend.stream.descriptor() {
            Some(_) => Passage::of(client),
            None => Passage::after(client),
        };
        self.ticket.is_busy(passage);
        let until = self.until.take();
        let until = until.unwrap_or_else(|| Instant::now() + self.patience().0);
        let mut deadline = Deadline::spare(until);
        let end = poll_fn(|cx| {
            if passage == Passage::Now && registry::is_frozen() {
                self.until = Some(deadline.at());
                return Poll::Ready(None);
            }
            self.poll(cx, &mut deadline).map(Some)
        });
        let end = end.await;
        deadline.keep();
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>, deadline: &mut Deadline) -> Poll<End> {
        let before = (
            self.upload.bytes,
            self.answer.bytes,
            self.backend.has_begun(),
        );
        let is_sent = match self.poll_upload(cx) {
            Ok(is_sent) => is_sent,
            Err(end) => return Poll::Ready(end),
        };
        if let Poll::Ready(end) = self.poll_download(cx) {
            return Poll::Ready(end);
        }
        // Only who still waits is asked whether anybody still waits.
        if is_sent && self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(End::ClientGone);
        }
        if before
            != (
                self.upload.bytes,
                self.answer.bytes,
                self.backend.has_begun(),
            )
        {
            deadline.set(Instant::now() + self.patience().0);
        }
        deadline.poll(cx).map(|()| self.patience().1)
    }

    /// How long the present state may last, and what it is called when it lasted longer.
    fn patience(&self) -> (Duration, End) {
        let timeouts = self.timeouts;
        let waits_for_body = !self.upload.is_done && !self.backend.out.is_waiting();
        let may_wait_for_leave = self.terms.expects_continue && self.upload.bytes == 0;
        if self.client.out.is_waiting() {
            (timeouts.body, End::SlowClient)
        } else if self.backend.has_begun() {
            (timeouts.idle.unwrap_or(NEVER), End::Idle)
        } else if waits_for_body && !may_wait_for_leave && !self.upload.is_broken {
            (timeouts.body, End::Refused(Refusal::TIMEOUT))
        } else {
            (self.response.unwrap_or(NEVER), End::ResponseTimeout)
        }
    }

    /// Sends on what there is of the request; whether that is all of it, and nothing is expected of the
    /// client any more.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        for _ in 0..READS_PER_TURN {
            if self.upload.is_broken {
                return Ok(false);
            }
            match self.backend.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                // It may have said why before it went: the response tells.
                Poll::Ready(Err(_)) => self.upload.is_broken = true,
                Poll::Pending => return Ok(false),
            }
            if self.upload.is_done {
                return Ok(true);
            }
            if self.poll_body(cx)?.is_pending() {
                return Ok(false);
            }
        }
        cx.waker().wake_by_ref();
        Ok(false)
    }

    /// Reads some of the request's body, and passes it on.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        let Self {
            client,
            backend,
            upload,
            ..
        } = self;
        if !client.input.is_empty() {
            let mut input = std::mem::take(&mut client.input);
            let used = upload.take(cx, backend, &input);
            input.drain(..*used.as_ref().unwrap_or(&0));
            client.input = input;
            return used.map(|_| Poll::Ready(())).map_err(End::Refused);
        }
        buffers::scratch(|scratch| {
            let mut read = ReadBuf::new(scratch);
            match Pin::new(&mut client.stream).poll_read(cx, &mut read) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(_)) => return Err(End::ClientGone),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = read.filled();
            if bytes.is_empty() {
                return Err(End::ClientGone);
            }
            let used = upload.take(cx, backend, bytes).map_err(End::Refused)?;
            if used < bytes.len() {
                equip(&mut client.input);
                client.input.extend_from_slice(&bytes[used..]);
            }
            Ok(Poll::Ready(()))
        })
    }

    fn poll_download(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..READS_PER_TURN {
            match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(End::ClientGone),
                Poll::Pending => return Poll::Pending,
            }
            let had_begun = self.backend.has_begun();
            let upload_done = self.upload.is_done;
            let mut download = Download {
                stream: &mut self.client.stream,
                out: &mut self.client.out,
                answer: self.answer,
                terms: self.terms,
                extra: self.extra,
                ticket: self.ticket,
                upload_done,
                lost: None,
            };
            let read = self.backend.poll_response(cx, self.terms, &mut download);
            if let Some(_gone) = download.lost {
                return Poll::Ready(End::ClientGone);
            }
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(Ok(true)) if self.answer.status == 101 => {
                    return Poll::Ready(End::Switched);
                }
                Poll::Ready(Ok(true)) if !self.client.out.is_waiting() => {
                    return match self.client.poll_flush(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(End::ClientGone),
                        flushed => flushed.map(|_| End::Done),
                    };
                }
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Err(failure)) => {
                    return Poll::Ready(match failure {
                        _ if had_begun || self.answer.status != 0 => End::Broken,
                        Failure::Gone => End::BackendGone,
                        Failure::NotHttp => End::NotHttp,
                    });
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Upload {
    /// Passes on what belongs to the body; how much that was.
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        backend: &mut Backend,
        bytes: &[u8],
    ) -> Result<usize, Refusal> {
        let mut used = 0;
        loop {
            match self
                .decoder
                .next(&bytes[used..])
                .map_err(|_| Refusal::CHUNK)?
            {
                Piece::Data(range) => {
                    let data = &bytes[used..][range.clone()];
                    let len = data.len() as u64;
                    self.left = self.left.checked_sub(len).ok_or(Refusal::BODY)?;
                    self.bytes += len;
                    used += range.end;
                    if backend.data(cx, self.encoder, data).is_err() {
                        self.is_broken = true;
                        return Ok(used);
                    }
                }
                Piece::More => return Ok(bytes.len()),
                Piece::End(len) => {
                    self.encoder
                        .end(backend.out.buffer(), self.decoder.trailers());
                    self.is_done = true;
                    return Ok(used + len);
                }
            }
        }
    }
}
