//! What a slot keeps from generation to generation, for the next image of the program.

use std::{io, net::TcpListener, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Room;
use crate::{
    cluster::Backlog,
    handover::{Incoming, Number, Outgoing},
    supervisor::{
        entrance::Entrances,
        node::{Channel, SavedChannel, SavedSocket, SavedSockets, SlotSockets},
    },
};

/// A [`Room`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedRoom {
    dir: Option<(Option<String>, PathBuf)>,
    port: Option<u16>,
    listener: Option<Number>,
    sockets: Option<SavedSockets>,
    known: Option<u16>,
    misfit: Option<Vec<String>>,
}

/// The socket whose accept queue a worker has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) enum SavedBacklog {
    /// The slot's own, under contract `fd`.
    Own,
    /// The first public one of the slot, under contract `fd`.
    Public,
    /// One of contract `node`.
    Node(SavedSocket),
}

impl Room {
    /// What the next image has to know of it.
    pub(in crate::supervisor) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedRoom> {
        let listener = self.place.listener.as_ref();
        let sockets = self.place.sockets.as_ref();
        Ok(SavedRoom {
            dir: self.dir.clone(),
            port: self.place.port,
            listener: listener.map(|socket| outgoing.add(socket)).transpose()?,
            sockets: sockets.map(|sockets| sockets.saved(outgoing)).transpose()?,
            known: self.known,
            misfit: self.misfit.clone(),
        })
    }

    /// Becomes the same again.
    pub(in crate::supervisor) fn resume(
        &mut self,
        saved: SavedRoom,
        entrances: &Entrances,
        incoming: &mut Incoming,
    ) -> io::Result<()> {
        self.dir = saved.dir;
        self.place.port = saved.port;
        self.known = saved.known;
        self.misfit = saved.misfit;
        if let Some(number) = saved.listener {
            let socket = TcpListener::from(incoming.take(number)?);
            self.place.listener = Some(Arc::new(socket));
        }
        if let Some(sockets) = saved.sockets {
            let doors = entrances.doors.as_ref();
            let doors = doors.map(|doors| doors.of_slot(self.index)).transpose()?;
            let sockets = SlotSockets::resumed(sockets, doors, incoming)?;
            self.place.sockets = Some(Arc::new(sockets));
        }
        Ok(())
    }

    /// The channel of its worker again.
    pub(in crate::supervisor) fn resume_channel(
        &self,
        saved: SavedChannel,
        incoming: &mut Incoming,
    ) -> io::Result<Channel> {
        let sockets = self.place.sockets.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Channel::resumed(
            saved,
            self.slot(),
            Arc::clone(sockets),
            Arc::clone(&self.shared),
            incoming,
        )
    }

    /// Which socket has this accept queue.
    pub(in crate::supervisor) fn which(&self, backlog: &Backlog) -> SavedBacklog {
        let socket = backlog.socket();
        let is_own = self
            .place
            .listener
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, socket));
        let of_node = self
            .place
            .sockets
            .as_ref()
            .and_then(|sockets| sockets.which(socket));
        match of_node {
            Some(which) => SavedBacklog::Node(which),
            None if is_own => SavedBacklog::Own,
            None => SavedBacklog::Public,
        }
    }

    /// The accept queue that this says, if it is still there.
    pub(in crate::supervisor) fn find(
        &self,
        which: SavedBacklog,
        entrances: &Entrances,
    ) -> Option<Backlog> {
        let socket = match which {
            SavedBacklog::Own => self.place.listener.clone(),
            SavedBacklog::Public => {
                let doors = entrances.doors.as_ref()?.of_slot(self.index).ok()?;
                doors.sockets.into_iter().next()
            }
            SavedBacklog::Node(which) => self.place.sockets.as_ref()?.find(which),
        };
        socket.map(Backlog::new)
    }
}
