//! A client and its backend, both nothing but sockets: all that there is of a connection while it lasts,
//! and so kept small.

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::net::{TcpStream, UnixStream};

use super::{
    carried::Carried,
    connection::{Connection, Linked, Open, Served},
    record::CloseReason,
    registry::{self, Passage},
    relay::{End, Side as _, State},
};

/// A connection that is relayed.
#[derive(Debug)]
pub(super) struct Link {
    upstream: Bare,
    client: Open<TcpStream>,
    state: State,
    connection: Connection,
}

/// Whether a link moves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// It has not been polled yet.
    Starts,
    Goes,
    /// It stands still: an upgrade is about to happen.
    Stands,
}

/// What to do after a link.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Nothing.
    End,
    /// The client is to be taken to another backend.
    LinkAgain,
}

/// A backend without encryption.
#[derive(Debug)]
pub(super) enum Bare {
    Tcp(Open<TcpStream>),
    Unix(Open<UnixStream>),
}

/// Calls the same for whichever socket it is.
macro_rules! either {
    ($bare:expr, $stream:ident => $call:expr) => {
        match $bare {
            Bare::Tcp($stream) => $call,
            Bare::Unix($stream) => $call,
        }
    };
}

impl Link {
    pub(super) fn new(
        linked: Linked,
        client: Open<TcpStream>,
        mut connection: Connection,
    ) -> Box<Self> {
        connection.record.journey.note_tried(linked.tried);
        Box::new(Self {
            upstream: linked.upstream,
            client,
            state: linked.state,
            connection,
        })
    }

    /// Relays to the end.
    pub(super) fn poll(&mut self, pace: &mut Pace, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            match pace {
                Pace::Starts => {
                    let idle = self.connection.settings.config.timeouts.idle;
                    let waker = cx.waker().clone();
                    self.connection.ticket.is_relayed(waker, idle, true);
                    *pace = Pace::Goes;
                }
                Pace::Goes => match ready!(self.poll_relay(cx)) {
                    Some(end) => return Poll::Ready(self.judge(end)),
                    None => {
                        registry::offer(self.carried());
                        *pace = Pace::Stands;
                    }
                },
                // Who thaws wakes everybody that stands still.
                Pace::Stands if registry::is_frozen() => return Poll::Pending,
                Pace::Stands => {
                    // The upgrade did not come.
                    let backend = either!(&self.upstream, up => up.descriptor());
                    Carried::stay([self.client.descriptor(), backend]);
                    *pace = Pace::Starts;
                }
            }
        }
    }

    fn poll_relay(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let (client, traffic) = (&mut *self.client, &mut self.connection.record.traffic);
        let ticket = &self.connection.ticket;
        either!(&mut self.upstream, up => self.state.poll(cx, (client, &mut **up), traffic, ticket))
    }

    /// What comes after the end of a relay.
    fn judge(&mut self, end: End) -> Step {
        self.connection.ticket.passes(Passage::Later);
        if end.reason != CloseReason::ClientReset {
            either!(&mut self.upstream, up => up.close());
        }
        let mut tried = self.connection.record.journey.take_tried();
        let reason = match self.connection.goes_on(&end, &mut tried) {
            Ok(true) => {
                self.connection.record.journey.note_tried(tried);
                return Step::LinkAgain;
            }
            Ok(false) => {
                if end.reason != CloseReason::BackendReset {
                    self.client.close();
                }
                end.reason
            }
            Err(reason) => reason,
        };
        self.connection.record.ends(reason);
        Step::End
    }

    /// Finds the client another backend.
    pub(super) async fn link_again(mut self: Box<Self>) -> Option<Box<Self>> {
        let tried = self.connection.record.journey.take_tried();
        let served = self.connection.served(&mut self.client, tried).await;
        match served {
            Ok(Served::Linked(linked)) => {
                self.upstream = linked.upstream;
                self.state = linked.state;
                self.connection.record.journey.note_tried(linked.tried);
                Some(self)
            }
            Ok(Served::Over(reason)) | Err(reason) => {
                self.connection.record.ends(reason);
                None
            }
            // Only what is relayed is linked again.
            Ok(Served::Visiting(_)) => None,
        }
    }

    fn carried(&self) -> io::Result<Carried> {
        let record = &self.connection.record;
        either!(&self.upstream, up => Carried::relay(record, &*self.client, &**up, &self.state))
    }
}
