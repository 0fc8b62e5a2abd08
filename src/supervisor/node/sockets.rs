//! The listening sockets that Node workers are given.

mod saved;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub(in crate::supervisor) use self::saved::{SavedSocket, SavedSockets};
use super::{address::OwnAddress, message::Query};
use crate::{
    config::Address,
    supervisor::{entrance::SlotDoors, place::BACKLOG},
};

/// Ports of its own that a slot may have at one time.
const MOST: usize = 16;
/// `UV_TCP_IPV6ONLY`.
const V6_ONLY: i64 = 1;

/// The sockets of a slot. They are its own from generation to generation, so that connections
/// wait in them while its worker restarts.
///
/// They have the port that the application asks for, on a loopback address that no other slot
/// has. The public listener may hold that port on all addresses: `SO_REUSEPORT` lets the two be
/// bound, and the kernel prefers the socket of the exact address, so that neither ever gets a
/// connection of the other.
#[derive(Debug)]
pub(in crate::supervisor) struct SlotSockets {
    own: Option<OwnAddress>,
    /// In direct mode, the public ones: the server that clients are brought to gets the first.
    public: Option<SlotDoors>,
    by_port: Mutex<BTreeMap<u16, Arc<TcpListener>>>,
}

impl SlotSockets {
    pub(in crate::supervisor) const fn new(
        own: Option<OwnAddress>,
        public: Option<SlotDoors>,
    ) -> Self {
        Self {
            own,
            public,
            by_port: Mutex::new(BTreeMap::new()),
        }
    }

    /// The one for a server on this port; on another port when that cannot be had, which Node
    /// itself would not take.
    pub(in crate::supervisor) fn at(&self, port: u16) -> io::Result<Arc<TcpListener>> {
        if let Some(public) = self.public()
            && (port == 0 || port == public.local_addr()?.port())
        {
            public.set_nonblocking(true)?;
            return Ok(Arc::clone(public));
        }
        let mut by_port = self.by_port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = by_port.get(&port) {
            // The flag is shared by all who hold the socket. Node up to 18 accepts until it is told
            // that nobody waits, and would wait itself.
            socket.set_nonblocking(true)?;
            return Ok(Arc::clone(socket));
        }
        if by_port.len() >= MOST {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let wanted = self.own.as_ref().map(|own| bind(own.address(), port));
        let socket = match wanted {
            Some(Ok(socket)) => socket,
            _ => bind(Ipv4Addr::LOCALHOST, 0)?,
        };
        let socket = Arc::new(socket);
        by_port.insert(port, Arc::clone(&socket));
        Ok(socket)
    }

    /// Where one of them is reached.
    pub(in crate::supervisor) fn address_of(&self, socket: &TcpListener) -> io::Result<Address> {
        match &self.public {
            Some(public) if self.is_public(socket) => Ok(public.address.clone()),
            _ => Ok(Address::Tcp(socket.local_addr()?)),
        }
    }

    /// Node sets the length of the backlog, to 511 where the application says none.
    pub(super) fn keep_backlog(&self, socket: &TcpListener) -> io::Result<()> {
        let backlog = match &self.public {
            Some(public) if self.is_public(socket) => i32::try_from(public.backlog),
            _ => Ok(BACKLOG),
        };
        SockRef::from(socket).listen(backlog.unwrap_or(i32::MAX))
    }

    /// Whether the kernel is to hand clients straight to the worker.
    pub(super) const fn is_direct(&self) -> bool {
        self.public.is_some()
    }

    fn public(&self) -> Option<&Arc<TcpListener>> {
        self.public.as_ref()?.sockets.first()
    }

    fn is_public(&self, socket: &TcpListener) -> bool {
        self.public()
            .is_some_and(|public| std::ptr::eq(&**public, socket))
    }
}

fn bind(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // Beside another process of ours only where the address is our own.
    socket.set_reuse_port(address != Ipv4Addr::LOCALHOST)?;
    socket.bind(&SocketAddr::from((address, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sockets that all workers of a cluster have together, as under Node's own primary: bound for the
/// first that asks, gone with the last that has it.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct SharedSockets(Mutex<BTreeMap<String, Weak<TcpListener>>>);

impl SharedSockets {
    /// The one that a query asks for; whether it is new.
    pub(super) fn at(&self, query: &Query, port: u16) -> io::Result<(Arc<TcpListener>, bool)> {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|_, socket| socket.strong_count() > 0);
        let key = query.key();
        if let Some(socket) = sockets.get(&key).and_then(Weak::upgrade) {
            return Ok((socket, false));
        }
        let socket = Arc::new(as_asked(query, port)?);
        sockets.insert(key, Arc::downgrade(&socket));
        Ok((socket, true))
    }
}

/// Binds as `net._createServerHandle` does. The worker listens itself.
fn as_asked(query: &Query, port: u16) -> io::Result<TcpListener> {
    let at = |address: IpAddr, v6_only: bool| {
        let address = SocketAddr::from((address, port));
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(v6_only)?;
        }
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    let v6_only = query.flags.unwrap_or_default() & V6_ONLY != 0;
    match query.address.as_deref() {
        None | Some("") => at(Ipv6Addr::UNSPECIFIED.into(), v6_only)
            .or_else(|_no_ipv6: io::Error| at(Ipv4Addr::UNSPECIFIED.into(), false)),
        Some(address) => {
            let address = address.parse();
            let address = address.map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
            at(address, v6_only)
        }
    }
}
