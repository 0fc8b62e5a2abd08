//! The clients: each with a loopback address of its own, each checking what comes back.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::Instant,
};

use super::{
    Outcome,
    latency::Latencies,
    pattern::{CHUNK, Pattern, Position},
    stream::Stream,
    tls::Hands,
};

/// Client addresses that are used in turn: `127.0.1.1` to `127.0.4.250`.
const ADDRESSES: u64 = 1000;

/// What a group of clients has done and may still do.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Units of work done and checked.
    pub(crate) done: Cell<u64>,
    /// How long they took.
    pub(crate) latencies: RefCell<Latencies>,
    left: Cell<u64>,
    clients: Cell<u64>,
}

impl Tally {
    /// At most so much work.
    pub(crate) fn new(left: u64) -> Self {
        Self {
            done: Cell::new(0),
            latencies: RefCell::new(Latencies::new()),
            left: Cell::new(left),
            clients: Cell::new(0),
        }
    }

    /// Lets everyone end after the unit that it is at.
    pub(crate) fn stop(&self) {
        self.left.set(0);
    }

    pub(crate) fn may_go_on(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    pub(crate) fn did(&self, units: u64) {
        self.done.set(self.done.get() + units);
    }

    /// One unit, which began then.
    pub(crate) fn did_one(&self, since: Instant) {
        self.did(1);
        self.latencies.borrow_mut().add(since.elapsed());
    }

    /// A number that no client of this tally had before.
    pub(crate) fn next_client(&self) -> u64 {
        self.clients.replace(self.clients.get() + 1)
    }
}

/// Where clients connect to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    /// The proxy's, or where there is none those of all backends, of which each client has one.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) hands: Option<Hands>,
}

impl Door {
    /// The same for another client, who has TLS sessions of its own.
    pub(crate) fn of_another(&self) -> Self {
        Self {
            addresses: self.addresses.clone(),
            hands: self.hands.as_ref().map(Hands::of_another),
        }
    }

    /// Connects from the client's own address.
    pub(crate) async fn connect(&mut self, client: u64) -> io::Result<Stream> {
        let socket = TcpSocket::new_v4()?;
        // The port is then chosen while connecting, so that all addresses together have enough.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        let [high, low] = [client % ADDRESSES / 250 + 1, client % 250 + 1].map(|part| part as u8);
        socket.bind((Ipv4Addr::new(127, 0, high, low), 0).into())?;
        let to = self.addresses[client as usize % self.addresses.len()];
        let tcp: TcpStream = socket.connect(to).await?;
        tcp.set_nodelay(true)?;
        match &mut self.hands {
            None => Ok(Stream::Plain(tcp)),
            Some(hands) => hands.shake(tcp).await,
        }
    }
}

/// Opens connections, no more than `at_once` at one time in the making.
pub(crate) async fn open(door: &Door, count: u64, at_once: u64) -> Outcome<Vec<Stream>> {
    let mut connecting = JoinSet::new();
    let mut open = Vec::new();
    for client in 0..count {
        if client >= at_once {
            open.push(next(&mut connecting).await??);
        }
        let mut door = door.of_another();
        connecting.spawn_local(async move { door.connect(client).await });
    }
    while !connecting.is_empty() {
        open.push(next(&mut connecting).await??);
    }
    Ok(open)
}

/// What the next task that ends returns.
pub(crate) async fn next<T: 'static>(tasks: &mut JoinSet<T>) -> Outcome<T> {
    let ended = tasks.join_next().await.ok_or("all clients have ended")?;
    Ok(ended?)
}

/// Messages that come back, on one connection.
#[derive(Debug)]
pub(crate) struct PingPong {
    message: Vec<u8>,
    answer: Vec<u8>,
    client: u64,
    number: u64,
}

impl PingPong {
    pub(crate) fn new(tally: &Tally, bytes: usize) -> Self {
        Self {
            message: vec![0x55; bytes],
            answer: vec![0; bytes],
            client: tally.next_client(),
            number: 0,
        }
    }

    pub(crate) async fn round_trip(&mut self, stream: &mut Stream) -> io::Result<()> {
        // Never the same twice, so that an answer to another message is noticed.
        self.number += 1;
        self.message[..8].copy_from_slice(&self.client.to_le_bytes());
        self.message[8..16].copy_from_slice(&self.number.to_le_bytes());
        let (mut reader, mut writer) = tokio::io::split(&mut *stream);
        match self.message.len() {
            // At once both ways, as no side could otherwise be sure to hold all of it.
            large if large > 4096 => {
                let send = async {
                    writer.write_all(&self.message).await?;
                    writer.flush().await
                };
                let receive = reader.read_exact(&mut self.answer);
                tokio::try_join!(send, receive)?;
            }
            _ => {
                writer.write_all(&self.message).await?;
                writer.flush().await?;
                reader.read_exact(&mut self.answer).await?;
            }
        }
        if self.answer != self.message {
            return Err(io::Error::other("a message came back changed"));
        }
        Ok(())
    }
}

/// Ping-pong on one connection, which is returned open.
pub(crate) async fn round_trips(
    mut stream: Stream,
    tally: Rc<Tally>,
    bytes: usize,
) -> io::Result<Stream> {
    let mut ping_pong = PingPong::new(&tally, bytes);
    while tally.may_go_on() {
        let began = Instant::now();
        ping_pong.round_trip(&mut stream).await?;
        tally.did_one(began);
    }
    Ok(stream)
}

/// Connect, one round trip, close, again and again.
pub(crate) async fn short_connections(
    mut door: Door,
    tally: Rc<Tally>,
    bytes: usize,
) -> io::Result<()> {
    while tally.may_go_on() {
        let began = Instant::now();
        let stream = one_round_trip(&mut door, &tally, bytes).await?;
        tally.did_one(began);
        stream.close().await?;
    }
    Ok(())
}

/// Connect and one round trip; the connection is returned open.
pub(crate) async fn one_round_trip(
    door: &mut Door,
    tally: &Tally,
    bytes: usize,
) -> io::Result<Stream> {
    let mut ping_pong = PingPong::new(tally, bytes);
    let mut stream = door.connect(ping_pong.client).await?;
    ping_pong.round_trip(&mut stream).await?;
    Ok(stream)
}

/// Reads the pattern; a unit is a byte.
pub(crate) async fn download(
    mut stream: Stream,
    pattern: Rc<Pattern>,
    tally: Rc<Tally>,
) -> io::Result<()> {
    let mut at = Position::default();
    let mut buffer = vec![0; CHUNK];
    while tally.may_go_on() {
        let came = stream.read(&mut buffer).await?;
        if came == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pattern
            .check(&mut at, &buffer[..came])
            .map_err(|error| io::Error::other(error.to_string()))?;
        tally.did(came as u64);
    }
    Ok(())
}

/// Writes the pattern; what arrives is counted by the backends.
pub(crate) async fn upload(
    mut stream: Stream,
    pattern: Rc<Pattern>,
    tally: Rc<Tally>,
) -> io::Result<()> {
    let mut at = Position::default();
    while tally.may_go_on() {
        let sent = stream.write(pattern.next(at)).await?;
        at.advance(sent);
    }
    Ok(())
}

/// Sends so many bytes of the pattern, and checks that they come back.
pub(crate) async fn pass_through(
    mut stream: Stream,
    pattern: Rc<Pattern>,
    bytes: usize,
) -> io::Result<Stream> {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let send = async {
        writer
            .write_all(&pattern.next(Position::default())[..bytes])
            .await
    };
    let receive = async {
        let mut came = vec![0; bytes];
        reader.read_exact(&mut came).await?;
        pattern
            .check(&mut Position::default(), &came)
            .map_err(|error| io::Error::other(error.to_string()))
    };
    tokio::try_join!(send, receive)?;
    Ok(stream)
}
