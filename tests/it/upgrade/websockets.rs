//! WebSockets that come along: every byte, at whatever point of a frame an upgrade finds them.

use std::{net::SocketAddr, time::Duration};

use fastrand::Rng;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Replaceable;
use crate::{
    http::{Peer, soon},
    metrics,
    support::homescar::message,
};

const SOCKETS: usize = 300;
const UPGRADES: usize = 5;
/// Frames of a flood, of a quarter of a megabyte each.
const FLOOD: usize = 8;

/// What a side does around an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Says something once after each.
    Quiet,
    /// Talks all the while, in messages of several fragments.
    Talks,
    /// Has said half a frame when it comes.
    Stops,
    /// Sends more than all buffers on the way hold, and is not heard before it is over.
    Floods,
}

impl Habit {
    /// Each meets each other one. Few flood: what waits in sockets is some megabytes for each of them,
    /// and the kernel has an end of its memory for all sockets together.
    const fn of(index: usize, is_client: bool) -> Self {
        let (turn, flood) = match is_client {
            true => (index, 3),
            false => (index / 3, 11),
        };
        match (index % 24 == flood, turn % 3) {
            (true, _) => Self::Floods,
            (false, 0) => Self::Quiet,
            (false, 1) => Self::Talks,
            (false, _) => Self::Stops,
        }
    }
}

/// Says the same as every other one of its seed.
struct Voice {
    random: Rng,
    is_client: bool,
    /// A message has begun.
    within: bool,
}

impl Voice {
    fn new(seed: usize, is_client: bool) -> Self {
        let seed = 2 * seed as u64 + u64::from(is_client);
        Self {
            random: Rng::with_seed(seed),
            is_client,
            within: false,
        }
    }

    /// The next frame; its payload has up to `most` bytes.
    fn frame(&mut self, most: usize) -> Vec<u8> {
        let is_final = self.random.bool();
        let opcode = if self.within { 0 } else { 2 };
        self.within = !is_final;
        let len = self.random.usize(0..=most);
        let mut frame = vec![opcode | if is_final { 0x80 } else { 0 }];
        let mask = if self.is_client { 0x80 } else { 0 };
        match len {
            0..126 => frame.push(mask | len as u8),
            126..65_536 => {
                frame.push(mask | 126);
                frame.extend((len as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        if self.is_client {
            frame.extend(self.random.u32(..).to_be_bytes());
        }
        let begin = frame.len();
        frame.resize(begin + len, 0);
        self.random.fill(&mut frame[begin..]);
        frame
    }

    /// The next one of a side with this habit.
    fn next(&mut self, habit: Habit) -> Vec<u8> {
        self.frame(match habit {
            Habit::Quiet => 200,
            Habit::Talks => 3_000,
            Habit::Stops => 70_000,
            Habit::Floods => 500_000,
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Said {
    frames: u64,
    bytes: u64,
}

/// One direction of a WebSocket.
struct Speaker {
    voice: Voice,
    habit: Habit,
    write: OwnedWriteHalf,
    said: Said,
}

impl Speaker {
    async fn say(&mut self, frame: &[u8]) {
        patiently(self.write.write_all(frame)).await.unwrap();
        self.said.frames += 1;
        self.said.bytes += frame.len() as u64;
    }

    /// Speaks as is its habit until all upgrades are over.
    async fn speak(mut self, mut rounds: watch::Receiver<usize>) -> Self {
        for round in 0..UPGRADES {
            match self.habit {
                Habit::Quiet => over(&mut rounds, round).await,
                Habit::Talks => {
                    while *rounds.borrow() == round {
                        let frame = self.voice.next(self.habit);
                        self.say(&frame).await;
                        sleep(Duration::from_millis(40)).await;
                    }
                }
                Habit::Stops => {
                    let frame = self.voice.next(self.habit);
                    self.say(&frame).await;
                    let frame = self.voice.next(self.habit);
                    let (first, rest) = frame.split_at(frame.len() / 2);
                    patiently(self.write.write_all(first)).await.unwrap();
                    over(&mut rounds, round).await;
                    self.say(rest).await;
                    self.said.bytes += first.len() as u64;
                }
                Habit::Floods => {
                    for _ in 0..FLOOD {
                        let frame = self.voice.next(self.habit);
                        self.say(&frame).await;
                    }
                }
            }
            let frame = self.voice.next(self.habit);
            self.say(&frame).await;
        }
        self
    }
}

async fn over(rounds: &mut watch::Receiver<usize>, round: usize) {
    rounds.wait_for(|now| *now > round).await.unwrap();
}

/// Whoever hears a direction, and knows what it has to be.
struct Hearer {
    voice: Voice,
    habit: Habit,
    read: OwnedReadHalf,
    /// What is left of the present frame.
    due: Vec<u8>,
    heard: Said,
    /// What came where a frame could begin, and was a Close frame.
    goodbye: Vec<u8>,
}

impl Hearer {
    fn new(voice: Voice, habit: Habit, read: OwnedReadHalf) -> Self {
        Self {
            voice,
            habit,
            read,
            due: Vec::new(),
            heard: Said::default(),
            goodbye: Vec::new(),
        }
    }

    /// Hears until all upgrades are over, and all that was said by then.
    async fn hear(
        mut self,
        mut rounds: watch::Receiver<usize>,
        mut said: oneshot::Receiver<Said>,
    ) -> Self {
        let mut total = None;
        let mut waited = 0;
        while total != Some(self.heard.bytes) {
            let is_round_heard = self.heard.frames == (waited * (FLOOD + 1)) as u64;
            if self.habit == Habit::Floods && waited < UPGRADES && is_round_heard {
                over(&mut rounds, waited).await;
                waited += 1;
            }
            tokio::select! {
                read = self.some() => assert!(read > 0 && self.goodbye.is_empty(), "the end"),
                said = &mut said, if total.is_none() => total = Some(said.unwrap().bytes),
            }
        }
        self
    }

    /// Hears on; how many bytes came.
    async fn some(&mut self) -> usize {
        let mut buffer = vec![0; 64 * 1024];
        let read = self.read.read(&mut buffer).await.expect("no reset");
        self.check(&buffer[..read]);
        read
    }

    fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if !self.goodbye.is_empty() || self.due.is_empty() && bytes[0] == 0x88 {
                return self.goodbye.extend(bytes);
            }
            if self.due.is_empty() {
                self.due = self.voice.next(self.habit);
                self.heard.frames += 1;
            }
            let len = bytes.len().min(self.due.len());
            let is_right = self.due[..len] == bytes[..len];
            assert!(is_right, "other bytes after {:?}", self.heard);
            self.due.drain(..len);
            self.heard.bytes += len as u64;
            bytes = &bytes[len..];
        }
    }

    /// Hears until the goodbye is whole, or the end where it has to be.
    async fn until_goodbye(&mut self) {
        let is_whole = |bytes: &[u8]| bytes.len() >= 2 && bytes.len() >= 2 + usize::from(bytes[1]);
        while !is_whole(&self.goodbye) {
            assert!(patiently(self.some()).await > 0, "the end");
        }
    }
}

/// One WebSocket: both its directions.
struct Pair {
    opened: Instant,
    id: String,
    up: Direction,
    down: Direction,
}

struct Direction {
    task: JoinSet<(Speaker, Hearer)>,
}

impl Direction {
    fn start(
        index: usize,
        is_client: bool,
        (write, read): (OwnedWriteHalf, OwnedReadHalf),
        rounds: &watch::Receiver<usize>,
    ) -> Self {
        let habit = Habit::of(index, is_client);
        let speaker = Speaker {
            voice: Voice::new(index, is_client),
            habit,
            write,
            said: Said::default(),
        };
        let hearer = Hearer::new(Voice::new(index, is_client), habit, read);
        let (tell, said) = oneshot::channel();
        let (speaks, hears) = (rounds.clone(), rounds.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let speak = async {
                let speaker = speaker.speak(speaks).await;
                let _ended = tell.send(speaker.said);
                speaker
            };
            tokio::join!(speak, hearer.hear(hears, said))
        });
        Self { task }
    }

    async fn end(mut self) -> (Speaker, Hearer) {
        let ended = patiently(self.task.join_next()).await;
        ended.unwrap().unwrap()
    }
}

async fn open(front: SocketAddr, backend: &TcpListener, id: &str) -> (TcpStream, TcpStream) {
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let mut client = Peer(TcpStream::connect(front).await.unwrap());
    client
        .say(format!(
            "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nX-Request-Id: {id}\r\n\r\n"
        ))
        .await;
    let accepted = soon("a connection", backend.accept()).await.unwrap();
    let mut served = Peer(accepted.0);
    served.head().await;
    let accept = derive_accept_key(KEY.as_bytes());
    served
        .say(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        ))
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    (client.0, served.0)
}

async fn front(backend: &TcpListener, drain: &str) -> (Replaceable, SocketAddr) {
    let at = backend.local_addr().unwrap();
    let one = Replaceable::serve(&format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [cluster.app]
        backends = ["{at}"]
        drain = {{ {drain} }}
        "#
    ));
    let web = one.homescar.address("web").await;
    (one, web)
}

/// Hundreds of them take their time.
async fn patiently<T>(event: impl Future<Output = T>) -> T {
    let done = timeout(Duration::from_secs(180), event).await;
    done.expect("it happens at some time")
}

/// A masked Close frame with a code.
fn close(code: u16) -> [u8; 8] {
    let [high, low] = code.to_be_bytes();
    [0x88, 0x82, 0, 0, 0, 0, high, low]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one story, told in one piece")]
async fn every_byte_arrives_over_many_upgrades_and_a_drain_ends_them() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut one, web) = front(&backend, "timeout = \"20s\", spread = \"500ms\"").await;
    let (next, rounds) = watch::channel(0);
    let mut pairs = Vec::new();
    for index in 0..SOCKETS {
        let id = format!("socket-{index}");
        let (client, served) = open(web, &backend, &id).await;
        let opened = Instant::now();
        let ((hears, says), (served_hears, served_says)) =
            (client.into_split(), served.into_split());
        pairs.push(Pair {
            opened,
            id,
            up: Direction::start(index, true, (says, served_hears), &rounds),
            down: Direction::start(index, false, (served_says, hears), &rounds),
        });
    }
    for round in 1..=UPGRADES {
        let receipt = one.must_upgrade().await;
        let counts = (&receipt["cut"], &receipt["connections"]);
        assert_eq!(counts, (&0.into(), &SOCKETS.into()));
        next.send_replace(round);
    }
    let mut ready = Vec::new();
    for Pair {
        opened,
        id,
        up,
        down,
    } in pairs
    {
        ready.push((opened, id, up.end().await, down.end().await));
    }
    let is_end = |line: &Value| message(line) == "request";
    assert!(!one.homescar.log().iter().any(is_end), "none has ended");
    for name in ["homescar_websockets_total", "homescar_websockets_active"] {
        metrics::until(&one.homescar, name, &[("listener", "web")], SOCKETS as f64).await;
    }

    one.homescar.signal(Signal::SIGTERM);
    let mut ends = JoinSet::new();
    for (opened, id, up, down) in ready {
        ends.spawn(say_goodbye(opened, id, up, down));
    }
    let mut expected = Vec::new();
    while let Some(end) = ends.join_next().await {
        expected.push(end.unwrap());
    }
    assert!(one.homescar.exit().await.success());
    for (opened, id, up, down) in expected {
        let is_it = |line: &Value| message(line) == "request" && line["id"] == *id;
        let records: Vec<_> = one
            .homescar
            .log()
            .iter()
            .filter(|line| is_it(line))
            .cloned()
            .collect();
        let [record] = &records[..] else {
            panic!("{id}: {records:?}");
        };
        let number = |name: &str| record[name].as_u64().unwrap();
        let counted = (
            number("frames_up"),
            number("up"),
            number("frames_down"),
            number("down"),
        );
        assert_eq!(
            counted,
            (up.frames, up.bytes, down.frames, down.bytes),
            "{record}"
        );
        assert!(number("ms") >= opened.as_millis() as u64, "{record}");
        let end = (&record["closed_by"], &record["code"], &record["reason"]);
        assert_eq!(
            end,
            (&"proxy".into(), &1012.into(), &"closed".into()),
            "{record}"
        );
        assert_eq!(record["status"], 101);
        assert_eq!(record["request"], "GET a/chat");
    }
}

/// The backend talks on while the client is told to go; gives how long it was there, and what went
/// each way.
async fn say_goodbye(
    opened: Instant,
    id: String,
    (mut speaker, mut served): (Speaker, Hearer),
    (mut server, mut hearer): (Speaker, Hearer),
) -> (Duration, String, Said, Said) {
    let at_least = opened.elapsed();
    let talks = async {
        loop {
            let frame = server.voice.next(Habit::Talks);
            if server.write.write_all(&frame).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let listens = async {
        let mut buffer = [0; 1024];
        while served
            .read
            .read(&mut buffer)
            .await
            .is_ok_and(|read| read > 0)
        {}
    };
    let client = async {
        hearer.habit = Habit::Talks;
        hearer.until_goodbye().await;
        assert_eq!(
            hearer.goodbye[2..4],
            1012_u16.to_be_bytes(),
            "{:?}",
            hearer.goodbye
        );
        speaker.say(&close(1012)).await;
        while soon("the end", hearer.some()).await > 0 {}
    };
    tokio::join!(talks, listens, client);
    (at_least, id, speaker.said, hearer.heard)
}

/// An upgrade that fails at the very last moment: they stand still already, and go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_go_on_when_the_program_cannot_be_executed_after_all() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, web) = front(&backend, "spread = \"1ms\"").await;
    let (client, served) = open(web, &backend, "socket").await;
    let (mut client, mut served) = (Peer(client), Peer(served));
    client.say([0x81, 0x84, 0, 0, 0, 0, b'o']).await;
    served.until("o").await;
    for _ in 0..2 {
        one.replace_by_script(
            "#!/bin/sh\ncat >/dev/null; echo 'can take over: homescar 9'; rm \"$0\"\n",
        );
        let receipt = one.upgrade().await;
        assert!(
            message(&receipt).contains("cannot be executed"),
            "{receipt}"
        );
    }
    client.say("ver").await;
    served.until("ver").await;
    served.say([0x81, 2, b'h', b'i']).await;
    client.until("hi").await;
    client.say(close(1000)).await;
    drop((client, served));
    let record = |line: &Value| message(line) == "request" && line["id"] == "socket";
    let record = one.homescar.line("a record", record).await;
    assert_eq!(
        (&record["frames_up"], &record["frames_down"]),
        (&2.into(), &1.into())
    );
}
