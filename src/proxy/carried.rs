//! Connections that pass from one image of the program to the next: two descriptors, what was read
//! and not taken yet, and what their record knows.
//!
//! Those are relays in mode `tcp`, and WebSockets over HTTP/1.1, without encryption on either side.

use std::{io, net::TcpStream as StdTcpStream, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

use super::{
    connect::Upstream,
    connection::Open,
    http::{SavedWebSocket, WebSocket},
    link::Bare,
    listener::{Listener, Settings},
    record::{ConnectionRecord, SavedRecord},
    relay::{SavedState, Side, State},
};
use crate::handover::{Incoming, Number, hold_back, let_pass};

/// What the next image has to know of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Carried {
    record: SavedRecord,
    client: Number,
    backend: Number,
    /// The backend is reached by a Unix socket.
    is_unix: bool,
    way: SavedWay,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum SavedWay {
    Relay(SavedState),
    WebSocket(Box<SavedWebSocket>),
}

/// A connection in this image that began in an earlier one.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) record: ConnectionRecord,
    pub(super) client: TcpStream,
    pub(super) way: Way,
}

/// How it is carried.
#[derive(Debug)]
pub(super) enum Way {
    Relay(Bare, State),
    WebSocket(Box<WebSocket>),
}

/// A connection whose descriptors are there.
#[derive(Debug)]
pub(super) struct Arrived {
    carried: Carried,
    client: StdTcpStream,
    backend: std::os::fd::OwnedFd,
}

impl Carried {
    /// A relay that stands still. Its descriptors pass through the next `execve(2)`, until
    /// [`stay`](Self::stay) is called.
    pub(super) fn relay(
        record: &ConnectionRecord,
        client: &impl Side,
        backend: &impl Side,
        relay: &State,
    ) -> io::Result<Self> {
        Self::new(record, client, backend, SavedWay::Relay(relay.saved()))
    }

    /// The same for a WebSocket.
    pub(super) fn websocket(
        record: &ConnectionRecord,
        client: &impl Side,
        backend: &impl Side,
        websocket: SavedWebSocket,
    ) -> io::Result<Self> {
        let way = SavedWay::WebSocket(Box::new(websocket));
        Self::new(record, client, backend, way)
    }

    fn new(
        record: &ConnectionRecord,
        client: &impl Side,
        backend: &impl Side,
        way: SavedWay,
    ) -> io::Result<Self> {
        let pass = |side: Option<std::os::fd::BorrowedFd<'_>>| {
            let_pass(&side.ok_or(io::ErrorKind::Unsupported)?)
        };
        Ok(Self {
            record: record.saved(),
            client: pass(client.descriptor())?,
            backend: pass(backend.descriptor())?,
            is_unix: backend.is_unix(),
            way,
        })
    }

    /// Takes the descriptors back.
    pub(super) fn stay(client: &impl Side, backend: &impl Side) {
        for side in [client.descriptor(), backend.descriptor()] {
            side.iter().for_each(hold_back);
        }
    }

    /// The listener by which it came in.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.record.listener
    }

    /// Takes its descriptors.
    pub(super) fn arrive(self, incoming: &mut Incoming) -> io::Result<Arrived> {
        Ok(Arrived {
            client: incoming.take(self.client)?.into(),
            backend: incoming.take(self.backend)?,
            carried: self,
        })
    }

    /// The descriptors that it needs.
    pub fn descriptors(&self) -> [Number; 2] {
        [self.client, self.backend]
    }
}

impl Arrived {
    /// The connection again, on the thread that is to have it.
    pub(super) fn resume(
        self,
        listener: &Arc<Listener>,
        settings: &Settings,
    ) -> io::Result<Resumed> {
        let Carried {
            record,
            is_unix,
            way,
            ..
        } = self.carried;
        let way = match way {
            SavedWay::Relay(relay) => {
                let upstream = match is_unix {
                    true => Bare::Unix(Open::new(UnixStream::from_std(self.backend.into())?)),
                    false => Bare::Tcp(Open::new(TcpStream::from_std(self.backend.into())?)),
                };
                Way::Relay(upstream, State::resumed(relay))
            }
            SavedWay::WebSocket(saved) => {
                let upstream = match is_unix {
                    true => Upstream::Unix(UnixStream::from_std(self.backend.into())?),
                    false => Upstream::Tcp(TcpStream::from_std(self.backend.into())?),
                };
                let resumed = WebSocket::resumed(*saved, upstream, listener, settings);
                let gone = || io::Error::other("its cluster is not there");
                Way::WebSocket(Box::new(resumed.ok_or_else(gone)?))
            }
        };
        let snapshot = settings.cluster.load();
        Ok(Resumed {
            client: TcpStream::from_std(self.client)?,
            record: ConnectionRecord::resumed(record, Arc::clone(listener), &snapshot),
            way,
        })
    }
}
