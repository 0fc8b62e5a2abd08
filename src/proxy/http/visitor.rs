//! Who a connection belongs to, and what its requests share.

use std::{net::SocketAddr, sync::Arc};

use super::super::listener::{Listener, Settings};

/// A client's connection, identified and decrypted.
#[derive(Clone, Debug)]
pub(in super::super) struct Visitor {
    pub(in super::super) listener: Arc<Listener>,
    pub(in super::super) settings: Arc<Settings>,
    /// Who is connected: the peer, or whom a PROXY header named.
    pub(in super::super) client: SocketAddr,
    /// It came over TLS.
    pub(in super::super) is_encrypted: bool,
    /// The certificate that the client showed (DER).
    pub(in super::super) certificate: Option<Arc<[u8]>>,
}
