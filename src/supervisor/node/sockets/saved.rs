//! The sockets of a slot, for the next image of the program.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{OwnAddress, Query, SharedSockets, SlotSockets};
use crate::{
    handover::{Incoming, Number, Outgoing},
    supervisor::entrance::SlotDoors,
};

/// [`SlotSockets`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedSockets {
    own: Option<(Ipv4Addr, Number)>,
    is_direct: bool,
    by_port: BTreeMap<u16, Number>,
}

/// Which socket it is that a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::supervisor) enum SavedSocket {
    /// The first public one of its slot.
    Public,
    /// Its slot's own for this port.
    Own(u16),
    /// One that the workers of the cluster share.
    Shared(Number),
}

impl SlotSockets {
    /// What the next image has to know of them.
    pub(in crate::supervisor) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedSockets> {
        let own = self
            .own
            .as_ref()
            .map(|own| own.saved(outgoing))
            .transpose()?;
        let by_port = self.by_port.lock().unwrap_or_else(PoisonError::into_inner);
        let by_port = by_port
            .iter()
            .map(|(port, socket)| Ok((*port, outgoing.add(socket)?)));
        Ok(SavedSockets {
            own,
            is_direct: self.is_direct(),
            by_port: by_port.collect::<io::Result<_>>()?,
        })
    }

    /// The same again; `doors` are the public sockets of the slot.
    pub(in crate::supervisor) fn resumed(
        saved: SavedSockets,
        doors: Option<SlotDoors>,
        incoming: &mut Incoming,
    ) -> io::Result<Self> {
        let own = saved.own.map(|own| OwnAddress::resumed(own, incoming));
        let by_port = saved.by_port.into_iter().map(|(port, number)| {
            let socket = TcpListener::from(incoming.take(number)?);
            Ok((port, Arc::new(socket)))
        });
        let by_port: io::Result<_> = by_port.collect();
        Ok(Self {
            by_port: Mutex::new(by_port?),
            own: own.transpose()?,
            public: doors.filter(|_| saved.is_direct),
        })
    }

    /// Which of the slot's sockets this is, if it is one.
    pub(in crate::supervisor) fn which(&self, socket: &Arc<TcpListener>) -> Option<SavedSocket> {
        if self.is_public(socket) {
            return Some(SavedSocket::Public);
        }
        let by_port = self.by_port.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = by_port.iter();
        let (port, _) = own.find(|(_, own)| Arc::ptr_eq(own, socket))?;
        Some(SavedSocket::Own(*port))
    }

    /// The one that this says.
    pub(in crate::supervisor) fn find(&self, which: SavedSocket) -> Option<Arc<TcpListener>> {
        match which {
            SavedSocket::Public => self.public().map(Arc::clone),
            SavedSocket::Own(port) => {
                let by_port = self.by_port.lock().unwrap_or_else(PoisonError::into_inner);
                by_port.get(&port).map(Arc::clone)
            }
            SavedSocket::Shared(_) => None,
        }
    }
}

impl SharedSockets {
    /// The one that a worker has got for a query; the first worker of several brings it along.
    pub(in crate::supervisor::node) fn resumed(
        &self,
        query: &Query,
        number: Number,
        incoming: &mut Incoming,
    ) -> io::Result<Arc<TcpListener>> {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = query.key();
        let copy = incoming.take(number)?;
        if let Some(socket) = sockets.get(&key).and_then(std::sync::Weak::upgrade) {
            return Ok(socket);
        }
        let socket = Arc::new(TcpListener::from(copy));
        sockets.insert(key, Arc::downgrade(&socket));
        Ok(socket)
    }
}
