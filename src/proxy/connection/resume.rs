//! Connections that began in an earlier image of the program.

use std::sync::Arc;

use super::{
    Connection, Linked, Open,
    life::{Lasting, Life},
};
use crate::{
    affinity::AffinityKey,
    proxy::{
        carried::{Resumed, Way},
        http::{Upgraded, Visit},
        link::Link,
        listener::Settings,
        registry::Ticket,
    },
};

/// Serves a client that an earlier image of the program has served until now. No limit counts: it is
/// there already.
pub(in crate::proxy) fn resume(
    resumed: Resumed,
    key: AffinityKey,
    settings: Arc<Settings>,
    ticket: Ticket,
) -> impl Future<Output = ()> + Send {
    let Resumed {
        record,
        client,
        way,
    } = resumed;
    let mut connection = Connection::new(record, settings, ticket);
    connection.is_counted = connection.record.listener().open.count(u64::MAX);
    if connection.settings.config.limits.per_client.is_some() {
        let permit = connection.enter_client(u32::MAX);
        connection.record.journey.detour_mut().permit = permit;
    }
    let client = Open::new(client);
    Life::lasts(match way {
        Way::Relay(upstream, state) => {
            if let Some(home) = &connection.record.journey.home {
                connection.ticket.lives_with(home, key);
            }
            let linked = Linked {
                upstream,
                state,
                tried: None,
            };
            Lasting::Link(Link::new(linked, client, connection))
        }
        Way::WebSocket(websocket) => {
            Lasting::upgraded(Upgraded::new(client, *websocket, connection))
        }
        Way::Visit(begun) => Lasting::visit(Visit::resumed(client, begun, connection)),
    })
}
