//! One request of an HTTP/2 connection: a task of its own, which speaks HTTP/1.1 to the backend
//! and hands the response to hyper piece by piece.

mod exchange;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use http::{
    HeaderName, HeaderValue, Request as HttpRequest, Response as HttpResponse, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request::Parts,
};
use hyper::{
    body::{Body as _, Bytes, Frame, Incoming},
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::PollSender;

use self::exchange::{Download, Exchange, Upload};
use super::{
    super::{
        connect::Connected,
        record::{CloseReason, Traffic},
        registry::Ticket,
        relay::Side,
    },
    backend::Backend,
    body::Encoder,
    deadline::Deadline,
    dispatch::{Destination, Dispatch, new_id, request_id},
    exchange::End,
    head::{Field, RequestHead, Version},
    out::Out,
    record::{Outcome, RequestRecord},
    refusal::{Refusal, reason_phrase},
    request::{Request, Terms},
    visitor::Visitor,
    websocket::{Conduct, Tunnel},
};

/// A response as hyper takes it.
pub(super) type Answered = HttpResponse<Body>;

/// The body of a response: what the request's task sends.
#[derive(Debug)]
pub(super) struct Body(Option<mpsc::Receiver<Result<Frame<Bytes>, Broken>>>);

/// The response broke off: the client's stream is reset.
#[derive(Debug, thiserror::Error)]
#[error("the response broke off")]
pub(super) struct Broken;

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.get_mut().0 {
            Some(frames) => frames.poll_recv(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// Carries one request. `answer` is dropped when the client gives it up.
pub(super) async fn serve(
    visitor: &Visitor,
    request: HttpRequest<Incoming>,
    answer: oneshot::Sender<Answered>,
    ticket: &Ticket,
) {
    let mut request = request;
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let mut out = Out::default();
    let (mut record, dispatch) = begin(visitor, &parts, body.is_end_stream(), out.buffer());
    let Dispatch { terms, destination } = match dispatch {
        Ok(dispatch) => dispatch,
        Err(refusal) => {
            record.refused(refusal);
            let _gone = answer.send(own_answer(&record));
            return;
        }
    };
    let upload = Upload {
        encoder: Encoder::new(terms.framing),
        left: visitor
            .settings
            .config
            .limits
            .body_bytes
            .unwrap_or(u64::MAX),
        is_done: body.is_end_stream(),
        is_broken: false,
        bytes: 0,
        body,
    };
    let mut errand = Errand {
        visitor,
        ticket,
        record,
        terms,
        upload,
        answer: Some(answer),
        upgrade: Some(upgrade),
    };
    errand.run(&destination, out).await;
}

/// Everything that needs the request's head.
fn begin(
    visitor: &Visitor,
    parts: &Parts,
    is_over: bool,
    out: &mut Vec<u8>,
) -> (RequestRecord, Result<Dispatch, Refusal>) {
    let new_record = |id| {
        let listener = Arc::clone(&visitor.listener);
        let mut record = RequestRecord::new(listener, visitor.client, Version::Http2);
        record.id = id;
        record
    };
    let names = parts.headers.iter();
    let fields: Vec<Field<'_>> = names
        .map(|(name, value)| Field {
            name: name.as_str(),
            value: value.as_bytes(),
        })
        .collect();
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let protocol = parts.extensions.get::<Protocol>();
    let head = RequestHead {
        version: Version::Http2,
        method: parts.method.as_str(),
        target: path,
        authority: parts.uri.authority().map(|authority| authority.as_str()),
        protocol: protocol.map(Protocol::as_str),
        has_body: !is_over,
        fields: &fields,
    };
    let judged = match fields.len() > visitor.settings.config.limits.headers {
        true => Err(Refusal::FIELDS),
        false => Request::judge(head),
    };
    let request = match judged {
        Ok(request) => request,
        Err(refusal) => return (new_record(new_id()), Err(refusal)),
    };
    let mut record = new_record(request_id(&request));
    record.asks(request.head.method, request.host, request.target);
    let dispatch = Dispatch::new(request, visitor, &mut record, out);
    (record, dispatch)
}

/// A response of our own: its body names the request and nothing else.
fn own_answer(record: &RequestRecord) -> Answered {
    let status = record.status;
    let text = format!(
        "{status} {}\nrequest {}\n",
        reason_phrase(status),
        record.id
    );
    let (frames, body) = mpsc::channel(1);
    let _first = frames.try_send(Ok(Frame::data(Bytes::from(text))));
    let mut answer = HttpResponse::new(Body(Some(body)));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if let Ok(id) = HeaderValue::from_str(&record.id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    if status == 503 {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// What a client gets whose request was cut before it was answered: its stream is reset.
pub(super) fn cut() -> Answered {
    let (frames, body) = mpsc::channel(1);
    let _first = frames.try_send(Err(Broken));
    let mut answer = HttpResponse::new(Body(Some(body)));
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    answer
}

/// One request on its way, and what it needs.
struct Errand<'a> {
    visitor: &'a Visitor,
    ticket: &'a Ticket,
    record: RequestRecord,
    terms: Terms,
    upload: Upload,
    answer: Option<oneshot::Sender<Answered>>,
    /// The stream, once an extended CONNECT was answered (RFC 8441).
    upgrade: Option<OnUpgrade>,
}

impl Errand<'_> {
    /// Finds the request's home, and carries request and response.
    async fn run(&mut self, destination: &Destination, mut out: Out) {
        let is_plain = self.terms.websocket.is_none();
        let mut search = destination.search(self.visitor.listener.holds, is_plain);
        let mut may_retry = self.terms.is_idempotent && self.upload.is_done;
        loop {
            let Some(answer) = &mut self.answer else {
                return;
            };
            let connected = tokio::select! {
                biased;
                connected = search.connect(&mut self.record.journey) => connected,
                () = answer.closed() => return self.record.outcome = Outcome::CLIENT_GONE,
            };
            let connected = match connected {
                Ok(connected) => connected,
                Err(reason) => {
                    let status = match reason {
                        CloseReason::ConnectFailed => 502,
                        _ => 503,
                    };
                    return self.reply(status, Outcome::new(reason.by(), reason.as_str()));
                }
            };
            let is_reused = connected.is_reused;
            match self.attempt(destination, connected, out, may_retry).await {
                None => return,
                Some(again) => out = again,
            }
            may_retry = false;
            search.reuse(false);
            let home = self.record.journey.home.take();
            if let (false, Some(home)) = (is_reused, home)
                && search.note_failure(Arc::clone(&home.slot().name)).is_err()
            {
                return self.reply(502, Outcome::new("backend", "gone"));
            }
        }
    }

    /// One attempt with one backend. Gives the request back when it can be sent once more.
    async fn attempt(
        &mut self,
        destination: &Destination,
        connected: Connected,
        out: Out,
        may_retry: bool,
    ) -> Option<Out> {
        let home = self.record.journey.home.as_ref()?;
        self.ticket.goes_to(home, destination.key());
        let (sender, receiver) = mpsc::channel(1);
        let closed = sender.clone();
        let mut exchange = Exchange {
            backend: Backend::new(connected.upstream, out),
            terms: &self.terms,
            upload: &mut self.upload,
            deadline: Deadline::new(Instant::now()),
            timeouts: &self.visitor.settings.config.timeouts,
            response: destination.response_timeout(),
            answer: self.answer.take(),
            extra: destination.extra(&self.record.id, home),
            receiver: Some(receiver),
            closed: async move { closed.closed().await }.boxed(),
            frames: PollSender::new(sender),
            download: Download {
                lesson: destination.lesson(home),
                ..Download::default()
            },
        };
        let end = exchange.run().await;
        self.answer = exchange.answer.take();
        let (status, down) = (exchange.download.status, exchange.download.bytes);
        if end.is_failure(connected.is_reused) || destination.is_failure(status, &self.terms) {
            home.failed();
        }
        let backend = exchange.backend;
        if end == End::BackendGone && may_retry && backend.is_silent() {
            let mut out = backend.out;
            out.rewind();
            return Some(out);
        }
        if matches!(
            end,
            End::Broken | End::Idle | End::SlowClient | End::Refused(_)
        ) {
            // Nobody shall take a response that broke off for one that is complete.
            exchange.frames.abort_send();
            if let Some(frames) = exchange.frames.get_ref() {
                let _gone = frames.try_send(Err(Broken));
            }
        }
        self.record.status = status;
        self.record.traffic = Traffic {
            up: self.upload.bytes,
            down,
        };
        self.conclude(end);
        match end {
            End::Switched => Box::pin(self.tunnel(destination, backend)).await,
            End::Done if self.upload.is_done => {
                let home = self.record.journey.home.as_ref();
                if let (Some(stream), Some(home)) = (backend.into_reusable(), home) {
                    home.keep(stream);
                }
            }
            _ => {}
        }
        None
    }

    /// Carries the WebSocket that the stream has become.
    async fn tunnel(&mut self, destination: &Destination, mut backend: Backend) {
        let Some(upgrade) = self.upgrade.take() else {
            return;
        };
        let within = self.visitor.settings.config.timeouts.header;
        let Ok(Ok(upgraded)) = tokio::time::timeout(within, upgrade).await else {
            self.record.outcome = Outcome::CLIENT_GONE;
            return;
        };
        let home = self.record.journey.home.as_ref();
        let known = home.and_then(|home| destination.known(home));
        let cluster = destination.cluster();
        self.ticket
            .is_tunnel(cluster, home, destination.key(), known);
        self.record.becomes_tunnel();
        let config = destination.config();
        let from_backend = backend.take_rest();
        let conduct = Conduct {
            idle: self.visitor.settings.config.timeouts.idle,
            drain: &config.drain,
            farewell: &self.ticket.farewell(),
        };
        let sides = (&mut TokioIo::new(upgraded), &mut backend.stream);
        let mut tunnel = Tunnel::new(Out::default(), &[], &from_backend);
        if let Some(end) = tunnel.run(sides, conduct).await {
            self.record.tunnelled(end);
        }
        self.record.status = 200;
    }

    fn conclude(&mut self, end: End) {
        match end {
            End::Done => self.record.outcome = Outcome::DONE,
            End::Switched => {}
            End::ClientGone => self.record.outcome = Outcome::CLIENT_GONE,
            End::Refused(refusal) => {
                self.reply(refusal.status, Outcome::new("client", refusal.why));
            }
            End::BackendGone => self.reply(502, Outcome::new("backend", "gone")),
            End::NotHttp => self.reply(502, Outcome::new("backend", "not_http")),
            End::ResponseTimeout => self.reply(504, Outcome::new("backend", "response_timeout")),
            End::SlowClient => self.record.outcome = Outcome::new("client", "slow"),
            End::Idle => self.record.outcome = Outcome::new("proxy", "idle_timeout"),
            End::Broken => self.record.outcome = Outcome::new("backend", "broken"),
        }
    }

    /// Answers in place of the backend, if nothing was answered yet.
    fn reply(&mut self, status: u16, outcome: Outcome) {
        self.record.outcome = outcome;
        if let Some(answer) = self.answer.take() {
            self.record.status = status;
            let _gone = answer.send(own_answer(&self.record));
        }
    }
}

impl Side for TokioIo<Upgraded> {
    const BUFFERS: bool = true;

    /// A stream that is dropped before its end is reset by hyper.
    fn reset_on_close(&self) {}

    fn was_reset(&self) -> bool {
        false
    }
}
