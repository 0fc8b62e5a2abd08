//! One check of one backend.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpSocket, UnixStream},
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::hysteresis::Failure;
use crate::{
    cluster::{Backlog, is_exhaustion},
    config::{Address, Check},
    tls::{BackendTlsError, Connector},
};

/// How often the accept queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a connection that says nothing is held meanwhile: a worker that serves one client after the
/// other may be waiting for what it has to say.
const HELD: Duration = Duration::from_millis(12);
/// What is read of an answer's body, so that the worker can close first.
const BODY: usize = 64 * 1024;
/// What the worker gets for each step of that.
const FAREWELL: Duration = Duration::from_millis(50);

/// Where and what to check.
#[derive(Debug)]
pub(super) struct Target {
    pub address: Address,
    /// Of a listening socket that homescar holds, where a connection says nothing.
    pub backlog: Option<Backlog>,
    pub check: Check,
    /// What encrypts the check, where the backend speaks TLS.
    pub tls: Option<Arc<Connector>>,
    /// For the whole check.
    pub timeout: Duration,
    /// How many waited in the accept queue when a check's connection joined it, for as long as
    /// that one may still wait itself. No other one joins it then: a check after the other would
    /// fill the queue of a worker that does not accept.
    pub knock: Mutex<Option<u32>>,
}

/// Why a check did not go well.
enum Trouble {
    /// The backend failed it.
    Its(Failure),
    /// It was not asked.
    Ours,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Its(failure)
    }
}

impl Target {
    /// Checks once. `None` when nothing was learned of the backend, as this machine had nothing
    /// left to ask it with.
    pub(super) async fn probe(&self) -> Option<Result<(), Failure>> {
        let deadline = Instant::now() + self.timeout;
        let status = OnceLock::new();
        let outcome = timeout_at(deadline, self.attempt(&status)).await;
        match (status.get(), outcome) {
            // What comes after the status has no say, and may be cut short.
            (Some(status), _) => Some(self.judge(*status)),
            (None, Ok(Err(Trouble::Ours))) => None,
            (None, Ok(Err(Trouble::Its(failure)))) => Some(Err(failure)),
            (None, Ok(Ok(()))) => Some(Ok(())),
            (None, Err(_)) => {
                let within = humantime::format_duration(self.timeout);
                Some(Err(silent(&format!("no answer within {within}"))))
            }
        }
    }

    fn knocked(&self) -> Option<u32> {
        *self.knock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knock(&self, before: Option<u32>) {
        *self.knock.lock().unwrap_or_else(PoisonError::into_inner) = before;
    }

    fn judge(&self, status: u16) -> Result<(), Failure> {
        match &self.check {
            Check::Http { path, expect } if status != *expect => Err(wrong(&format!(
                "GET {path} answered {status}, expected {expect}"
            ))),
            Check::Http { .. } | Check::Ws { .. } | Check::Tcp => Ok(()),
        }
    }

    async fn attempt(&self, status: &OnceLock<u16>) -> Result<(), Trouble> {
        if let Some(backlog) = &self.backlog {
            let is_full = backlog.is_full().map_err(not_connected)?;
            // A full one has no room for another, which would tell nothing.
            if let Some(before) = self.knocked().or_else(|| is_full.then_some(0)) {
                moves(backlog, before).await?;
                self.knock(None);
                if self.check == Check::Tcp {
                    return Ok(());
                }
            }
            self.knock(Some(backlog.waiting().map_err(not_connected)?));
        }
        match &self.address {
            Address::Tcp(addr) => self.attempt_tcp(*addr, None, status).await,
            Address::Probe { to, from } => self.attempt_tcp(*to, Some(*from), status).await,
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(not_connected)?;
                self.encrypt(stream, "localhost", status).await
            }
        }
    }

    async fn attempt_tcp(
        &self,
        to: SocketAddr,
        from: Option<Ipv4Addr>,
        status: &OnceLock<u16>,
    ) -> Result<(), Trouble> {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }
        .map_err(not_connected)?;
        // Closed by a reset, so that no check leaves a TIME_WAIT behind; set before it connects,
        // as the deadline may end it at any moment.
        socket.set_zero_linger().map_err(not_connected)?;
        if let Some(from) = from {
            socket
                .bind(SocketAddr::from((from, 0)))
                .map_err(not_connected)?;
        }
        let stream = match socket.connect(to).await {
            // No ports are left, or, more likely with IPv6, there is no IPv6 here.
            Err(error) if to.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable => {
                return Err(silent(&format!("cannot connect: {error}")).into());
            }
            connected => connected.map_err(not_connected)?,
        };
        self.encrypt(stream, &to.to_string(), status).await
    }

    async fn encrypt<S>(&self, stream: S, host: &str, status: &OnceLock<u16>) -> Result<(), Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            return self.converse(stream, host, status).await;
        };
        let connected = tls.connect(stream, &self.address).await;
        let stream = connected.map_err(|error| match error {
            BackendTlsError::Lost(_) | BackendTlsError::Timeout => silent(&error.to_string()),
            error => wrong(&format!("TLS: {error}")),
        })?;
        self.converse(stream, host, status).await
    }

    async fn converse<S>(
        &self,
        stream: S,
        host: &str,
        status: &OnceLock<u16>,
    ) -> Result<(), Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match (&self.check, &self.backlog) {
            (Check::Tcp, None) => Ok(()),
            (Check::Tcp, Some(backlog)) => {
                let before = self.knocked().unwrap_or(0);
                let mut moves = pin!(moves(backlog, before));
                let moved = timeout(HELD, &mut moves).await;
                drop(stream);
                match moved {
                    Ok(moved) => moved?,
                    Err(_) => moves.await?,
                }
                self.knock(None);
                Ok(())
            }
            (Check::Http { path, .. }, _) => Ok(get(stream, host, path, status).await?),
            (Check::Ws { path }, _) => Ok(ping(stream, host, path).await?),
        }
    }
}

/// Waits until somebody accepts. Whoever is busy may have a queue that is always as long: for each
/// that is accepted another one comes. But when it is no longer than `before` the check's own
/// connection joined it, or than a moment ago, somebody was accepted.
async fn moves(backlog: &Backlog, before: u32) -> Result<(), Trouble> {
    let mut last = 0;
    loop {
        // First, as the own connection may still be on its way into the queue.
        tokio::time::sleep(LOOK_EVERY).await;
        let waiting = backlog.waiting().map_err(not_connected)?;
        if waiting <= before || waiting < last {
            return Ok(());
        }
        last = waiting;
    }
}

/// Puts the status that a GET is answered with into `status`, then ends the connection politely.
async fn get<S>(stream: S, host: &str, path: &str, status: &OnceLock<u16>) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "homescar")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| wrong(&format!("cannot ask for {path}: {error}")))?;
    let failed = |error: hyper::Error| not_http(path, &error);
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(failed)?;
    let answered = CancellationToken::new();
    let conversation = async {
        let response = sender.send_request(request).await;
        let outcome = match response {
            Ok(response) => {
                let _first = status.set(response.status().as_u16());
                let _too_long = timeout(FAREWELL, pass_over(response.into_body())).await;
                Ok(())
            }
            Err(error) => Err(failed(error)),
        };
        drop(sender);
        answered.cancel();
        outcome
    };
    let carriage = async {
        let overdue = async {
            answered.cancelled().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            // Not shut down by us: the worker is to close first, and then our reset, which it
            // cannot see any more, spares it the TIME_WAIT.
            parts = connection.without_shutdown() => {
                let Ok(parts) = parts else { return };
                let mut stream = parts.io.into_inner();
                let _rude_worker = timeout(FAREWELL, stream.read(&mut [0; 64])).await;
            }
            () = overdue => {}
        }
    };
    let (outcome, ()) = tokio::join!(conversation, carriage);
    outcome
}

/// Opens a WebSocket, waits for the answer to a ping, and closes it.
async fn ping<S>(stream: S, host: &str, path: &str) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = tokio_tungstenite::client_async(format!("ws://{host}{path}"), stream);
    let (mut socket, _response) = handshake.await.map_err(|error| match error {
        tungstenite::Error::Http(response) => wrong(&format!(
            "WebSocket {path} answered {}, expected 101",
            response.status().as_u16()
        )),
        error => wrong(&format!("WebSocket {path} cannot be opened: {error}")),
    })?;
    let lost = |error| silent(&format!("WebSocket {path} was lost: {error}"));
    let payload = Bytes::from_static(b"homescar");
    let message = Message::Ping(payload.clone());
    socket.send(message).await.map_err(lost)?;
    while let Some(message) = socket.next().await {
        if matches!(message.map_err(lost)?, Message::Pong(answer) if answer == payload) {
            let _too_late = timeout(FAREWELL, socket.close(None)).await;
            return Ok(());
        }
    }
    Err(silent(&format!("WebSocket {path} was closed")))
}

/// Reads a body to its end, or as far as is sensible.
async fn pass_over(mut body: Incoming) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BODY {
            return;
        }
    }
}

fn not_connected(error: io::Error) -> Trouble {
    if is_exhaustion(&error) {
        return Trouble::Ours;
    }
    Trouble::Its(match error.kind() {
        io::ErrorKind::ConnectionRefused => silent("connection refused"),
        io::ErrorKind::NotFound => silent("no such socket"),
        _ => silent(&format!("cannot connect: {error}")),
    })
}

fn not_http(path: &str, error: &hyper::Error) -> Failure {
    if error.is_parse() {
        return wrong(&format!("GET {path} was answered, but not with HTTP"));
    }
    silent(&format!(
        "GET {path} got no answer: the connection was closed"
    ))
}

fn silent(why: &str) -> Failure {
    Failure {
        answered: false,
        why: Arc::from(why),
    }
}

fn wrong(why: &str) -> Failure {
    Failure {
        answered: true,
        why: Arc::from(why),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        task::JoinSet,
    };

    use super::*;

    /// A socket that homescar holds, its address, and its check.
    fn listening() -> (Arc<TcpListener>, SocketAddr, Target) {
        let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let to = listener.local_addr().unwrap();
        let target = Target {
            address: Address::Tcp(to),
            backlog: Some(Backlog::new(Arc::clone(&listener))),
            check: Check::Tcp,
            tls: None,
            timeout: Duration::from_millis(500),
            knock: Mutex::default(),
        };
        (listener, to, target)
    }

    /// One at a time, and for each client that it is done with the next one waits already.
    #[tokio::test]
    async fn who_is_always_busy_accepts_and_who_stands_still_does_not() {
        let (listener, to, target) = listening();
        let mut waiting = Vec::new();
        for _ in 0..5 {
            waiting.push(TcpStream::connect(to).await.unwrap());
        }
        for _ in 0..2 {
            assert!(target.probe().await.unwrap().is_err(), "nobody accepts");
            let waiting = target.backlog.as_ref().unwrap().waiting().unwrap();
            assert_eq!(waiting, 6, "one check is enough in the queue");
        }

        let worker = tokio::net::TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (_client, from) = worker.accept().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                let is_it = |client: &TcpStream| client.local_addr().unwrap() == from;
                if let Some(done) = waiting.iter().position(is_it) {
                    drop(waiting.swap_remove(done));
                    waiting.push(TcpStream::connect(to).await.unwrap());
                }
            }
        });
        for _ in 0..5 {
            assert_eq!(target.probe().await, Some(Ok(())), "it is only busy");
        }
    }

    /// One that reads all that a client has to say before it looks for the next one hears nothing from a
    /// check, and is not to wait for that while others queue behind.
    #[tokio::test]
    async fn who_serves_one_after_the_other_is_not_held_up() {
        let (listener, to, target) = listening();
        let worker = tokio::net::TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (mut client, _) = worker.accept().await.unwrap();
                let mut line = [0; 4];
                if client.read_exact(&mut line).await.is_ok() {
                    let _gone = client.write_all(&line).await;
                }
            }
        });
        for _ in 0..4 {
            tasks.spawn(async move {
                loop {
                    let mut client = TcpStream::connect(to).await.unwrap();
                    client.write_all(b"ask\n").await.unwrap();
                    client.read_exact(&mut [0; 4]).await.unwrap();
                }
            });
        }
        for _ in 0..20 {
            assert_eq!(target.probe().await, Some(Ok(())), "it serves");
        }
        let ended = tasks.try_join_next();
        assert!(ended.is_none(), "{ended:?}");
    }
}
