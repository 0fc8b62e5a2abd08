//! Request and response of one stream, carried both ways at once.

use std::{
    future::poll_fn,
    mem,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::RecvStream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response as HttpResponse, StatusCode,
    header::CONTENT_LENGTH,
};
use tokio::time::Instant;

use super::reply::{Gone, Reply};
use crate::{
    config::Timeouts,
    proxy::http::{
        backend::{Backend, Failure, Receiver},
        body::{Encoder, is_private_trailer},
        deadline::{Deadline, NEVER},
        dispatch::Extra,
        exchange::End,
        fields,
        lesson::Lesson,
        refusal::Refusal,
        request::Terms,
        response::Response,
    },
};

/// The request's body on its way.
pub(super) struct Upload {
    pub(super) body: RecvStream,
    pub(super) encoder: Encoder,
    /// Bytes that may still come.
    pub(super) left: u64,
    pub(super) is_done: bool,
    /// The backend takes no more of it.
    pub(super) is_broken: bool,
    pub(super) bytes: u64,
}

/// Request and response, carried both ways at once.
pub(super) struct Exchange<'a> {
    pub(super) backend: Backend,
    pub(super) terms: &'a Terms,
    pub(super) upload: &'a mut Upload,
    pub(super) deadline: &'a mut Deadline,
    pub(super) timeouts: &'a Timeouts,
    /// For the response to begin.
    pub(super) response: Option<Duration>,
    pub(super) extra: Extra<'a>,
    pub(super) reply: &'a mut Reply,
    pub(super) download: Download,
}

/// What the backend said that is not handed on yet.
#[derive(Default)]
pub(super) struct Download {
    pub(super) head: Option<HttpResponse<()>>,
    /// Of the body, what came with the present read: one piece, in however many it was.
    pub(super) text: Vec<u8>,
    pub(super) trailers: Option<HeaderMap>,
    /// No more comes.
    pub(super) is_over: bool,
    pub(super) lesson: Lesson,
    pub(super) status: u16,
    pub(super) bytes: u64,
}

impl Exchange<'_> {
    pub(super) async fn run(&mut self) -> End {
        self.deadline.set(Instant::now() + self.patience().0);
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let progress = |this: &Self| {
            (
                this.upload.bytes,
                this.download.bytes,
                this.reply.is_unsaid(),
            )
        };
        let before = progress(self);
        if let Err(end) = self.poll_upload(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(end) = self.poll_download(cx) {
            return Poll::Ready(end);
        }
        // Only before it waits: what is said to one who has gone fails by itself.
        if self.reply.poll_gone(cx).is_ready() {
            return Poll::Ready(End::ClientGone);
        }
        if before != progress(self) {
            self.deadline.set(Instant::now() + self.patience().0);
        }
        self.deadline.poll(cx).map(|()| self.patience().1)
    }

    /// How long the present state may last, and what it is called when it lasted longer.
    fn patience(&self) -> (Duration, End) {
        let timeouts = self.timeouts;
        if !self.download.text.is_empty() {
            (timeouts.body, End::SlowClient)
        } else if self.backend.has_begun() {
            (timeouts.idle.unwrap_or(NEVER), End::Idle)
        } else if !self.upload.is_done && !self.backend.out.is_waiting() && !self.upload.is_broken {
            (timeouts.body, End::Refused(Refusal::TIMEOUT))
        } else {
            (self.response.unwrap_or(NEVER), End::ResponseTimeout)
        }
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Self {
            upload, backend, ..
        } = self;
        while !upload.is_broken {
            match backend.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                // It may have said why before it went: the response tells.
                Poll::Ready(Err(_)) => upload.is_broken = true,
                Poll::Pending => return Ok(()),
            }
            if upload.is_done {
                return Ok(());
            }
            match upload.body.poll_data(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(data))) => upload.take(cx, backend, &data)?,
                Poll::Ready(Some(Err(_))) => return Err(End::ClientGone),
                Poll::Ready(None) => match upload.body.poll_trailers(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(trailers)) => upload.end(backend, trailers.as_ref()),
                    Poll::Ready(Err(_)) => return Err(End::ClientGone),
                },
            }
        }
        Ok(())
    }

    fn poll_download(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if let Err(Gone) = ready!(self.poll_hand_on(cx)) {
                return Poll::Ready(End::ClientGone);
            }
            let read = self
                .backend
                .poll_response(cx, self.terms, &mut self.download);
            let is_whole = match ready!(read) {
                Ok(is_whole) => is_whole,
                Err(_) if self.download.status != 0 => return Poll::Ready(End::Broken),
                Err(Failure::Gone) => return Poll::Ready(End::BackendGone),
                Err(Failure::NotHttp) => return Poll::Ready(End::NotHttp),
            };
            if is_whole && self.download.is_handed_on() {
                match self.download.status {
                    101 => return Poll::Ready(End::Switched),
                    _ if self.reply.is_over() => return Poll::Ready(End::Done),
                    // The end came by itself, and is to be said.
                    _ => {}
                }
            }
        }
    }

    /// Hands on what came, as far as the client takes it.
    fn poll_hand_on(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let download = &mut self.download;
        let head = download.head.take();
        let is_first = head.is_some();
        if let Some(mut head) = head {
            self.extra.insert(download.status, head.headers_mut());
            let is_all =
                download.is_over && download.text.is_empty() && download.trailers.is_none();
            self.reply.head(head, is_all)?;
        }
        if !download.text.is_empty() {
            // What came with the head goes with it, in one write; h2 keeps what is too much.
            if !is_first {
                ready!(self.reply.poll_room(cx))?;
            }
            let text = mem::take(&mut download.text);
            let is_last = download.is_over && download.trailers.is_none();
            self.reply.data(text.into(), is_last)?;
        }
        if download.is_over && !self.reply.is_over() {
            match download.trailers.take() {
                Some(trailers) => self.reply.trailers(trailers)?,
                None => self.reply.data(Bytes::new(), true)?,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Upload {
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        backend: &mut Backend,
        data: &[u8],
    ) -> Result<(), End> {
        let len = data.len() as u64;
        self.left = self
            .left
            .checked_sub(len)
            .ok_or(End::Refused(Refusal::BODY))?;
        self.bytes += len;
        if len > 0 {
            self.is_broken |= backend.data(cx, self.encoder, data).is_err();
            // The client may send as much again.
            let _gone = self.body.flow_control().release_capacity(data.len());
        }
        Ok(())
    }

    fn end(&mut self, backend: &mut Backend, trailers: Option<&HeaderMap>) {
        let mut lines = Vec::new();
        for (name, value) in trailers.into_iter().flatten() {
            if !is_private_trailer(name.as_str()) {
                fields::write(&mut lines, name.as_str(), value.as_bytes());
            }
        }
        self.encoder.end(backend.out.buffer(), &lines);
        self.is_done = true;
    }
}

impl Download {
    /// Whether nothing waits for the client.
    const fn is_handed_on(&self) -> bool {
        self.head.is_none() && self.text.is_empty() && self.trailers.is_none()
    }
}

impl Receiver for Download {
    fn head(&mut self, response: &Response<'_>) {
        if response.is_interim() {
            return;
        }
        self.status = response.head.status;
        self.lesson.head(response);
        let is_switch = self.status == 101;
        let status = if is_switch { 200 } else { self.status };
        let mut head = HttpResponse::new(());
        *head.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        // With what is added to it.
        head.headers_mut().reserve(response.head.fields.len() + 2);
        for (name, value) in response.fields() {
            if is_switch && name.eq_ignore_ascii_case("sec-websocket-accept") {
                continue;
            }
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                head.headers_mut().append(name, value);
            }
        }
        if let Some(length) = response.length() {
            let mut text = itoa::Buffer::new();
            if let Ok(length) = HeaderValue::from_str(text.format(length)) {
                head.headers_mut().insert(CONTENT_LENGTH, length);
            }
        }
        self.head = Some(head);
    }

    fn data(&mut self, _cx: &mut Context<'_>, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.lesson.data(data);
        self.text.extend_from_slice(data);
    }

    fn end(&mut self, trailers: &[u8]) {
        self.is_over = true;
        if trailers.is_empty() {
            return;
        }
        let mut room = [httparse::EMPTY_HEADER; 32];
        let mut lines = trailers.to_vec();
        lines.extend_from_slice(b"\r\n");
        let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&lines, &mut room)
        else {
            return;
        };
        let mut map = HeaderMap::new();
        for field in fields.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
                map.append(name, value);
            }
        }
        self.trailers = Some(map).filter(|map| !map.is_empty());
    }
}
