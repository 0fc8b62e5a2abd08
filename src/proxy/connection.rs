//! The life of one connection: admit → identify → decrypt → connect → relay → record.

use std::{
    mem,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    admit::Permit,
    carried::{Carried, Resumed, Way},
    connect::{Connected, Search, Upstream},
    http::{self, Visit, Visitor},
    identify::{self, Introduced},
    listener::{Listener, Settings},
    proxy_protocol::{self, MAX_WRITTEN},
    record::{CloseReason, ConnectionRecord},
    registry::{self, Ticket},
    relay::{End, Preface, Side, State, relay},
    secure::Downstream,
};
use crate::{
    affinity::AffinityKey,
    cluster::key_of_address,
    config::{self, Mode, ProxyVersion},
    tls::ServerStream,
};

/// HTTP/2 as both sides of a TLS connection agree on it (RFC 9113 §3.1).
const HTTP2: &[u8] = b"h2";

/// For a client that there is no room for to say what it wants.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves a client from accept to record. Whatever ends it, also its own cancellation, the record
/// is written once and both streams are closed.
pub(super) fn serve(
    listener: Arc<Listener>,
    client: TcpStream,
    peer: SocketAddr,
    global: Option<Permit>,
    ticket: Ticket,
) -> impl Future<Output = ()> + Send + 'static {
    // Made here, the future has each of them once; its own variables and its arguments it has both.
    let mut record = ConnectionRecord::new(Arc::clone(&listener), peer);
    let mut client = Open::new(client);
    let settings = listener.settings();
    async move {
        let mut early = Early::default();
        let result = match global {
            Some(_) => {
                let (client, early) = (&mut client, &mut early);
                admitted(&listener, &settings, client, early, &mut record, &ticket).await
            }
            None => Err(CloseReason::LimitGlobal),
        };
        record.reason = result.unwrap_or_else(|refused| refused);
        if record.reason.is_limit() && settings.config.mode == Mode::Http {
            // Rare and large: kept out of the size of every connection's future.
            let (client, early) = (&mut client, &mut early);
            Box::pin(turned_away(
                &listener,
                &settings,
                client,
                early,
                &mut record,
            ))
            .await;
        }
    }
}

/// `Ok` when the connection was carried, `Err` when it was refused.
async fn admitted(
    listener: &Arc<Listener>,
    settings: &Arc<Settings>,
    client: &mut Open<TcpStream>,
    early: &mut Early,
    record: &mut ConnectionRecord,
    ticket: &Ticket,
) -> Result<CloseReason, CloseReason> {
    let config = &settings.config;
    let limit = config.limits.connections.unwrap_or(u64::MAX);
    let _permit = listener
        .open
        .enter(limit)
        .ok_or(CloseReason::LimitListener)?;

    if config.accept_proxy {
        *early = Box::pin(introduced(listener, config, client, record)).await?;
    }

    let _client_permit = match config.limits.per_client {
        None => None,
        Some(limit) => {
            let affinity = &settings.cluster.load().config.affinity;
            let address = identify::masked(record.client().ip(), affinity);
            let permit = listener.clients.enter(address, limit);
            Some(permit.ok_or(CloseReason::LimitClient)?)
        }
    };

    if config.tls.is_none() {
        return served(client, early, listener, settings, record, ticket).await;
    }
    // Large, and none of those that are not encrypted shall pay for it.
    Box::pin(async {
        let mut client = decrypted(client, early, listener, settings).await?;
        served(&mut client, early, listener, settings, record, ticket).await
    })
    .await
}

/// Reads the PROXY header of a client, and notes whom it names.
async fn introduced(
    listener: &Listener,
    config: &config::Listener,
    client: &mut TcpStream,
    record: &mut ConnectionRecord,
) -> Result<Early, CloseReason> {
    let peer = record.client();
    let header = identify::introduction(client, peer, config, &listener.complaints);
    let Introduced {
        source,
        destination,
        early: bytes,
    } = header.await?;
    record.client = source;
    Ok(Early { bytes, destination })
}

/// Tells a client of HTTP that there is no room for it, if it asks within short. Not over TLS: of
/// what a flood can have for nothing, a handshake is the last that it should get.
async fn turned_away(
    listener: &Arc<Listener>,
    settings: &Arc<Settings>,
    client: &mut Open<TcpStream>,
    early: &mut Early,
    record: &mut ConnectionRecord,
) {
    let (config, why) = (&settings.config, record.reason);
    let place = http::place().filter(|_| config.tls.is_none());
    let Some(_place) = place else { return };
    let deadline = Instant::now() + PATIENCE;
    // Only clients that have been introduced are counted one by one.
    if config.accept_proxy && why != CloseReason::LimitClient {
        let header = introduced(listener, config, client, record);
        let Ok(Ok(read)) = timeout_at(deadline, header).await else {
            return;
        };
        *early = read;
    }
    let visitor = Visitor {
        listener: Arc::clone(listener),
        settings: Arc::clone(settings),
        client: record.client(),
        is_encrypted: false,
        certificate: None,
    };
    let bytes = mem::take(&mut early.bytes);
    record.requests = http::turn_away(&visitor, &mut **client, bytes, why, deadline).await;
    client.is_orderly = record.requests > 0;
}

/// The client behind the TLS that it speaks; what came early of it has its place there.
async fn decrypted(
    client: &mut Open<TcpStream>,
    early: &mut Early,
    listener: &Listener,
    settings: &Settings,
) -> Result<Open<ServerStream>, CloseReason> {
    let acceptor = settings.tls.as_ref().ok_or(CloseReason::NoResources)?;
    let began = Instant::now();
    let deadline = began + settings.config.timeouts.header;
    let bytes = mem::take(&mut early.bytes);
    let stream = acceptor.handshake(client.take(), &bytes, deadline).await;
    let stats = listener.stats().mine();
    stats.shook_hands(stream.as_ref().err(), began.elapsed());
    Ok(Open::new(stream?))
}

/// Serves an identified, decrypted client as the listener's mode says.
async fn served<D: Downstream>(
    client: &mut Open<D>,
    early: &mut Early,
    listener: &Arc<Listener>,
    settings: &Arc<Settings>,
    record: &mut ConnectionRecord,
    ticket: &Ticket,
) -> Result<CloseReason, CloseReason> {
    if settings.config.mode == Mode::Http {
        let secured = client.secured();
        let certificate = secured.and_then(ServerStream::peer_certificate);
        let is_http2 = secured.is_some_and(|stream| stream.alpn() == Some(HTTP2));
        let visitor = Arc::new(Visitor {
            listener: Arc::clone(listener),
            settings: Arc::clone(settings),
            client: record.client(),
            is_encrypted: secured.is_some(),
            certificate: certificate.map(Arc::from),
        });
        let bytes = mem::take(&mut early.bytes);
        let visit = http::serve(&visitor, &mut **client, bytes, is_http2, ticket);
        let Visit {
            requests,
            websocket,
        } = visit.await;
        record.requests = requests;
        if let Some(websocket) = websocket {
            drop(visitor);
            let idle = settings.config.timeouts.idle;
            Box::pin(websocket.carry(&mut **client, record, idle, ticket)).await;
        }
        client.is_orderly = true;
        return Ok(CloseReason::ClientClosed);
    }
    // Of its own, so that connections of HTTP do not have the size of it.
    Box::pin(relayed(client, early, listener, settings, record, ticket)).await
}

/// Carries a client's bytes to its backend and back.
async fn relayed<D: Downstream>(
    client: &mut Open<D>,
    early: &Early,
    listener: &Listener,
    settings: &Settings,
    record: &mut ConnectionRecord,
    ticket: &Ticket,
) -> Result<CloseReason, CloseReason> {
    let key = {
        let snapshot = settings.cluster.load();
        key_of_address(record.client().ip(), &snapshot.config.affinity)
    };
    let mut search = Search::new(&settings.cluster, key, listener.holds);
    loop {
        // A client that goes while it waits for a backend shall not be waited for. The search is kept
        // for as long as it takes only: the connection may last, and be idle.
        let Connected {
            upstream,
            send_proxy,
            ..
        } = tokio::select! {
            biased;
            connected = Box::pin(search.connect(&mut record.journey)) => connected?,
            _ = client.socket().ready(Interest::ERROR) => return Err(CloseReason::ClientReset),
        };
        let home = record.journey.home.as_ref();
        if let Some(home) = home {
            ticket.goes_to(home, key);
        }
        let home = home.map(|home| Arc::clone(home.slot()));
        let preface = early.preface(send_proxy, client.socket(), record);
        let state = &mut State::new(preface, settings.config.timeouts.idle);
        let end = match upstream {
            Upstream::Tcp(stream) => carry(client, stream, state, record, ticket).await,
            Upstream::Unix(stream) => carry(client, stream, state, record, ticket).await,
            Upstream::Tls(stream) => carry(client, stream, state, record, ticket).await,
            Upstream::TlsUnix(stream) => carry(client, stream, state, record, ticket).await,
        };
        let is_failure = end.reason == CloseReason::BackendReset && record.traffic.down == 0;
        if let (true, Some(home)) = (is_failure, &record.journey.home) {
            home.failed();
        }
        match home {
            // The worker ended with this connection still in its queue: the client knows nothing.
            Some(slot) if end.reason == CloseReason::BackendReset && end.untouched => {
                record.journey.home = None;
                ticket.goes_nowhere();
                search.note_failure(Arc::clone(&slot.name))?;
            }
            _ => {
                client.is_orderly = end.reason != CloseReason::BackendReset;
                return Ok(end.reason);
            }
        }
    }
}

/// Serves a client that an earlier image of the program has served until now.
pub(super) async fn resume(
    resumed: Resumed,
    settings: Arc<Settings>,
    key: AffinityKey,
    ticket: Ticket,
) {
    let Resumed {
        mut record,
        client,
        way,
    } = resumed;
    let mut client = Open::new(client);
    let (upstream, mut state) = match way {
        Way::Relay(upstream, state) => (upstream, state),
        Way::WebSocket(websocket) => {
            let idle = settings.config.timeouts.idle;
            Box::pin(websocket.carry(&mut *client, &record, idle, &ticket)).await;
            client.is_orderly = true;
            record.reason = CloseReason::ClientClosed;
            return;
        }
    };
    if let Some(home) = &record.journey.home {
        ticket.goes_to(home, key);
    }
    let end = match upstream {
        Upstream::Tcp(stream) => carry(&mut client, stream, &mut state, &mut record, &ticket).await,
        Upstream::Unix(stream) => {
            carry(&mut client, stream, &mut state, &mut record, &ticket).await
        }
        // They are not carried over.
        Upstream::Tls(_) | Upstream::TlsUnix(_) => return,
    };
    client.is_orderly = end.reason != CloseReason::BackendReset;
    record.reason = end.reason;
}

async fn carry<D: Downstream>(
    client: &mut Open<D>,
    upstream: impl Side,
    state: &mut State,
    record: &mut ConnectionRecord,
    ticket: &Ticket,
) -> End {
    let mut upstream = Open::new(upstream);
    if client.descriptor().is_some() && upstream.descriptor().is_some() {
        ticket.can_be_carried().await;
    }
    loop {
        let traffic = &mut record.traffic;
        if let Some(end) = relay(&mut **client, &mut *upstream, state, traffic).await {
            ticket.cannot_be_carried();
            upstream.is_orderly = end.reason != CloseReason::ClientReset;
            return end;
        }
        registry::offer(Carried::relay(record, &**client, &*upstream, state));
        registry::thawed().await;
        // The upgrade did not come.
        Carried::stay(&**client, &*upstream);
    }
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
    /// There until it is taken.
    stream: Option<S>,
    is_orderly: bool,
}

/// For the one case that cannot be.
const TAKEN: &str = "a stream is taken as its last use";

impl<S: Side> Open<S> {
    const fn new(stream: S) -> Self {
        Self {
            stream: Some(stream),
            is_orderly: false,
        }
    }

    /// Gives the stream away: there is nothing to close here any more.
    fn take(&mut self) -> S {
        self.stream.take().expect(TAKEN)
    }
}

impl<S: Side> Deref for Open<S> {
    type Target = S;

    fn deref(&self) -> &S {
        self.stream.as_ref().expect(TAKEN)
    }
}

impl<S: Side> DerefMut for Open<S> {
    fn deref_mut(&mut self) -> &mut S {
        self.stream.as_mut().expect(TAKEN)
    }
}

impl<S: Side> Drop for Open<S> {
    fn drop(&mut self) {
        if let (Some(stream), false) = (&self.stream, self.is_orderly) {
            stream.reset_on_close();
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
            (550..=650).contains(&size),
            "the future of a connection takes {size} bytes"
        );
    }
}
