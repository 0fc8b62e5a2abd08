//! The PROXY protocol, versions 1 and 2: who the client is, said by a proxy in front of us, and
//! said by us to a backend.
//!
//! After the HAProxy specification, `doc/proxy-protocol.txt` of its source (2020/03/05), cited
//! below by section. Pure: bytes in, header out; whose header is believed, and for how long one
//! waits for it, is decided elsewhere.
//!
//! # How to read one
//!
//! A header comes first on a connection, and what follows it belongs to the backend, down to the
//! last byte. Read into a buffer of [`MAX_HEADER`] bytes, and [`parse`] all that came so far:
//! - [`Parse::Incomplete`]: read on. A valid header always ends within [`MAX_HEADER`] bytes, a
//!   buffer that is full never gets this answer, and no byte beyond the header is looked at.
//! - [`Parse::Complete`]: the first `len` bytes are the header, and the rest of the buffer is the
//!   beginning of what the backend gets. (A caller who must not take more than the header from
//!   the socket reads `at_least` bytes at a time: that many still belong to it for certain.)
//! - an error: it will not become a header whatever follows. Close the connection (section 2).

mod error;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
mod write;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use error::ProxyError;
pub use write::{MAX_WRITTEN, write, write_v1, write_v2};

use crate::config::ProxyVersion;

/// The longest header that is accepted, in bytes. A line of version 1 has at most 107; version 2
/// could announce 65,551, but addresses, host names and TLS details fit in much less.
pub const MAX_HEADER: usize = 4096;

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parse {
    /// The beginning of a header, or nothing yet.
    Incomplete {
        /// Bytes that the shortest possible rest of the header has; never 0.
        at_least: usize,
    },
    /// A whole header.
    Complete {
        /// What it says.
        header: Header,
        /// Its length in bytes; what follows it is not ours.
        len: usize,
    },
}

/// A header: what a proxy says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// In which version it was written.
    pub version: ProxyVersion,
    /// On whose behalf the connection was made.
    pub command: Command,
    /// What the client spoke to the proxy.
    pub transport: Transport,
    /// The client. `None` when the header does not say (local, unknown, Unix socket): then the
    /// client is the peer of the connection itself. Never an address or a port that no client
    /// can have. An IPv4-mapped IPv6 address is left as it came.
    pub source: Option<SocketAddr>,
    /// What the client connected to; `None` together with `source`. Not checked for sense.
    pub destination: Option<SocketAddr>,
}

/// On whose behalf a connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A client's. Version 1 has only this.
    Proxy,
    /// The proxy's own, such as a health check.
    Local,
}

/// What a client spoke to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// A Unix stream socket.
    Unix,
    /// The header does not say.
    Unknown,
}

/// Parses the header at the beginning of a connection. `buf` is all that was read so far.
///
/// # Errors
/// [`ProxyError`] when no valid header begins with these bytes.
pub fn parse(buf: &[u8]) -> Result<Parse, ProxyError> {
    match buf.first() {
        None => Ok(Parse::Incomplete {
            at_least: v1::SHORTEST.min(v2::FIXED),
        }),
        Some(b'P') => v1::parse(buf),
        Some(b'\r') => v2::parse(buf),
        Some(_) => Err(ProxyError::NotProxy),
    }
}

impl Header {
    /// A header without addresses.
    const fn unknown(version: ProxyVersion, command: Command, transport: Transport) -> Self {
        Self {
            version,
            command,
            transport,
            source: None,
            destination: None,
        }
    }

    /// A header of a TCP connection; the source must be an address that a client can have.
    fn tcp(
        version: ProxyVersion,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Self, ProxyError> {
        let ip = source.ip().to_canonical();
        let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(ProxyError::ImpossibleAddress(source.ip()));
        }
        if source.port() == 0 {
            return Err(ProxyError::ImpossiblePort);
        }
        let transport = match source {
            SocketAddr::V4(_) => Transport::Tcp4,
            SocketAddr::V6(_) => Transport::Tcp6,
        };
        Ok(Self {
            version,
            command: Command::Proxy,
            transport,
            source: Some(source),
            destination: Some(destination),
        })
    }
}
