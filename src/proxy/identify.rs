//! Who the client is: the peer, or whom a PROXY protocol header names.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use super::{
    proxy_protocol::{self, Header, MAX_HEADER, Parse},
    record::CloseReason,
};
use crate::{
    affinity::{AffinityKey, Masks},
    config::{self, Key},
};

/// Room for one read of a header; most are far smaller.
const CHUNK: usize = 256;

/// A client whose PROXY header was read.
#[derive(Debug)]
pub(super) struct Introduced {
    /// Whom the header names; `None` when it speaks for itself (LOCAL, UNKNOWN).
    pub(super) source: Option<SocketAddr>,
    /// Where that client connected to.
    pub(super) destination: Option<SocketAddr>,
    /// What was read past the header: the client's first bytes.
    pub(super) early: Vec<u8>,
}

/// Reads the PROXY header that must stand in front, from a trusted peer, by a deadline.
pub(super) async fn introduction(
    client: &mut TcpStream,
    peer: SocketAddr,
    config: &config::Listener,
) -> Result<Introduced, CloseReason> {
    if !config
        .trusted
        .iter()
        .any(|network| network.contains(peer.ip()))
    {
        return Err(CloseReason::HeaderUntrusted);
    }
    let deadline: Duration = config.timeouts.header;
    timeout(deadline, read_header(client))
        .await
        .unwrap_or(Err(CloseReason::HeaderTimeout))
}

async fn read_header(client: &mut TcpStream) -> Result<Introduced, CloseReason> {
    let mut bytes = Vec::with_capacity(CHUNK);
    loop {
        match proxy_protocol::parse(&bytes) {
            Ok(Parse::Complete { header, len }) => {
                let Header {
                    source,
                    destination,
                    ..
                } = header;
                bytes.drain(..len);
                return Ok(Introduced {
                    source,
                    destination,
                    early: bytes,
                });
            }
            Ok(Parse::Incomplete { .. }) => {}
            Err(error) => return Err(CloseReason::HeaderBad(error.as_label())),
        }
        // A header always ends within this many bytes, or is refused.
        let room = (MAX_HEADER - bytes.len()).min(CHUNK);
        match (&mut *client).take(room as u64).read_buf(&mut bytes).await {
            Ok(0) => return Err(CloseReason::HeaderBad("truncated")),
            Ok(_) => {}
            Err(_) => return Err(CloseReason::ClientReset),
        }
    }
}

/// What identifies a client to its cluster.
pub(super) fn key(client: SocketAddr, affinity: config::Affinity) -> AffinityKey {
    match affinity.key {
        Key::Address {
            prefix_v4,
            prefix_v6,
        } => {
            let masks = Masks {
                v4: prefix_v4,
                v6: prefix_v6,
            };
            AffinityKey::from_address(client.ip(), masks, affinity.seed)
        }
        Key::None => AffinityKey::from_bits(fastrand::u32(..)),
    }
}

/// The address that a client is counted under: what is left of it when it is masked like its key.
pub(super) fn masked(client: IpAddr, affinity: config::Affinity) -> IpAddr {
    match affinity.key {
        Key::Address {
            prefix_v4,
            prefix_v6,
        } => {
            let prefix = if client.to_canonical().is_ipv4() {
                prefix_v4
            } else {
                prefix_v6
            };
            config::Network::of(client, prefix).addr
        }
        Key::None => client.to_canonical(),
    }
}
