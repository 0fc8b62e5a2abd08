//! One record per connection: who, where to, why there, how much, how long, who ended it and why.

mod saved;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;
use tracing::info;

pub(super) use self::saved::SavedRecord;
use crate::{
    cluster::{Skip, Slot},
    tls::HandshakeError,
};

/// Bytes carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// From the client to the backend.
    pub(super) up: u64,
    /// From the backend to the client.
    pub(super) down: u64,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client ended its stream first; all was carried.
    ClientClosed,
    /// The backend ended its stream first; all was carried.
    BackendClosed,
    /// The client reset the connection or vanished.
    ClientReset,
    /// The backend reset the connection or vanished.
    BackendReset,
    /// No byte moved for the listener's idle timeout.
    IdleTimeout,
    /// It was still open when its drain's deadline passed.
    Cut,
    /// More connections than homescar may hold.
    LimitGlobal,
    /// More connections than the listener may hold.
    LimitListener,
    /// More connections than this client may hold.
    LimitClient,
    /// The PROXY header did not come whole within the header timeout.
    HeaderTimeout,
    /// A PROXY header is required here, and the peer is not trusted to send one.
    HeaderUntrusted,
    /// The PROXY header is malformed; the label of [`ProxyError`](super::proxy_protocol::ProxyError)
    /// says how.
    HeaderBad(&'static str),
    /// The TLS handshake was not done within the header timeout.
    TlsTimeout,
    /// The TLS handshake failed; the label of [`HandshakeError`](crate::tls::HandshakeError) says
    /// how.
    TlsHandshake(&'static str),
    /// More TLS handshakes at one time than homescar does.
    TlsOverload,
    /// The client's slot is down and `on_down` says to reject.
    SlotDown,
    /// No slot takes clients.
    NoBackend,
    /// No backend that was tried could be connected to.
    ConnectFailed,
    /// This machine has no descriptor, memory or port left to connect with.
    NoResources,
}

impl From<HandshakeError> for CloseReason {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Timeout => Self::TlsTimeout,
            HandshakeError::Overload => Self::TlsOverload,
            failed => Self::TlsHandshake(failed.as_label()),
        }
    }
}

impl CloseReason {
    /// The stable name that shows in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed | Self::BackendClosed => "closed",
            Self::ClientReset | Self::BackendReset => "reset",
            Self::IdleTimeout => "idle_timeout",
            Self::Cut => "cut",
            Self::LimitGlobal => "limit_global",
            Self::LimitListener => "limit_listener",
            Self::LimitClient => "limit_client",
            Self::HeaderTimeout => "header_timeout",
            Self::HeaderUntrusted => "header_untrusted",
            Self::HeaderBad(_) => "header_bad",
            Self::TlsTimeout => "tls_timeout",
            Self::TlsHandshake(_) => "tls_handshake",
            Self::TlsOverload => "tls_overload",
            Self::SlotDown => "slot_down",
            Self::NoBackend => "no_backend",
            Self::ConnectFailed => "connect_failed",
            Self::NoResources => "no_resources",
        }
    }

    /// More about the reason, where there is more.
    #[must_use]
    pub const fn detail(self) -> Option<&'static str> {
        match self {
            Self::HeaderBad(label) | Self::TlsHandshake(label) => Some(label),
            _ => None,
        }
    }

    /// Who ended it: `client`, `backend` or `proxy`.
    #[must_use]
    pub const fn by(self) -> &'static str {
        match self {
            Self::ClientClosed
            | Self::ClientReset
            | Self::HeaderTimeout
            | Self::HeaderBad(_)
            | Self::TlsTimeout
            | Self::TlsHandshake(_) => "client",
            Self::BackendClosed | Self::BackendReset | Self::ConnectFailed => "backend",
            Self::IdleTimeout
            | Self::Cut
            | Self::LimitGlobal
            | Self::LimitListener
            | Self::LimitClient
            | Self::HeaderUntrusted
            | Self::TlsOverload
            | Self::SlotDown
            | Self::NoBackend
            | Self::NoResources => "proxy",
        }
    }
}

/// What is known of a connection so far. It is written when it is dropped, whatever the way out:
/// exactly once, also when the connection's task is cancelled.
#[derive(Debug)]
pub(super) struct ConnectionRecord {
    listener: Arc<str>,
    peer: SocketAddr,
    accepted: Instant,
    /// The client that a PROXY header named.
    pub(super) client: Option<SocketAddr>,
    /// How it came to its backend.
    pub(super) journey: Journey,
    /// Bytes carried.
    pub(super) traffic: Traffic,
    /// Requests that it carried, which have records of their own: then it needs none.
    pub(super) requests: u64,
    /// Why it ended; a connection that is dropped before it knows was cut.
    pub(super) reason: CloseReason,
}

/// How a connection or request came to its backend.
#[derive(Debug, Default)]
pub(super) struct Journey {
    /// The backend that it was connected to.
    pub(super) home: Option<Home>,
    /// The first choice and why it was passed over, when it was.
    pub(super) passed: Option<(Arc<str>, Skip)>,
    /// How long it was held for its slot.
    pub(super) held: Duration,
}

/// The backend of a connection. Counts itself in the slot while it is held.
#[derive(Debug)]
pub(super) struct Home {
    slot: Arc<Slot>,
    generation: u32,
    pid: Option<u32>,
}

impl ConnectionRecord {
    pub(super) fn new(listener: Arc<str>, peer: SocketAddr) -> Self {
        Self {
            listener,
            peer,
            accepted: Instant::now(),
            client: None,
            journey: Journey::default(),
            traffic: Traffic::default(),
            requests: 0,
            reason: CloseReason::Cut,
        }
    }

    /// The client: whom the PROXY header named, else the peer.
    pub(super) fn client(&self) -> SocketAddr {
        self.client.unwrap_or(self.peer)
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let Traffic { up, down } = self.traffic;
        let Journey { home, passed, held } = &self.journey;
        if let Some(home) = home {
            home.count(self.traffic);
        }
        if self.requests > 0 {
            return;
        }
        info!(
            target: "homescar::connection",
            listener = &*self.listener,
            client = %self.client(),
            peer = self.client.is_some().then(|| tracing::field::display(self.peer)),
            slot = home.as_ref().map(|home| &*home.slot.name),
            generation = home.as_ref().map(|home| home.generation),
            pid = home.as_ref().and_then(|home| home.pid),
            passed = passed.as_ref().map(|(slot, _)| &**slot),
            because = passed.as_ref().map(|(_, why)| why.as_str()),
            held_ms = (!held.is_zero()).then(|| millis(*held)),
            by = self.reason.by(),
            reason = self.reason.as_str(),
            detail = self.reason.detail(),
            up,
            down,
            ms = millis(self.accepted.elapsed()),
            "connection"
        );
    }
}

impl Home {
    pub(super) fn new(slot: Arc<Slot>, generation: u32, pid: Option<u32>) -> Self {
        slot.stats.total.fetch_add(1, Relaxed);
        slot.stats.active.fetch_add(1, Relaxed);
        Self {
            slot,
            generation,
            pid,
        }
    }

    pub(super) const fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    pub(super) const fn generation(&self) -> u32 {
        self.generation
    }

    pub(super) const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Counts what was carried to and from it.
    pub(super) fn count(&self, traffic: Traffic) {
        self.slot.stats.bytes_up.fetch_add(traffic.up, Relaxed);
        self.slot.stats.bytes_down.fetch_add(traffic.down, Relaxed);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.slot.stats.active.fetch_sub(1, Relaxed);
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
