//! Listening sockets: for each address a group of one socket per data-plane thread.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    num::NonZeroUsize,
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use crate::config::Bind;

/// A silent peer is asked for a sign of life after this long …
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
/// … this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// … and this many times, before it counts as gone.
const KEEPALIVE_RETRIES: u32 = 4;

/// An address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {bind}: {}", explain(.source, .bind))]
pub struct BindError {
    bind: SocketAddr,
    source: io::Error,
}

/// Who may listen on the same port already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Nobody: an address that is taken is an error.
    None,
    /// We ourselves, on an address that overlaps (`:3000` and `127.0.0.1:3000`), for as long as a
    /// reload takes.
    Ours,
}

/// The sockets of one address.
#[derive(Debug)]
pub struct BoundGroup {
    address: SocketAddr,
    sockets: Vec<TcpListener>,
}

impl BoundGroup {
    /// Binds and listens on one address with as many sockets as there are threads.
    ///
    /// # Errors
    ///
    /// When the address is taken (also by another homescar), not ours, or not permitted.
    pub fn bind(
        bind: Bind,
        threads: NonZeroUsize,
        neighbour: Neighbour,
        backlog: u32,
    ) -> Result<Self, BindError> {
        let group = Self::reserve(bind, threads, neighbour)?;
        listen(&group.sockets, bind, backlog)?;
        Ok(group)
    }

    /// Binds, and does not listen yet.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind), but for what only `listen` finds.
    pub fn reserve(
        bind: Bind,
        sockets: NonZeroUsize,
        neighbour: Neighbour,
    ) -> Result<Self, BindError> {
        let group = match group(bind.addr, bind.dual_stack, sockets, neighbour) {
            // A host without IPv6.
            Err(error) if bind.dual_stack && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                group(
                    (Ipv4Addr::UNSPECIFIED, bind.addr.port()).into(),
                    false,
                    sockets,
                    neighbour,
                )
            }
            bound => bound,
        };
        group.map_err(|source| BindError {
            bind: bind.addr,
            source,
        })
    }

    /// One socket that somebody else has bound, for all threads. They wake up for each client
    /// together and one of them gets it, so that a client does not always meet the same thread.
    ///
    /// # Errors
    ///
    /// When it cannot be listened on, or copied.
    pub fn shared(socket: TcpListener, threads: NonZeroUsize, backlog: u32) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        set_options(SockRef::from(&socket))?;
        SockRef::from(&socket).listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        let copies = (1..threads.get()).map(|_| socket.try_clone());
        let mut sockets = copies.collect::<io::Result<Vec<_>>>()?;
        sockets.push(socket);
        Self::of(sockets)
    }

    /// Sockets that were bound to one address before, and listen there, in their order.
    ///
    /// # Errors
    ///
    /// When there is none, or it has no address.
    pub fn of(sockets: Vec<TcpListener>) -> io::Result<Self> {
        let first = sockets.first().ok_or(io::ErrorKind::InvalidInput)?;
        let address = first.local_addr()?;
        Ok(Self { address, sockets })
    }

    /// The real address, also where port 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The sockets, in the order in which they joined the group.
    #[must_use]
    pub fn into_sockets(self) -> Vec<TcpListener> {
        self.sockets
    }
}

/// Lets clients in, at sockets that are bound to one address. They join its group in their order.
///
/// # Errors
/// When another process was faster to listen there.
pub fn listen<'a>(
    sockets: impl IntoIterator<Item = &'a TcpListener>,
    bind: Bind,
    backlog: u32,
) -> Result<(), BindError> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let mut sockets = sockets.into_iter();
    let listening = sockets.try_for_each(|socket| SockRef::from(socket).listen(backlog));
    listening.map_err(|source| BindError {
        bind: bind.addr,
        source,
    })
}

/// The options of every connection: small writes go out at once, and a peer that has vanished is
/// found out. Accepted sockets inherit them from their listening socket.
pub(super) fn set_options(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Makes a listening socket ignore whoever knocks from now on: every segment with SYN and without
/// ACK is dropped. Handshakes that have begun go on.
///
/// # Errors
/// What `setsockopt(2)` gives.
pub fn refuse_handshakes(socket: &impl AsFd) -> io::Result<()> {
    /// Where a TCP header has its flags, and the two that matter (RFC 9293, section 3.1).
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let code = |code: u32| code as u16;
    let filter = [
        SockFilter::new(
            code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS),
            0,
            0,
            FLAGS,
        ),
        SockFilter::new(
            code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K),
            0,
            0,
            SYN | ACK,
        ),
        SockFilter::new(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), 0, 1, SYN),
        SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, 0),
        SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, u32::MAX),
    ];
    SockRef::from(socket).attach_filter(&filter)
}

fn group(
    addr: SocketAddr,
    dual_stack: bool,
    count: NonZeroUsize,
    neighbour: Neighbour,
) -> io::Result<BoundGroup> {
    // The first socket is bound alone and joins the group afterwards: sockets that are bound with
    // SO_REUSEPORT would silently share the address with another homescar of the same user.
    let first = socket(addr, dual_stack)?;
    first.set_reuse_port(neighbour == Neighbour::Ours)?;
    first.bind(&addr.into())?;
    first.set_reuse_port(true)?;
    let address = first
        .local_addr()?
        .as_socket()
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut sockets = vec![first];
    for _ in 1..count.get() {
        let next = socket(addr, dual_stack)?;
        next.set_reuse_port(true)?;
        next.bind(&address.into())?;
        sockets.push(next);
    }
    Ok(BoundGroup {
        address,
        sockets: sockets.into_iter().map(Into::into).collect(),
    })
}

fn socket(addr: SocketAddr, dual_stack: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    set_options(SockRef::from(&socket))?;
    Ok(socket)
}

/// Says what to do about it.
fn explain(error: &io::Error, addr: &SocketAddr) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!(
            "another process listens there (`ss -ltnp 'sport = :{}'` shows which)",
            addr.port()
        ),
        Some(libc::EACCES) => format!(
            "permission denied: port {} is below net.ipv4.ip_unprivileged_port_start; run as \
             root, give the binary `setcap cap_net_bind_service=+ep`, or choose a higher port",
            addr.port()
        ),
        Some(libc::EADDRNOTAVAIL) => {
            "no interface of this machine has that address (`ip address` shows them)".into()
        }
        _ => error.to_string(),
    }
}
