//! A client and its backend, both nothing but sockets: all that there is of a connection while it lasts,
//! and so kept small.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use tokio::net::{TcpStream, UnixStream};

use super::{
    carried::Carried,
    connect::Tried,
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
    tried: Option<Box<Tried>>,
    connection: Connection,
}

/// What to do next.
enum Next {
    End(CloseReason),
    /// An upgrade is about to happen.
    Wait,
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
    pub(super) fn new(linked: Linked, client: Open<TcpStream>, connection: Connection) -> Self {
        Self {
            upstream: linked.upstream,
            client,
            state: linked.state,
            tried: linked.tried,
            connection,
        }
    }

    /// Relays to the end.
    pub(super) async fn run(&mut self) {
        let reason = loop {
            let waker = registry::own_waker().await;
            let idle = self.connection.settings.config.timeouts.idle;
            self.connection.ticket.is_relayed(waker, idle, true);
            let end = poll_fn(|cx| self.poll(cx)).await;
            match self.judge(end) {
                Next::End(reason) => break reason,
                Next::Wait => {
                    registry::thawed().await;
                    // The upgrade did not come.
                    let backend = either!(&self.upstream, up => up.descriptor());
                    Carried::stay([self.client.descriptor(), backend]);
                }
                // Rare and large.
                Next::LinkAgain => {
                    if let Err(reason) = Box::pin(self.link_again()).await {
                        break reason;
                    }
                }
            }
        };
        self.connection.record.reason = reason;
    }

    /// What comes after the end of a relay, or in its middle when it stands still.
    fn judge(&mut self, end: Option<End>) -> Next {
        let Some(end) = end else {
            registry::offer(self.carried());
            return Next::Wait;
        };
        self.connection.ticket.passes(Passage::Later);
        let is_orderly = end.reason != CloseReason::ClientReset;
        either!(&mut self.upstream, up => up.is_orderly = is_orderly);
        match self.connection.goes_on(&end, &mut self.tried) {
            Ok(true) => Next::LinkAgain,
            Ok(false) => {
                self.client.is_orderly = end.reason != CloseReason::BackendReset;
                Next::End(end.reason)
            }
            Err(reason) => Next::End(reason),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let (client, traffic) = (&mut *self.client, &mut self.connection.record.traffic);
        let ticket = &self.connection.ticket;
        either!(&mut self.upstream, up => self.state.poll(cx, (client, &mut **up), traffic, ticket))
    }

    /// Finds the client another backend.
    async fn link_again(&mut self) -> Result<(), CloseReason> {
        let tried = self.tried.take();
        match self.connection.served(&mut self.client, tried).await? {
            Served::Over(reason) => Err(reason),
            // Only what is relayed is linked again.
            Served::Visiting(_) => Err(CloseReason::NoResources),
            Served::Linked(linked) => {
                self.upstream = linked.upstream;
                self.state = linked.state;
                self.tried = linked.tried;
                Ok(())
            }
        }
    }

    fn carried(&self) -> io::Result<Carried> {
        let record = &self.connection.record;
        either!(&self.upstream, up => Carried::relay(record, &*self.client, &**up, &self.state))
    }
}
