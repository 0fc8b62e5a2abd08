//! One record per request: who asked for what, where it went, why there, and how it ended.

mod brief;
mod saved;

use std::{
    borrow::Cow,
    hash::Hasher as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Level, enabled};

pub(super) use self::{brief::Brief, saved::SavedRequest};
use super::{
    super::{
        Listener,
        record::{CloseReason, Detour, Ended, Home, Journey, Traffic, millis},
        share,
        stats::{class_of, code_of, end_of, party_of},
    },
    head::Version,
    refusal::Refusal,
    websocket::TunnelEnd,
};
use crate::log::record;

/// How a request ended: by whom, and the name that shows in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) by: &'static str,
    pub(super) reason: &'static str,
}

impl Outcome {
    /// The whole response was handed to the client.
    pub(super) const DONE: Self = Self::new("backend", "done");
    /// The client went away before that.
    pub(super) const CLIENT_GONE: Self = Self::new("client", "gone");
    /// It was still going on when its drain's deadline passed.
    pub(super) const CUT: Self = Self::new("proxy", "cut");

    pub(super) const fn new(by: &'static str, reason: &'static str) -> Self {
        Self { by, reason }
    }

    /// No backend could be reached; and the status that says so.
    pub(super) const fn unreached(reason: CloseReason) -> (u16, Self) {
        let status = match reason {
            CloseReason::ConnectFailed => 502,
            _ => 503,
        };
        (status, Self::new(reason.by(), reason.as_str()))
    }
}

/// What is known of a request so far. It is written when it is dropped, whatever the way out.
#[derive(Debug)]
pub(super) struct RequestRecord {
    listener: Arc<Listener>,
    /// Who is connected: the peer, or whom a PROXY header named.
    peer: SocketAddr,
    /// Where the request came from, when that is somebody else.
    client: Option<IpAddr>,
    began: Instant,
    version: Version,
    /// Method, host and target, as far as anybody reads it.
    line: String,
    pub(super) id: String,
    pub(super) journey: Journey,
    /// What decided on the slot.
    pub(super) key: Cow<'static, str>,
    pub(super) traffic: Traffic,
    /// What the client got; 0 for nothing.
    pub(super) status: u16,
    pub(super) outcome: Outcome,
    /// It has become a WebSocket.
    is_tunnel: bool,
    /// How that ended.
    tunnel: Option<Box<TunnelEnd>>,
    /// All that is known stands elsewhere now, and nothing is written here.
    is_moved: bool,
}

impl RequestRecord {
    pub(super) fn new(listener: Arc<Listener>, peer: SocketAddr, version: Version) -> Self {
        Self {
            listener,
            peer,
            client: None,
            began: Instant::now(),
            version,
            line: String::new(),
            id: String::new(),
            journey: Journey::default(),
            key: Cow::Borrowed(""),
            traffic: Traffic::default(),
            status: 0,
            outcome: Outcome::CUT,
            is_tunnel: false,
            tunnel: None,
            is_moved: false,
        }
    }

    /// Notes what is asked for.
    pub(super) fn asks(&mut self, method: &str, host: &str, target: &str) {
        if enabled!(target: "homescar::request", Level::INFO) {
            self.line
                .reserve(method.len() + host.len() + target.len() + 2);
            for part in [method, " ", host, target] {
                self.line.push_str(part);
            }
        }
    }

    /// Notes that it is not carried.
    pub(super) const fn refused(&mut self, refusal: Refusal) {
        self.status = refusal.status;
        self.outcome = Outcome::new("client", refusal.why);
    }

    /// Notes that it becomes a WebSocket.
    pub(super) fn becomes_tunnel(&mut self) {
        self.is_tunnel = true;
        self.listener.stats().mine().websockets.count();
    }

    /// Notes how a WebSocket ended.
    pub(super) fn tunnelled(&mut self, end: TunnelEnd) {
        self.outcome = end.outcome;
        self.traffic = end.traffic;
        self.tunnel = Some(Box::new(end));
    }

    /// What its end means for the backend's generation.
    fn ended(&self) -> Ended {
        let Outcome { by, reason } = self.outcome;
        let closed_by = self.tunnel.as_ref().and_then(|end| end.closed_by);
        match closed_by {
            Some("proxy") => Ended::Goodbye,
            _ if self.outcome == Outcome::CUT => Ended::Cut,
            _ if by == "backend" && !matches!(reason, "done" | "closed") => Ended::Failed,
            _ => Ended::Well,
        }
    }

    /// Notes where it comes from.
    pub(super) fn comes_from(&mut self, client: IpAddr) {
        self.client = Some(client).filter(|client| *client != self.peer.ip().to_canonical());
    }
}

impl RequestRecord {
    fn count(&self, took: Duration) {
        let stats = self.listener.stats().mine();
        let class = class_of(self.status);
        stats.requests[self.version as usize].count(class);
        stats
            .ends
            .count(end_of(self.outcome.by, self.outcome.reason));
        let held = self.journey.detour().held;
        if !held.is_zero() {
            stats.held.observe(held);
        }
        if !self.is_tunnel {
            stats.durations[class].observe(took);
            return;
        }
        const NO_CODE: u16 = 1005;
        const NO_FRAME: u16 = 1006;
        let closed_by = self.tunnel.as_ref().and_then(|end| end.closed_by);
        let code = self.tunnel.as_ref().and_then(|end| end.code);
        let (by, code) = match closed_by {
            Some(by) => (by, code.unwrap_or(NO_CODE)),
            None => (self.outcome.by, NO_FRAME),
        };
        stats.websocket_closes[party_of(by)].count(code_of(code));
        stats.websocket_lives.observe(took);
    }

    fn is_failure(&self) -> bool {
        self.status >= 500 || !matches!(self.outcome.reason, "done" | "closed" | "rebalanced")
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.is_moved {
            return;
        }
        let Traffic { up, down } = self.traffic;
        let home = self.journey.home.as_ref();
        let Detour {
            passed,
            held,
            queued,
            ..
        } = self.journey.detour();
        if let Some(home) = home {
            home.count(self.traffic, self.ended());
        }
        let took = self.began.elapsed();
        self.count(took);
        if !share::is_written(self.is_failure(), |hasher| hasher.write(self.id.as_bytes())) {
            return self.listener.stats().mine().left_out.count();
        }
        record!(
            target: "homescar::request",
            listener = &**self.listener.name(),
            client = self.client.is_none().then_some(self.peer),
            client = self.client,
            peer = self.client.map(|_| self.peer),
            id = &*self.id,
            version = match self.version {
                Version::Http10 => "1.0",
                Version::Http11 => "1.1",
                Version::Http2 => "2",
            },
            request = &*self.line,
            status = (self.status != 0).then_some(self.status),
            key = &*self.key,
            slot = home.map(|home| &*home.slot().name),
            generation = home.map(Home::generation),
            pid = home.and_then(Home::pid),
            passed = passed.as_ref().map(|(slot, _)| &**slot),
            because = passed.as_ref().map(|(_, why)| why.as_str()),
            held_ms = (!held.is_zero()).then(|| millis(*held)),
            queued_ms = (!queued.is_zero()).then(|| millis(*queued)),
            closed_by = self.tunnel.as_ref().and_then(|end| end.closed_by),
            code = self.tunnel.as_ref().and_then(|end| end.code),
            frames_up = self.tunnel.as_ref().map(|end| end.frames_up),
            frames_down = self.tunnel.as_ref().map(|end| end.frames_down),
            by = self.outcome.by,
            reason = self.outcome.reason,
            up = up,
            down = down,
            ms = millis(took),
            "request"
        );
    }
}
