//! TLS with the clients and with the backends: certificates, handshakes, encrypted streams.
//!
//! An [`Acceptor`] is a listener's, a [`Connector`] a cluster's. Each is made from what was read
//! and verified before ([`ServerMaterial`], [`ClientMaterial`]), and takes another one while
//! connections go on: those that are open keep what they began with. A handshake with a client that
//! is cheap is done on the data-plane thread when it is its turn, one that is costly on a [`Pool`]
//! beside it; handshakes with backends are mostly resumed, and run where they are asked for. [`Watch`]
//! tells when files have changed. Nothing here knows what an encrypted stream is for.

mod acceptor;
mod channel;
mod connector;
mod handshake;
mod identity;
mod material;
mod pem;
mod pool;
mod session;
mod stream;
mod tickets;
mod turn;
mod watch;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use acceptor::Acceptor;
pub use connector::{BackendTlsError, Connector};
pub use handshake::HandshakeError;
pub use identity::{Identity, Validity};
pub use material::{ClientMaterial, ServerMaterial};
pub use pem::LoadError;
pub use pool::Pool;
pub use stream::{ClientStream, ServerStream};
pub use tickets::SavedTickets;
pub use watch::{Fingerprint, Watch};

/// The cryptography of all TLS here, named where it is used: there is no default of the process
/// that another crate could change. All its suites have forward secrecy and authenticated
/// encryption.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}
