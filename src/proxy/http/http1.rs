//! A client's HTTP/1 connection: one request after the other.

use std::{mem, sync::Arc};

use tokio::time::{Duration, Instant, sleep_until};

use super::{
    super::{
        connect::Connected,
        record::{CloseReason, Traffic},
        registry::{Farewell, Ticket},
        relay::Side,
    },
    Visit,
    backend::Backend,
    buffers,
    client::{Client, NoHead},
    deadline::Deadline,
    dispatch::{Destination, Dispatch, new_id, request_id},
    exchange::{Answer, End, Exchange, Upload},
    head::{RequestHead, Room, Version},
    http2,
    out::Out,
    record::{Outcome, RequestRecord},
    refusal::{Refusal, reason_phrase},
    request::{Request, Terms},
    visitor::Visitor,
    websocket::{Tunnel, WebSocket},
};

/// For the next request of a client that could not know that its connection has to go.
const NEXT_REQUEST: Duration = Duration::from_secs(1);

/// What comes after a request.
enum Next {
    /// Another one.
    Request,
    /// The end: all is said.
    Close,
    /// The end, but the client may still be talking: closing at once would be a reset, which
    /// overtakes the answer.
    Linger,
    /// The end, and nobody is left to hear more.
    Gone,
    /// None: it has become this.
    WebSocket(Box<WebSocket>),
}

/// Serves a client until its connection is over, or a WebSocket.
pub(super) async fn serve<S: Side>(
    visitor: &Arc<Visitor>,
    stream: S,
    early: Vec<u8>,
    ticket: &Ticket,
) -> Visit {
    let config = &visitor.settings.config;
    let mut client = Client::new(stream, early);
    let mut deadline = Deadline::new(Instant::now() + config.timeouts.header);
    let farewell = ticket.farewell();
    let begun = Instant::now();
    loop {
        // A head that has begun may come whole.
        let is_asked = farewell.was_said() && !client.input.is_empty();
        let patience = match (client.heads, farewell.was_said()) {
            (0, _) => Some(begun + NEXT_REQUEST),
            (_, true) => Some(Instant::now() + NEXT_REQUEST),
            (_, false) => None,
        };
        let head = tokio::select! {
            biased;
            head = client.next_head(&mut deadline, &config.limits, &config.timeouts) => Some(head),
            () = time_to_go(&farewell, patience), if !is_asked => None,
        };
        let next = match head.unwrap_or(Err(NoHead::Over)) {
            Err(NoHead::Over) if !client.input.is_empty() => Next::Request,
            Err(NoHead::Over) => Next::Close,
            Ok(len) if client.heads == 1 && &client.input[..len] == http2::PREFACE_HEAD => {
                let Client { stream, input, .. } = client;
                let requests = http2::serve(visitor, stream, input, farewell);
                return Visit::over(Box::pin(requests).await);
            }
            // Large, and there only while there is a request: most connections have none, most of
            // the time.
            Ok(len) => Box::pin(request(visitor, &mut client, len, &mut deadline, ticket)).await,
            Err(NoHead::Refused(refusal)) => {
                let mut record = record_of(visitor, Version::Http11, new_id());
                record.refused(refusal);
                write_refusal(&mut client, &record, false, false);
                Next::Linger
            }
            Err(NoHead::Gone) => Next::Gone,
        };
        match next {
            Next::Request => ticket.goes_nowhere(),
            Next::Close => {
                Box::pin(client.close()).await;
                return Visit::over(client.heads);
            }
            Next::Linger => {
                Box::pin(client.linger()).await;
                return Visit::over(client.heads);
            }
            Next::Gone => return Visit::over(client.heads),
            Next::WebSocket(websocket) => {
                return Visit {
                    requests: client.heads,
                    websocket: Some(websocket),
                };
            }
        }
    }
}

/// Waits until the connection has to go. One that has only just come, or was told to stay, may bring a
/// request until `patience` ends: that is on its way.
async fn time_to_go(farewell: &Farewell, patience: Option<Instant>) {
    farewell.wait().await;
    if let Some(until) = patience {
        Box::pin(sleep_until(until)).await;
    }
}

pub(super) fn record_of(visitor: &Visitor, version: Version, id: String) -> RequestRecord {
    let listener = Arc::clone(&visitor.listener);
    let mut record = RequestRecord::new(listener, visitor.client, version);
    record.id = id;
    record
}

/// Carries the request whose head is at the front of the input.
async fn request<S: Side>(
    visitor: &Visitor,
    client: &mut Client<S>,
    len: usize,
    deadline: &mut Deadline,
    ticket: &Ticket,
) -> Next {
    let mut out = Out::default();
    let (mut record, dispatch) = begin(visitor, &client.input[..len], out.buffer());
    client.input.drain(..len);
    match dispatch {
        Ok(Dispatch { terms, destination }) => {
            let upload = Upload::new(&terms, visitor.settings.config.limits.body_bytes);
            let carriage = Carriage {
                visitor,
                client,
                deadline,
                ticket,
                record,
                terms,
                upload,
            };
            carriage.run(&destination, out).await
        }
        Err(refusal) => {
            record.refused(refusal);
            write_refusal(client, &record, false, false);
            Next::Linger
        }
    }
}

/// Everything that needs the request's head.
fn begin(
    visitor: &Visitor,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> (RequestRecord, Result<Dispatch, Refusal>) {
    let mut room: Room<'_> = [const { mem::MaybeUninit::uninit() }; _];
    let limit = visitor.settings.config.limits.headers;
    let request = RequestHead::parse(bytes, &mut room, limit).and_then(Request::judge);
    let request = match request {
        Ok(request) => request,
        Err(refusal) => return (record_of(visitor, Version::Http11, new_id()), Err(refusal)),
    };
    let mut record = record_of(visitor, request.head.version, request_id(&request));
    record.asks(request.head.method, request.host, request.target);
    let dispatch = Dispatch::new(request, visitor, &mut record, out);
    (record, dispatch)
}

/// One request on its way, and what it needs.
struct Carriage<'a, S> {
    visitor: &'a Visitor,
    client: &'a mut Client<S>,
    deadline: &'a mut Deadline,
    ticket: &'a Ticket,
    record: RequestRecord,
    terms: Terms,
    upload: Upload,
}

/// How one attempt with one backend ended.
enum Attempt {
    Over(Next),
    /// The request can be sent once more.
    Again(Out),
    /// Both sides speak another protocol now.
    Switched(Box<Backend>),
}

impl<S: Side> Carriage<'_, S> {
    /// Finds the request's home, and carries request and response.
    async fn run(mut self, destination: &Destination, mut out: Out) -> Next {
        let is_plain = self.terms.websocket.is_none();
        let mut search = destination.search(self.visitor.listener.holds, is_plain);
        let mut may_retry = self.terms.is_idempotent && self.terms.framing.is_empty();
        loop {
            let connected = tokio::select! {
                biased;
                connected = search.connect(&mut self.record.journey) => connected,
                () = self.client.gone() => return self.end(Outcome::CLIENT_GONE),
            };
            let connected = match connected {
                Ok(connected) => connected,
                Err(reason) => return self.unreached(reason),
            };
            let is_reused = connected.is_reused;
            match self.attempt(destination, connected, out, may_retry).await {
                Attempt::Over(next) => return next,
                Attempt::Again(again) => out = again,
                Attempt::Switched(backend) => return self.becomes_tunnel(destination, *backend),
            }
            may_retry = false;
            search.reuse(false);
            let home = self.record.journey.home.take();
            if let (false, Some(home)) = (is_reused, home)
                && search.note_failure(Arc::clone(&home.slot().name)).is_err()
            {
                return self.answer(502, Outcome::new("backend", "gone"));
            }
        }
    }

    async fn attempt(
        &mut self,
        destination: &Destination,
        connected: Connected,
        out: Out,
        may_retry: bool,
    ) -> Attempt {
        let Some(home) = &self.record.journey.home else {
            return Attempt::Over(self.answer(503, Outcome::new("proxy", "no_backend")));
        };
        self.ticket.goes_to(home, destination.key());
        let is_reused = connected.is_reused;
        let extra = destination.extra(&self.record.id, home);
        let farewell = self.ticket.farewell();
        let lesson = destination.lesson(home);
        let mut answer = Answer::new(&self.terms, &extra, lesson, &farewell);
        let mut backend = Backend::new(connected.upstream, out);
        let exchange = Exchange {
            client: self.client,
            backend: &mut backend,
            terms: &self.terms,
            upload: &mut self.upload,
            answer: &mut answer,
            deadline: self.deadline,
            timeouts: &self.visitor.settings.config.timeouts,
            response: destination.response_timeout(),
        };
        let end = exchange.run().await;
        let Answer {
            status,
            bytes,
            keep_alive,
            ..
        } = answer;
        self.record.status = status;
        self.record.traffic = Traffic {
            up: self.upload.bytes,
            down: bytes,
        };
        if end.is_failure(is_reused) || destination.is_failure(status, &self.terms) {
            home.failed();
        }
        match end {
            End::BackendGone if may_retry && backend.is_silent() => {
                backend.out.rewind();
                Attempt::Again(backend.out)
            }
            End::Done => {
                self.record.outcome = Outcome::DONE;
                let is_whole = self.upload.is_done();
                if let Some(stream) = backend.into_reusable().filter(|_| is_whole) {
                    home.keep(stream);
                }
                Attempt::Over(match (is_whole, keep_alive) {
                    (true, true) => Next::Request,
                    (true, false) => Next::Close,
                    (false, _) => Next::Linger,
                })
            }
            End::Switched => Attempt::Switched(Box::new(backend)),
            end => Attempt::Over(self.conclude(end)),
        }
    }

    /// The connection has become a WebSocket: leaves behind all that it does not need.
    fn becomes_tunnel(self, destination: &Destination, mut backend: Backend) -> Next {
        let client = self.client;
        let mut from_backend = backend.take_rest();
        let to_down = mem::take(&mut client.out);
        let tunnel = Tunnel::new(to_down, &client.input, &from_backend);
        for early in [&mut client.input, &mut from_backend] {
            early.clear();
            buffers::release(early);
        }
        Next::WebSocket(Box::new(WebSocket::new(
            self.record,
            backend.into_stream(),
            tunnel,
            destination,
        )))
    }

    fn conclude(&mut self, end: End) -> Next {
        match end {
            End::Done | End::Switched => self.end(Outcome::DONE),
            End::ClientGone => self.end(Outcome::CLIENT_GONE),
            End::Refused(refusal) if self.record.status == 0 => {
                self.record.refused(refusal);
                write_refusal(self.client, &self.record, self.terms.is_head, false);
                Next::Linger
            }
            End::Refused(refusal) => self.end(Outcome::new("client", refusal.why)),
            End::BackendGone => self.answer(502, Outcome::new("backend", "gone")),
            End::NotHttp => self.answer(502, Outcome::new("backend", "not_http")),
            End::ResponseTimeout => self.answer(504, Outcome::new("backend", "response_timeout")),
            End::SlowClient => self.end(Outcome::new("client", "slow")),
            End::Idle => self.end(Outcome::new("proxy", "idle_timeout")),
            End::Broken => self.end(Outcome::new("backend", "broken")),
        }
    }

    /// Ends the connection too. Nobody shall take a response that broke off for one that is
    /// complete, so it is reset.
    fn end(&mut self, outcome: Outcome) -> Next {
        self.record.outcome = outcome;
        self.client.stream.reset_on_close();
        Next::Gone
    }

    /// No backend could be reached.
    fn unreached(&mut self, reason: CloseReason) -> Next {
        let status = match reason {
            CloseReason::ConnectFailed => 502,
            _ => 503,
        };
        self.answer(status, Outcome::new(reason.by(), reason.as_str()))
    }

    /// Answers in place of the backend.
    fn answer(&mut self, status: u16, outcome: Outcome) -> Next {
        self.record.status = status;
        self.record.outcome = outcome;
        let keep_alive =
            self.terms.keep_alive && self.terms.version == Version::Http11 && self.upload.is_done();
        write_refusal(self.client, &self.record, self.terms.is_head, keep_alive);
        match keep_alive {
            true => Next::Request,
            false => Next::Linger,
        }
    }
}

/// Writes a response of our own: its body names the request and nothing else.
pub(super) fn write_refusal<S>(
    client: &mut Client<S>,
    record: &RequestRecord,
    is_head: bool,
    keep_alive: bool,
) {
    let status = record.status;
    let reason = reason_phrase(status);
    let body = format!("{status} {reason}\nrequest {}\n", record.id);
    let mut text = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nX-Request-Id: {}\r\n",
        body.len(),
        record.id
    );
    text.push_str(match status {
        405 => "Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH\r\n",
        426 => "Sec-WebSocket-Version: 13\r\n",
        503 => "Retry-After: 1\r\n",
        _ => "",
    });
    if !keep_alive {
        text.push_str("Connection: close\r\n");
    }
    text.push_str("\r\n");
    if !is_head {
        text.push_str(&body);
    }
    client.out.buffer().extend_from_slice(text.as_bytes());
}
