//! Connections that pass from one image of the program to the next: two descriptors, what was read
//! and not taken yet, and what their record knows.
//!
//! Those are relays in mode `tcp`, and connections of HTTP/1 and WebSockets that they have become, without
//! encryption on either side. One that waits for its next request has no backend.

use std::{
    io,
    net::TcpStream as StdTcpStream,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

use super::{
    connect::Upstream,
    connection::Open,
    http::{ResumedVisit, SavedVisit, SavedWebSocket, WebSocket},
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
    backend: Option<Number>,
    /// The backend is reached by a Unix socket.
    is_unix: bool,
    way: SavedWay,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum SavedWay {
    Relay(SavedState),
    WebSocket(Box<SavedWebSocket>),
    Visit(Box<SavedVisit>),
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
    Visit(ResumedVisit),
}

/// A connection whose descriptors are there.
#[derive(Debug)]
pub(super) struct Arrived {
    carried: Carried,
    client: StdTcpStream,
    backend: Option<OwnedFd>,
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
        Self::new(
            record,
            client,
            Some(backend),
            SavedWay::Relay(relay.saved()),
        )
    }

    /// The same for a WebSocket.
    pub(super) fn websocket(
        record: &ConnectionRecord,
        client: &impl Side,
        backend: &impl Side,
        websocket: SavedWebSocket,
    ) -> io::Result<Self> {
        let way = SavedWay::WebSocket(Box::new(websocket));
        Self::new(record, client, Some(backend), way)
    }

    /// The same for a connection that brings requests; it has a backend while there is one.
    pub(super) fn visit(
        record: &ConnectionRecord,
        client: &impl Side,
        backend: Option<&Upstream>,
        visit: SavedVisit,
    ) -> io::Result<Self> {
        Self::new(record, client, backend, SavedWay::Visit(Box::new(visit)))
    }

    fn new(
        record: &ConnectionRecord,
        client: &impl Side,
        backend: Option<&impl Side>,
        way: SavedWay,
    ) -> io::Result<Self> {
        let pass =
            |side: Option<BorrowedFd<'_>>| let_pass(&side.ok_or(io::ErrorKind::Unsupported)?);
        let passed = backend.map(|backend| pass(backend.descriptor()));
        Ok(Self {
            record: record.saved(),
            client: pass(client.descriptor())?,
            backend: passed.transpose()?,
            is_unix: backend.is_some_and(Side::is_unix),
            way,
        })
    }

    /// Takes the descriptors back.
    pub(super) fn stay<const N: usize>(descriptors: [Option<BorrowedFd<'_>>; N]) {
        descriptors.iter().flatten().for_each(hold_back);
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
            backend: self.backend.map(|one| incoming.take(one)).transpose()?,
            carried: self,
        })
    }

    /// The descriptors that it needs.
    pub fn descriptors(&self) -> impl Iterator<Item = Number> + use<> {
        [Some(self.client), self.backend].into_iter().flatten()
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
        let upstream = self.backend.map(|backend| {
            Ok::<_, io::Error>(match is_unix {
                true => Upstream::Unix(UnixStream::from_std(backend.into())?),
                false => Upstream::Tcp(TcpStream::from_std(backend.into())?),
            })
        });
        let upstream = upstream.transpose()?;
        let gone = || io::Error::other("its cluster, or its backend, is not there");
        let way = match (way, upstream) {
            (SavedWay::Relay(relay), Some(Upstream::Tcp(stream))) => {
                Way::Relay(Bare::Tcp(Open::new(stream)), State::resumed(relay))
            }
            (SavedWay::Relay(relay), Some(Upstream::Unix(stream))) => {
                Way::Relay(Bare::Unix(Open::new(stream)), State::resumed(relay))
            }
            (SavedWay::WebSocket(saved), Some(upstream)) => {
                let resumed = WebSocket::resumed(*saved, upstream, listener, settings);
                Way::WebSocket(Box::new(resumed.ok_or_else(gone)?))
            }
            (SavedWay::Visit(saved), upstream) => {
                let resumed = saved.resume(upstream, listener, settings);
                Way::Visit(resumed.ok_or_else(gone)?)
            }
            (SavedWay::Relay(_) | SavedWay::WebSocket(_), _) => return Err(gone()),
        };
        let snapshot = settings.cluster.load();
        Ok(Resumed {
            client: TcpStream::from_std(self.client)?,
            record: ConnectionRecord::resumed(record, Arc::clone(listener), &snapshot),
            way,
        })
    }
}
