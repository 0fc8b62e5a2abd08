//! One record per connection: who, where to, why there, how much, how long, who ended it and why.

mod compact;
mod journey;
mod saved;

use std::{
    hash::Hash as _,
    mem::discriminant,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use self::compact::{Peer, Point};
pub(super) use self::{
    journey::{Detour, Journey},
    saved::{SavedJourney, SavedRecord},
};
use super::{Listener, connect::Upstream, http::pool, share};
use crate::{
    cluster::{Backend, Load, Slot},
    log::record,
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
    /// The client's slot has all the clients that it may have, as has every other one that would
    /// do, and there is no room to wait.
    SlotFull,
    /// It waited for a seat in its slot, and got none in time.
    QueueTimeout,
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
    /// Whether it is that there were too many.
    #[must_use]
    pub const fn is_limit(self) -> bool {
        matches!(
            self,
            Self::LimitGlobal | Self::LimitListener | Self::LimitClient
        )
    }

    /// All of them, without details.
    pub const ALL: [Self; 21] = [
        Self::ClientClosed,
        Self::BackendClosed,
        Self::ClientReset,
        Self::BackendReset,
        Self::IdleTimeout,
        Self::Cut,
        Self::LimitGlobal,
        Self::LimitListener,
        Self::LimitClient,
        Self::HeaderTimeout,
        Self::HeaderUntrusted,
        Self::HeaderBad(""),
        Self::TlsTimeout,
        Self::TlsHandshake(""),
        Self::TlsOverload,
        Self::SlotDown,
        Self::SlotFull,
        Self::QueueTimeout,
        Self::NoBackend,
        Self::ConnectFailed,
        Self::NoResources,
    ];

    /// Its position among all.
    pub(super) fn number(self) -> usize {
        let mut all = Self::ALL.iter();
        let found = all.position(|other| discriminant(other) == discriminant(&self));
        found.unwrap_or(Self::ALL.len())
    }

    const fn is_failure(self) -> bool {
        !matches!(self, Self::ClientClosed | Self::BackendClosed)
    }

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
            Self::SlotFull => "slot_full",
            Self::QueueTimeout => "queue_timeout",
            Self::NoBackend => "no_backend",
            Self::ConnectFailed => "connect_failed",
            Self::NoResources => "no_resources",
        }
    }

    /// What it means for the backend's generation.
    const fn ended(self) -> Ended {
        match self {
            Self::Cut => Ended::Cut,
            Self::BackendReset => Ended::Failed,
            _ => Ended::Well,
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
            | Self::SlotFull
            | Self::QueueTimeout
            | Self::NoBackend
            | Self::NoResources => "proxy",
        }
    }
}

/// What is known of a connection so far. It is written when it is dropped, whatever the way out:
/// exactly once, also when the connection's task is cancelled.
#[derive(Debug)]
pub(super) struct ConnectionRecord {
    listener: Arc<Listener>,
    peer: Peer,
    accepted: Point,
    /// How it came to its backend.
    pub(super) journey: Journey,
    /// Bytes carried.
    pub(super) traffic: Traffic,
    /// Requests that it carried, which have records of their own: then it needs none.
    pub(super) requests: u32,
    /// Why it ended, by its position among all; a connection that is dropped before it knows was cut.
    reason: Option<u8>,
}

/// The backend of a connection. Counts itself in the slot, and in the generation, while it is held.
#[derive(Debug)]
pub(super) struct Home {
    slot: Arc<Slot>,
    backend: Arc<Backend>,
}

/// How a connection or request ended, for its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    /// A WebSocket that was closed with a goodbye of ours.
    Goodbye,
    /// By us, without one.
    Cut,
    /// By the backend, when it should not have.
    Failed,
}

impl ConnectionRecord {
    pub(super) fn new(listener: Arc<Listener>, peer: SocketAddr) -> Self {
        listener.stats().mine().accepted.count();
        Self {
            listener,
            peer: peer.into(),
            accepted: Instant::now().into(),
            journey: Journey::default(),
            traffic: Traffic::default(),
            requests: 0,
            reason: None,
        }
    }

    /// Notes why it ended.
    pub(super) fn ends(&mut self, reason: CloseReason) {
        self.reason = Some(reason.number() as u8);
        if let Some(detail) = reason.detail() {
            self.journey.detour_mut().detail = Some(detail);
        }
    }

    /// By which it came in.
    pub(super) const fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// When it came.
    pub(super) fn accepted(&self) -> Instant {
        self.accepted.into()
    }

    /// The client: whom the PROXY header named, else the peer.
    pub(super) fn client(&self) -> SocketAddr {
        let named = self.journey.detour().client;
        named.unwrap_or_else(|| self.peer.into())
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let Traffic { up, down } = self.traffic;
        let home = self.journey.home.as_ref();
        let Detour {
            passed,
            held,
            queued,
            detail,
            client: named,
            ..
        } = self.journey.detour();
        let reason = self
            .reason
            .map(|number| CloseReason::ALL[usize::from(number)]);
        let reason = reason.unwrap_or(CloseReason::Cut);
        if let Some(home) = home {
            home.count(self.traffic, reason.ended());
        }
        let lived = Instant::from(self.accepted).elapsed();
        let stats = self.listener.stats().mine();
        stats.closes.count(reason.number());
        stats.lives.observe(lived);
        if self.requests > 0 {
            return;
        }
        if !held.is_zero() {
            stats.held.observe(*held);
        }
        let client = self.client();
        if !share::is_written(reason.is_failure(), |hasher| client.hash(hasher)) {
            return stats.left_out.count();
        }
        record!(
            target: "homescar::connection",
            listener = &**self.listener.name(),
            client = client,
            peer = named.map(|_| SocketAddr::from(self.peer)),
            slot = home.map(|home| &*home.slot.name),
            generation = home.map(Home::generation),
            pid = home.and_then(Home::pid),
            passed = passed.as_ref().map(|(slot, _)| &**slot),
            because = passed.as_ref().map(|(_, why)| why.as_str()),
            held_ms = (!held.is_zero()).then(|| millis(*held)),
            queued_ms = (!queued.is_zero()).then(|| millis(*queued)),
            by = reason.by(),
            reason = reason.as_str(),
            detail = *detail,
            up = up,
            down = down,
            ms = millis(lived),
            "connection"
        );
    }
}

impl Home {
    /// The backend of a connection that is on the way there, or there already.
    pub(super) fn enter(slot: Arc<Slot>, backend: Arc<Backend>) -> Self {
        slot.stats.active.fetch_add(1, Relaxed);
        backend.load.active.fetch_add(1, Relaxed);
        Self { slot, backend }
    }

    /// Counts the connection among all that the slot has had.
    pub(super) fn reached(&self) {
        self.slot.stats.total.fetch_add(1, Relaxed);
    }

    pub(super) const fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    pub(super) fn generation(&self) -> u32 {
        self.backend.generation
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.backend.pid
    }

    /// What its generation carries.
    pub(super) fn load(&self) -> &Arc<Load> {
        &self.backend.load
    }

    /// Keeps a connection to it for the next request.
    pub(super) fn keep(&self, stream: Upstream) {
        pool::keep(&self.slot.stats, &self.backend, stream);
    }

    /// Counts a failure of it.
    pub(super) fn failed(&self) {
        self.slot.stats.failures.fetch_add(1, Relaxed);
    }

    /// Counts what was carried to and from it, and how that ended.
    pub(super) fn count(&self, traffic: Traffic, ended: Ended) {
        self.slot.stats.bytes_up.fetch_add(traffic.up, Relaxed);
        self.slot.stats.bytes_down.fetch_add(traffic.down, Relaxed);
        let load = &self.backend.load;
        load.ended.fetch_add(1, Relaxed);
        let kind = match ended {
            Ended::Well => return,
            Ended::Goodbye => &load.goodbyes,
            Ended::Cut => &load.cut,
            Ended::Failed => &load.failed,
        };
        kind.fetch_add(1, Relaxed);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.slot.stats.active.fetch_sub(1, Relaxed);
        self.backend.load.active.fetch_sub(1, Relaxed);
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
