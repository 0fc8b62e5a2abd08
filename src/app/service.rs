//! The service manager that has started homescar, when that is systemd or speaks as it does: what
//! it is told (`sd_notify(3)`), and the sockets that it passes (`sd_listen_fds(3)`).

use std::{env, net::SocketAddr, num::NonZeroUsize, process, time::Duration};

use sd_notify::NotifyState;
use socket2::{Socket, Type};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, info, warn};

use crate::{
    config::Bind,
    handover::{Incoming, Number},
    proxy::BoundGroup,
};

/// The number of the first passed socket (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// Tells the service manager how we are; silent when there is none.
#[derive(Debug)]
pub(super) struct ServiceManager {
    /// Says that the control plane lives, as often as it is asked to.
    _heart: JoinSet<()>,
}

impl ServiceManager {
    /// Begins to say that we live, where that is wanted. From a task of the control plane: when
    /// that hangs, it is not said.
    pub(super) fn greet() -> Self {
        let mut heart = JoinSet::new();
        if let Some(within) = sd_notify::watchdog_enabled().filter(|within| !within.is_zero()) {
            heart.spawn(beat(within / 2));
        }
        Self { _heart: heart }
    }

    /// All is bound, and clients are served; also after a reload.
    pub(super) fn ready(&self, status: &str) {
        say(&[
            NotifyState::Ready,
            NotifyState::MainPid(process::id()),
            NotifyState::Status(status),
        ]);
    }

    /// What was said before may not hold until the next [`ready`](Self::ready).
    pub(super) fn reloading(&self, status: &str) {
        // In one datagram: systemd takes the time to tell this reload from others.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => say(&[NotifyState::Reloading, now, NotifyState::Status(status)]),
            Err(error) => debug!(%error, "no monotonic clock"),
        }
    }

    /// The end has begun.
    pub(super) fn stopping(&self, status: &str) {
        say(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }
}

async fn beat(every: Duration) {
    let mut beat = interval(every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        say(&[NotifyState::Watchdog]);
    }
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager is not told");
    }
}

/// Listening sockets that the service manager has bound for us.
#[derive(Debug, Default)]
pub(super) struct PassedSockets(Vec<PassedSocket>);

#[derive(Debug)]
struct PassedSocket {
    name: String,
    address: SocketAddr,
    only_v6: bool,
    socket: Socket,
}

impl PassedSockets {
    /// Those of `LISTEN_FDS`, when they are for this process. What cannot be listened on is told.
    pub(super) fn take() -> Self {
        let told = |name: &str| env::var(name).unwrap_or_default();
        let for_us = told("LISTEN_PID").parse() == Ok(process::id());
        let count: i32 = told("LISTEN_FDS").parse().unwrap_or(0);
        if !for_us || count <= 0 {
            return Self::default();
        }
        let numbers = (FIRST..FIRST.saturating_add(count)).map(Number::told);
        let mut incoming = match Incoming::claim(numbers.clone()) {
            Ok(incoming) => incoming,
            Err(error) => {
                warn!(%error, "the sockets of LISTEN_FDS cannot be taken");
                return Self::default();
            }
        };
        let names = told("LISTEN_FDNAMES");
        let mut names = names.split(':');
        let sockets = numbers.filter_map(|number| {
            let name = names.next().unwrap_or_default().to_owned();
            let socket = Socket::from(incoming.take(number).ok()?);
            PassedSocket::new(name, socket)
        });
        Self(sockets.collect())
    }

    /// The one of this address, for so many threads.
    pub(super) fn group(
        &mut self,
        bind: Bind,
        threads: NonZeroUsize,
        backlog: u32,
    ) -> Option<BoundGroup> {
        let index = self.0.iter().position(|passed| passed.is_for(bind))?;
        let PassedSocket {
            name,
            address,
            socket,
            ..
        } = self.0.swap_remove(index);
        match BoundGroup::shared(socket.into(), threads, backlog) {
            Ok(group) => {
                info!(%address, name, "listening on a socket of the service manager");
                Some(group)
            }
            Err(error) => {
                warn!(%address, name, %error, "a socket of the service manager cannot be used");
                None
            }
        }
    }

    /// Tells of those that nobody has asked for, and closes them.
    pub(super) fn finish(self) {
        for PassedSocket { name, address, .. } in self.0 {
            warn!(
                %address, name,
                "the service manager has passed a socket at {address}, where no listener in mode \
                 tcp or http is bound: it is closed; make `bind` and the unit's ListenStream the same"
            );
        }
    }
}

impl PassedSocket {
    fn new(name: String, socket: Socket) -> Option<Self> {
        let is_one = socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
            && socket.is_listener().unwrap_or(false);
        let address = socket.local_addr().ok().and_then(|addr| addr.as_socket());
        let Some(address) = address.filter(|_| is_one) else {
            warn!(
                name,
                "the service manager has passed something that is no listening TCP socket: it is closed; \
                 ListenStream with a port, and Accept=no, is what homescar takes"
            );
            return None;
        };
        Some(Self {
            name,
            address,
            only_v6: address.is_ipv6() && socket.only_v6().unwrap_or(true),
            socket,
        })
    }

    fn is_for(&self, bind: Bind) -> bool {
        if bind.dual_stack {
            let is_all = self.address.ip().is_unspecified() && !self.only_v6;
            return is_all && self.address.port() == bind.addr.port();
        }
        self.address == bind.addr && (self.address.is_ipv4() || self.only_v6)
    }
}
