//! A client's HTTP/2 connection (RFC 9113), as hyper reads it: many requests at once.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::Request as HttpRequest;
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::http2::{Builder, Connection},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, oneshot},
    time::timeout,
};

use super::{
    super::{
        listener::Listener,
        registry::{self, Farewell},
        relay::Side,
    },
    stream::{self, Answered, Body},
    visitor::Visitor,
};
use crate::config;

/// What a client's connection begins with when it speaks HTTP/2 (RFC 9113 §3.4), as far as it
/// looks like the head of a request.
pub(super) const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Requests that the client gave up before they were looked at, beyond which it is an attack
/// (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 64;
/// Between two signs of life that a client is asked for, and what it gets for one.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What the client may send of each body before it is taken, and of all of them.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// For requests to end whose connection has.
const LAST: Duration = Duration::from_secs(2);
/// What of each response waits for the client.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves a client until its connection is over; how many requests it made.
pub(in super::super) async fn serve<S: Side>(
    visitor: &Arc<Visitor>,
    stream: S,
    early: Vec<u8>,
    farewell: Farewell,
) -> u64 {
    let config = &visitor.settings.config;
    let requests = Arc::new(Requests::default());
    let service = service_fn(|request: HttpRequest<Incoming>| {
        let answered = start(Arc::clone(visitor), request, requests.begin());
        async { Ok::<_, Infallible>(answered.await.unwrap_or_else(|_| stream::cut())) }
    });
    let head_bytes = u32::try_from(config.limits.head_bytes).unwrap_or(u32::MAX);
    let mut builder = Builder::new(OnThisThread(Arc::clone(&visitor.listener)));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.limits.streams)
        .max_header_list_size(head_bytes)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_RESET_STREAMS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .auto_date_header(false)
        .enable_connect_protocol();
    let io = TokioIo::new(Rewound { early, stream });
    let connection = pin!(builder.serve_connection(io, service));
    drive(connection, config, &requests, &farewell).await;
    // Their streams are gone, which each of them notices.
    let _stuck = timeout(LAST, requests.none_open()).await;
    requests.total()
}

/// Drives a connection until it is over, or until nothing was asked on it for long.
async fn drive<C>(
    mut connection: Pin<&mut C>,
    config: &config::Listener,
    requests: &Requests,
    farewell: &Farewell,
) where
    C: Graceful,
{
    let mut patience = config.timeouts.header;
    let mut is_leaving = false;
    loop {
        let idle = requests.idle_for(patience);
        tokio::select! {
            biased;
            _over = connection.as_mut() => return,
            _ = farewell.wait(), if !is_leaving => {
                is_leaving = true;
                connection.as_mut().say_goodbye();
                continue;
            }
            () = idle => {}
        }
        patience = config.timeouts.keepalive;
        if requests.open() == 0 {
            connection.as_mut().say_goodbye();
            let _over = timeout(config.timeouts.header, connection).await;
            return;
        }
    }
}

/// A connection that can be asked to end when its requests have (GOAWAY).
trait Graceful: Future {
    fn say_goodbye(self: Pin<&mut Self>);
}

impl<I, S> Graceful for Connection<I, S, OnThisThread>
where
    S: HttpService<Incoming, ResBody = Body>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    fn say_goodbye(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Hands a request to a task of its own. When the client gives the request up, the receiver is
/// dropped, which the task notices.
fn start(
    visitor: Arc<Visitor>,
    request: HttpRequest<Incoming>,
    guard: RequestGuard,
) -> oneshot::Receiver<Answered> {
    let (answer, answered) = oneshot::channel();
    let listener = Arc::clone(&visitor.listener);
    registry::spawn(listener, |ticket| async move {
        let _guard = guard;
        stream::serve(&visitor, request, answer, &ticket).await;
    });
    answered
}

/// Counts the requests of a connection.
#[derive(Debug, Default)]
struct Requests {
    open: AtomicUsize,
    total: AtomicUsize,
    none_open: Notify,
}

/// One open request.
struct RequestGuard(Arc<Requests>);

impl Requests {
    fn begin(self: &Arc<Self>) -> RequestGuard {
        self.open.fetch_add(1, Relaxed);
        self.total.fetch_add(1, Relaxed);
        RequestGuard(Arc::clone(self))
    }

    fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    fn total(&self) -> u64 {
        self.total.load(Relaxed) as u64
    }

    async fn none_open(&self) {
        loop {
            let ended = self.none_open.notified();
            if self.open() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Waits until no request has been open for this long.
    async fn idle_for(&self, patience: Duration) {
        loop {
            let before = self.total();
            self.none_open().await;
            tokio::time::sleep(patience).await;
            if self.open() == 0 && self.total() == before {
                return;
            }
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Relaxed) == 1 {
            self.0.none_open.notify_waiters();
        }
    }
}

/// Runs what hyper has to run beside the connection, on the same thread, owned like connections.
#[derive(Clone, Debug)]
struct OnThisThread(Arc<Listener>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        registry::spawn(Arc::clone(&self.0), |ticket| async move {
            let _open = ticket;
            future.await;
        });
    }
}

/// A stream of which something was read already.
#[derive(Debug)]
struct Rewound<S> {
    early: Vec<u8>,
    stream: S,
}

impl<S: Side> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let len = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..len]);
        self.early.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl<S: Side> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
