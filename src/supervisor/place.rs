//! Where a generation listens, as far as that outlives it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::{
    entrance::SlotDoors,
    home::Home,
    node::{OwnAddress, SlotSockets},
};
use crate::cluster::Load;

/// Connections that wait for a worker to accept, where homescar holds the socket.
pub(super) const BACKLOG: i32 = 1024;

/// Where a generation listens, as far as that is kept for the next one.
#[derive(Debug)]
pub(super) struct Place {
    home: Arc<Home>,
    pub(super) port: Option<u16>,
    pub(super) listener: Option<Arc<TcpListener>>,
    /// Under contract `node`.
    pub(super) sockets: Option<Arc<SlotSockets>>,
    /// The connections of the last generation that was started here.
    pub(super) load: Arc<Load>,
}

impl Place {
    pub(super) fn new(home: Arc<Home>) -> Self {
        Self {
            home,
            port: None,
            listener: None,
            sockets: None,
            load: Arc::default(),
        }
    }

    /// The connections of the next generation. Those that wait in a socket which is kept are its own, too:
    /// it accepts them.
    pub(super) fn next_load(&mut self) -> Arc<Load> {
        if self.listener.is_none() && self.sockets.is_none() {
            self.load = Arc::default();
        }
        Arc::clone(&self.load)
    }

    /// A loopback port: the one from before, when that is still free.
    pub(super) fn hold_port(&mut self) -> io::Result<(Socket, SocketAddr)> {
        let (held, addr) = self.home.hold_port(self.port)?;
        if let Some(old) = self.port.replace(addr.port())
            && old != addr.port()
        {
            self.home.release_port(old);
        }
        Ok((held, addr))
    }

    /// The listening socket of its own.
    pub(super) fn listener(&mut self) -> io::Result<Arc<TcpListener>> {
        Ok(match &self.listener {
            Some(listener) => Arc::clone(listener),
            None => Arc::clone(self.listener.insert(Arc::new(listen()?))),
        })
    }

    /// The sockets of a Node worker of the slot of this number.
    pub(super) fn sockets(&mut self, index: usize, doors: Option<SlotDoors>) -> Arc<SlotSockets> {
        let sockets = self.sockets.get_or_insert_with(|| {
            let own = OwnAddress::reserve(index);
            let own = own.inspect_err(|error| {
                warn!(%error, "no loopback address for a slot of its own: workers see other ports");
            });
            Arc::new(SlotSockets::new(own.ok(), doors))
        });
        Arc::clone(sockets)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(port) = self.port {
            self.home.release_port(port);
        }
    }
}

fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
