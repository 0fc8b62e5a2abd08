//! A client's HTTP/2 connection (RFC 9113), as h2 reads it: many requests at once.

mod heard;
mod pulse;
mod requests;

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::server::{Builder, Connection};
use tokio::time::{Instant, sleep_until, timeout};

use self::{
    heard::Heard,
    pulse::Pulse,
    requests::{RequestGuard, Requests},
};
use super::{
    super::{
        registry::{self, Farewell},
        relay::Side,
    },
    deadline::Deadline,
    http1::NEXT_REQUEST,
    stream::Errand,
    visitor::Visitor,
};
use crate::config::{Limits, Timeouts};

/// What a client's connection begins with when it speaks HTTP/2 (RFC 9113 §3.4), as far as it
/// looks like the head of a request.
pub(super) const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Requests that the client gave up before they were looked at, beyond which it is an attack
/// (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 64;
/// What the client may send of each body before it is taken, and of all of them.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// For requests to end whose connection has.
const LAST: Duration = Duration::from_secs(2);
/// What of each response waits for the client.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves a client until its connection is over, and says how many requests it made, also when it is cut.
pub(in super::super) async fn serve<S: Side>(
    visitor: &Arc<Visitor>,
    stream: S,
    early: Vec<u8>,
    farewell: Farewell,
    total: &mut u32,
) {
    let config = &visitor.settings.config;
    let requests = Arc::new(Requests::new(Instant::now()));
    let _total = Total(total, Arc::clone(&requests));
    let (stream, heard) = Heard::new(early, stream);
    let handshake = builder(&config.limits).handshake(stream);
    let Ok(Ok(mut connection)) = timeout(config.timeouts.header, handshake).await else {
        return;
    };
    let driver = Driver {
        visitor,
        timeouts: &config.timeouts,
        pulse: Pulse::new(heard, connection.ping_pong(), Instant::now()),
        connection,
        requests: &requests,
    };
    driver.drive(&farewell).await;
    // Their streams are gone, which each of them notices.
    let _stuck = timeout(LAST, requests.none_open()).await;
}

/// Says how many requests there were.
struct Total<'a>(&'a mut u32, Arc<Requests>);

impl Drop for Total<'_> {
    fn drop(&mut self) {
        *self.0 = u32::try_from(self.1.total()).unwrap_or(u32::MAX);
    }
}

fn builder(limits: &Limits) -> Builder {
    let head_bytes = u32::try_from(limits.head_bytes).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(head_bytes)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_RESET_STREAMS))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol();
    builder
}

/// Drives a connection.
struct Driver<'a, S: Side> {
    visitor: &'a Arc<Visitor>,
    timeouts: &'a Timeouts,
    connection: Connection<Heard<S>, Bytes>,
    pulse: Pulse,
    requests: &'a Arc<Requests>,
}

/// Why a connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GivenUp {
    /// Nothing was asked on it for long.
    Idle,
    /// Nobody is there.
    Dead,
}

impl<S: Side> Driver<'_, S> {
    /// Until the connection is over, or until nothing was asked on it for long.
    async fn drive(mut self, farewell: &Farewell) {
        let began = Instant::now();
        let mut clock = Deadline::new(began + self.timeouts.header);
        let requests = self.requests;
        let mut has_to_go = pin!(async {
            farewell.wait().await;
            // As in HTTP/1, one that has only just come may bring the request that is on its way.
            if requests.total() == 0 {
                sleep_until(began + NEXT_REQUEST).await;
            }
        });
        let mut is_leaving = false;
        loop {
            tokio::select! {
                biased;
                () = self.accept() => return,
                () = &mut has_to_go, if !is_leaving => {
                    is_leaving = true;
                    self.connection.graceful_shutdown();
                }
                () = poll_fn(|cx| clock.poll(cx)) => match self.look(Instant::now()) {
                    Ok(next) => clock.set(next),
                    Err(GivenUp::Dead) => return,
                    Err(GivenUp::Idle) => {
                        self.connection.graceful_shutdown();
                        let _over = timeout(self.timeouts.header, self.accept()).await;
                        return;
                    }
                },
            }
        }
    }

    /// Starts the requests that come, until the connection is over.
    async fn accept(&mut self) {
        poll_fn(|cx| {
            while let Some(Ok((request, respond))) = ready!(self.connection.poll_accept(cx)) {
                let guard = self.requests.begin();
                if let Some(errand) = Errand::begin(self.visitor, request, respond) {
                    start(errand, guard);
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Looks after the connection; when to do so again.
    fn look(&mut self, now: Instant) -> Result<Instant, GivenUp> {
        let patience = match self.requests.total() {
            0 => self.timeouts.header,
            _ => self.timeouts.keepalive,
        };
        let due = self.requests.idle_since().unwrap_or(now) + patience;
        if due <= now {
            return Err(GivenUp::Idle);
        }
        let next = self.pulse.look(now).ok_or(GivenUp::Dead)?;
        Ok(due.min(next))
    }
}

/// Hands a request to a task of its own, which notices when the client gives it up.
fn start(mut errand: Box<Errand>, guard: RequestGuard) {
    registry::spawn(errand.listener(), None, |ticket| {
        // In a box of its own, the runtime moves it about no more.
        Box::pin(async move {
            errand.run(&ticket).await;
            errand.end();
            drop(guard);
        })
    });
}
