//! The clients: each with a loopback address of its own, each checking what comes back.

use std::{
    cell::Cell,
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{
    Outcome,
    pattern::{CHUNK, Pattern, Position},
};

/// Size of the messages of the small rows, in bytes.
const MESSAGE: usize = 64;

/// Client addresses that are used in turn: `127.0.1.1` to `127.0.4.250`.
const ADDRESSES: u64 = 1000;

/// What a group of clients has done and may still do.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Units of work done and checked.
    pub(crate) done: Cell<u64>,
    left: Cell<u64>,
    clients: Cell<u64>,
}

impl Tally {
    /// At most so much work.
    pub(crate) const fn new(left: u64) -> Self {
        Self {
            done: Cell::new(0),
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

    /// A number that no client of this tally had before.
    pub(crate) fn next_client(&self) -> u64 {
        self.clients.replace(self.clients.get() + 1)
    }
}

/// Connects from the client's own address.
pub(crate) async fn connect(to: SocketAddr, client: u64) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // The port is then chosen while connecting, so that all addresses together have enough.
    setsockopt(&socket, IpBindAddressNoPort, &true)?;
    let [high, low] = [client % ADDRESSES / 250 + 1, client % 250 + 1].map(|part| part as u8);
    socket.bind((Ipv4Addr::new(127, 0, high, low), 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens connections, no more than `at_once` at one time in the making.
pub(crate) async fn open(to: SocketAddr, count: u64, at_once: u64) -> Outcome<Vec<TcpStream>> {
    let mut connecting = JoinSet::new();
    let mut open = Vec::new();
    for client in 0..count {
        if client >= at_once {
            open.push(next(&mut connecting).await??);
        }
        connecting.spawn_local(connect(to, client));
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

/// Ping-pong on one connection, which is returned open.
pub(crate) async fn round_trips(mut stream: TcpStream, tally: Rc<Tally>) -> io::Result<TcpStream> {
    let client = tally.next_client();
    let mut number = 0;
    while tally.may_go_on() {
        number += 1;
        round_trip(&mut stream, client, number).await?;
        tally.did(1);
    }
    Ok(stream)
}

/// Connect, one round trip, close, again and again.
pub(crate) async fn short_connections(to: SocketAddr, tally: Rc<Tally>) -> io::Result<()> {
    while tally.may_go_on() {
        one_round_trip(to, &tally).await?;
        tally.did(1);
    }
    Ok(())
}

/// Connect, one round trip, close.
pub(crate) async fn one_round_trip(to: SocketAddr, tally: &Tally) -> io::Result<()> {
    let client = tally.next_client();
    let mut stream = connect(to, client).await?;
    round_trip(&mut stream, client, 0).await
}

async fn round_trip(stream: &mut TcpStream, client: u64, number: u64) -> io::Result<()> {
    // Never the same twice, so that an answer to another message is noticed.
    let mut message = [0x55; MESSAGE];
    message[..8].copy_from_slice(&client.to_le_bytes());
    message[8..16].copy_from_slice(&number.to_le_bytes());
    stream.write_all(&message).await?;
    let mut answer = [0; MESSAGE];
    stream.read_exact(&mut answer).await?;
    if answer != message {
        return Err(io::Error::other("a message came back changed"));
    }
    Ok(())
}

/// Reads the pattern; a unit is a byte.
pub(crate) async fn download(
    mut stream: TcpStream,
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
    mut stream: TcpStream,
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
    mut stream: TcpStream,
    pattern: Rc<Pattern>,
    bytes: usize,
) -> io::Result<TcpStream> {
    let (mut reader, mut writer) = stream.split();
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
