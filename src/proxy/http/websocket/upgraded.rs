//! A client's whole connection that has become a WebSocket.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::tunnel::{Conduct, Tunnel};
use crate::{
    affinity::{AffinityKey, SlotId},
    cluster::Cluster,
    proxy::{
        carried::Carried,
        connect::Upstream,
        http::{dispatch::Destination, record::RequestRecord},
        record::ConnectionRecord,
        registry::{self, Leaving, Passage, Ticket},
        relay::Side,
    },
};

/// The request that a WebSocket began with, and the backend's side of it.
#[derive(Debug)]
pub(in crate::proxy) struct WebSocket {
    pub(super) record: RequestRecord,
    pub(super) upstream: Upstream,
    pub(super) tunnel: Tunnel,
    pub(super) key: AffinityKey,
    /// The slot that the client will name when it comes again.
    pub(super) known: Option<SlotId>,
    pub(super) cluster: Cluster,
    /// When and why it has to go, where an earlier image of the program has asked it to.
    pub(super) leaves: Option<(Instant, Leaving)>,
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
        Self {
            key: destination.key(),
            known: home.and_then(|home| destination.known(home)),
            cluster: destination.cluster().clone(),
            record,
            upstream,
            tunnel,
            leaves: None,
        }
    }

    /// Carries it until it is over, to and from the client whose connection this record is of.
    pub(in crate::proxy) async fn carry(
        mut self: Box<Self>,
        client: &mut impl Side,
        connection: &ConnectionRecord,
        idle: Option<Duration>,
        ticket: &Ticket,
    ) {
        let home = self.record.journey.home.as_ref();
        if let Some(home) = home {
            ticket.goes_to(home, self.key);
        }
        ticket.is_tunnel(&self.cluster, home, self.key, self.known);
        let sides = (client.descriptor(), self.upstream.descriptor());
        ticket.passes(match sides {
            (Some(_), Some(_)) => Passage::Now,
            _ => Passage::Never,
        });
        let farewell = ticket.farewell();
        if let Some((at, why)) = self.leaves {
            farewell.say(at, why);
        }
        loop {
            let config = Arc::clone(&self.cluster.load().config);
            let conduct = Conduct {
                idle,
                drain: &config.drain,
                farewell: &farewell,
            };
            let sides = (&mut *client, &mut self.upstream);
            if let Some(end) = self.tunnel.run(sides, conduct).await {
                ticket.passes(Passage::Later);
                return self.record.tunnelled(end);
            }
            let saved = self.saved(farewell.said());
            let carried = Carried::websocket(connection, &*client, &self.upstream, saved);
            registry::offer(carried);
            registry::thawed().await;
            // The upgrade did not come.
            Carried::stay([client.descriptor(), self.upstream.descriptor()]);
        }
    }
}
