//! The life of one connection: admit → identify → decrypt → connect → relay → record.

mod early;
mod life;
mod open;
mod resume;

use std::{future::poll_fn, mem, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use self::life::{Lasting, Life};
pub(super) use self::{early::Early, open::Open, resume::resume};
use super::{
    admit::ClientPermit,
    connect::{Connected, Search, Tried, Upstream},
    http::{self, Visit, Visitor},
    identify::{self, Introduced},
    link::{Bare, Link},
    listener::{Listener, Settings},
    record::{CloseReason, ConnectionRecord},
    registry::{Ticket, own_waker},
    relay::{End, Side, State},
    secure::Downstream,
};
use crate::{cluster::key_of_address, config::Mode, tls::ServerStream};

/// HTTP/2 as both sides of a TLS connection agree on it (RFC 9113 §3.1).
const HTTP2: &[u8] = b"h2";

/// For a client that there is no room for to say what it wants.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves a client from accept to record. Whatever ends it, also its own cancellation, the record
/// is written once and both streams are closed.
pub(super) fn serve(
    listener: &Arc<Listener>,
    client: TcpStream,
    peer: SocketAddr,
    is_admitted: bool,
    ticket: Ticket,
) -> impl Future<Output = ()> + Send + use<> {
    let record = ConnectionRecord::new(Arc::clone(listener), peer);
    let connection = Connection::new(record, listener.settings(), ticket);
    Life::begins(connection.begin(client, is_admitted))
}

/// What a connection has beside its streams.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) record: ConnectionRecord,
    pub(super) settings: Arc<Settings>,
    pub(super) ticket: Ticket,
    /// It is one of those that the listener may have.
    is_counted: bool,
}

/// How far a connection was served.
pub(super) enum Served {
    /// To its end.
    Over(CloseReason),
    /// Until all that is left to do is between two sockets.
    Linked(Linked),
    /// Until it brings requests, one after the other; these bytes came first.
    Visiting(Vec<u8>),
}

/// A backend was found.
pub(super) struct Linked<U = Bare> {
    pub(super) upstream: U,
    pub(super) state: State,
    pub(super) tried: Option<Box<Tried>>,
}

impl Connection {
    pub(super) const fn new(
        record: ConnectionRecord,
        settings: Arc<Settings>,
        ticket: Ticket,
    ) -> Self {
        Self {
            record,
            settings,
            ticket,
            is_counted: false,
        }
    }

    async fn begin(mut self, client: TcpStream, is_admitted: bool) -> Option<Lasting> {
        let mut client = Open::new(client);
        let mut secured = None;
        let result = match is_admitted {
            true => self.admitted(&mut client, &mut secured).await,
            false => Err(CloseReason::LimitGlobal),
        };
        let reason = match result {
            Ok(Served::Linked(linked)) => {
                return Some(Lasting::Link(Link::new(linked, client, self)));
            }
            Ok(Served::Visiting(early)) => {
                return Some(match secured {
                    None => Lasting::visit(Visit::new(client, early, self)),
                    Some(client) => Lasting::visit(Visit::new(*client, early, self)),
                });
            }
            Ok(Served::Over(reason)) | Err(reason) => reason,
        };
        self.record.ends(reason);
        self.uncount();
        if reason.is_limit() && self.settings.config.mode == Mode::Http {
            // Rare and large: kept out of the size of every connection's future.
            Box::pin(self.turned_away(&mut client, reason)).await;
        }
        None
    }

    /// `Err` when it was refused. The client is `secured` from the time when it is decrypted.
    async fn admitted(
        &mut self,
        client: &mut Open<TcpStream>,
        secured: &mut Option<Box<Open<ServerStream>>>,
    ) -> Result<Served, CloseReason> {
        let settings = Arc::clone(&self.settings);
        let config = &settings.config;
        let limit = config.limits.connections.unwrap_or(u64::MAX);
        self.is_counted = self.record.listener().open.count(limit);
        if !self.is_counted {
            return Err(CloseReason::LimitListener);
        }

        if config.accept_proxy {
            Box::pin(self.introduced(client)).await?;
        }

        if let Some(limit) = config.limits.per_client {
            let permit = self.enter_client(limit);
            let permit = permit.ok_or(CloseReason::LimitClient)?;
            self.record.journey.detour_mut().permit = Some(permit);
        }

        if config.tls.is_none() {
            return self.served(client, None).await;
        }
        // Large, and none of those that are not encrypted shall pay for it.
        Box::pin(async {
            let client = self.decrypted(client).await?;
            self.served(secured.insert(Box::new(client)), None).await
        })
        .await
    }

    /// Counts one more connection of its client, unless that makes more than `limit`.
    fn enter_client(&self, limit: u32) -> Option<ClientPermit> {
        let affinity = &self.settings.cluster.load().config.affinity;
        let address = identify::masked(self.record.client().ip(), affinity);
        self.record.listener().clients.enter(address, limit)
    }

    /// It is no longer one of those that the listener and the client may have.
    fn uncount(&mut self) {
        if let Some(detour) = self.record.journey.some_detour() {
            detour.permit = None;
        }
        if mem::take(&mut self.is_counted) {
            self.record.listener().open.uncount();
        }
    }

    /// Reads the PROXY header of a client, and notes whom it names.
    async fn introduced(&mut self, client: &mut TcpStream) -> Result<(), CloseReason> {
        let (peer, config) = (self.record.client(), &self.settings.config);
        let complaints = &self.record.listener().complaints;
        let header = identify::introduction(client, peer, config, complaints);
        let Introduced {
            source,
            destination,
            early: bytes,
        } = header.await?;
        let detour = self.record.journey.detour_mut();
        detour.client = source;
        detour.early = Some(Box::new(Early { bytes, destination }));
        Ok(())
    }

    /// The client's first bytes, where it was introduced.
    fn first_bytes(&mut self) -> Vec<u8> {
        let detour = self.record.journey.some_detour();
        let early = detour.and_then(|detour| detour.early.as_mut());
        early.map_or_else(Vec::new, |early| mem::take(&mut early.bytes))
    }

    /// Tells a client of HTTP that there is no room for it, if it asks within short. Not over TLS: of
    /// what a flood can have for nothing, a handshake is the last that it should get.
    async fn turned_away(&mut self, client: &mut Open<TcpStream>, why: CloseReason) {
        let settings = Arc::clone(&self.settings);
        let config = &settings.config;
        let place = http::place().filter(|_| config.tls.is_none());
        let Some(_place) = place else { return };
        let deadline = Instant::now() + PATIENCE;
        // Only clients that have been introduced are counted one by one.
        if config.accept_proxy && why != CloseReason::LimitClient {
            let Ok(Ok(())) = timeout_at(deadline, self.introduced(client)).await else {
                return;
            };
        }
        let bytes = self.first_bytes();
        let visitor = self.visitor(None);
        let requests = &mut self.record.requests;
        http::turn_away(&visitor, &mut **client, bytes, why, deadline, requests).await;
        if *requests > 0 {
            client.close();
        }
    }

    /// The client behind the TLS that it speaks; what came early of it has its place there.
    async fn decrypted(
        &mut self,
        client: &mut Open<TcpStream>,
    ) -> Result<Open<ServerStream>, CloseReason> {
        let bytes = self.first_bytes();
        let acceptor = self.settings.tls.as_ref();
        let acceptor = acceptor.ok_or(CloseReason::NoResources)?;
        let began = Instant::now();
        let deadline = began + self.settings.config.timeouts.header;
        let stream = acceptor.handshake(client.take(), &bytes, deadline).await;
        let stats = self.record.listener().stats().mine();
        stats.shook_hands(stream.as_ref().err(), began.elapsed());
        Ok(Open::new(stream?))
    }

    pub(super) fn visitor(&self, secured: Option<&ServerStream>) -> Visitor {
        let certificate = secured.and_then(ServerStream::peer_certificate);
        Visitor {
            listener: Arc::clone(self.record.listener()),
            settings: Arc::clone(&self.settings),
            client: self.record.client(),
            is_encrypted: secured.is_some(),
            certificate: certificate.map(Arc::from),
        }
    }

    /// Serves an identified, decrypted client as the listener's mode says.
    pub(super) async fn served<D: Downstream>(
        &mut self,
        client: &mut Open<D>,
        mut tried: Option<Box<Tried>>,
    ) -> Result<Served, CloseReason> {
        if self.settings.config.mode == Mode::Http {
            let secured = client.secured();
            let is_http2 = secured.is_some_and(|stream| stream.alpn() == Some(HTTP2));
            let bytes = self.first_bytes();
            if !is_http2 {
                return Ok(Served::Visiting(bytes));
            }
            let visitor = Arc::new(self.visitor(secured));
            let farewell = self.ticket.farewell();
            // Large, and none of the others shall pay for it.
            let requests = &mut self.record.requests;
            let stream = &mut **client;
            let served = http::serve_http2(&visitor, stream, bytes, farewell, requests);
            Box::pin(served).await;
            client.close();
            return Ok(Served::Over(CloseReason::ClientClosed));
        }
        loop {
            let found = self.find(client, tried.take()).await?;
            let (state, upstream) = (found.state, found.upstream);
            tried = found.tried;
            let is_bare = client.secured().is_none();
            let end = match upstream {
                Upstream::Tcp(stream) if is_bare => {
                    return Ok(Served::linked(Bare::Tcp(Open::new(stream)), state, tried));
                }
                Upstream::Unix(stream) if is_bare => {
                    return Ok(Served::linked(Bare::Unix(Open::new(stream)), state, tried));
                }
                Upstream::Tcp(stream) => self.carry(client, stream, state).await,
                Upstream::Unix(stream) => self.carry(client, stream, state).await,
                Upstream::Tls(stream) => self.carry(client, stream, state).await,
                Upstream::TlsUnix(stream) => self.carry(client, stream, state).await,
            };
            if !self.goes_on(&end, &mut tried)? {
                if end.reason != CloseReason::BackendReset {
                    client.close();
                }
                return Ok(Served::Over(end.reason));
            }
        }
    }

    /// Finds a client its backend.
    async fn find<D: Downstream>(
        &mut self,
        client: &Open<D>,
        tried: Option<Box<Tried>>,
    ) -> Result<Linked<Upstream>, CloseReason> {
        let settings = Arc::clone(&self.settings);
        let key = {
            let snapshot = settings.cluster.load();
            key_of_address(self.record.client().ip(), &snapshot.config.affinity)
        };
        let mut search = Search::new(&settings.cluster, key, self.record.listener().holds);
        search.at_once();
        search.after(tried);
        // A client that goes while it waits for a backend shall not be waited for. The search is kept
        // for as long as it takes only: others than a link may last in this same future.
        let Connected {
            upstream,
            send_proxy,
            ..
        } = tokio::select! {
            biased;
            connected = Box::pin(search.connect(&mut self.record.journey)) => connected?,
            _ = client.socket().ready(Interest::ERROR) => return Err(CloseReason::ClientReset),
        };
        if let Some(home) = &self.record.journey.home {
            self.ticket.lives_with(home, key);
        }
        let preface = early::preface(send_proxy, client.socket(), &self.record);
        Ok(Linked {
            upstream,
            state: State::new(preface),
            tried: search.into_tried(),
        })
    }

    /// Relays where one of the streams is more than a socket.
    async fn carry<D: Downstream>(
        &mut self,
        client: &mut Open<D>,
        upstream: impl Side,
        mut state: State,
    ) -> End {
        let mut upstream = Open::new(upstream);
        let (traffic, ticket) = (&mut self.record.traffic, &self.ticket);
        let idle = self.settings.config.timeouts.idle;
        ticket.is_relayed(own_waker().await, idle, false);
        let end = poll_fn(|cx| state.poll(cx, (&mut **client, &mut *upstream), traffic, ticket));
        // It does not stand still.
        let end = end.await.unwrap_or(End {
            reason: CloseReason::Cut,
            untouched: false,
        });
        if end.reason != CloseReason::ClientReset {
            upstream.close();
        }
        end
    }

    /// Whether a client is to be taken to another backend after such an end: the worker ended with
    /// this connection still in its queue, and the client knows nothing of it.
    pub(super) fn goes_on(
        &mut self,
        end: &End,
        tried: &mut Option<Box<Tried>>,
    ) -> Result<bool, CloseReason> {
        if end.reason != CloseReason::BackendReset {
            return Ok(false);
        }
        if let Some(home) = &self.record.journey.home
            && self.record.traffic.down == 0
        {
            home.failed();
        }
        match self.record.journey.home.take_if(|_| end.untouched) {
            None => Ok(false),
            Some(home) => {
                self.ticket.goes_nowhere();
                let tried = tried.get_or_insert_default();
                tried.note_failure(Arc::clone(&home.slot().name))?;
                Ok(true)
            }
        }
    }
}

impl Served {
    const fn linked(upstream: Bare, state: State, tried: Option<Box<Tried>>) -> Self {
        Self::Linked(Linked {
            upstream,
            state,
            tried,
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.uncount();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F>(
        _: impl FnOnce(&'static Arc<Listener>, TcpStream, SocketAddr, bool, Ticket) -> F,
    ) -> usize {
        size_of::<F>()
    }

    fn size_of_visit<D: Downstream>() -> usize {
        fn size_of_run<D: Downstream, F>(_: impl FnOnce(Visit<D>) -> F) -> usize {
            size_of::<F>()
        }
        size_of_run(|mut visit: Visit<D>| async move { visit.run().await })
    }

    /// It is allocated for every connection, with 104 bytes of the runtime's, and a relayed one has its
    /// link besides: in sizes of which memory is given out, 128 and 224 bytes.
    #[test]
    fn a_connection_is_small() {
        let future = size_of_future(serve);
        // Where assertions are checked, each socket knows its selector.
        let known = if cfg!(debug_assertions) {
            2 * size_of::<usize>()
        } else {
            0
        };
        let link = size_of::<Link>() - known;
        assert!(
            future <= 24,
            "the future of a connection takes {future} bytes"
        );
        assert!(link <= 224, "a link takes {link} bytes");
        for (what, size, most) in [
            ("clear", size_of_visit::<TcpStream>() - known / 2, 296),
            (
                "encrypted",
                size_of_visit::<ServerStream>() - known / 2,
                264,
            ),
        ] {
            assert!(
                size <= most,
                "the future of a connection of requests, {what}, takes {size} bytes"
            );
        }
    }
}
