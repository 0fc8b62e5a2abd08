//! Encrypted streams as sides of a relay.

use tokio::net::TcpStream;

use super::relay::Side;
use crate::tls::{ClientStream, ServerStream};

impl Side for ServerStream {
    const BUFFERS: bool = true;

    fn reset_on_close(&self) {
        self.get_ref().reset_on_close();
    }

    fn was_reset(&self) -> bool {
        self.get_ref().was_reset()
    }
}

impl<S: Side> Side for ClientStream<S> {
    const BUFFERS: bool = true;

    fn reset_on_close(&self) {
        self.get_ref().reset_on_close();
    }

    fn was_reset(&self) -> bool {
        self.get_ref().was_reset()
    }
}

/// The side of the client.
pub(super) trait Downstream: Side + Send {
    /// The connection itself.
    fn socket(&self) -> &TcpStream;

    /// The encryption, when there is one.
    fn secured(&self) -> Option<&ServerStream>;
}

impl Downstream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }

    fn secured(&self) -> Option<&ServerStream> {
        None
    }
}

impl Downstream for ServerStream {
    fn socket(&self) -> &TcpStream {
        self.get_ref()
    }

    fn secured(&self) -> Option<&ServerStream> {
        Some(self)
    }
}
