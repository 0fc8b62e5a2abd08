//! The backends: several listeners on the load's CPU that do what the row asks for.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::SocketAddr,
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{
    Outcome, http, http2,
    pattern::{CHUNK, Pattern, Position},
    stream::Stream,
};

const COUNT: u8 = 4;

/// What a backend reads at one time when it echoes; small, as thousands of them are idle.
const ECHO_BUFFER: usize = 16 * 1024;

/// What a backend does with a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Duty {
    /// Sends back what comes, and closes when the client does.
    Echo,
    /// Sends back what comes with the backend's number as the last byte.
    Named,
    /// Answers requests over HTTP/1.1, or over HTTP/2 where TLS agreed on it.
    Http,
    /// Sends the pattern until the client goes.
    Send,
    /// Checks that the pattern comes.
    Receive,
}

/// What shakes hands with clients.
#[derive(Clone)]
pub(crate) struct Acceptor(pub(crate) TlsAcceptor);

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}

/// What the backends have seen.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) duty: Cell<Duty>,
    /// Shakes hands, where there is no proxy that does.
    pub(crate) acceptor: RefCell<Option<Acceptor>>,
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
            acceptor: RefCell::new(None),
            accepted: Cell::new(0),
            open: Cell::new(0),
            received: Cell::new(0),
            fault: RefCell::new(None),
            pattern,
        });
        let mut addresses = Vec::new();
        let mut accepting = JoinSet::new();
        for number in 0..COUNT {
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
                            connections.spawn_local(serve(stream, number, Rc::clone(&seen)));
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

async fn serve(stream: TcpStream, number: u8, seen: Rc<Seen>) {
    seen.accepted.set(seen.accepted.get() + 1);
    seen.open.set(seen.open.get() + 1);
    // Errors are how connections end when a row is over and its proxy is gone; a connection that
    // is lost before that is the client's to notice.
    let _ended = attend(stream, number, &seen).await;
    seen.open.set(seen.open.get() - 1);
}

async fn attend(stream: TcpStream, number: u8, seen: &Seen) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let acceptor = seen.acceptor.borrow().clone();
    let stream = match acceptor {
        None => Stream::Plain(stream),
        Some(Acceptor(acceptor)) => {
            let stream = acceptor.accept(stream).await?;
            Stream::Tls(Box::new(TlsStream::Server(stream)))
        }
    };
    match seen.duty.get() {
        Duty::Echo => echo(stream, None).await,
        Duty::Named => echo(stream, Some(number)).await,
        Duty::Http if stream.is_http2() => http2::serve(stream).await,
        Duty::Http => http::serve(stream).await,
        Duty::Send => send(stream, &seen.pattern).await,
        Duty::Receive => receive(stream, seen).await,
    }
}

async fn echo(mut stream: Stream, number: Option<u8>) -> io::Result<()> {
    let mut buffer = [0; ECHO_BUFFER];
    loop {
        let came = stream.read(&mut buffer).await?;
        if came == 0 {
            return Ok(());
        }
        if let Some(number) = number {
            buffer[came - 1] = number;
        }
        stream.write_all(&buffer[..came]).await?;
        stream.flush().await?;
    }
}

async fn send(mut stream: Stream, pattern: &Pattern) -> io::Result<()> {
    let mut at = Position::default();
    loop {
        let sent = stream.write(pattern.next(at)).await?;
        at.advance(sent);
    }
}

async fn receive(mut stream: Stream, seen: &Seen) -> io::Result<()> {
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
