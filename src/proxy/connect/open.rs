//! Opens connections to backends.

use std::{io, io::ErrorKind, net::SocketAddr, os::fd::OwnedFd, path::Path, sync::Arc};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout_at},
};

use super::{RETRY, Upstream};
use crate::{cluster::Cluster, config::Address, proxy::bind, tls::BackendTlsError};

/// Connects by a deadline. Who is to have it `at_once` does not wait for what is there already: over
/// loopback, and by a Unix socket, all is done when connect(2) returns.
pub(super) async fn open(
    address: &Address,
    at_once: bool,
    deadline: Instant,
) -> io::Result<Upstream> {
    let stream = match address {
        Address::Unix(path) => match connect_unix(path) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let taken = Box::pin(timeout_at(deadline, until_taken(path)));
                return taken
                    .await
                    .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
            }
            connected => return connected.map(Upstream::Unix),
        },
        Address::Tcp(to) => connect(*to, None, at_once)?,
        Address::Probe { to, from } => connect(*to, Some((*from, 0).into()), at_once)?,
    };
    match stream {
        Begun::Done(stream) => Ok(Upstream::Tcp(stream)),
        Begun::UnderWay(stream) => {
            // Large, and seldom needed for a backend on this machine.
            let connected = Box::pin(timeout_at(deadline, until_connected(stream)));
            let connected = connected.await.map_err(|_| ErrorKind::TimedOut)?;
            connected.map(Upstream::Tcp)
        }
    }
}

/// A handshake that has begun.
enum Begun {
    Done(TcpStream),
    UnderWay(TcpStream),
}

fn connect(to: SocketAddr, from: Option<SocketAddr>, at_once: bool) -> io::Result<Begun> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&from.into())?;
    }
    let is_local = to.ip().is_loopback();
    if is_local {
        // The kernel itself tells when a local peer has gone.
        socket.set_tcp_nodelay(true)?;
    } else {
        bind::set_options(SockRef::from(&socket))?;
    }
    let to = to.into();
    let mut connected = socket.connect(&to);
    if at_once && is_local && is_under_way(&connected) {
        // It says so before it looks at the answer, which came while it asked.
        connected = socket.connect(&to);
    }
    if is_under_way(&connected) {
        return TcpStream::from_std(socket.into()).map(Begun::UnderWay);
    }
    connected?;
    TcpStream::from_std(socket.into()).map(Begun::Done)
}

fn is_under_way(connected: &io::Result<()>) -> bool {
    let error = connected.as_ref().err().and_then(io::Error::raw_os_error);
    matches!(error, Some(libc::EINPROGRESS | libc::EALREADY))
}

/// What tokio does, but that the socket is asked for its error only when the event says that there is
/// one.
async fn until_connected(stream: TcpStream) -> io::Result<TcpStream> {
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    if ready.is_error() || ready.is_write_closed() {
        let error = stream.take_error()?;
        return Err(error.unwrap_or_else(|| ErrorKind::ConnectionAborted.into()));
    }
    Ok(stream)
}

fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    UnixStream::from_std(OwnedFd::from(socket).into())
}

/// Tries again while the queue of such a socket is full. Over TCP the kernel would do so.
async fn until_taken(path: &Path) -> io::Result<Upstream> {
    loop {
        sleep(RETRY).await;
        match connect_unix(path) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            connected => return connected.map(Upstream::Unix),
        }
    }
}

/// Speaks TLS with a backend from now on; tells why it cannot.
pub(super) async fn encrypt(
    cluster: &Cluster,
    slot: &Arc<str>,
    plain: io::Result<Upstream>,
    address: &Address,
    deadline: Instant,
) -> io::Result<Upstream> {
    let plain = plain?;
    let connector = cluster.connector().ok_or(ErrorKind::NotConnected)?;
    let handshake = async {
        Ok(match plain {
            Upstream::Tcp(stream) => Upstream::Tls(connector.reach(slot, address, stream).await?),
            Upstream::Unix(stream) => {
                Upstream::TlsUnix(connector.reach(slot, address, stream).await?)
            }
            encrypted @ (Upstream::Tls(_) | Upstream::TlsUnix(_)) => encrypted,
        })
    };
    let done = timeout_at(deadline, handshake).await;
    done.unwrap_or(Err(BackendTlsError::Timeout))
        .map_err(|error| {
            connector.complain(slot, address, &error);
            io::Error::other(error)
        })
}
