//! What a connection is once it has begun, for as long as it lasts.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use tokio::net::TcpStream;

use super::{
    admit::{Permit, Permits},
    carried::{Resumed, Way},
    connection::{Connection, Linked, Open},
    http::Visit,
    link::Link,
    listener::{Listener, Settings},
    record::ConnectionRecord,
    registry::{self, Ticket},
};
use crate::{affinity::AffinityKey, config::Mode, tls::ServerStream};

/// A connection that has begun. It may last, and be idle, and so each kind has a future of its own, which
/// is no larger than it has to be.
#[derive(Debug)]
pub(super) enum Lasting {
    /// It is relayed.
    Link(Link),
    /// It brings requests.
    Visit(Visit<TcpStream>),
    /// It brings requests, encrypted.
    Secured(Box<Visit<ServerStream>>),
}

impl Lasting {
    pub(super) fn into_link(self) -> Option<Link> {
        match self {
            Self::Link(link) => Some(link),
            Self::Visit(_) | Self::Secured(_) => None,
        }
    }

    pub(super) fn into_visit(self) -> Option<Visit<TcpStream>> {
        match self {
            Self::Visit(visit) => Some(visit),
            Self::Link(_) | Self::Secured(_) => None,
        }
    }

    pub(super) fn into_secured(self) -> Option<Box<Visit<ServerStream>>> {
        match self {
            Self::Secured(visit) => Some(visit),
            Self::Link(_) | Self::Visit(_) => None,
        }
    }
}

/// A client that was accepted, and what it comes with.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) listener: Arc<Listener>,
    pub(super) settings: Arc<Settings>,
    pub(super) client: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) global: Option<Permit>,
}

impl Accepted {
    /// Serves it, as a task of this thread.
    pub(super) fn start(self) {
        let listener = Arc::clone(&self.listener);
        let config = &self.settings.config;
        match (config.mode, &config.tls) {
            (Mode::Http, None) => registry::spawn(listener, |ticket| self.visit(ticket)),
            (Mode::Http, Some(_)) => registry::spawn(listener, |ticket| self.secured_visit(ticket)),
            (Mode::Tcp | Mode::Direct, _) => registry::spawn(listener, |ticket| self.link(ticket)),
        }
    }

    fn link(self, ticket: Ticket) -> impl Future<Output = ()> + Send + use<> {
        let begun = self.begin(ticket);
        async move {
            let Some(mut link) = begun.await.and_then(Lasting::into_link) else {
                return;
            };
            link.run().await;
        }
    }

    fn visit(self, ticket: Ticket) -> impl Future<Output = ()> + Send + use<> {
        let begun = self.begin(ticket);
        async move {
            let Some(mut visit) = begun.await.and_then(Lasting::into_visit) else {
                return;
            };
            visit.run().await;
        }
    }

    fn secured_visit(self, ticket: Ticket) -> impl Future<Output = ()> + Send + use<> {
        let begun = self.begin(ticket);
        async move {
            let Some(mut visit) = begun.await.and_then(Lasting::into_secured) else {
                return;
            };
            visit.run().await;
        }
    }

    /// Large, and gone by the time there is what may last, and be idle.
    fn begin(
        self,
        ticket: Ticket,
    ) -> Pin<Box<impl Future<Output = Option<Lasting>> + Send + use<>>> {
        let record = ConnectionRecord::new(self.listener, self.peer);
        let permits = (Permits::default(), self.global);
        let connection = Connection::new(record, self.settings, permits, ticket);
        Box::pin(connection.begin(self.client))
    }
}

/// Goes on to serve a client that an earlier image of the program has served until now, as a task of this
/// thread.
pub(super) fn resume(
    resumed: Resumed,
    key: AffinityKey,
    settings: Arc<Settings>,
    permits: (Permits, Option<Permit>),
) {
    let Resumed {
        record,
        client,
        way,
    } = resumed;
    let listener = Arc::clone(record.listener());
    let connection = |ticket| Connection::new(record, settings, permits, ticket);
    let client = Open::new(client);
    match way {
        Way::Relay(upstream, state) => registry::spawn(listener, |ticket| {
            let connection = connection(ticket);
            if let Some(home) = &connection.record.journey.home {
                connection.ticket.goes_to(home, key);
            }
            let linked = Linked {
                upstream,
                state,
                tried: None,
            };
            let mut link = Link::new(linked, client, connection);
            async move { link.run().await }
        }),
        Way::WebSocket(websocket) => registry::spawn(listener, |ticket| {
            let mut visit = Visit::of_websocket(client, websocket, connection(ticket));
            async move { visit.run().await }
        }),
        Way::Visit(begun) => registry::spawn(listener, |ticket| {
            let mut visit = Visit::resumed(client, begun, connection(ticket));
            async move { visit.run().await }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F>(_: impl FnOnce(Accepted, Ticket) -> F) -> usize {
        size_of::<F>()
    }

    /// They are allocated for every connection, with some 100 bytes of the runtime's, in steps of 128;
    /// what grows them should be known.
    #[test]
    fn a_connection_is_small() {
        let sizes = [
            ("relayed", size_of_future(Accepted::link), 408),
            ("of requests", size_of_future(Accepted::visit), 408),
            (
                "of encrypted requests",
                size_of_future(Accepted::secured_visit),
                152,
            ),
        ];
        for (what, size, most) in sizes {
            assert!(
                size <= most,
                "the future of a connection {what} takes {size} bytes"
            );
        }
    }
}
