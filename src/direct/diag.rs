//! The connections of a direct listener, as the kernel lists them: `NETLINK_SOCK_DIAG`, see
//! `sock_diag(7)`. It takes no privilege.
//!
//! The kernel walks its table of connections once for each dump and leaves out those with other
//! states or another local port. A client on this machine has a socket of its own in that table;
//! its local port is another one.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_CLOSE_WAIT, TCP_ESTABLISHED},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

/// The kernel sends at most 32 KiB at once.
const BUFFER: usize = 64 * 1024;

/// A connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub peer: IpAddr,
    /// Of the socket; `None` for one that nobody has accepted yet.
    pub inode: Option<u32>,
    /// When it was asked for.
    pub traffic: Option<Traffic>,
}

/// What the kernel has counted of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// Bytes from the client (`tcpi_bytes_received`).
    pub received: u64,
    /// Bytes that the client has acknowledged (`tcpi_bytes_acked`).
    pub sent: u64,
    /// Smoothed (`tcpi_rtt`); zero before the first measurement.
    pub rtt: Duration,
}

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    Existence,
    Traffic,
}

/// Shows every connection of a listener with these addresses that is somebody's to serve: not
/// those that have been closed here and that the kernel finishes by itself.
///
/// # Errors
/// When the kernel has no `sock_diag` for TCP (`ENOENT`), or a sandbox forbids it.
pub(super) fn each_connection(
    addresses: &[SocketAddr],
    detail: Detail,
    mut see: impl FnMut(Seen),
) -> io::Result<()> {
    // Clients that a dual-stack socket has accepted over IPv4 are of the family of that socket.
    let mut dumps = BTreeMap::<_, Vec<IpAddr>>::new();
    for address in addresses {
        let dump = dumps.entry((address.is_ipv4(), address.port()));
        dump.or_default().push(address.ip());
    }
    for ((is_v4, port), ips) in dumps {
        dump(&request(is_v4, port, detail, served()), |response| {
            let local = response.header.socket_id.source_address;
            let ours =
                |ip: &IpAddr| ip.is_unspecified() || ip.to_canonical() == local.to_canonical();
            if ips.iter().any(ours) {
                see_if_served(response, &mut see);
            }
        })?;
    }
    Ok(())
}

/// A connection without a socket waits to be accepted, or has been closed here: then its state
/// tells of our FIN.
fn see_if_served(response: &InetResponse, see: &mut impl FnMut(Seen)) {
    let header = &response.header;
    let not_closed = [TCP_ESTABLISHED, TCP_CLOSE_WAIT].contains(&header.state);
    if header.inode == 0 && !not_closed {
        return;
    }
    let traffic = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::TcpInfo(info) => Some(Traffic {
            received: info.bytes_received,
            sent: info.bytes_acked,
            rtt: Duration::from_micros(info.rtt.into()),
        }),
        _ => None,
    });
    see(Seen {
        peer: header.socket_id.destination_address.to_canonical(),
        inode: Some(header.inode).filter(|inode| *inode != 0),
        traffic,
    });
}

/// How many sockets listen on exactly this address, whoever has them.
///
/// # Errors
/// As [`each_connection`].
pub(super) fn listeners(address: SocketAddr) -> io::Result<usize> {
    let (is_v4, port) = (address.is_ipv4(), address.port());
    let mut listeners = 0;
    let request = request(is_v4, port, Detail::Existence, StateFlags::LISTEN);
    dump(&request, |response| {
        let is_there = response.header.socket_id.source_address == address.ip();
        listeners += usize::from(is_there);
    })?;
    Ok(listeners)
}

/// The states of a connection that somebody may still serve.
fn served() -> StateFlags {
    StateFlags::ESTABLISHED
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::CLOSING
        | StateFlags::LAST_ACK
}

fn request(is_v4: bool, port: u16, detail: Detail, states: StateFlags) -> InetRequest {
    let (family, any) = if is_v4 {
        (AF_INET, SocketId::new_v4())
    } else {
        (AF_INET6, SocketId::new_v6())
    };
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: match detail {
            Detail::Existence => ExtensionFlags::empty(),
            Detail::Traffic => ExtensionFlags::INFO,
        },
        states,
        // The only part of it that a dump heeds.
        socket_id: SocketId {
            source_port: port,
            ..any
        },
    }
}

fn dump(request: &InetRequest, mut see: impl FnMut(&InetResponse)) -> io::Result<()> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let message = SockDiagMessage::InetRequest(request.clone());
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut buffer = vec![0; BUFFER];
    loop {
        // The kernel answers within the call.
        let received = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..received).ok_or_else(cut_off)?;
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest);
            let message = message.map_err(io::Error::other)?;
            match &message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    see(response);
                }
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Overrun(_) => return Err(cut_off()),
                _ => {}
            }
            // Messages begin at multiples of four.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn cut_off() -> io::Error {
    io::Error::other("the kernel's list of connections was cut off")
}
