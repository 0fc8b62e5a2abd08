//! The other end of the API, for the command line.

use std::{
    io,
    marker::PhantomData,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt as _, Full};
use hyper::{Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use super::view;

/// For the socket to be opened.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer, or no good one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error(
        "no homescar answers at {0}: {1} (is it running? `--socket PATH` names another socket, its \
         log says which)"
    )]
    Unreachable(PathBuf, io::Error),
    /// The socket is somebody else's, who could say anything.
    #[error("{0} belongs to another user (uid {1}); nothing was asked there")]
    Foreign(PathBuf, u32),
    /// The conversation broke off.
    #[error("homescar's answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// It is no answer of this API.
    #[error("homescar's answer cannot be read: {0}")]
    Odd(#[from] serde_json::Error),
    /// The answer is no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a running homescar.
#[derive(Debug)]
pub struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    _connection: JoinSet<()>,
}

/// An answer that comes line by line.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    /// What has come of the next line.
    read: Vec<u8>,
    _client: Client,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When the answer breaks off, or the line is no such thing.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame?.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }
}

impl Client {
    /// Connects to the socket of a homescar of this user, or of root.
    ///
    /// # Errors
    /// When nobody is there, or somebody else.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let unreachable = |error| ClientError::Unreachable(socket.to_owned(), error);
        let owner = socket.metadata().map_err(unreachable)?.uid();
        if owner != 0 && owner != geteuid().as_raw() {
            return Err(ClientError::Foreign(socket.to_owned(), owner));
        }
        let stream = timeout(CONNECT_TIMEOUT, UnixStream::connect(socket)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // What goes wrong shows where the answer is awaited.
            let _broken = connection.await;
        });
        Ok(Self {
            sender,
            _connection: driver,
        })
    }

    /// Asks.
    ///
    /// # Errors
    /// When there is no answer, or the answer is no.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Tells.
    ///
    /// # Errors
    /// When there is no answer, or the answer is no.
    pub async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body)?;
        self.request(Method::POST, path, body.into()).await
    }

    /// Tells, and hears line by line what comes of it.
    ///
    /// # Errors
    /// When there is no answer, or the answer is no.
    pub async fn stream<T>(
        mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Lines<T>, ClientError> {
        let body = serde_json::to_vec(body)?;
        let response = self.send(Method::POST, path, body.into()).await?;
        Ok(Lines {
            body: response.into_body(),
            read: Vec::new(),
            _client: self,
            of: PhantomData,
        })
    }

    async fn request<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, body).await?;
        let body = response.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }

    /// A response whose status is good.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| {
            ClientError::Refused(format!("{path} cannot be asked for: {error}"))
        })?;
        let host = http::HeaderValue::from_static("homescar");
        request.headers_mut().insert(HOST, host);
        let response = self.sender.send_request(request).await?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let body = response.into_body().collect().await?.to_bytes();
        let view::Error { error } = serde_json::from_slice(&body)?;
        Err(ClientError::Refused(error))
    }
}
