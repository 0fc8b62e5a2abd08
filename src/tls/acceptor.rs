//! TLS of a listener.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{CommonState, ProtocolVersion, ServerConfig, server::UnbufferedServerConnection};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    channel::Channel,
    handshake::{self, HandshakeError},
    material::{ServerMaterial, Trust},
    pool::Pool,
    stream::{ServerChannel, ServerStream},
    tickets::{SavedTickets, Tickets},
    turn::turn,
};

/// Encrypts the connections of a listener. Its certificates can be replaced at any time; a
/// handshake goes on with those that it began with.
#[derive(Debug)]
pub struct Acceptor {
    current: ArcSwap<Current>,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// The keys of its session tickets.
    tickets: Arc<Tickets>,
    /// What clients are verified by.
    trust: Trust,
    /// Its handshakes are to be done beside the data plane.
    is_costly: bool,
}

impl Current {
    fn new(material: &ServerMaterial, tickets: Arc<Tickets>) -> Self {
        let mut config = material.config.clone();
        config.ticketer = Arc::<Tickets>::clone(&tickets);
        Self {
            config: Arc::new(config),
            tickets,
            trust: material.trust.clone(),
            is_costly: material.is_costly(),
        }
    }
}

impl Acceptor {
    /// An acceptor whose costly handshakes run in this pool.
    #[must_use]
    pub fn new(material: &ServerMaterial, pool: Arc<Pool>) -> Self {
        let tickets = Arc::clone(&material.tickets);
        Self {
            current: ArcSwap::from_pointee(Current::new(material, tickets)),
            pool,
        }
    }

    /// Changes what new handshakes are done with. Session tickets stay good, so that a reload
    /// brings no storm of full handshakes; but not when clients are verified by something else
    /// now, as a client that resumes its session is not verified again.
    pub fn replace(&self, material: &ServerMaterial) {
        let old = self.current.load();
        let tickets = match old.trust == material.trust {
            true => Arc::clone(&old.tickets),
            false => Arc::clone(&material.tickets),
        };
        let current = Current::new(material, tickets);
        self.current.store(Arc::new(current));
    }

    /// The keys of its session tickets, for another image of the program.
    #[must_use]
    pub fn tickets(&self) -> SavedTickets {
        let current = self.current.load();
        let trust = current.trust.fingerprint();
        current.tickets.saved(trust, Instant::now())
    }

    /// Believes the session tickets of an earlier image, where clients are verified as they were then.
    pub fn believe(&self, saved: &SavedTickets) {
        let old = self.current.load();
        let trust = old.trust.fingerprint();
        let Some(tickets) = Tickets::resumed(saved, trust) else {
            return;
        };
        let tickets = Arc::new(tickets);
        let mut config = ServerConfig::clone(&old.config);
        config.ticketer = Arc::<Tickets>::clone(&tickets);
        self.current.store(Arc::new(Current {
            config: Arc::new(config),
            tickets,
            trust: old.trust.clone(),
            is_costly: old.is_costly,
        }));
    }

    /// Encrypts a connection, by a deadline. `early` is what was read from it before (behind a
    /// PROXY header). To drop the future ends the handshake.
    ///
    /// # Errors
    /// Why there is no encrypted stream; the connection is closed then.
    pub async fn handshake(
        &self,
        stream: TcpStream,
        early: &[u8],
        deadline: Instant,
    ) -> Result<ServerStream, HandshakeError> {
        let whole = async {
            let mut stream = stream;
            let hello = handshake::hello(&mut stream, early).await?;
            self.finish(hello, stream).await
        };
        let done = timeout_at(deadline, whole).await;
        done.unwrap_or(Err(HandshakeError::Timeout))
    }

    async fn finish(
        &self,
        hello: Vec<u8>,
        stream: TcpStream,
    ) -> Result<ServerStream, HandshakeError> {
        let permit = self.pool.enter().ok_or(HandshakeError::Overload)?;
        let current = self.current.load_full();
        let session = UnbufferedServerConnection::new(Arc::clone(&current.config))?;
        let mut channel = Box::new(Channel::new(stream, session, hello));
        if current.is_costly {
            let there = async move {
                agree(&mut channel, async || {}, &current.trust).await?;
                Ok(channel)
            };
            // The pool ends with the program, and a panic has told about itself.
            let done: Option<io::Result<_>> = self.pool.run(there).await;
            channel = done.ok_or(HandshakeError::Gone)??;
        } else {
            agree(&mut channel, turn, &current.trust).await?;
        }
        // Session tickets can wait for the first bytes that go to the client.
        let has_tickets = |state: &CommonState| is_new(state) && !state.is_handshaking();
        channel.shake(async || {}, has_tickets).await?;
        drop(permit);
        Ok(ServerStream::new(channel))
    }
}

/// Shakes hands so far that both sides have keys. What is left then, to see that the client has come to
/// the same ones, is cheap.
async fn agree(channel: &mut ServerChannel, turn: impl AsyncFn(), trust: &Trust) -> io::Result<()> {
    let asks = !trust.is_empty();
    let has_keys = |state: &CommonState| {
        is_new(state) && !asks && state.negotiated_key_exchange_group().is_some()
    };
    channel.shake(turn, has_keys).await
}

fn is_new(state: &CommonState) -> bool {
    state.protocol_version() == Some(ProtocolVersion::TLSv1_3)
}
