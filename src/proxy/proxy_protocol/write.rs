//! Headers for backends.

use std::{
    io::{Cursor, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::v2;
use crate::config::ProxyVersion;

/// A buffer of this many bytes holds every header that is written.
pub const MAX_WRITTEN: usize = super::v1::LONGEST;

/// Writes a header of this version into a buffer and returns it; see [`write_v1`], [`write_v2`].
pub fn write(
    version: ProxyVersion,
    buf: &mut [u8; MAX_WRITTEN],
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
) -> &[u8] {
    match version {
        ProxyVersion::V1 => write_v1(buf, source, destination),
        ProxyVersion::V2 => write_v2(buf, source, destination),
    }
}

/// Writes a line of version 1 into a buffer and returns it.
///
/// `source` is the client, `destination` what it connected to. An IPv4-mapped IPv6 address is
/// written as IPv4, unless the other one is IPv6: then both are written as IPv6, as HAProxy does.
/// Without one of them the line is `PROXY UNKNOWN`.
pub fn write_v1(
    buf: &mut [u8; MAX_WRITTEN],
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
) -> &[u8] {
    let mut line = Cursor::new(&mut buf[..]);
    let written = match Pair::of(source, destination) {
        Some(Pair { ips, ports: [s, d] }) => match ips {
            Ips::V4([from, to]) => write!(line, "PROXY TCP4 {from} {to} {s} {d}\r\n"),
            Ips::V6([from, to]) => write!(line, "PROXY TCP6 {from} {to} {s} {d}\r\n"),
        },
        None => line.write_all(b"PROXY UNKNOWN\r\n"),
    };
    written.expect("the longest line is as long as the buffer");
    let len = line.position() as usize;
    &buf[..len]
}

/// Writes a header of version 2 into a buffer and returns it.
///
/// Addresses are chosen as by [`write_v1`], and a CRC-32c follows them. Without one of them the
/// header is LOCAL without a family, which says that the connection is ours.
pub fn write_v2(
    buf: &mut [u8; MAX_WRITTEN],
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
) -> &[u8] {
    let mut header = Cursor::new(&mut buf[..]);
    let pair = Pair::of(source, destination);
    put_v2(&mut header, pair.as_ref()).expect("the longest header is shorter than the buffer");
    let len = header.position() as usize;
    if pair.is_some() {
        let place = len - 4;
        let crc = v2::checksum(&buf[..len], place);
        buf[place..len].copy_from_slice(&crc.to_be_bytes());
    }
    &buf[..len]
}

/// A header of version 2 whose CRC-32c, the last four bytes, is still zero.
fn put_v2(header: &mut impl Write, pair: Option<&Pair>) -> std::io::Result<()> {
    header.write_all(&v2::SIGNATURE)?;
    let Some(Pair { ips, ports }) = pair else {
        return header.write_all(&[0x20, 0x00, 0, 0]);
    };
    let crc = [v2::TYPE_CRC32C, 0, 4, 0, 0, 0, 0];
    let (family, addresses) = match ips {
        Ips::V4(_) => (0x11, 2 * 4 + 2 * 2),
        Ips::V6(_) => (0x21, 2 * 16 + 2 * 2),
    };
    header.write_all(&[0x21, family, 0, addresses + crc.len() as u8])?;
    match ips {
        Ips::V4(both) => both
            .iter()
            .try_for_each(|ip| header.write_all(&ip.octets()))?,
        Ips::V6(both) => both
            .iter()
            .try_for_each(|ip| header.write_all(&ip.octets()))?,
    }
    for port in ports {
        header.write_all(&port.to_be_bytes())?;
    }
    header.write_all(&crc)
}

/// Source and destination, made one family.
struct Pair {
    ips: Ips,
    ports: [u16; 2],
}

enum Ips {
    V4([Ipv4Addr; 2]),
    V6([Ipv6Addr; 2]),
}

impl Pair {
    fn of(source: Option<SocketAddr>, destination: Option<SocketAddr>) -> Option<Self> {
        let both = [source?, destination?];
        let ips = match both.map(|addr| addr.ip().to_canonical()) {
            [IpAddr::V4(from), IpAddr::V4(to)] => Ips::V4([from, to]),
            mixed => Ips::V6(mixed.map(|ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            })),
        };
        let ports = both.map(|addr| addr.port());
        Some(Self { ips, ports })
    }
}
