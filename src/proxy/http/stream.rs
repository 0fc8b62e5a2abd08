//! One request of an HTTP/2 connection: a task of its own, which speaks HTTP/1.1 to the backend
//! and hands the response to h2 piece by piece.

mod duplex;
mod exchange;
mod reply;

use std::{future::poll_fn, mem, sync::Arc};

use self::{
    duplex::Duplex,
    exchange::{Download, Exchange, Upload},
    reply::Reply,
};
use super::{
    super::{
        connect::{Connected, Tried},
        listener::Listener,
        record::Traffic,
        registry::{Ticket, own_waker},
    },
    backend::Backend,
    body::Encoder,
    deadline::{Deadline, NEVER},
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
use bytes::Bytes;
use h2::{RecvStream, ext::Protocol, server::SendResponse};
use http::{
    HeaderName, HeaderValue, Method, Request as HttpRequest, Response as HttpResponse, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request::Parts,
};
use tokio::time::Instant;

/// One request on its way, and what it needs.
pub(super) struct Errand {
    visitor: Arc<Visitor>,
    record: RequestRecord,
    terms: Terms,
    destination: Destination,
    /// The request as the backend is sent it, between two attempts.
    out: Out,
    upload: Upload,
    reply: Reply,
    deadline: Deadline,
}

/// What follows on an attempt.
enum Next {
    /// Nothing.
    Over,
    /// Another one.
    Again,
    /// The stream is a WebSocket now.
    Tunnel(Box<Backend>),
}

impl Errand {
    /// Judges a request. Nothing is left to do for one that is refused.
    ///
    /// Not part of the task that carries it: what only the head needs takes no room there.
    pub(super) fn begin(
        visitor: &Arc<Visitor>,
        request: HttpRequest<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Option<Box<Self>> {
        let mut reply = Reply::new(respond);
        let (parts, body) = request.into_parts();
        let is_over = body.is_end_stream();
        let mut out = Out::default();
        let (mut record, dispatch) = judge(visitor, &parts, is_over, out.buffer());
        let Dispatch { terms, destination } = match dispatch {
            Ok(dispatch) => dispatch,
            Err(refusal) => {
                record.refused(refusal);
                answer(&mut reply, &record, parts.method == Method::HEAD);
                return None;
            }
        };
        let limit = visitor.settings.config.limits.body_bytes;
        let upload = Upload {
            encoder: Encoder::new(terms.framing),
            left: limit.unwrap_or(u64::MAX),
            is_done: is_over || terms.websocket.is_some(),
            is_broken: false,
            bytes: 0,
            body,
        };
        Some(Box::new(Self {
            visitor: Arc::clone(visitor),
            record,
            terms,
            destination,
            out,
            upload,
            reply,
            // One that is due at once would wake the thread's event loop.
            deadline: Deadline::spare(Instant::now() + NEVER),
        }))
    }

    pub(super) fn listener(&self) -> Arc<Listener> {
        Arc::clone(&self.visitor.listener)
    }

    /// Leaves to the next one what it can use.
    pub(super) fn end(self: Box<Self>) {
        self.deadline.keep();
    }

    /// Finds the request's home, and carries request and response.
    pub(super) async fn run(&mut self, ticket: &Ticket) {
        let mut may_reuse = self.terms.websocket.is_none();
        let mut may_retry = self.terms.is_idempotent && self.upload.is_done;
        let mut tried = None;
        loop {
            let Some(connected) = self.connect(&mut tried, may_reuse).await else {
                return;
            };
            let is_reused = connected.is_reused;
            // Stays where it is until its end: what is held over an await is the future's size.
            let Some(mut exchange) = self.exchange(ticket, connected) else {
                return;
            };
            let end = exchange.run().await;
            let Exchange {
                backend, download, ..
            } = exchange;
            let heard = (download.status, download.bytes);
            match self.settle(backend, heard, end, is_reused, may_retry) {
                Next::Over => return,
                Next::Tunnel(backend) => return Box::pin(self.tunnel(ticket, *backend)).await,
                Next::Again => {}
            }
            (may_retry, may_reuse) = (false, false);
            ticket.goes_nowhere();
            let home = self.record.journey.home.take();
            if let (false, Some(home)) = (is_reused, home) {
                let tried: &mut Tried = tried.get_or_insert_default();
                if tried.note_failure(Arc::clone(&home.slot().name)).is_err() {
                    return self.reply(502, Outcome::new("backend", "gone"));
                }
            }
        }
    }

    /// Finds the backend. Nothing is left to do when there is none, or the client has gone.
    async fn connect(
        &mut self,
        tried: &mut Option<Box<Tried>>,
        may_reuse: bool,
    ) -> Option<Connected> {
        let may_hold = self.visitor.listener.holds;
        let mut search = self.destination.search(may_hold, may_reuse);
        search.after(tried.take());
        let connected = tokio::select! {
            biased;
            connected = search.connect(&mut self.record.journey) => connected,
            () = self.reply.gone() => {
                self.record.outcome = Outcome::CLIENT_GONE;
                return None;
            }
        };
        *tried = search.into_tried();
        match connected {
            Ok(connected) => Some(connected),
            Err(reason) => {
                let (status, outcome) = Outcome::unreached(reason);
                self.reply(status, outcome);
                None
            }
        }
    }

    /// One attempt with one backend.
    fn exchange(&mut self, ticket: &Ticket, connected: Connected) -> Option<Exchange<'_>> {
        let home = self.record.journey.home.as_ref()?;
        ticket.goes_to(home, self.destination.key());
        Some(Exchange {
            backend: Backend::new(connected.upstream, mem::take(&mut self.out)),
            terms: &self.terms,
            upload: &mut self.upload,
            deadline: &mut self.deadline,
            timeouts: &self.visitor.settings.config.timeouts,
            response: self.destination.response_timeout(),
            reply: &mut self.reply,
            extra: self.destination.extra(&self.record.id, home),
            download: Download {
                lesson: self.destination.lesson(home),
                ..Download::default()
            },
        })
    }

    /// What an attempt's end means. `heard` is the status and the bytes that came.
    fn settle(
        &mut self,
        backend: Backend,
        heard: (u16, u64),
        end: End,
        is_reused: bool,
        may_retry: bool,
    ) -> Next {
        let (status, down) = heard;
        let home = self.record.journey.home.as_ref();
        let is_failure = end.is_failure(is_reused);
        if let Some(home) = home
            && (is_failure || self.destination.is_failure(status, &self.terms))
        {
            home.failed();
        }
        if end == End::BackendGone && may_retry && backend.is_silent() {
            self.out = backend.out;
            self.out.rewind();
            return Next::Again;
        }
        let is_broken = matches!(
            end,
            End::Broken | End::Idle | End::SlowClient | End::Refused(_)
        );
        if is_broken && !self.reply.is_unsaid() {
            // Nobody shall take a response that broke off for one that is complete.
            self.reply.reset();
        }
        self.record.status = status;
        self.record.traffic = Traffic {
            up: self.upload.bytes,
            down,
        };
        self.conclude(end);
        match end {
            End::Switched => return Next::Tunnel(Box::new(backend)),
            End::Done if self.upload.is_done => {
                let home = self.record.journey.home.as_ref();
                if let (Some(stream), Some(home)) = (backend.into_reusable(), home) {
                    home.keep(stream);
                }
            }
            _ => {}
        }
        Next::Over
    }

    /// Carries the WebSocket that the stream has become.
    async fn tunnel(&mut self, ticket: &Ticket, mut backend: Backend) {
        let Some(stream) = self.reply.take_stream() else {
            return;
        };
        let home = self.record.journey.home.as_ref();
        let destination = &self.destination;
        let known = home.and_then(|home| destination.known(home));
        let waker = own_waker().await;
        ticket.can_leave(waker.clone());
        ticket.is_tunnel(destination.cluster(), home, destination.key(), known);
        ticket.is_relayed(waker, self.visitor.settings.config.timeouts.idle, false);
        self.record.becomes_tunnel();
        let config = destination.config();
        let from_backend = backend.take_rest();
        let conduct = Conduct {
            drain: &config.drain,
            ticket,
        };
        let mut down = Duplex::new(&mut self.upload.body, stream);
        let mut tunnel = Tunnel::new(Out::default(), &[], &from_backend);
        let end = poll_fn(|cx| tunnel.poll(cx, (&mut down, &mut backend.stream), conduct));
        if let Some(end) = end.await {
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
        if self.reply.is_unsaid() {
            self.record.status = status;
            answer(&mut self.reply, &self.record, self.terms.is_head);
        }
    }
}

/// Everything that needs the request's head.
fn judge(
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

/// Answers by itself: the body names the request and nothing else.
fn answer(reply: &mut Reply, record: &RequestRecord, is_head: bool) {
    let status = record.status;
    let mut answer = HttpResponse::new(());
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
    let reason = reason_phrase(status);
    let text = format!("{status} {reason}\nrequest {}\n", record.id);
    let _gone = reply.head(answer, is_head);
    let _gone = reply.data(text.into(), true);
}
