//! One WebSocket (RFC 6455), from its upgrade to its end.
//!
//! One task reads and writes, so a client that does not read is not read from either. Its queue is
//! bounded and every write has a deadline: a slow reader is disconnected and holds up nobody.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{
    HeaderMap,
    header::{HeaderValue, VIA},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, interval, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    chat::{Outbox, SocketId},
    hash::Place,
    message::{FromPage, Line, Refusal, ToPage},
    worker::Worker,
};

/// Of a message from the page, in bytes.
const MESSAGE_AT_MOST: usize = 4 * 1024;
/// Messages that may wait to be sent.
const WAITING_AT_MOST: usize = 128;
const HASHES_AT_MOST: usize = 64;
const WRITE_WITHIN: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(15);
/// Without a byte from the client, not even a pong.
const SILENT_AT_MOST: Duration = Duration::from_secs(45);
/// From our Close to the client's.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What brought a client here, as far as its request tells.
#[derive(Clone, Copy, Debug)]
pub(super) enum Front {
    /// One that reads HTTP.
    Http,
    /// One that does not.
    Tcp,
}

impl Front {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut via = headers.get_all(VIA).iter();
        let is_homescar = |value: &HeaderValue| value.as_bytes().ends_with(b"homescar");
        match via.any(is_homescar) {
            true => Self::Http,
            false => Self::Tcp,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// Serves the WebSocket that `upgraded` has become.
pub(super) async fn serve(worker: Arc<Worker>, upgraded: Upgraded, front: Front) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_AT_MOST))
        .max_frame_size(Some(MESSAGE_AT_MOST))
        .read_buffer_size(MESSAGE_AT_MOST)
        .write_buffer_size(0)
        .max_write_buffer_size(1024 * 1024);
    let socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (queue, waiting) = mpsc::channel(WAITING_AT_MOST);
    let outbox = Outbox {
        queue,
        evicted: CancellationToken::new(),
    };
    let who = &worker.env;
    let pool = worker.hasher.pool();
    outbox.push(
        ToPage::Hello {
            slot: &who.slot,
            generation: who.generation,
            pid: std::process::id(),
            threads: pool.threads,
            queue: pool.queue_limit,
            mode: front.as_str(),
        }
        .encode(),
    );
    let id = worker.chat.connect(outbox.clone());
    let session = Session {
        worker: Arc::clone(&worker),
        id,
        outbox,
        speaker: None,
        pace: Pace::new(Instant::now()),
        hashes: Arc::new(Semaphore::new(HASHES_AT_MOST)),
    };
    session.run(socket, waiting).await;
    worker.chat.disconnect(id);
}

struct Session {
    worker: Arc<Worker>,
    id: SocketId,
    outbox: Outbox,
    speaker: Option<Speaker>,
    pace: Pace,
    hashes: Arc<Semaphore>,
}

struct Speaker {
    name: String,
    room: String,
}

/// The socket is of no use any more; why does not matter to anyone.
struct Gone;

impl Session {
    async fn run(mut self, mut socket: Socket, mut waiting: mpsc::Receiver<Utf8Bytes>) {
        let stopping = self.worker.stopping.clone();
        let evicted = self.outbox.evicted.clone();
        let ended = tokio::select! {
            ended = self.talk(&mut socket, &mut waiting) => ended.err().map(|Gone| None),
            () = evicted.cancelled() => Some(None),
            () = stopping.cancelled() => Some(Some(CloseFrame {
                code: CloseCode::Away,
                reason: "this worker stops; come back to its next generation".into(),
            })),
        };
        if let Some(Some(frame)) = ended {
            drop(timeout(CLOSE_WITHIN, close(&mut socket, frame)).await);
        }
    }

    /// Until the client closes (`Ok`) or is gone.
    async fn talk(
        &mut self,
        socket: &mut Socket,
        waiting: &mut mpsc::Receiver<Utf8Bytes>,
    ) -> Result<(), Gone> {
        let mut delay = self.worker.loop_delay.latest();
        let mut pings = interval(PING_EVERY);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                // What is to be sent comes first: a client that asks much, such as for hashes on
                // the event loop, hears what that does while it does it.
                biased;
                Some(text) = waiting.recv() => {
                    write(socket.feed(Message::Text(text))).await?;
                    while let Ok(text) = waiting.try_recv() {
                        write(socket.feed(Message::Text(text))).await?;
                    }
                    write(socket.flush()).await?;
                }
                Ok(()) = delay.changed() => {
                    let ms = *delay.borrow_and_update();
                    write(socket.send(Message::Text(ToPage::Delay { ms }.encode()))).await?;
                }
                _ = pings.tick() => {
                    if heard.elapsed() > SILENT_AT_MOST {
                        return Err(Gone);
                    }
                    write(socket.send(Message::Ping(Vec::new().into()))).await?;
                }
                message = socket.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => self.take(&text).await,
                        Some(Ok(Message::Close(_))) => {
                            // The Close that answers it.
                            return write(socket.flush()).await;
                        }
                        Some(Ok(_)) => {}
                        // Over a limit or against the protocol, or the connection is gone.
                        Some(Err(_)) | None => return Err(Gone),
                    }
                }
            }
        }
    }

    async fn take(&mut self, text: &str) {
        let message = match FromPage::decode(text) {
            Ok(FromPage::Hash { id, password, on }) => return self.hash(id, password, on).await,
            Ok(message) if self.pace.allows(Instant::now()) => Ok(message),
            Ok(FromPage::Say { id, .. }) => return self.refuse(&Refusal::TooFast, Some(&id)),
            Ok(_) => Err(Refusal::TooFast),
            Err(refusal) => Err(refusal),
        };
        match message {
            Ok(FromPage::Join { room, name }) => self.join(room, name),
            Ok(FromPage::Say { id, text }) => {
                if let Err(refusal) = self.say(&id, text) {
                    self.refuse(&refusal, Some(&id));
                }
            }
            Ok(FromPage::Hash { .. }) => {}
            Err(refusal) => self.refuse(&refusal, None),
        }
    }

    fn join(&mut self, room: String, name: String) {
        let (worker, id) = (Arc::clone(&self.worker), self.id);
        worker.chat.join(id, &room);
        let asked = room.clone();
        self.worker.tasks.spawn(async move {
            worker.chat.send_history(&asked, Some(id)).await;
        });
        self.speaker = Some(Speaker { name, room });
    }

    fn say(&self, id: &str, text: String) -> Result<(), Refusal> {
        let speaker = self.speaker.as_ref().ok_or(Refusal::NoRoom)?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = Line {
            id: id.to_owned(),
            name: speaker.name.clone(),
            text,
            at: since_1970.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
            slot: self.worker.env.slot.clone(),
        };
        self.worker.chat.say(speaker.room.clone(), line)
    }

    /// On the loop: here, in the task that everyone else waits for. On the pool: by a task that
    /// waits, of which a page may have so many.
    async fn hash(&self, id: u32, password: String, on: Place) {
        let Ok(permit) = Arc::clone(&self.hashes).try_acquire_owned() else {
            let (status, hashed) = (429, None);
            return self
                .outbox
                .push(ToPage::Hash { id, status, hashed }.encode());
        };
        let (worker, outbox) = (Arc::clone(&self.worker), self.outbox.clone());
        let answering = async move {
            let result = worker.hasher.hash(password, on).await;
            let status = result.as_ref().map_or_else(|error| error.status(), |_| 200);
            let hashed = result.ok();
            drop(permit);
            ToPage::Hash { id, status, hashed }.encode()
        };
        match on {
            Place::Pool => {
                let task = async move { outbox.push(answering.await) };
                drop(self.worker.tasks.spawn(task));
            }
            // As in Node, where requests that are there are served one after the other before the
            // loop turns: the next message that has come is the next stall.
            Place::Loop => outbox.push(answering.await),
        }
    }

    fn refuse(&self, refusal: &Refusal, id: Option<&str>) {
        let error = ToPage::Error {
            code: refusal.code(),
            message: &refusal.to_string(),
            id,
        };
        self.outbox.push(error.encode());
    }
}

async fn write<E>(writing: impl Future<Output = Result<(), E>>) -> Result<(), Gone> {
    match timeout(WRITE_WITHIN, writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

/// Sends a Close and waits for the client's.
async fn close(socket: &mut Socket, frame: CloseFrame) {
    if socket.close(Some(frame)).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}

/// A token bucket: so many messages at once, and so many a second.
#[derive(Debug)]
struct Pace {
    tokens: f64,
    since: Instant,
}

impl Pace {
    const AT_ONCE: f64 = 40.0;
    const PER_SECOND: f64 = 20.0;

    const fn new(now: Instant) -> Self {
        Self {
            tokens: Self::AT_ONCE,
            since: now,
        }
    }

    fn allows(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since).as_secs_f64() * Self::PER_SECOND;
        self.since = now;
        self.tokens = (self.tokens + earned).min(Self::AT_ONCE);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_the_rate() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!((0..60).filter(|_| pace.allows(now)).count(), 40);
        let later = now + Duration::from_secs(1);
        assert_eq!((0..60).filter(|_| pace.allows(later)).count(), 20);
    }
}
