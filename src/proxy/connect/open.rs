//! Opens connections to backends.

use std::{io, io::ErrorKind, net::SocketAddr, sync::Arc};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout_at},
};

use super::{RETRY, Upstream};
use crate::{cluster::Cluster, config::Address, proxy::bind, tls::BackendTlsError};

/// Connects, however long it takes.
pub(super) async fn open(address: &Address) -> io::Result<Upstream> {
    match address {
        Address::Tcp(to) => connect(*to, None).await.map(Upstream::Tcp),
        Address::Probe { to, from } => {
            let from = SocketAddr::from((*from, 0));
            connect(*to, Some(from)).await.map(Upstream::Tcp)
        }
        Address::Unix(path) => loop {
            match UnixStream::connect(path).await {
                // Its queue is full. Over TCP the kernel would try again; here we do.
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(RETRY).await,
                connected => return connected.map(Upstream::Unix),
            }
        },
    }
}

/// What tokio does, but that the socket is asked for its error only when the event says that there is
/// one, and that a local peer is not waited for when it is there already.
async fn connect(to: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
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
    if is_local && is_under_way(&connected) {
        // It says so before it looks at the answer, which came while it asked.
        connected = socket.connect(&to);
    }
    if !is_under_way(&connected) {
        connected?;
        return TcpStream::from_std(socket.into());
    }
    let stream = TcpStream::from_std(socket.into())?;
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    if ready.is_error() || ready.is_write_closed() {
        let error = stream.take_error()?;
        return Err(error.unwrap_or_else(|| ErrorKind::ConnectionAborted.into()));
    }
    Ok(stream)
}

fn is_under_way(connected: &io::Result<()>) -> bool {
    let error = connected.as_ref().err().and_then(io::Error::raw_os_error);
    matches!(error, Some(libc::EINPROGRESS | libc::EALREADY))
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
