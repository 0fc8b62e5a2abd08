//! What came along with a PROXY header, and what goes to the backend first.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use crate::{
    config::ProxyVersion,
    proxy::{
        proxy_protocol::{self, MAX_WRITTEN},
        record::ConnectionRecord,
        relay::Preface,
    },
};

/// What came along with a PROXY header.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Early {
    /// The client's first bytes.
    pub(super) bytes: Vec<u8>,
    /// Where the client connected to.
    pub(super) destination: Option<SocketAddr>,
}

/// What goes to the backend first.
pub(super) fn preface(
    send_proxy: Option<ProxyVersion>,
    client: &TcpStream,
    record: &ConnectionRecord,
) -> Preface {
    let early = record.journey.detour().early.as_deref();
    let mut bytes = Vec::new();
    if let Some(version) = send_proxy {
        let source = Some(record.client());
        let destination = early.and_then(|early| early.destination);
        let destination = destination.or_else(|| client.local_addr().ok());
        let mut header = [0; MAX_WRITTEN];
        bytes.extend_from_slice(proxy_protocol::write(
            version,
            &mut header,
            source,
            destination,
        ));
    }
    let ours = bytes.len();
    bytes.extend(early.iter().flat_map(|early| &early.bytes));
    Preface { bytes, ours }
}
