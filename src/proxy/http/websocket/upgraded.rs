//! A client's whole connection that has become a WebSocket.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use tokio::time::Instant;

use super::tunnel::{Conduct, Tunnel, TunnelEnd};
use crate::{
    affinity::{AffinityKey, SlotId},
    cluster::Cluster,
    config,
    proxy::{
        carried::Carried,
        connect::Upstream,
        connection::{Connection, Open},
        http::{
            dispatch::Destination,
            record::{Brief, RequestRecord},
        },
        link::Pace,
        record::CloseReason,
        registry::{self, Leaving, Passage},
        relay::Side as _,
        secure::Downstream,
    },
};

/// The request that a WebSocket begins with, and the backend's side of it.
#[derive(Debug)]
pub(in crate::proxy) struct WebSocket {
    pub(super) record: RequestRecord,
    pub(super) upstream: Upstream,
    pub(super) tunnel: Tunnel,
    pub(super) cluster: Cluster,
    pub(super) begun: Begun,
}

/// What is to be known of it when it begins.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) key: AffinityKey,
    /// The slot that the client will name when it comes again.
    pub(super) known: Option<SlotId>,
    pub(super) earlier: Option<Earlier>,
}

/// What an earlier image of the program knew.
#[derive(Debug)]
pub(super) struct Earlier {
    /// When and why it has to go, where it was asked to.
    pub(super) leaves: Option<(Instant, Leaving)>,
    /// Until when something has to happen.
    pub(super) patience: Option<Instant>,
}

/// A connection that is a WebSocket: all that there is of it while it lasts, and so kept small.
#[derive(Debug)]
pub(in crate::proxy) struct Upgraded<D: Downstream> {
    /// There until the end.
    pub(super) brief: Option<Brief>,
    upstream: Upstream,
    pub(super) tunnel: Tunnel,
    pub(super) cluster: Cluster,
    /// That of the cluster, as it was when this began.
    config: Arc<config::Cluster>,
    client: Open<D>,
    pub(super) connection: Connection,
    /// There until it begins.
    begun: Option<Box<Begun>>,
    pace: Pace,
}

impl WebSocket {
    pub(in super::super) fn new(
        mut record: RequestRecord,
        upstream: Upstream,
        tunnel: Tunnel,
        destination: &Destination,
    ) -> Self {
        record.becomes_tunnel();
        let home = record.journey.home.as_ref();
        let begun = Begun {
            key: destination.key(),
            known: home.and_then(|home| destination.known(home)),
            earlier: None,
        };
        Self {
            cluster: destination.cluster().clone(),
            record,
            upstream,
            tunnel,
            begun,
        }
    }
}

impl<D: Downstream> Upgraded<D> {
    pub(in crate::proxy) fn new(
        client: Open<D>,
        websocket: WebSocket,
        connection: Connection,
    ) -> Self {
        Self {
            brief: Some(websocket.record.brief()),
            upstream: websocket.upstream,
            tunnel: websocket.tunnel,
            config: Arc::clone(&websocket.cluster.load().config),
            cluster: websocket.cluster,
            client,
            connection,
            begun: Some(Box::new(websocket.begun)),
            pace: Pace::Starts,
        }
    }

    fn starts(&mut self, begun: Begun, waker: &Waker) {
        let Begun {
            key,
            known,
            earlier,
        } = begun;
        let ticket = &self.connection.ticket;
        ticket.can_leave(waker.clone());
        let home = self.brief.as_ref();
        let home = home.and_then(|brief| brief.journey.home.as_ref());
        if let Some(home) = home {
            ticket.goes_to(home, key);
        }
        ticket.is_tunnel(&self.cluster, home, key, known);
        let sides = (self.client.descriptor(), self.upstream.descriptor());
        let can_be_carried = matches!(sides, (Some(_), Some(_)));
        let idle = self.connection.settings.config.timeouts.idle;
        ticket.is_relayed(waker.clone(), idle, can_be_carried);
        if let Some(Earlier { leaves, patience }) = earlier {
            if let Some((at, why)) = leaves {
                ticket.farewell().say(at, why);
            }
            self.tunnel.has_patience(patience, ticket);
        }
    }

    fn poll_tunnel(&mut self, cx: &mut Context<'_>) -> Poll<Option<TunnelEnd>> {
        let conduct = Conduct {
            drain: &self.config.drain,
            ticket: &self.connection.ticket,
        };
        let sides = (&mut *self.client, &mut self.upstream);
        self.tunnel.poll(cx, sides, conduct)
    }

    fn ends(&mut self, end: TunnelEnd) {
        self.connection.ticket.passes(Passage::Later);
        if let Some(mut record) = self.record() {
            record.tunnelled(end);
        }
        self.client.close();
        self.connection.record.ends(CloseReason::ClientClosed);
    }

    /// The record, which is written when it is dropped.
    fn record(&mut self) -> Option<RequestRecord> {
        let connection = &self.connection.record;
        let listener = Arc::clone(connection.listener());
        let brief = self.brief.take()?;
        Some(brief.record(listener, connection.client()))
    }

    fn carried(&self) -> io::Result<Carried> {
        let saved = self.saved().ok_or(ErrorKind::NotFound)?;
        let record = &self.connection.record;
        Carried::websocket(record, &*self.client, &self.upstream, saved)
    }
}

impl<D: Downstream> Drop for Upgraded<D> {
    fn drop(&mut self) {
        drop(self.record());
    }
}

impl<D: Downstream> Future for Upgraded<D> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            match this.pace {
                Pace::Goes => match ready!(this.poll_tunnel(cx)) {
                    Some(end) => {
                        this.ends(end);
                        return Poll::Ready(());
                    }
                    None => {
                        registry::offer(this.carried());
                        this.pace = Pace::Stands;
                    }
                },
                Pace::Starts => {
                    if let Some(begun) = this.begun.take() {
                        this.starts(*begun, cx.waker());
                    }
                    this.pace = Pace::Goes;
                }
                // Who thaws wakes everybody that stands still.
                Pace::Stands if registry::is_frozen() => return Poll::Pending,
                Pace::Stands => {
                    // The upgrade did not come.
                    Carried::stay([this.client.descriptor(), this.upstream.descriptor()]);
                    this.pace = Pace::Goes;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    /// It is one piece of memory, and there are sizes of which that is given out; beside it are the texts of
    /// its record, and what the registry and the runtime know.
    #[test]
    fn a_websocket_is_small() {
        // Where assertions are checked, each socket knows its selector.
        let known = match cfg!(debug_assertions) {
            true => 2 * size_of::<usize>(),
            false => 0,
        };
        let size = size_of::<Upgraded<TcpStream>>() - known;
        assert!(size <= 448, "a WebSocket takes {size} bytes");
    }
}
