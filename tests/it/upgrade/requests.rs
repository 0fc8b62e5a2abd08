//! Connections of HTTP/1.1 in clear that come along: idle ones, requests that wait for their answer, and
//! bodies in either direction, at whatever byte an upgrade finds them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use super::{FAILS_LATER, PUTS_RIGHT, Replaceable, copy};
use crate::{
    http::{Peer, soon},
    metrics,
    support::homescar::{SOON, eventually, message},
};

const UPGRADES: usize = 5;
/// What an upgrade may take from shutting the doors to having them open again: far less than what
/// requests that do not come along are waited for.
const SHORT: u64 = 2_000;
/// Bytes of a large body.
const LARGE: usize = 3_000_000;

/// A backend that is the test itself.
struct Origin {
    address: SocketAddr,
    /// What a long poll waits for.
    news: watch::Sender<usize>,
    polls: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Origin {
    async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (news, heard) = watch::channel(0);
        let polls = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&polls);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                connections.spawn(answer(Peer(stream), heard.clone(), Arc::clone(&counted)));
            }
        });
        Self {
            address,
            news,
            polls,
            _serving: serving,
        }
    }

    async fn front(&self, more: &str) -> (Replaceable, SocketAddr) {
        let one = Replaceable::serve(&format!(
            r#"
            threads = 2
            [listener.web]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            [cluster.app]
            backends = ["{}"]
            drain = {{ timeout = "20s" }}
            {more}
            "#,
            self.address
        ));
        let web = one.homescar.address("web").await;
        (one, web)
    }
}

/// The bytes of a body, the same for the same seed.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Answers what comes on a connection.
async fn answer(mut peer: Peer, mut news: watch::Receiver<usize>, polls: Arc<AtomicUsize>) {
    while let Some(head) = peer.next_head().await {
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let mut parts = path.trim_start_matches('/').split('/');
        let (what, seed) = (parts.next().unwrap(), parts.next().unwrap_or("0"));
        let seed: u64 = seed.parse().unwrap_or_default();
        let written = match what {
            "poll" => {
                polls.fetch_add(1, Relaxed);
                news.wait_for(|news| *news > 0).await.unwrap();
                whole(&mut peer, path.as_bytes()).await
            }
            "sid" => {
                polls.fetch_add(1, Relaxed);
                news.wait_for(|news| *news > 0).await.unwrap();
                whole(&mut peer, format!("0{{\"sid\":\"id-{seed}\"}}").as_bytes()).await
            }
            "large" => whole(&mut peer, &bytes(seed, LARGE)).await,
            "chunks" => pieces(&mut peer, seed, &news, true).await,
            "close" => {
                pieces(&mut peer, seed, &news, false).await.unwrap();
                return;
            }
            "up" => {
                let mut body = vec![0; LARGE];
                peer.0.read_exact(&mut body).await.unwrap();
                let is_right = body == bytes(seed, LARGE);
                whole(&mut peer, format!("{is_right}").as_bytes()).await
            }
            _ => whole(&mut peer, path.as_bytes()).await,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn whole(peer: &mut Peer, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    peer.0.write_all(head.as_bytes()).await?;
    peer.0.write_all(body).await
}

/// A body that comes bit by bit, until there are news.
async fn pieces(
    peer: &mut Peer,
    seed: u64,
    news: &watch::Receiver<usize>,
    is_chunked: bool,
) -> std::io::Result<()> {
    let coding = match is_chunked {
        true => "Transfer-Encoding: chunked",
        false => "Connection: close",
    };
    let head = format!("HTTP/1.1 200 OK\r\n{coding}\r\n\r\n");
    peer.0.write_all(head.as_bytes()).await?;
    let mut random = Rng::with_seed(seed);
    while *news.borrow() == 0 {
        let mut piece = vec![0; random.usize(1..5_000)];
        random.fill(&mut piece);
        let piece = match is_chunked {
            true => [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat(),
            false => piece,
        };
        // In two writes, so that an upgrade can find half a piece.
        let (first, second) = piece.split_at(fastrand::usize(0..=piece.len()));
        peer.0.write_all(first).await?;
        sleep(Duration::from_millis(fastrand::u64(0..15))).await;
        peer.0.write_all(second).await?;
    }
    match is_chunked {
        true => peer.0.write_all(b"0\r\nX-Sum: 1\r\n\r\n").await,
        false => Ok(()),
    }
}

async fn connect(web: SocketAddr) -> Peer {
    Peer(TcpStream::connect(web).await.unwrap())
}

async fn ask(peer: &mut Peer, path: &str) {
    let id = path.trim_start_matches('/').replace('/', "-");
    peer.say(format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n"
    ))
    .await;
}

/// An answer of this length; the connection stays.
async fn hear(peer: &mut Peer, len: usize) -> Vec<u8> {
    let head = peer.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(!head.contains("close"), "{head}");
    let mut body = vec![0; len];
    soon("the body", peer.0.read_exact(&mut body))
        .await
        .unwrap();
    body
}

/// Asks for a path, and gets it.
async fn get(peer: &mut Peer, path: &str) {
    ask(peer, path).await;
    let body = hear(peer, path.len()).await;
    assert_eq!(String::from_utf8_lossy(&body), path);
}

/// Requests all the while, with and without a body, each client on one connection for ever.
struct Load {
    lanes: JoinSet<usize>,
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    fn of(lanes: usize, web: SocketAddr) -> Self {
        let mut load = Self {
            lanes: JoinSet::new(),
            over: Arc::default(),
            answered: Arc::default(),
        };
        for lane in 0..lanes {
            let (over, answered) = (Arc::clone(&load.over), Arc::clone(&load.answered));
            load.lanes.spawn(async move {
                let mut peer = connect(web).await;
                let mut asked = 0;
                while !over.load(Relaxed) {
                    get(&mut peer, &format!("/quick/{lane}/{asked}")).await;
                    asked += 1;
                    answered.fetch_add(1, Relaxed);
                }
                asked
            });
        }
        load
    }

    async fn goes_on(&self) {
        let before = self.answered.load(Relaxed);
        let more = || self.answered.load(Relaxed) > before + 50;
        eventually("the load goes on", SOON, more).await;
    }

    async fn end(self) -> usize {
        self.over.store(true, Relaxed);
        self.lanes.join_all().await.into_iter().sum()
    }
}

async fn upgrade(one: &Replaceable, connections: usize) {
    let receipt = one.must_upgrade().await;
    assert_eq!(receipt["cut"], 0, "{receipt}");
    assert!(
        receipt["connections"].as_u64().unwrap() >= connections as u64,
        "{receipt}"
    );
    assert!(receipt["shut_ms"].as_u64().unwrap() < SHORT, "{receipt}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_polls_outlast_upgrades_under_load() {
    const POLLS: usize = 60;
    const LANES: usize = 6;
    let origin = Origin::start().await;
    let (one, web) = origin.front("").await;
    let load = Load::of(LANES, web);
    let mut polls = Vec::new();
    for index in 0..POLLS {
        let mut peer = connect(web).await;
        if index % 2 == 0 {
            get(&mut peer, "/first").await;
        }
        ask(&mut peer, &format!("/poll/{index}")).await;
        if index % 3 == 0 {
            // What comes too early, and not whole.
            peer.say("GET /behind HTTP/1.1\r\nHo").await;
        }
        polls.push(peer);
    }
    let all_wait = || origin.polls.load(Relaxed) == POLLS;
    eventually("all wait", SOON, all_wait).await;
    for _ in 0..UPGRADES {
        upgrade(&one, POLLS + LANES).await;
        load.goes_on().await;
    }
    origin.news.send_replace(1);
    for (index, peer) in polls.iter_mut().enumerate() {
        let path = format!("/poll/{index}");
        let body = hear(peer, path.len()).await;
        assert_eq!(String::from_utf8_lossy(&body), path);
        match index % 3 {
            0 => {
                peer.say("st: a\r\n\r\n").await;
                assert_eq!(hear(peer, 7).await, b"/behind");
            }
            _ => get(peer, "/after").await,
        }
    }
    let asked = load.end().await + POLLS / 2 + 2 * POLLS;
    assert_eq!(origin.polls.load(Relaxed), POLLS, "none was asked twice");

    // Each is counted once, and recorded once, with all of its time.
    for name in ["homescar_requests_total", "homescar_request_ends_total"] {
        metrics::until(&one.homescar, name, &[("listener", "web")], asked as f64).await;
    }
    let name = "homescar_request_duration_seconds_count";
    let page = metrics::until(&one.homescar, name, &[("listener", "web")], asked as f64).await;
    assert_eq!(page.sum("homescar_slot_connections_active", &[]), 0.0);
    assert_eq!(
        page.sum("homescar_listener_connections_active", &[]),
        POLLS as f64
    );
    drop(polls);
    metrics::until(&one.homescar, "homescar_connections_active", &[], 0.0).await;
    let log = one.homescar.log();
    for index in 0..POLLS {
        let is_it =
            |line: &&Value| message(line) == "request" && line["id"] == format!("poll-{index}");
        let records: Vec<_> = log.iter().filter(is_it).collect();
        let [record] = &records[..] else {
            panic!("{index}: {records:?}");
        };
        assert_eq!(record["request"], format!("GET a/poll/{index}"));
        assert_eq!(
            (&record["reason"], &record["version"]),
            (&"done".into(), &"1.1".into())
        );
    }
    let cut = log.iter().find(|line| line["reason"] == "cut");
    assert_eq!(cut, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_bring_their_next_request_after() {
    let origin = Origin::start().await;
    let (one, web) = origin.front("").await;
    let mut peers = Vec::new();
    for index in 0..40 {
        let mut peer = connect(web).await;
        // Some have never brought one.
        if index % 4 != 0 {
            get(&mut peer, "/before").await;
        }
        peers.push(peer);
    }
    let text = "GET /later HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut said = 0;
    for _ in 0..2 {
        for peer in peers.iter_mut().skip(1).step_by(2) {
            peer.say(&text[said..said + 9]).await;
        }
        said += 9;
        upgrade(&one, peers.len()).await;
    }
    for (index, peer) in peers.iter_mut().enumerate() {
        peer.say(&text[index % 2 * said..]).await;
        assert_eq!(hear(peer, 6).await, b"/later");
        get(peer, "/again").await;
    }
}

/// What is left of a body to come.
struct Body {
    peer: Peer,
    heard: Vec<u8>,
}

impl Body {
    async fn begin(web: SocketAddr, path: &str) -> Self {
        let mut peer = connect(web).await;
        ask(&mut peer, path).await;
        let head = peer.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let heard = Vec::new();
        Self { peer, heard }
    }

    /// Hears some of it.
    async fn some(&mut self, most: usize) -> usize {
        let mut buffer = vec![0; most];
        let read = soon("some of it", self.peer.0.read(&mut buffer)).await;
        let read = read.expect("no reset");
        self.heard.extend_from_slice(&buffer[..read]);
        read
    }

    async fn up_to(&mut self, end: &[u8]) {
        while !self.heard.ends_with(end) {
            assert_ne!(self.some(100_000).await, 0);
        }
    }

    async fn len(&mut self, len: usize) {
        while self.heard.len() < len {
            assert_ne!(self.some(100_000).await, 0);
        }
    }
}

/// The data of a body in chunks.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        body = &body[end + 2..];
        if size == 0 {
            return data;
        }
        data.extend_from_slice(&body[..size]);
        assert_eq!(&body[size..size + 2], b"\r\n");
        body = &body[size + 2..];
    }
}

fn is_of_pieces(seed: u64, data: &[u8]) -> bool {
    let mut random = Rng::with_seed(seed);
    let mut all = Vec::new();
    while all.len() < data.len() {
        let mut piece = vec![0; random.usize(1..5_000)];
        random.fill(&mut piece);
        all.extend(piece);
    }
    all == data
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_a_body_arrives() {
    let origin = Origin::start().await;
    let (one, web) = origin.front("").await;
    let mut streams = Vec::new();
    let mut large = Vec::new();
    for seed in 0..8 {
        streams.push(Body::begin(web, &format!("/chunks/{seed}")).await);
        streams.push(Body::begin(web, &format!("/close/{seed}")).await);
        large.push(Body::begin(web, &format!("/large/{seed}")).await);
    }
    let mut up = connect(web).await;
    let body = bytes(1, LARGE);
    up.say(format!(
        "POST /up/1 HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"
    ))
    .await;
    for round in 0..UPGRADES {
        up.say(&body[round * 1_000..][..1_000]).await;
        for (index, body) in streams.iter_mut().enumerate() {
            if index % 4 == round % 4 {
                body.some(20_000).await;
            }
        }
        for body in &mut large {
            body.some(200_000).await;
        }
        upgrade(&one, 25).await;
    }
    up.say(&body[UPGRADES * 1_000..]).await;
    assert_eq!(hear(&mut up, 4).await, b"true");
    origin.news.send_replace(1);
    for (index, body) in streams.iter_mut().enumerate() {
        // What ends with its connection is framed for the client, without trailers.
        body.up_to(match index % 2 {
            0 => b"\r\n0\r\nX-Sum: 1\r\n\r\n",
            _ => b"\r\n0\r\n\r\n",
        })
        .await;
        let data = unchunked(&body.heard);
        assert!(data.len() > 10_000 && is_of_pieces(index as u64 / 2, &data));
    }
    for (seed, body) in large.iter_mut().enumerate() {
        body.len(LARGE).await;
        assert!(body.heard == bytes(seed as u64, LARGE), "{seed}");
        get(&mut body.peer, "/after").await;
    }
}

/// An upgrade that fails when everything stands still already: in the old image, and after the new one
/// has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_go_on_when_there_is_no_upgrade_after_all() {
    let origin = Origin::start().await;
    let (one, web) = origin.front("").await;
    let mut idle = connect(web).await;
    get(&mut idle, "/before").await;
    idle.say("GET /be").await;
    let mut poll = connect(web).await;
    ask(&mut poll, "/poll/0").await;
    let mut stream = Body::begin(web, "/chunks/1").await;
    let load = Load::of(2, web);
    eventually("it waits", SOON, || origin.polls.load(Relaxed) == 1).await;

    let (draft, back) = (
        one.folder.path().join("puts"),
        one.folder.path().join("back"),
    );
    std::fs::write(&draft, PUTS_RIGHT).unwrap();
    copy(&draft, &back);
    let fails_later = FAILS_LATER
        .replace("REAL_PROGRAM", env!("CARGO_BIN_EXE_homescar"))
        .replace("BACK_SCRIPT", back.to_str().unwrap());
    let goes = "#!/bin/sh\ncat >/dev/null; echo 'can take over: homescar 9'; rm \"$0\"\n";
    for (script, why) in [
        (goes, "cannot be executed"),
        (&fails_later, "of format 99"),
        (&fails_later, "of format 99"),
        (goes, "cannot be executed"),
    ] {
        one.replace_by_script(script);
        let receipt = one.upgrade().await;
        assert!(message(&receipt).contains(why), "{receipt}");
        stream.some(10_000).await;
        load.goes_on().await;
    }
    idle.say("hind HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(hear(&mut idle, 7).await, b"/behind");
    origin.news.send_replace(1);
    assert_eq!(hear(&mut poll, 7).await, b"/poll/0");
    stream.up_to(b"\r\n0\r\nX-Sum: 1\r\n\r\n").await;
    assert!(is_of_pieces(1, &unchunked(&stream.heard)));
    get(&mut poll, "/after").await;
    load.end().await;
    assert_eq!(origin.polls.load(Relaxed), 1, "it was not asked twice");
}

/// What is told to the client with the answer, and learned of it, is the same as without an upgrade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_is_known_when_the_answer_comes() {
    let origin = Origin::start().await;
    let cookie = "affinity = { key = \"cookie\" }";
    let learned = "affinity = { key = \"query:sid\" }";
    for (affinity, path) in [(cookie, "/poll/1"), (learned, "/sid/7")] {
        origin.news.send_replace(0);
        origin.polls.store(0, Relaxed);
        let (one, web) = origin.front(affinity).await;
        let mut peer = connect(web).await;
        ask(&mut peer, path).await;
        eventually("it waits", SOON, || origin.polls.load(Relaxed) == 1).await;
        upgrade(&one, 1).await;
        upgrade(&one, 1).await;
        origin.news.send_replace(1);
        let head = peer.head().await;
        let (again, key) = match affinity == cookie {
            true => {
                let given = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Set-Cookie: "));
                let given = given.expect("a cookie").split(';').next().unwrap();
                (
                    format!("GET /a HTTP/1.1\r\nHost: a\r\nCookie: {given}\r\n\r\n"),
                    "cookie",
                )
            }
            false => {
                peer.until("}").await;
                (
                    "GET /a?sid=id-7 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                    "learned",
                )
            }
        };
        let mark = one.homescar.mark();
        let mut fresh = connect(web).await;
        fresh.say(again).await;
        fresh.head().await;
        let is_known = |line: &Value| message(line) == "request" && line["key"] == key;
        one.homescar
            .line_after(mark, "a request by it", is_known)
            .await;
    }
}
