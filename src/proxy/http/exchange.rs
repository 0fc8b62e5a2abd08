//! One request and its response, carried both ways at once between an HTTP/1 client and a backend.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::ReadBuf,
    time::{Duration, Instant},
};

use super::{
    super::{registry::Farewell, relay::Side},
    backend::{Backend, Failure, Receiver},
    body::{Decoder, Encoder, Framing, Piece},
    buffers::{self, equip},
    client::Client,
    deadline::{Deadline, NEVER},
    dispatch::Extra,
    head::Version,
    lesson::Lesson,
    out::Out,
    refusal::Refusal,
    request::Terms,
    response::Response,
};
use crate::config::Timeouts;

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 16;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Exchange<'a, 'b, S> {
    pub(super) client: &'a mut Client<S>,
    pub(super) backend: &'a mut Backend,
    pub(super) terms: &'a Terms,
    pub(super) upload: &'a mut Upload,
    pub(super) answer: &'a mut Answer<'b>,
    pub(super) deadline: &'a mut Deadline,
    pub(super) timeouts: &'a Timeouts,
    /// For the response to begin.
    pub(super) response: Option<Duration>,
}

/// The request's body on its way.
#[derive(Debug)]
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

/// The response on its way.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) terms: &'a Terms,
    /// Fields that homescar adds to the final head.
    pub(super) extra: &'a Extra<'a>,
    pub(super) lesson: Lesson,
    /// Once it was said, the connection does not stay.
    farewell: &'a Farewell,
    /// The connection stays open for another request, as far as is known.
    pub(super) keep_alive: bool,
    pub(super) status: u16,
    encoder: Encoder,
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

impl<'a> Answer<'a> {
    pub(super) const fn new(
        terms: &'a Terms,
        extra: &'a Extra<'a>,
        lesson: Lesson,
        farewell: &'a Farewell,
    ) -> Self {
        Self {
            terms,
            extra,
            lesson,
            farewell,
            keep_alive: terms.keep_alive,
            status: 0,
            encoder: Encoder::Plain,
            bytes: 0,
        }
    }
}

impl<S: Side> Exchange<'_, '_, S> {
    pub(super) async fn run(mut self) -> End {
        self.deadline.set(Instant::now() + self.patience().0);
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let before = (
            self.upload.bytes,
            self.answer.bytes,
            self.backend.has_begun(),
        );
        if let Err(end) = self.poll_upload(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(end) = self.poll_download(cx) {
            return Poll::Ready(end);
        }
        if before
            != (
                self.upload.bytes,
                self.answer.bytes,
                self.backend.has_begun(),
            )
        {
            self.deadline.set(Instant::now() + self.patience().0);
        }
        self.deadline.poll(cx).map(|()| self.patience().1)
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

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..READS_PER_TURN {
            if self.upload.is_broken {
                return Ok(());
            }
            match self.backend.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                // It may have said why before it went: the response tells.
                Poll::Ready(Err(_)) => self.upload.is_broken = true,
                Poll::Pending => return Ok(()),
            }
            if self.upload.is_done {
                return match self.client.poll_gone(cx) {
                    Poll::Ready(()) => Err(End::ClientGone),
                    Poll::Pending => Ok(()),
                };
            }
            if self.poll_body(cx)?.is_pending() {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
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

/// The client's side of a response.
struct Download<'a, 'b, S> {
    stream: &'a mut S,
    out: &'a mut Out,
    answer: &'a mut Answer<'b>,
    upload_done: bool,
    lost: Option<io::Error>,
}

impl<S: Side> Receiver for Download<'_, '_, S> {
    fn head(&mut self, response: &Response<'_>) {
        let version = self.answer.terms.version;
        let out = self.out.buffer();
        if response.is_interim() {
            let wanted = response.head.status != 100 || self.answer.terms.expects_continue;
            if version == Version::Http11 && wanted {
                response.write_head(out, Framing::None);
                out.extend_from_slice(b"\r\n");
            }
            return;
        }
        let framing = response.framing_for(version);
        let answer = &mut *self.answer;
        answer.status = response.head.status;
        answer.lesson.head(response);
        answer.encoder = Encoder::new(framing);
        let may_stay = self.upload_done && !answer.farewell.was_said();
        answer.keep_alive &= may_stay && framing != Framing::UntilClose;
        response.write_head(out, framing);
        answer.extra.write(out, response);
        out.extend_from_slice(match (answer.status, answer.keep_alive, version) {
            (101, ..) => b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            (_, false, _) => b"Connection: close\r\n\r\n",
            (_, true, Version::Http10) => b"Connection: keep-alive\r\n\r\n",
            (_, true, _) => b"\r\n",
        });
    }

    fn data(&mut self, cx: &mut Context<'_>, data: &[u8]) {
        self.answer.bytes += data.len() as u64;
        self.answer.lesson.data(data);
        if let Err(error) = self.out.data(cx, self.stream, self.answer.encoder, data) {
            self.lost = Some(error);
        }
    }

    fn end(&mut self, trailers: &[u8]) {
        self.answer.encoder.end(self.out.buffer(), trailers);
    }
}
