//! A client's HTTP/1 connection: one request after the other, and little between two.

mod carriage;
mod saved;

use std::{
    future::{Future as _, poll_fn, ready},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tokio::time::{Duration, Instant, Sleep, sleep_until};

pub(in crate::proxy) use self::saved::{ResumedVisit, SavedVisit};
use self::{carriage::Carriage, saved::Resumed};
use super::{
    super::{
        carried::Carried,
        connection::{Connection, Open},
        record::CloseReason,
        registry::{self, Passage},
        secure::Downstream,
    },
    client::{Client, NoHead},
    dispatch::{Dispatch, new_id, request_id},
    exchange::Upload,
    head::{RequestHead, Room, Version},
    http2,
    out::Out,
    record::RequestRecord,
    refusal::{Refusal, reason_phrase},
    request::Request,
    visitor::Visitor,
    websocket::{Upgraded, WebSocket},
};

/// For the next request of a client that could not know that its connection has to go.
pub(super) const NEXT_REQUEST: Duration = Duration::from_secs(1);

/// A client's connection: all that there is of it between two requests, and so kept small.
#[derive(Debug)]
pub(in crate::proxy) struct Visit<D: Downstream> {
    client: Client<Open<D>>,
    connection: Connection,
    /// When it goes without another request, once it was asked to go.
    goes: Option<Pin<Box<Sleep>>>,
    /// What an earlier image of the program has begun.
    begun: Option<Box<Resumed>>,
}

/// What comes after a request.
enum Next {
    /// Another one.
    Request,
    /// It is here; its head has this length.
    Carry(usize),
    /// What an earlier image of the program has begun.
    GoOn(Box<Resumed>),
    /// Nothing for now: an upgrade is about to happen.
    Wait,
    /// The end: all is said.
    Close,
    /// The end, but the client may still be talking: closing at once would be a reset, which
    /// overtakes the answer.
    Linger,
    /// The end, and nobody is left to hear more.
    Gone,
    /// None: it has become this.
    WebSocket(Box<WebSocket>),
    /// None: it has been HTTP/2 all along.
    Http2,
    /// Nothing any more.
    Over,
}

impl<D: Downstream> Visit<D> {
    /// One that begins. `early` was read before.
    pub(in crate::proxy) fn new(client: Open<D>, early: Vec<u8>, connection: Connection) -> Self {
        Self {
            client: Client::new(client, early),
            connection,
            goes: None,
            begun: None,
        }
    }

    /// Serves the client to the end, or until it has become a WebSocket.
    pub(in crate::proxy) async fn run(&mut self) -> Option<Box<WebSocket>> {
        let waker = registry::own_waker().await;
        self.connection.ticket.can_leave(waker);
        let mut next = self.begun.take().map_or(Next::Request, Next::GoOn);
        loop {
            next = match next {
                Next::Request => {
                    self.begin_to_wait();
                    poll_fn(|cx| self.poll(cx)).await
                }
                Next::Over => return None,
                Next::WebSocket(websocket) => return Some(websocket),
                next => self.busy(next).await,
            };
        }
    }

    /// What it is once it has become this.
    pub(in crate::proxy) fn upgraded(self, websocket: WebSocket) -> Upgraded<D> {
        Upgraded::new(self.client.stream, websocket, self.connection)
    }

    fn begin_to_wait(&mut self) {
        let Self {
            client, connection, ..
        } = self;
        connection.ticket.goes_nowhere();
        client.begin_head();
        let timeouts = &connection.settings.config.timeouts;
        let patience = match client.heads > 0 && client.input.is_empty() {
            true => timeouts.keepalive,
            false => timeouts.header,
        };
        let ticket = &connection.ticket;
        ticket.waits(patience, Passage::of(&client.stream));
        let now = || Instant::now() + NEXT_REQUEST;
        self.goes = ticket.is_asked().then(|| Box::pin(sleep_until(now())));
    }

    /// Waits for a request.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Self {
            client, connection, ..
        } = self;
        let passage = Passage::of(&client.stream);
        if passage == Passage::Now && registry::is_resting() {
            return match registry::is_frozen() {
                true => Poll::Ready(Next::Wait),
                false => Poll::Pending,
            };
        }
        let config = &connection.settings.config;
        let was_silent = client.input.is_empty();
        if let Poll::Ready(head) = client.poll_head(cx, &config.limits) {
            return Poll::Ready(match head {
                Ok(len) if self.is_http2(len) => Next::Http2,
                Ok(len) => Next::Carry(len),
                Err(why) => self.without_head(why),
            });
        }
        let ticket = &connection.ticket;
        if was_silent && !client.input.is_empty() {
            ticket.waits(config.timeouts.header, passage);
        }
        if ticket.is_idle(false) {
            let why = client.too_late();
            return Poll::Ready(self.without_head(why));
        }
        self.poll_goes(cx).map(|()| Next::Close)
    }

    /// Waits until the connection has to go. One that has only just come, or was told to stay, may bring a
    /// request that is on its way; a head that has begun may come whole.
    fn poll_goes(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.client.input.is_empty() || !self.connection.ticket.is_asked() {
            return Poll::Pending;
        }
        let goes = self.goes.get_or_insert_with(|| {
            let came = self.connection.record.accepted();
            Box::pin(sleep_until(match self.client.heads {
                0 => came + NEXT_REQUEST,
                _ => came,
            }))
        });
        goes.as_mut().poll(cx)
    }

    fn is_http2(&self, len: usize) -> bool {
        self.client.heads == 1 && &self.client.input[..len] == http2::PREFACE_HEAD
    }

    /// What comes when there is no next request.
    fn without_head(&mut self, why: NoHead) -> Next {
        match why {
            NoHead::Over => Next::Close,
            NoHead::Gone => Next::Gone,
            NoHead::Refused(refusal) => {
                let visitor = self.visitor();
                let mut record = record_of(&visitor, Version::Http11, new_id());
                record.refused(refusal);
                self.connection.record.requests = self.client.heads.saturating_add(1);
                write_refusal(&mut self.client, &record, false, false);
                Next::Linger
            }
        }
    }

    fn visitor(&self) -> Visitor {
        self.connection.visitor(self.client.stream.secured())
    }

    /// Carries the request whose head is at the front of the input. All that is looked at but once is so
    /// before there is a future, which holds the rest, and that once.
    fn request(&mut self, len: usize) -> BoxFuture<'_, Next> {
        let visitor = self.visitor();
        // It has a record of its own, whatever becomes of the connection.
        self.connection.record.requests = self.client.heads;
        let client = &mut self.client;
        let mut out = Out::default();
        let (mut record, dispatch) = begin(&visitor, &client.input[..len], out.buffer());
        client.input.drain(..len);
        match dispatch {
            Ok(Dispatch { terms, destination }) => {
                let upload = Upload::new(&terms, visitor.settings.config.limits.body_bytes);
                let carriage = Carriage {
                    client,
                    connection: &self.connection,
                    record,
                    terms,
                    upload,
                };
                carriage.start(destination, out)
            }
            Err(refusal) => {
                record.refused(refusal);
                write_refusal(client, &record, false, false);
                Box::pin(ready(Next::Linger))
            }
        }
    }

    /// Does what is to be done next, and gives what comes then. Each is large, and there only while it is
    /// done: most connections have no request, most of the time.
    fn busy(&mut self, next: Next) -> BoxFuture<'_, Next> {
        match next {
            Next::Carry(len) => return self.request(len),
            Next::GoOn(begun) => return self.go_on(*begun),
            Next::Wait => return Box::pin(self.wait()),
            _ => {}
        }
        let busy = Passage::after(&self.client.stream);
        self.connection.ticket.is_busy(busy);
        match next {
            Next::Close => Box::pin(async {
                self.client.close().await;
                self.ends()
            }),
            Next::Linger => Box::pin(async {
                self.client.linger().await;
                self.ends()
            }),
            Next::Http2 => Box::pin(self.http2()),
            _ => Box::pin(ready(self.ends())),
        }
    }

    /// Stands still, with all that it is.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "what is shared would have to be fit for several threads"
    )]
    async fn wait(&mut self) -> Next {
        registry::offer(self.carried());
        registry::thawed().await;
        // The upgrade did not come.
        Carried::stay([self.client.stream.descriptor()]);
        Next::Request
    }

    async fn http2(&mut self) -> Next {
        self.connection.ticket.is_busy(Passage::Never);
        let visitor = Arc::new(self.visitor());
        let input = mem::take(&mut self.client.input);
        let farewell = self.connection.ticket.farewell();
        let stream = &mut *self.client.stream;
        let requests = &mut self.connection.record.requests;
        http2::serve(&visitor, stream, input, farewell, requests).await;
        self.ends()
    }

    fn ends(&mut self) -> Next {
        self.client.stream.close();
        self.connection.record.ends(CloseReason::ClientClosed);
        Next::Over
    }
}

pub(super) fn record_of(visitor: &Visitor, version: Version, id: String) -> RequestRecord {
    let listener = Arc::clone(&visitor.listener);
    let mut record = RequestRecord::new(listener, visitor.client, version);
    record.id = id;
    record
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
