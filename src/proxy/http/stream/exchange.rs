//! Request and response of one stream, carried both ways at once.

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderName, HeaderValue, Response as HttpResponse, StatusCode, header::CONTENT_LENGTH};
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::PollSender;

use super::{Answered, Body, Broken};
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
    pub(super) body: Incoming,
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
    pub(super) deadline: Deadline,
    pub(super) timeouts: &'a Timeouts,
    /// For the response to begin.
    pub(super) response: Option<Duration>,
    pub(super) extra: Extra<'a>,
    pub(super) answer: Option<oneshot::Sender<Answered>>,
    /// Goes to hyper with the head.
    pub(super) receiver: Option<mpsc::Receiver<Result<Frame<Bytes>, Broken>>>,
    /// Ready when hyper has dropped the response.
    pub(super) closed: BoxFuture<'static, ()>,
    pub(super) frames: PollSender<Result<Frame<Bytes>, Broken>>,
    pub(super) download: Download,
}

/// What the backend said that is not handed on yet.
#[derive(Default)]
pub(super) struct Download {
    pub(super) head: Option<HttpResponse<bool>>,
    /// Of the body, what came with the present read: one frame, in however many pieces it was.
    pub(super) text: Vec<u8>,
    pub(super) queue: VecDeque<Frame<Bytes>>,
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
                this.answer.is_some(),
            )
        };
        let before = progress(self);
        let gone = match &mut self.answer {
            Some(answer) => answer.poll_closed(cx),
            None => self.closed.poll_unpin(cx),
        };
        if gone.is_ready() {
            return Poll::Ready(End::ClientGone);
        }
        if let Err(end) = self.poll_upload(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(end) = self.poll_download(cx) {
            return Poll::Ready(end);
        }
        if before != progress(self) {
            self.deadline.set(Instant::now() + self.patience().0);
        }
        self.deadline.poll(cx).map(|()| self.patience().1)
    }

    /// How long the present state may last, and what it is called when it lasted longer.
    fn patience(&self) -> (Duration, End) {
        let timeouts = self.timeouts;
        if !self.download.queue.is_empty() {
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
            if upload.is_done || self.terms.websocket.is_some() {
                return Ok(());
            }
            match Pin::new(&mut upload.body).poll_frame(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(frame))) => upload.take(cx, backend, frame)?,
                Poll::Ready(Some(Err(_))) => return Err(End::ClientGone),
                Poll::Ready(None) => upload.end(backend, &[]),
            }
        }
        Ok(())
    }

    fn poll_download(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            while !self.download.queue.is_empty() {
                if ready!(self.frames.poll_reserve(cx)).is_err() {
                    return Poll::Ready(End::ClientGone);
                }
                if let Some(frame) = self.download.queue.pop_front()
                    && self.frames.send_item(Ok(frame)).is_err()
                {
                    return Poll::Ready(End::ClientGone);
                }
            }
            let read = self
                .backend
                .poll_response(cx, self.terms, &mut self.download);
            self.download.end_frame();
            if let Some(head) = self.download.head.take()
                && !self.answer(head)
            {
                return Poll::Ready(End::ClientGone);
            }
            match ready!(read) {
                Ok(true) if self.download.status == 101 => return Poll::Ready(End::Switched),
                Ok(true) if self.download.queue.is_empty() => return Poll::Ready(End::Done),
                Ok(_) => {}
                Err(_) if self.download.status != 0 => return Poll::Ready(End::Broken),
                Err(Failure::Gone) => return Poll::Ready(End::BackendGone),
                Err(Failure::NotHttp) => return Poll::Ready(End::NotHttp),
            }
        }
    }

    /// Hands the head on; false when nobody wants it any more.
    fn answer(&mut self, head: HttpResponse<bool>) -> bool {
        let receiver = self.receiver.take();
        let mut answer = head.map(|has_body| Body(receiver.filter(|_| has_body)));
        self.extra
            .insert(self.download.status, answer.headers_mut());
        let sender = self.answer.take();
        sender.is_some_and(|sender| sender.send(answer).is_ok())
    }
}

impl Upload {
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        backend: &mut Backend,
        frame: Frame<Bytes>,
    ) -> Result<(), End> {
        let frame = match frame.into_data() {
            Ok(data) => {
                let len = data.len() as u64;
                self.left = self
                    .left
                    .checked_sub(len)
                    .ok_or(End::Refused(Refusal::BODY))?;
                self.bytes += len;
                if len > 0 {
                    self.is_broken |= backend.data(cx, self.encoder, &data).is_err();
                }
                return Ok(());
            }
            Err(frame) => frame,
        };
        if let Ok(trailers) = frame.into_trailers() {
            let mut lines = Vec::new();
            for (name, value) in &trailers {
                if !is_private_trailer(name.as_str()) {
                    fields::write(&mut lines, name.as_str(), value.as_bytes());
                }
            }
            self.end(backend, &lines);
        }
        Ok(())
    }

    fn end(&mut self, backend: &mut Backend, trailers: &[u8]) {
        self.encoder.end(backend.out.buffer(), trailers);
        self.is_done = true;
    }
}

impl Download {
    fn end_frame(&mut self) {
        if !self.text.is_empty() {
            let text = mem::take(&mut self.text);
            self.queue.push_back(Frame::data(text.into()));
        }
    }
}

impl Receiver for Download {
    fn head(&mut self, response: &Response<'_>) {
        if response.is_interim() {
            // hyper has no way to send one.
            return;
        }
        self.status = response.head.status;
        self.lesson.head(response);
        let is_switch = self.status == 101;
        let status = if is_switch { 200 } else { self.status };
        let has_body = !response.framing.is_empty() || is_switch;
        let mut head = HttpResponse::new(has_body);
        *head.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
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
            head.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        self.head = Some(head);
    }

    fn data(&mut self, _cx: &mut Context<'_>, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.lesson.data(data);
        self.text.extend_from_slice(data);
    }

    fn end(&mut self, trailers: &[u8]) {
        self.end_frame();
        let mut room = [httparse::EMPTY_HEADER; 32];
        let mut lines = trailers.to_vec();
        lines.extend_from_slice(b"\r\n");
        let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&lines, &mut room)
        else {
            return;
        };
        let mut map = http::HeaderMap::new();
        for field in fields.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
                map.append(name, value);
            }
        }
        if !map.is_empty() {
            self.queue.push_back(Frame::trailers(map));
        }
    }
}
