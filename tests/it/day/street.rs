//! The clients of a day: they come and go all the while, each from an address of its own, and note what
//! they met.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::support::{
    client::{Client, Who},
    homescar::SOON,
};

/// Seconds since 1970, which the log and other processes count, too.
pub(super) fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A connection for each request.
    Short,
    /// Requests on a connection that is kept.
    Kept,
    WebSocket,
    /// A connection that lasts, of bytes that nobody but its ends understands.
    Tunnel,
    /// A session of socket.io.
    Session,
}

/// What came of a request, a message, or a connection.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Served(Who),
    /// Asked to go, by a Close frame of this code.
    Told(u16),
    /// A connection that had served requests was closed when the next one came; as every client of
    /// HTTP does, this one asks again by a new connection.
    Stale(String),
    /// The session was lost.
    Lost(String),
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(who) => write!(text, "served by {} pid {}", who.slot, who.pid),
            Self::Told(code) => write!(text, "told to go ({code})"),
            Self::Stale(why) => write!(text, "closed between two requests: {why}"),
            Self::Lost(why) => write!(text, "its session was lost: {why}"),
            Self::Failed(why) => write!(text, "failed: {why}"),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub(super) kind: Kind,
    pub(super) cluster: &'static str,
    pub(super) client: IpAddr,
    /// Its end of the connection, where that is known.
    pub(super) from: Option<SocketAddr>,
    /// When the connection was begun, the request was sent, and all was over.
    pub(super) begun: f64,
    pub(super) asked: f64,
    pub(super) ended: f64,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Paused,
    Over,
}

/// What all clients have in common.
#[derive(Debug)]
pub(super) struct Street {
    visits: Mutex<Vec<Visit>>,
    phase: watch::Sender<Phase>,
    /// Connections that are open now.
    open: AtomicUsize,
    /// Those ever, and WebSockets, before the Node and the Rust workers.
    connections: [AtomicUsize; 2],
    websockets: [AtomicUsize; 2],
}

/// How long a client keeps a connection that it uses all the while. A relay of bytes cannot ask
/// anybody to go: what outlives `drain.timeout` is cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    /// A second or so.
    Short,
    /// Until it is told to go.
    Long,
}

impl Life {
    fn end(self, random: &mut fastrand::Rng) -> f64 {
        match self {
            Self::Short => now() + 0.3 + 1.2 * random.f64(),
            Self::Long => f64::INFINITY,
        }
    }
}

impl Street {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            visits: Mutex::default(),
            phase: watch::Sender::new(Phase::Open),
            open: AtomicUsize::new(0),
            connections: Default::default(),
            websockets: Default::default(),
        })
    }

    pub(super) fn connections(&self, cluster: &str) -> usize {
        self.connections[place(cluster)].load(Relaxed)
    }

    pub(super) fn websockets(&self, cluster: &str) -> usize {
        self.websockets[place(cluster)].load(Relaxed)
    }

    pub(super) fn note(&self, visit: Visit) {
        self.visits.lock().unwrap().push(visit);
    }

    pub(super) fn visits(&self) -> Vec<Visit> {
        self.visits.lock().unwrap().clone()
    }

    /// All go home, and nobody comes.
    pub(super) async fn pause(&self) {
        self.phase.send_replace(Phase::Paused);
        let gone = async {
            while self.open.load(Relaxed) > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, gone).await.expect("all go home");
    }

    pub(super) fn go_on(&self) {
        self.phase.send_replace(Phase::Open);
    }

    pub(super) fn close(&self) {
        self.phase.send_replace(Phase::Over);
    }

    fn is_open(&self) -> bool {
        *self.phase.borrow() == Phase::Open
    }

    /// Waits until it is open; false when it never will be.
    async fn opens(&self) -> bool {
        let mut phase = self.phase.subscribe();
        let phase = phase.wait_for(|phase| *phase != Phase::Paused).await;
        *phase.unwrap() == Phase::Open
    }
}

fn place(cluster: &str) -> usize {
    usize::from(cluster == "rust")
}

/// One client before one cluster.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) street: Arc<Street>,
    pub(super) kind: Kind,
    pub(super) cluster: &'static str,
    pub(super) client: IpAddr,
    pub(super) to: SocketAddr,
    pub(super) life: Life,
    pub(super) seed: u64,
}

/// A connection of one client; it is counted as long as it lasts.
struct Visiting<'a> {
    of: &'a Person,
    begun: f64,
    from: Option<SocketAddr>,
}

impl Drop for Visiting<'_> {
    fn drop(&mut self) {
        self.of.street.open.fetch_sub(1, Relaxed);
    }
}

impl Visiting<'_> {
    fn note(&self, asked: f64, outcome: Outcome) {
        self.of.street.note(Visit {
            kind: self.of.kind,
            cluster: self.of.cluster,
            client: self.of.client,
            from: self.from,
            begun: self.begun,
            asked,
            ended: now(),
            outcome,
        });
    }
}

pub(super) fn client(kind: Kind, cluster: &str, index: u8) -> IpAddr {
    let third = 2 * kind as u8 + u8::from(cluster == "rust");
    Ipv4Addr::new(127, 1, third, index + 1).into()
}

impl Person {
    /// Lives until the day is over.
    pub(super) async fn live(self) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        while self.street.opens().await {
            self.street.open.fetch_add(1, Relaxed);
            let mut visiting = Visiting {
                of: &self,
                begun: now(),
                from: None,
            };
            match Client::connect_from(self.client, self.to).await {
                Ok(client) => {
                    self.street.connections[place(self.cluster)].fetch_add(1, Relaxed);
                    visiting.from = Some(client.local_addr());
                    match self.kind {
                        Kind::Short => visiting.ask_once(client).await,
                        Kind::Kept => visiting.ask_again(client, &mut random).await,
                        Kind::WebSocket => visiting.talk(client, &mut random).await,
                        Kind::Tunnel => visiting.stay(client, &mut random).await,
                        Kind::Session => unreachable!("another process has these"),
                    }
                }
                Err(error) => {
                    let failed = Outcome::Failed(format!("not connected: {error}"));
                    visiting.note(visiting.begun, failed);
                }
            }
            drop(visiting);
            sleep(Duration::from_millis(random.u64(5..40))).await;
        }
    }
}

impl Visiting<'_> {
    async fn ask_once(&self, client: Client) {
        let mut stream = client.stream.into_inner();
        let answer = request(&mut stream, "Connection: close\r\n").await;
        self.note(
            self.begun,
            match answer {
                Ok((who, _)) => Outcome::Served(who),
                Err(error) => Outcome::Failed(error.why),
            },
        );
    }

    async fn ask_again(&self, client: Client, random: &mut fastrand::Rng) {
        let mut stream = client.stream.into_inner();
        let end = self.of.life.end(random);
        let mut is_reused = false;
        while self.of.street.is_open() && now() < end {
            let asked = now();
            let outcome = match request(&mut stream, "").await {
                Ok((who, true)) => Outcome::Served(who),
                Ok((who, false)) => return self.note(asked, Outcome::Served(who)),
                Err(error) if is_reused && error.before_answer => Outcome::Stale(error.why),
                Err(error) => Outcome::Failed(error.why),
            };
            let is_served = matches!(outcome, Outcome::Served(_));
            self.note(asked, outcome);
            if !is_served {
                return;
            }
            is_reused = true;
            sleep(Duration::from_millis(random.u64(20..80))).await;
        }
    }

    async fn stay(&self, mut client: Client, random: &mut fastrand::Rng) {
        let end = self.of.life.end(random);
        while self.of.street.is_open() && now() < end {
            let asked = now();
            match client.whoami().await {
                Ok(who) => self.note(asked, Outcome::Served(who)),
                Err(error) => return self.note(asked, Outcome::Failed(error.to_string())),
            }
            sleep(Duration::from_millis(random.u64(20..80))).await;
        }
    }

    async fn talk(&self, client: Client, random: &mut fastrand::Rng) {
        let stream = client.stream.into_inner();
        let opened = timeout(SOON, client_async("ws://app/ws", stream)).await;
        let mut socket = match opened {
            Ok(Ok((socket, _))) => socket,
            Ok(Err(error)) => return self.note(self.begun, Outcome::Failed(error.to_string())),
            Err(_) => return self.note(self.begun, Outcome::Failed("no handshake".to_owned())),
        };
        self.of.street.websockets[place(self.of.cluster)].fetch_add(1, Relaxed);
        let end = self.of.life.end(random);
        while self.of.street.is_open() && now() < end {
            let asked = now();
            let sent = socket.send(Message::text("who")).await;
            let outcome = match sent {
                Ok(()) => next(&mut socket).await,
                // It may have been told to go.
                Err(error) => match next(&mut socket).await {
                    told @ Outcome::Told(_) => told,
                    _ => Outcome::Failed(error.to_string()),
                },
            };
            let is_served = matches!(outcome, Outcome::Served(_));
            self.note(asked, outcome);
            if !is_served {
                break;
            }
            // Also between two messages it may be told.
            let pause = Duration::from_millis(random.u64(30..120));
            if let Ok(told) = timeout(pause, next(&mut socket)).await {
                self.note(now(), told);
                break;
            }
        }
        let _goes_itself = socket.close(None).await;
        let over = async { while let Some(Ok(_)) = socket.next().await {} };
        let _goes_anyway = timeout(SOON, over).await;
    }
}

/// The next thing that a WebSocket hears.
async fn next(socket: &mut WebSocketStream<TcpStream>) -> Outcome {
    loop {
        return match timeout(SOON, socket.next()).await {
            Ok(Some(Ok(Message::Text(text)))) => match serde_json::from_str(&text) {
                Ok(who) => Outcome::Served(who),
                Err(error) => Outcome::Failed(format!("{error}: {text}")),
            },
            Ok(Some(Ok(Message::Close(frame)))) => {
                Outcome::Told(frame.map_or(1005, |frame| frame.code.into()))
            }
            Ok(Some(Ok(_))) => continue,
            Ok(Some(Err(error))) => Outcome::Failed(error.to_string()),
            Ok(None) => Outcome::Failed("it ended without a Close frame".to_owned()),
            Err(_) => Outcome::Failed("no answer".to_owned()),
        };
    }
}

struct NoAnswer {
    /// Not one byte of it had come.
    before_answer: bool,
    why: String,
}

/// One GET: who has answered it, and whether the connection stays.
async fn request(stream: &mut TcpStream, field: &str) -> Result<(Who, bool), NoAnswer> {
    let text = format!("GET / HTTP/1.1\r\nHost: app\r\n{field}\r\n");
    let mut answer = Vec::new();
    let read = async {
        stream.write_all(text.as_bytes()).await?;
        loop {
            if let Some(whole) = whole(&answer)? {
                return Ok(whole);
            }
            let mut buffer = [0; 2048];
            match stream.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => answer.extend_from_slice(&buffer[..len]),
            }
        }
    };
    let read = timeout(SOON, read).await;
    let read = read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    read.map_err(|error: io::Error| NoAnswer {
        before_answer: answer.is_empty() && error.kind() != io::ErrorKind::TimedOut,
        why: format!("{error} {}", String::from_utf8_lossy(&answer)),
    })
}

fn whole(answer: &[u8]) -> io::Result<Option<(Who, bool)>> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let head = head.to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length
        .and_then(|length| length.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no length"))?;
    if body.len() < length {
        return Ok(None);
    }
    if !head.starts_with("http/1.1 200") {
        return Err(io::Error::other("another status"));
    }
    let who = serde_json::from_str(body).map_err(io::Error::other)?;
    Ok(Some((who, !head.contains("connection: close"))))
}

/// All who live in this street, before these addresses of the Node and the Rust workers.
pub(super) fn move_in(
    street: &Arc<Street>,
    mode: &str,
    node: SocketAddr,
    rust: SocketAddr,
    seed: u64,
) -> JoinSet<()> {
    let life = match mode {
        "http" => Life::Long,
        _ => Life::Short,
    };
    let tunnels = if mode == "http" { 0 } else { 5 };
    let mut people = JoinSet::new();
    for (cluster, to, crowd) in [
        (
            "node",
            node,
            [(Kind::Short, 6), (Kind::Kept, 5), (Kind::WebSocket, 8)],
        ),
        (
            "rust",
            rust,
            [(Kind::Short, 6), (Kind::Kept, 5), (Kind::Tunnel, tunnels)],
        ),
    ] {
        for (kind, count) in crowd {
            for index in 0..count {
                let person = Person {
                    street: Arc::clone(street),
                    kind,
                    cluster,
                    client: client(kind, cluster, index),
                    to,
                    life,
                    seed: seed ^ (u64::from(index) << 8) ^ kind as u64 ^ ((to == rust) as u64 * 99),
                };
                people.spawn(person.live());
            }
        }
    }
    people
}
