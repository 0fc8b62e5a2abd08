//! Who the client is: the peer, or whom a PROXY protocol header names.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{Instant, timeout},
};
use tracing::warn;

use super::{
    proxy_protocol::{self, Header, MAX_HEADER, Parse, ProxyError},
    record::CloseReason,
};
use crate::config::{self, Key};

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

/// Bad headers of a listener, counted and told, but not a line for each.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<(u64, Option<Instant>)>);

impl Complaints {
    /// Counts one more; tells it unless one was told within the last second.
    fn count(&self, listener: &str, peer: SocketAddr, what: &dyn fmt::Display) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last) = &mut *told;
        *count += 1;
        if last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
            *last = Some(Instant::now());
            warn!(listener, %peer, "bad PROXY header, {count} so far; this one: {what}");
        }
    }
}

/// Reads the PROXY header that must stand in front, from a trusted peer, by a deadline.
pub(super) async fn introduction(
    client: &mut TcpStream,
    peer: SocketAddr,
    config: &config::Listener,
    complaints: &Complaints,
) -> Result<Introduced, CloseReason> {
    let name = &config.name;
    if !config
        .trusted
        .iter()
        .any(|network| network.contains(peer.ip()))
    {
        complaints.count(name, peer, &"its sender is not in `trusted`");
        return Err(CloseReason::HeaderUntrusted);
    }
    let header = timeout(config.timeouts.header, read_header(client));
    match header.await {
        Ok(Ok(introduced)) => Ok(introduced),
        Ok(Err(Failure::Reset)) => Err(CloseReason::ClientReset),
        Ok(Err(Failure::Truncated)) => {
            complaints.count(name, peer, &"the stream ended within it");
            Err(CloseReason::HeaderBad("truncated"))
        }
        Ok(Err(Failure::Bad(error))) => {
            complaints.count(name, peer, &error);
            Err(CloseReason::HeaderBad(error.as_label()))
        }
        Err(_) => {
            complaints.count(name, peer, &"it did not come within timeouts.header");
            Err(CloseReason::HeaderTimeout)
        }
    }
}

/// Why there is no header.
enum Failure {
    Reset,
    Truncated,
    Bad(ProxyError),
}

async fn read_header(client: &mut TcpStream) -> Result<Introduced, Failure> {
    let mut bytes = Vec::with_capacity(CHUNK);
    loop {
        match proxy_protocol::parse(&bytes).map_err(Failure::Bad)? {
            Parse::Complete { header, len } => {
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
            Parse::Incomplete { .. } => {}
        }
        // A header always ends within this many bytes, or is refused.
        let room = (MAX_HEADER - bytes.len()).min(CHUNK);
        match (&mut *client).take(room as u64).read_buf(&mut bytes).await {
            Ok(0) => return Err(Failure::Truncated),
            Ok(_) => {}
            Err(_) => return Err(Failure::Reset),
        }
    }
}

/// The address that a client is counted under: what is left of it when it is masked like its key.
pub(super) fn masked(client: IpAddr, affinity: &config::Affinity) -> IpAddr {
    if affinity.key == Key::None {
        return client.to_canonical();
    }
    let prefix = if client.to_canonical().is_ipv4() {
        affinity.prefix_v4
    } else {
        affinity.prefix_v6
    };
    config::Network::of(client, prefix).addr
}
