//! Contract `node`: the primary's side of Node's cluster protocol, over `NODE_CHANNEL_FD`.
//!
//! Node takes a process with that variable and `NODE_UNIQUE_ID` for a worker of `node:cluster`:
//! whenever it is to listen, it asks its primary for the socket (`queryServer`), and we answer
//! with one that homescar keeps (a *shared handle*). So an unmodified `app.listen(3000)` is given
//! its slot's socket, and connections wait in that while the worker restarts.
//!
//! The protocol is private to Node (`lib/internal/cluster/` and `lib/internal/child_process.js`).
//! This is tried with Node 18.20, 20.20, 22.23 and 24.21.
//! A process that does not speak it is noticed ([`Notice::Misfit`]), and its slot falls back to
//! contract `port`.

mod address;
mod answer;
mod lag;
mod message;
mod saved;
mod servers;
mod sockets;
mod unread;
mod wire;

use std::{future::pending, io, net::TcpListener, os::fd::OwnedFd, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, sleep_until},
};
use tracing::debug;

pub(super) use self::{
    address::OwnAddress,
    lag::LoopLag,
    saved::SavedChannel,
    sockets::{SavedSocket, SavedSockets, SharedSockets, SlotSockets},
};
use self::{
    lag::Lag,
    message::{Query, Said},
    servers::Servers,
    wire::Wire,
};
use crate::config::Address;

/// A process that has ended, and so closed its channel, is known to have by then.
const CLOSED_IN_ITS_LIFE: Duration = Duration::from_millis(300);

/// What a worker makes known.
#[derive(Clone, Debug)]
pub(super) enum Notice {
    /// The server that clients are brought to listens.
    Listening,
    /// `process.send('ready')`.
    Ready,
    /// Clients are to be brought to another socket than before.
    Routed(Arc<TcpListener>, Address),
    /// `worker.disconnect()`: it closes its servers and ends.
    Leaving,
    /// It does not speak the protocol; how this shows.
    Misfit(&'static str),
    /// How late its event loop is.
    Lag(LoopLag),
}

/// Our end of one generation's channel.
#[derive(Debug)]
pub(super) struct Channel {
    wire: Wire,
    slot: Arc<str>,
    sockets: Arc<SlotSockets>,
    shared: Arc<SharedSockets>,
    servers: Servers,
    expected: Option<u16>,
    /// Servers of which it is not known what they are.
    undecided: Vec<Query>,
    /// Servers that have got a socket.
    held: Vec<Held>,
    online: bool,
    misfit: bool,
    listens: bool,
    lag: Lag,
}

#[derive(Debug)]
struct Held {
    key: String,
    query: Query,
    socket: Arc<TcpListener>,
    routed: bool,
}

/// What a channel needs to know.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    pub slot: Arc<str>,
    pub sockets: Arc<SlotSockets>,
    pub shared: Arc<SharedSockets>,
    /// Ports of the listeners that lead here.
    pub expected: &'a [u16],
    /// The port that clients were brought to in an earlier generation.
    pub known: Option<u16>,
}

impl Channel {
    /// A channel, and the worker's end of it. Needs a runtime.
    pub(super) fn open(setting: Setting<'_>) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let Setting {
            slot,
            sockets,
            shared,
            expected,
            known,
        } = setting;
        let channel = Self {
            wire: Wire::new(UnixStream::from_std(ours)?, Arc::clone(&slot)),
            slot,
            sockets,
            shared,
            servers: Servers::new(expected, known),
            expected: expected.first().copied(),
            undecided: Vec::new(),
            held: Vec::new(),
            online: false,
            misfit: false,
            listens: false,
            lag: Lag::default(),
        };
        Ok((channel, theirs.into()))
    }

    /// Whether it has spoken the protocol.
    pub(super) const fn is_online(&self) -> bool {
        self.online
    }

    /// The port that the server which clients are brought to has asked for.
    pub(super) const fn routed_port(&self) -> Option<u16> {
        self.servers.routed()
    }

    /// What happens next on it; never empty. Nothing is lost when it is dropped half-way.
    pub(super) async fn next(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        loop {
            self.decide(&mut notices);
            self.wire.flush();
            if !notices.is_empty() {
                return notices;
            }
            if self.wire.closed.is_some() && (self.online || self.misfit) {
                return pending().await;
            }
            let alarm = self.alarm();
            let interest = self.wire.interest();
            tokio::select! {
                _ready = self.wire.stream.ready(interest.unwrap_or(Interest::READABLE)),
                    if interest.is_some() => {}
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
            }
            if interest.is_some_and(Interest::is_readable) {
                for line in self.wire.receive() {
                    self.heard(message::parse(&line), &mut notices);
                }
            }
        }
    }

    /// What has come already.
    pub(super) fn waiting(&mut self) -> Vec<Notice> {
        self.next().now_or_never().unwrap_or_default()
    }

    /// Asks the worker to accept nobody any more, and to end once its connections have. Gives
    /// whether it can be asked.
    pub(super) fn ask_to_disconnect(&mut self) -> bool {
        let can = self.online && self.wire.closed.is_none();
        if can {
            self.lag.end();
            self.wire.post(message::DISCONNECT, None);
            self.wire.flush();
        }
        can
    }

    /// Whether it has closed the channel.
    pub(super) const fn is_closed(&self) -> bool {
        self.wire.closed.is_some()
    }

    /// Tells the application that it is going to be ended.
    pub(super) fn say_shutdown(&mut self) {
        self.lag.end();
        self.wire.post(message::SHUTDOWN, None);
        self.wire.flush();
    }

    /// Why a worker that did not become ready in time did not.
    pub(super) fn why_not_ready(&self) -> String {
        let shared: Vec<_> = self.held.iter().filter(|held| !held.routed).collect();
        let ports: Vec<_> = shared
            .iter()
            .filter_map(|held| Some(held.query.port?.to_string()))
            .collect();
        let expected = self
            .expected
            .map(|port| format!(" {port}"))
            .unwrap_or_default();
        match self.servers.routed() {
            _ if !self.online => "it does not speak Node's cluster protocol".to_owned(),
            None if shared.is_empty() => format!(
                "it has not listened on any port, such as{expected}; a server that listens in a \
                 process of its own, or with `exclusive: true`, is not seen"
            ),
            None => format!(
                "it listens on {}, but not on{expected}",
                ports.join(" and ")
            ),
            Some(port) if !self.listens => format!("its server on port {port} does not listen"),
            Some(port) => {
                format!("it listens on port {port}, but is not said or found to be ready")
            }
        }
    }

    /// When something is due although nothing has come.
    fn alarm(&self) -> Option<Instant> {
        let closed = self.wire.closed.map(|at| at + CLOSED_IN_ITS_LIFE);
        let closed = closed.filter(|_| !self.online && !self.misfit);
        let lag = self.lag.alarm().filter(|_| self.wire.closed.is_none());
        let alarms = [
            self.servers.decide_at(),
            closed,
            self.wire.reads_again_at(),
            self.wire.sends_again_at(),
            lag,
        ];
        alarms.into_iter().flatten().min()
    }

    /// What was undecided, and how long a channel may be closed.
    fn decide(&mut self, notices: &mut Vec<Notice>) {
        let now = Instant::now();
        let due = self
            .wire
            .closed
            .is_some_and(|at| at + CLOSED_IN_ITS_LIFE <= now);
        if due && !self.online {
            self.misfit("it has closed the channel without a word", notices);
        }
        let due = self.servers.decide_at().is_none_or(|at| at <= now);
        if due && !self.undecided.is_empty() {
            for query in std::mem::take(&mut self.undecided) {
                self.asked(query, notices);
            }
        }
        if self.wire.closed.is_none() && self.lag.is_due(now) {
            let lag = self.lag.next(now, || self.wire.ping());
            notices.extend(lag.map(Notice::Lag));
        }
    }

    fn misfit(&mut self, why: &'static str, notices: &mut Vec<Notice>) {
        if !std::mem::replace(&mut self.misfit, true) {
            notices.push(Notice::Misfit(why));
        }
    }

    fn heard(&mut self, said: Said, notices: &mut Vec<Notice>) {
        match said {
            Said::Online => self.online = true,
            Said::Query(query) => self.asked(query, notices),
            Said::Listening(query) => {
                let is_it = |held: &&Held| {
                    held.routed
                        && (&held.query.address, held.query.index) == (&query.address, query.index)
                };
                let held = self.held.iter().find(is_it);
                let port = held.and_then(|held| held.socket.local_addr().ok());
                if port.is_some_and(|addr| query.port == Some(addr.port().into())) {
                    self.listens = true;
                    self.lag.begin(Instant::now());
                    notices.push(Notice::Listening);
                    let kept = held.map(|held| self.sockets.keep_backlog(&held.socket));
                    if let Some(Err(error)) = kept {
                        debug!(slot = %self.slot, %error, "backlog not set");
                    }
                }
            }
            Said::Close { key } => self.held.retain(|held| held.key != key),
            Said::Leaving { seq } => {
                self.lag.end();
                self.wire.post(&message::acknowledged(seq), None);
                notices.push(Notice::Leaving);
            }
            Said::Received => self.wire.confirmed(),
            Said::Missed if self.wire.ponged() => {
                let lag = self.lag.answered(Instant::now());
                notices.extend(lag.map(Notice::Lag));
            }
            Said::Missed => {
                if !self.wire.send_again() {
                    self.misfit("no descriptor reaches it", notices);
                }
            }
            Said::Handle => self.wire.confirm(),
            Said::Ready => notices.push(Notice::Ready),
            Said::Nonsense if !self.online => {
                self.misfit("it says something else on the channel", notices);
            }
            Said::Nonsense | Said::Other => {}
        }
    }
}
