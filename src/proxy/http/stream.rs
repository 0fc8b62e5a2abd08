//! One request of an HTTP/2 connection: a task of its own, which speaks HTTP/1.1 to the backend
//! and hands the response to h2 piece by piece.

mod duplex;
mod exchange;
mod reply;

use std::{future::poll_fn, sync::Arc};

use self::{
    duplex::Duplex,
    exchange::{Download, Exchange, Upload},
    reply::Reply,
};
use super::{
    super::{
        connect::Connected,
        record::{CloseReason, Traffic},
        registry::{Ticket, own_waker},
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
use bytes::Bytes;
use h2::{RecvStream, ext::Protocol, server::SendResponse};
use http::{
    HeaderName, HeaderValue, Method, Request as HttpRequest, Response as HttpResponse, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request::Parts,
};

/// Carries one request.
pub(super) async fn serve(
    visitor: &Visitor,
    request: HttpRequest<RecvStream>,
    respond: SendResponse<Bytes>,
    deadline: &mut Deadline,
    ticket: &Ticket,
) {
    let mut reply = Reply::new(respond);
    let (parts, body) = request.into_parts();
    let mut out = Out::default();
    let (mut record, dispatch) = begin(visitor, &parts, body.is_end_stream(), out.buffer());
    let Dispatch { terms, destination } = match dispatch {
        Ok(dispatch) => dispatch,
        Err(refusal) => {
            record.refused(refusal);
            return answer(&mut reply, &record, parts.method == Method::HEAD);
        }
    };
    // All that was needed of it is in `out`.
    drop(parts);
    let upload = Upload {
        encoder: Encoder::new(terms.framing),
        left: visitor
            .settings
            .config
            .limits
            .body_bytes
            .unwrap_or(u64::MAX),
        is_done: body.is_end_stream() || terms.websocket.is_some(),
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
        reply,
        deadline,
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

/// One request on its way, and what it needs.
struct Errand<'a> {
    visitor: &'a Visitor,
    ticket: &'a Ticket,
    record: RequestRecord,
    terms: Terms,
    upload: Upload,
    reply: Reply,
    deadline: &'a mut Deadline,
}

impl Errand<'_> {
    /// Finds the request's home, and carries request and response.
    async fn run(&mut self, destination: &Destination, mut out: Out) {
        let is_plain = self.terms.websocket.is_none();
        let mut search = destination.search(self.visitor.listener.holds, is_plain);
        let mut may_retry = self.terms.is_idempotent && self.upload.is_done;
        loop {
            let connected = tokio::select! {
                biased;
                connected = search.connect(&mut self.record.journey) => connected,
                () = self.reply.gone() => return self.record.outcome = Outcome::CLIENT_GONE,
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
        let mut exchange = Exchange {
            backend: Backend::new(connected.upstream, out),
            terms: &self.terms,
            upload: &mut self.upload,
            deadline: &mut *self.deadline,
            timeouts: &self.visitor.settings.config.timeouts,
            response: destination.response_timeout(),
            reply: &mut self.reply,
            extra: destination.extra(&self.record.id, home),
            download: Download {
                lesson: destination.lesson(home),
                ..Download::default()
            },
        };
        let end = exchange.run().await;
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
        let Some(stream) = self.reply.take_stream() else {
            return;
        };
        let home = self.record.journey.home.as_ref();
        let known = home.and_then(|home| destination.known(home));
        let ticket = self.ticket;
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
