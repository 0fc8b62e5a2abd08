//! The backends: several listeners on the load's CPU that do what the row asks for.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{
    Outcome, http,
    pattern::{CHUNK, Pattern, Position},
};

const COUNT: usize = 4;

/// What a backend reads at one time when it echoes; small, as thousands of them are idle.
const ECHO_BUFFER: usize = 4 * 1024;

/// What a backend does with a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Duty {
    /// Sends back what comes, and closes when the client does.
    Echo,
    /// Answers requests over HTTP/1.1.
    Http,
    /// Sends the pattern until the client goes.
    Send,
    /// Checks that the pattern comes.
    Receive,
}

/// What the backends have seen.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) duty: Cell<Duty>,
    /// Connections accepted since the start.
    pub(crate) accepted: Cell<u64>,
    /// Connections open now.
    pub(crate) open: Cell<u64>,
    /// Bytes that came right, by [`Duty::Receive`].
    pub(crate) received: Cell<u64>,
    fault: RefCell<Option<String>>,
    pattern: Rc<Pattern>,
}

impl Seen {
    /// Fails when bytes came wrong.
    pub(crate) fn check(&self) -> Outcome {
        self.fault
            .borrow_mut()
            .take()
            .map_or(Ok(()), |fault| Err(fault.into()))
    }
}

/// The backends; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) seen: Rc<Seen>,
    _accepting: JoinSet<()>,
}

impl Backends {
    pub(crate) fn start(pattern: Rc<Pattern>) -> Outcome<Self> {
        let seen = Rc::new(Seen {
            duty: Cell::new(Duty::Echo),
            accepted: Cell::new(0),
            open: Cell::new(0),
            received: Cell::new(0),
            fault: RefCell::new(None),
            pattern,
        });
        let mut addresses = Vec::new();
        let mut accepting = JoinSet::new();
        for _ in 0..COUNT {
            let socket = TcpSocket::new_v4()?;
            socket.bind("127.0.0.1:0".parse()?)?;
            let listener = socket.listen(4096)?;
            addresses.push(listener.local_addr()?);
            let seen = Rc::clone(&seen);
            accepting.spawn_local(async move {
                let mut connections = JoinSet::new();
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            connections.spawn_local(serve(stream, Rc::clone(&seen)));
                        }
                        Err(error) => {
                            *seen.fault.borrow_mut() = Some(format!("a backend's accept: {error}"));
                            return;
                        }
                    }
                    while connections.try_join_next().is_some() {}
                }
            });
        }
        Ok(Self {
            addresses,
            seen,
            _accepting: accepting,
        })
    }
}

async fn serve(stream: TcpStream, seen: Rc<Seen>) {
    seen.accepted.set(seen.accepted.get() + 1);
    seen.open.set(seen.open.get() + 1);
    // Errors are how connections end when a row is over and its proxy is gone; a connection that
    // is lost before that is the client's to notice.
    let _ended = match seen.duty.get() {
        Duty::Echo => echo(stream).await,
        Duty::Http => http::serve(stream).await,
        Duty::Send => send(stream, &seen.pattern).await,
        Duty::Receive => receive(stream, &seen).await,
    };
    seen.open.set(seen.open.get() - 1);
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; ECHO_BUFFER];
    loop {
        let came = stream.read(&mut buffer).await?;
        if came == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..came]).await?;
    }
}

async fn send(mut stream: TcpStream, pattern: &Pattern) -> io::Result<()> {
    let mut at = Position::default();
    loop {
        let sent = stream.write(pattern.next(at)).await?;
        at.advance(sent);
    }
}

async fn receive(mut stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let mut at = Position::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        let came = stream.read(&mut buffer).await?;
        if came == 0 {
            return Ok(());
        }
        if let Err(error) = seen.pattern.check(&mut at, &buffer[..came]) {
            *seen.fault.borrow_mut() = Some(format!("at a backend, {error}"));
            return Ok(());
        }
        seen.received.set(seen.received.get() + came as u64);
    }
}
