//! Carries a WebSocket until it is over, and says goodbye when it has to go.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{
    backlog::Backlog,
    carriage::Carriage,
    frame::{Direction, Tracker},
};
use crate::{
    config::Drain,
    proxy::{
        http::{out::Out, record::Outcome},
        record::Traffic,
        registry::{self, Leaving, Ticket},
        relay::Side,
    },
};

/// For the other side to end too, once one has ended or all is said.
const LAST: Duration = Duration::from_secs(1);
/// For a client to answer a Close frame.
const ANSWER: Duration = Duration::from_secs(5);

/// A WebSocket between two of its moments. It has no timer while it is open: the registry looks after
/// idle ones.
#[derive(Debug)]
pub(in super::super) struct Tunnel {
    pub(super) to_up: Backlog,
    pub(super) to_down: Backlog,
    pub(super) upward: Tracker,
    pub(super) downward: Tracker,
    pub(super) traffic: Traffic,
    /// Until when the present phase may last, of those that do not last.
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    /// When it has to go, once it was asked to.
    pub(super) goes: Option<Pin<Box<Sleep>>>,
    /// How it has ended, when that has only to be said yet.
    end: Option<Box<TunnelEnd>>,
    /// Who sent the first Close frame, and its status code.
    pub(super) first_close: Option<(Party, Option<u16>)>,
    pub(super) client_ended: bool,
    pub(super) backend_ended: bool,
    /// This is woken when there is something to read of it.
    pub(super) client_waits: bool,
    /// The same of the other side.
    pub(super) backend_waits: bool,
    pub(super) phase: Phase,
    /// Why it had to go, if it had.
    pub(super) asked: Option<Leaving>,
}

/// What a WebSocket is carried by.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Conduct<'a> {
    /// What is said when it has to go.
    pub(in super::super) drain: &'a Drain,
    pub(in super::super) ticket: &'a Ticket,
}

/// How a WebSocket ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct TunnelEnd {
    pub(in super::super) outcome: Outcome,
    /// Who sent the first Close frame, and its status code.
    pub(in super::super) closed_by: Option<&'static str>,
    pub(in super::super) code: Option<u16>,
    pub(in super::super) frames_up: u64,
    pub(in super::super) frames_down: u64,
    pub(in super::super) traffic: Traffic,
}

impl Tunnel {
    /// One that begins. `to_down` is what is left of the handshake; `from_client` and `from_backend`
    /// came before.
    pub(in super::super) fn new(to_down: Out, from_client: &[u8], from_backend: &[u8]) -> Self {
        let mut tunnel = Self {
            to_up: Backlog::default(),
            to_down: to_down.into(),
            upward: Tracker::new(Direction::FromClient),
            downward: Tracker::new(Direction::FromBackend),
            traffic: Traffic::default(),
            timer: None,
            goes: None,
            end: None,
            first_close: None,
            client_ended: false,
            backend_ended: false,
            client_waits: false,
            backend_waits: false,
            phase: Phase::Open,
            asked: None,
        };
        tunnel.early(from_client, from_backend);
        tunnel
    }

    fn early(&mut self, from_client: &[u8], from_backend: &[u8]) {
        self.upward.feed(from_client);
        self.to_up.append(from_client);
        self.traffic.up += from_client.len() as u64;
        self.downward.feed(from_backend);
        self.to_down.append(from_backend);
        self.traffic.down += from_backend.len() as u64;
    }

    /// Carries it until it is over. Where both sides are nothing but descriptors, it stands still when
    /// it has to, and gives nothing: it goes on from here.
    pub(in super::super) fn poll<D: Side, U: Side>(
        &mut self,
        cx: &mut Context<'_>,
        (down, up): (&mut D, &mut U),
        conduct: Conduct<'_>,
    ) -> Poll<Option<TunnelEnd>> {
        if self.end.is_none() {
            if registry::is_frozen() && down.descriptor().is_some() && up.descriptor().is_some() {
                return Poll::Ready(None);
            }
            let mut carriage = Carriage {
                down: &mut *down,
                up,
                tunnel: self,
                conduct,
            };
            let (outcome, is_orderly) = ready!(carriage.poll(cx));
            if !is_orderly {
                down.reset_on_close();
                return Poll::Ready(Some(self.ended(outcome)));
            }
            self.end = Some(Box::new(self.ended(outcome)));
            self.timer = None;
        }
        if Pin::new(down).poll_shutdown(cx).is_pending() {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LAST)));
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(self.end.take().map(|end| *end))
    }

    fn ended(&self, outcome: Outcome) -> TunnelEnd {
        let (closed_by, code) = self.first_close.unzip();
        TunnelEnd {
            outcome,
            closed_by: closed_by.map(Party::as_str),
            code: code.flatten(),
            frames_up: self.upward.frames,
            frames_down: self.downward.frames,
            traffic: self.traffic,
        }
    }

    /// Sets the timer for the phase that begins, if it is one that does not last.
    pub(super) fn begins_phase(&mut self) {
        self.timer = match self.phase {
            Phase::Open | Phase::Leaving => None,
            Phase::Said => Some(Box::pin(sleep(ANSWER))),
            Phase::Ending => Some(Box::pin(sleep(LAST))),
        };
    }

    /// Until when something has to happen, where it is known.
    pub(super) fn patience(&self, ticket: &Ticket) -> Option<Instant> {
        match &self.timer {
            Some(timer) => Some(timer.deadline()),
            None => ticket.patience().map(|left| Instant::now() + left),
        }
    }

    /// Takes that over from an earlier image of the program.
    pub(super) fn has_patience(&mut self, until: Option<Instant>, ticket: &Ticket) {
        self.begins_phase();
        match (until, &mut self.timer) {
            (Some(until), Some(timer)) => *timer = Box::pin(sleep_until(until)),
            (Some(until), None) => {
                ticket.has_patience(until.saturating_duration_since(Instant::now()));
            }
            (None, _) => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Both sides are there.
    Open,
    /// It has to go as soon as the backend's frame is over.
    Leaving,
    /// We have sent the client a Close frame, and hear no more of the backend.
    Said,
    /// All is said, or one side has ended: the other one gets a moment.
    Ending,
}

impl Phase {
    /// Whether it lasts as long as something moves.
    pub(super) const fn lasts(self) -> bool {
        matches!(self, Self::Open | Self::Leaving)
    }
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Party {
    Client,
    Backend,
    Proxy,
}

impl Party {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Proxy => "proxy",
        }
    }
}

#[cfg(test)]
mod tests;
