//! One check of one backend.

use std::{io, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::Instant,
};

use super::hysteresis::Failure;
use crate::{
    cluster::Backlog,
    config::{Address, Check},
};

/// How often the accept queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What is read of an answer's body, so that the worker can close first.
const BODY: usize = 64 * 1024;

/// Where and what to check.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub address: Address,
    /// Of a listening socket that homescar holds, where a connection says nothing.
    pub backlog: Option<Backlog>,
    pub check: Check,
    /// For the whole check.
    pub timeout: Duration,
}

impl Target {
    /// Checks once.
    pub(super) async fn probe(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout;
        match tokio::time::timeout_at(deadline, self.attempt()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let within = humantime::format_duration(self.timeout);
                Err(silent(&format!("no answer within {within}")))
            }
        }
    }

    async fn attempt(&self) -> Result<(), Failure> {
        if let Some(backlog) = &self.backlog {
            // Connections that already wait tell as much as one more would, and an own one for
            // each check would fill the queue of a worker that does not accept.
            accepting(backlog).await?;
        }
        match &self.address {
            Address::Tcp(addr) => {
                let stream = TcpStream::connect(addr).await.map_err(not_connected)?;
                // Closed by a reset, so that no check leaves a TIME_WAIT behind.
                SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .map_err(not_connected)?;
                self.converse(stream, &addr.to_string()).await
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(not_connected)?;
                self.converse(stream, "localhost").await
            }
        }
    }

    async fn converse<S>(&self, stream: S, host: &str) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match (&self.check, &self.backlog) {
            (Check::Tcp, None) => Ok(()),
            (Check::Tcp, Some(backlog)) => {
                let accepted = accepting(backlog).await;
                drop(stream);
                accepted
            }
            (Check::Http { path, expect }, _) => {
                let status = get(stream, host, path).await?;
                if status == *expect {
                    return Ok(());
                }
                Err(wrong(&format!(
                    "GET {path} answered {status}, expected {expect}"
                )))
            }
        }
    }
}

/// Waits until somebody accepts: the queue is empty, or shorter than it was.
async fn accepting(backlog: &Backlog) -> Result<(), Failure> {
    let mut most = 0;
    loop {
        let waiting = backlog.waiting().map_err(not_connected)?;
        if waiting == 0 || waiting < most {
            return Ok(());
        }
        most = waiting;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The status that a GET is answered with.
async fn get<S>(stream: S, host: &str, path: &str) -> Result<u16, Failure>
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
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        pass_over(response.into_body()).await;
        Ok(status)
    };
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = answer => answer,
        // It ends when the answer is complete, or breaks and then the answer is an error too.
        never = async { let _end = (&mut connection).await; std::future::pending().await } => never,
    }
}

/// Reads a body to its end, or as far as is sensible: a worker that closes first, as it was
/// asked to, sees no reset.
async fn pass_over(mut body: Incoming) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BODY {
            return;
        }
    }
}

fn not_connected(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => silent("connection refused"),
        io::ErrorKind::NotFound => silent("no such socket"),
        _ => silent(&format!("cannot connect: {error}")),
    }
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
