//! The life of one connection: admit → identify → connect → relay → record.

use std::{
    net::SocketAddr,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use tokio::{io::Interest, net::TcpStream};

use super::{
    admit::Permit,
    connect::{Connected, Search, Upstream},
    http::{self, Visitor},
    identify::{self, Introduced},
    listener::{Listener, Settings},
    proxy_protocol::{self, MAX_WRITTEN},
    record::{CloseReason, ConnectionRecord},
    registry::Ticket,
    relay::{End, Preface, Side, relay},
};
use crate::config::{Mode, ProxyVersion};

/// Serves a client from accept to record. Whatever ends it, also its own cancellation, the record
/// is written once and both streams are closed.
pub(super) async fn serve(
    listener: Arc<Listener>,
    client: TcpStream,
    peer: SocketAddr,
    global: Option<Permit>,
    ticket: Ticket,
) {
    let mut record = ConnectionRecord::new(Arc::clone(listener.name()), peer);
    let mut client = Open::new(client);
    let settings = listener.settings();
    let result = match global {
        Some(_) => admitted(&listener, &settings, &mut client, &mut record, &ticket).await,
        None => Err(CloseReason::LimitGlobal),
    };
    record.reason = result.unwrap_or_else(|refused| refused);
}

/// `Ok` when the connection was carried, `Err` when it was refused.
async fn admitted(
    listener: &Arc<Listener>,
    settings: &Arc<Settings>,
    client: &mut Open<TcpStream>,
    record: &mut ConnectionRecord,
    ticket: &Ticket,
) -> Result<CloseReason, CloseReason> {
    let config = &settings.config;
    let limit = config.limits.connections.unwrap_or(u64::MAX);
    let _permit = listener
        .open
        .enter(limit)
        .ok_or(CloseReason::LimitListener)?;

    let mut early = Early::default();
    if config.accept_proxy {
        let peer = record.client();
        let header = Box::pin(identify::introduction(
            client,
            peer,
            config,
            &listener.complaints,
        ));
        let Introduced {
            source,
            destination,
            early: bytes,
        } = header.await?;
        record.client = source;
        early = Early { bytes, destination };
    }

    let cluster = Arc::clone(&settings.cluster.load().config);
    let affinity = &cluster.affinity;
    let _client_permit = match config.limits.per_client {
        None => None,
        Some(limit) => {
            let address = identify::masked(record.client().ip(), affinity);
            let permit = listener.clients.enter(address, limit);
            Some(permit.ok_or(CloseReason::LimitClient)?)
        }
    };

    if config.mode == Mode::Http {
        let visitor = Arc::new(Visitor {
            listener: Arc::clone(listener),
            settings: Arc::clone(settings),
            client: record.client(),
            local: early.destination.or_else(|| client.local_addr().ok()),
            is_encrypted: false,
            certificate: None,
        });
        let requests = http::serve(&visitor, &mut **client, early.bytes, false, ticket);
        record.requests = Box::pin(requests).await;
        client.is_orderly = true;
        return Ok(CloseReason::ClientClosed);
    }

    let key = identify::key(record.client(), affinity);
    let mut search = Search::new(&settings.cluster, key, listener.holds);
    loop {
        // A client that goes while it waits for a backend shall not be waited for.
        let Connected {
            upstream,
            send_proxy,
            ..
        } = tokio::select! {
            biased;
            connected = search.connect(&mut record.journey) => connected?,
            _ = client.ready(Interest::ERROR) => return Err(CloseReason::ClientReset),
        };
        let home = record
            .journey
            .home
            .as_ref()
            .map(|home| Arc::clone(home.slot()));
        if let Some(slot) = &home {
            ticket.goes_to(&slot.stats);
        }
        let preface = early.preface(send_proxy, client, record);
        let idle = config.timeouts.idle;
        let end = match upstream {
            Upstream::Tcp(stream) => carry(client, stream, preface, record, idle).await,
            Upstream::Unix(stream) => carry(client, stream, preface, record, idle).await,
        };
        match home {
            // The worker ended with this connection still in its queue: the client knows nothing.
            Some(slot) if end.reason == CloseReason::BackendReset && end.untouched => {
                record.journey.home = None;
                search.note_failure(Arc::clone(&slot.name))?;
            }
            _ => {
                client.is_orderly = end.reason != CloseReason::BackendReset;
                return Ok(end.reason);
            }
        }
    }
}

async fn carry(
    client: &mut Open<TcpStream>,
    upstream: impl Side,
    preface: Preface,
    record: &mut ConnectionRecord,
    idle: Option<Duration>,
) -> End {
    let mut upstream = Open::new(upstream);
    let end = relay(
        &mut **client,
        &mut *upstream,
        preface,
        &mut record.traffic,
        idle,
    )
    .await;
    upstream.is_orderly = end.reason != CloseReason::ClientReset;
    end
}

/// What came along with a PROXY header.
#[derive(Debug, Default)]
struct Early {
    /// The client's first bytes.
    bytes: Vec<u8>,
    /// Where the client connected to.
    destination: Option<SocketAddr>,
}

impl Early {
    /// What goes to the backend first.
    fn preface(
        &self,
        send_proxy: Option<ProxyVersion>,
        client: &TcpStream,
        record: &ConnectionRecord,
    ) -> Preface {
        let mut bytes = Vec::new();
        if let Some(version) = send_proxy {
            let source = Some(record.client());
            let destination = self.destination.or_else(|| client.local_addr().ok());
            let mut header = [0; MAX_WRITTEN];
            bytes.extend_from_slice(proxy_protocol::write(
                version,
                &mut header,
                source,
                destination,
            ));
        }
        let ours = bytes.len();
        bytes.extend_from_slice(&self.bytes);
        Preface { bytes, ours }
    }
}

/// A stream that is reset when it is dropped, unless its end was found to be orderly: nobody shall
/// take a stream that was cut for one that is complete.
#[derive(Debug)]
struct Open<S: Side> {
    stream: S,
    is_orderly: bool,
}

impl<S: Side> Open<S> {
    const fn new(stream: S) -> Self {
        Self {
            stream,
            is_orderly: false,
        }
    }
}

impl<S: Side> Deref for Open<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.stream
    }
}

impl<S: Side> DerefMut for Open<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: Side> Drop for Open<S> {
    fn drop(&mut self) {
        if !self.is_orderly {
            self.stream.reset_on_close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F>(
        _: impl FnOnce(Arc<Listener>, TcpStream, SocketAddr, Option<Permit>, Ticket) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// It is allocated for every connection; what grows it should be known.
    #[test]
    fn a_connection_is_small() {
        let size = size_of_future(serve);
        assert!(
            (1100..=1400).contains(&size),
            "the future of a connection takes {size} bytes"
        );
    }
}
