//! Clients, each from a loopback address of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::homescar::SOON;

/// Who answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) slot: String,
    pub(crate) generation: u32,
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) peer: String,
    #[serde(default)]
    pub(crate) proxy: Option<String>,
}

/// A connection that speaks the test worker's protocol.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: BufReader<TcpStream>,
}

/// The `index`th client address, 127.1.x.y.
pub(crate) fn address_of_client(index: usize) -> IpAddr {
    let [high, low] = [index / 250, index % 250 + 1];
    Ipv4Addr::new(127, 1, high.try_into().unwrap(), low.try_into().unwrap()).into()
}

impl Client {
    /// Connects from any address.
    pub(crate) async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = timeout(SOON, TcpStream::connect(to)).await??;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Connects from this address.
    pub(crate) async fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = if from.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.bind((from, 0).into())?;
        let stream = timeout(SOON, socket.connect(to)).await??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().unwrap()
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        timeout(SOON, self.stream.get_mut().write_all(bytes.as_ref())).await?
    }

    /// One line; an error at the end of the stream.
    pub(crate) async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match timeout(SOON, self.stream.read_line(&mut line)).await?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Asks who serves this connection.
    pub(crate) async fn whoami(&mut self) -> io::Result<Who> {
        self.send("whoami\n").await?;
        self.answer().await
    }

    /// Reads who serves it (a worker that speaks first says so by itself).
    pub(crate) async fn answer(&mut self) -> io::Result<Who> {
        let line = self.line().await?;
        serde_json::from_str(&line).map_err(|error| io::Error::other(format!("{error}: {line}")))
    }

    /// Puts the connection into echo mode, for [`echo`](Self::echo).
    pub(crate) async fn start_echo(&mut self) -> io::Result<()> {
        self.send("echo\n").await
    }

    /// Sends bytes and compares what comes back.
    pub(crate) async fn echo(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(bytes).await?;
        let mut back = vec![0; bytes.len()];
        timeout(SOON, self.stream.read_exact(&mut back)).await??;
        if back == bytes {
            Ok(())
        } else {
            Err(io::Error::other("other bytes came back"))
        }
    }

    /// All that comes until the end of the stream.
    pub(crate) async fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        timeout(SOON, self.stream.read_to_end(&mut rest)).await??;
        Ok(rest)
    }

    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.get_mut().shutdown().await
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        let stream = self.stream.into_inner();
        socket2::SockRef::from(&stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }
}

/// Connects from this address to a door that resets it at once; gives the address to find the
/// record by, or `None` when the reset was faster than the connection.
pub(crate) async fn is_turned_away(from: IpAddr, to: SocketAddr) -> Option<SocketAddr> {
    let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    match Client::connect_from(from, to).await {
        Ok(mut client) => {
            let here = client.local_addr();
            let rest = client.rest().await;
            assert!(
                rest.as_ref().is_err_and(is_reset),
                "not turned away: {rest:?}"
            );
            Some(here)
        }
        Err(error) if is_reset(&error) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Whether a connection attempt to `to` is refused.
pub(crate) async fn is_refused(to: SocketAddr) -> bool {
    match Client::connect(to).await {
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}
