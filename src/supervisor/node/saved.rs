//! Our end of a worker's channel with all that was agreed on it, for the next image of the program.

use std::{io, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Channel, Held, Query, Servers, SharedSockets, SlotSockets,
    lag::{Lag, SavedLag},
    sockets::SavedSocket,
    wire::SavedWire,
};
use crate::handover::{Incoming, Outgoing};

/// A [`Channel`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedChannel {
    wire: SavedWire,
    expected: Vec<u16>,
    known: Option<u16>,
    routed: Option<u16>,
    held: Vec<SavedHeld>,
    online: bool,
    misfit: bool,
    listens: bool,
    lag: SavedLag,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedHeld {
    query: Query,
    socket: SavedSocket,
    routed: bool,
}

impl Channel {
    /// Whether nobody waits for an answer on it.
    pub(in crate::supervisor) fn is_quiet(&self) -> bool {
        self.undecided.is_empty() && self.wire.is_quiet()
    }

    /// What the next image has to know of it.
    pub(in crate::supervisor) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedChannel> {
        let held = self.held.iter().map(|held| {
            let own = self.sockets.which(&held.socket);
            Ok(SavedHeld {
                query: held.query.clone(),
                socket: match own {
                    Some(own) => own,
                    None => SavedSocket::Shared(outgoing.add(&held.socket)?),
                },
                routed: held.routed,
            })
        });
        let held = held.collect::<io::Result<_>>()?;
        Ok(SavedChannel {
            wire: self.wire.saved(outgoing)?,
            expected: self.servers.expected().to_vec(),
            known: self.servers.known(),
            routed: self.servers.routed(),
            held,
            online: self.online,
            misfit: self.misfit,
            listens: self.listens,
            lag: self.lag.saved(),
        })
    }

    /// The same again. Needs a runtime.
    pub(in crate::supervisor) fn resumed(
        saved: SavedChannel,
        slot: Arc<str>,
        sockets: Arc<SlotSockets>,
        shared: Arc<SharedSockets>,
        incoming: &mut Incoming,
    ) -> io::Result<Self> {
        let held = saved.held.into_iter().map(|held| {
            let socket = match held.socket {
                SavedSocket::Shared(number) => shared.resumed(&held.query, number, incoming)?,
                own => sockets.find(own).ok_or(io::ErrorKind::NotFound)?,
            };
            Ok(Held {
                key: held.query.key(),
                query: held.query,
                socket,
                routed: held.routed,
            })
        });
        let held = held.collect::<io::Result<_>>()?;
        Ok(Self {
            wire: saved
                .wire
                .resumed(Arc::clone(&slot), saved.lag.is_asked(), incoming)?,
            slot,
            sockets,
            shared,
            servers: Servers::resumed(&saved.expected, saved.known, saved.routed),
            expected: saved.expected.first().copied(),
            undecided: Vec::new(),
            held,
            online: saved.online,
            misfit: saved.misfit,
            listens: saved.listens,
            lag: Lag::resumed(saved.lag, Instant::now()),
        })
    }
}
