//! The sockets of one address, one for each slot and one for nobody's clients, and the program that
//! chooses among them.

use std::{
    io, iter,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    num::NonZeroUsize,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{AttachError, attach, diag::listeners, standing::Decision};
use crate::{
    affinity::{Masks, Probes, ProbesOutside, TooLong},
    cluster::Snapshot,
    config::Bind,
    handover::{Incoming, Number, Outgoing},
    proxy::{BindError, BoundGroup, Neighbour, listen, refuse_handshakes},
};

/// A group. Its sockets joined it in the order of the slots, and leave it only from its end, so
/// the position of a slot's socket is one more than the slot's number: the kernel moves the last
/// socket of a group to the place of one that is closed.
#[derive(Debug)]
pub struct Group {
    bind: Bind,
    backlog: u32,
    address: SocketAddr,
    /// The first of them. Clients that no slot takes are led to it, and homescar refuses them.
    sink: Arc<TcpListener>,
    /// Those of the slots.
    sockets: Vec<Arc<TcpListener>>,
}

/// A [`Group`], for the next image of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedGroup {
    sink: Number,
    sockets: Vec<Number>,
}

/// The position of the sink.
const SINK: u32 = 0;

/// Why a group keeps the program that it had.
#[derive(Debug, thiserror::Error)]
pub enum NotLed {
    /// The cluster is too large.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The probe addresses are none.
    #[error(transparent)]
    Probes(#[from] ProbesOutside),
    /// The kernel said no.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl Group {
    /// Binds an address for this many slots. Nobody is let in before [`listen`](Self::listen).
    ///
    /// # Errors
    /// When the address is taken, also by another process of the same user that would share it,
    /// is not ours, or is not permitted.
    pub(super) fn reserve(
        bind: Bind,
        backlog: u32,
        slots: NonZeroUsize,
    ) -> Result<Self, BindError> {
        let bound = BoundGroup::reserve(bind, slots.saturating_add(1), Neighbour::None)?;
        let address = bound.address();
        let sockets = bound.into_sockets().into_iter().map(Arc::new);
        let mut sockets: Vec<_> = sockets.collect();
        // As many as were asked for, so there is one.
        let sink = sockets.remove(0);
        Ok(Self {
            bind: Bind {
                addr: address,
                ..bind
            },
            backlog,
            address,
            sink,
            sockets,
        })
    }

    /// The same again: its sockets listen, and are a group with a program.
    pub(super) fn resumed(
        bind: Bind,
        backlog: u32,
        saved: &SavedGroup,
        incoming: &Incoming,
    ) -> io::Result<Self> {
        let copy = |number: Number| -> io::Result<_> {
            Ok(Arc::new(TcpListener::from(incoming.copy(number)?)))
        };
        let sink = copy(saved.sink)?;
        let sockets = saved.sockets.iter().map(|number| copy(*number));
        let address = sink.local_addr()?;
        Ok(Self {
            bind: Bind {
                addr: address,
                ..bind
            },
            backlog,
            address,
            sink,
            sockets: sockets.collect::<io::Result<_>>()?,
        })
    }

    /// Copies of its sockets.
    pub(super) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedGroup> {
        let sockets = self.sockets.iter();
        Ok(SavedGroup {
            sink: outgoing.add(&self.sink)?,
            sockets: sockets
                .map(|socket| outgoing.add(socket))
                .collect::<io::Result<_>>()?,
        })
    }

    /// Lets clients in. The group should have its program by then.
    pub(super) fn listen(&self) -> Result<(), BindError> {
        listen(self.all(), self.bind, self.backlog)
    }

    /// The real address, also where port 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket of those whom nobody takes.
    pub(super) const fn sink(&self) -> &Arc<TcpListener> {
        &self.sink
    }

    /// In the order in which they joined.
    fn all(&self) -> impl Iterator<Item = &TcpListener> {
        iter::once(&self.sink)
            .chain(&self.sockets)
            .map(|socket| &**socket)
    }

    /// How many slots have a socket.
    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    pub(super) fn refuse(&self) -> io::Result<()> {
        self.all().try_for_each(refuse_handshakes)
    }

    /// The socket of a slot; those up to it are made if they are not there.
    pub(super) fn socket(&mut self, slot: usize) -> io::Result<Arc<TcpListener>> {
        if let Some(more) = NonZeroUsize::new((slot + 1).saturating_sub(self.sockets.len())) {
            self.has_no_stranger()?;
            let bound = BoundGroup::bind(self.bind, more, Neighbour::Ours, self.backlog);
            let bound = bound.map_err(io::Error::other)?;
            self.sockets
                .extend(bound.into_sockets().into_iter().map(Arc::new));
        }
        Ok(Arc::clone(&self.sockets[slot]))
    }

    /// Another process of the same user can join the group. It gets nobody there, but behind it
    /// the position of a socket would not be its slot's number.
    fn has_no_stranger(&self) -> io::Result<()> {
        let address = self.address;
        // A kernel that does not tell is taken at its best.
        let ours = self.all().count();
        let listeners = listeners(address).unwrap_or(ours);
        if listeners == ours {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "another process listens on {address} beside homescar (SO_REUSEPORT), so no slot can be \
             added there: end it (`ss -ltnp 'sport = :{}'` shows which)",
            address.port()
        )))
    }

    /// The same, if it has been made.
    pub(super) fn present(&self, slot: usize) -> Option<Arc<TcpListener>> {
        self.sockets.get(slot).map(Arc::clone)
    }

    /// Where a client with an IPv4 address of this machine reaches it, if it can.
    pub(super) fn reached_at(&self) -> Option<SocketAddr> {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST,
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) if self.bind.dual_stack => Ipv4Addr::LOCALHOST,
            IpAddr::V6(_) => return None,
        };
        Some(SocketAddr::from((ip, self.address.port())))
    }

    /// Swaps the program: from now on clients are led to these slots, by this table.
    pub(super) fn attach(
        &self,
        snapshot: &Snapshot,
        decision: &Decision,
        probes: Ipv4Addr,
    ) -> Result<(), NotLed> {
        let affinity = &snapshot.config.affinity;
        let masks = Masks {
            v4: affinity.prefix_v4,
            v6: affinity.prefix_v6,
        };
        let there = |slot: usize| {
            let position = u32::try_from(slot).ok()? + 1;
            Some(position).filter(|_| slot < self.sockets.len())
        };
        let slots = 0..snapshot.entries.len();
        let led_to = slots
            .clone()
            .map(|slot| there(slot).filter(|_| decision.led_to[slot]));
        let mut led_to: Vec<_> = led_to.collect();
        if let (true, Some(first)) = (decision.leads_nowhere(), led_to.first_mut()) {
            *first = Some(SINK);
        }
        let probes = Probes::new(probes, slots.map(there).collect::<Vec<_>>())?;
        let program = snapshot
            .table
            .program(masks, affinity.seed, &led_to, Some(&probes))?;
        attach(&*self.sink, &program)?;
        Ok(())
    }
}
