//! What a server that wants to listen gets: a socket, or why not.

use std::{io, net::TcpListener, sync::Arc};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Channel, Held, Notice, message, message::Query, servers::Part};
use crate::config::Address;

/// Servers that one worker may have at one time.
const SERVERS: usize = 64;

impl Channel {
    /// A server wants to listen.
    pub(super) fn asked(&mut self, query: Query, notices: &mut Vec<Notice>) {
        let slot = &self.slot;
        if query.fd.is_some_and(|fd| fd >= 0) {
            warn!(
                %slot,
                "{slot} cannot listen on a descriptor under contract node; say contract = \"fd\""
            );
            return self.refuse(&query, libc::EINVAL);
        }
        let port = query.port.and_then(|port| u16::try_from(port).ok());
        let (Some(port), Some(4 | 6)) = (port, query.kind.as_u64()) else {
            let what = match query.kind.as_str() {
                Some(_) => "a UDP port".to_owned(),
                None => format!("{:?}", query.address.as_deref().unwrap_or_default()),
            };
            warn!(
                %slot,
                "{slot} cannot listen on {what} under contract node, only on TCP ports; with \
                 `exclusive: true` it can by itself"
            );
            return self.refuse(&query, libc::ENOTSUP);
        };
        if self.held.len() + self.undecided.len() >= SERVERS {
            return self.refuse(&query, libc::EMFILE);
        }
        let same = |held: &Held| {
            let other = &held.query;
            port != 0 && (&other.address, other.port) == (&query.address, query.port)
        };
        if self.held.iter().any(same) {
            return self.refuse(&query, libc::EADDRINUSE);
        }
        let before = self.servers.routed();
        let socket = match self.servers.part(port, Instant::now()) {
            Part::Undecided => return self.undecided.push(query),
            Part::Routed if port == 0 && self.held.iter().any(|held| held.routed) => {
                return self.share(query, port);
            }
            Part::Routed | Part::Private => self.sockets.at(port),
            Part::Shared => return self.share(query, port),
        };
        let routed = self.servers.routed() == Some(port);
        match socket {
            Ok(socket) if port != 0 && !has_port(&socket, port) => {
                // Node compares, and would take it for this too.
                warn!(
                    slot = %self.slot,
                    "{} cannot have port {port}: another process listens there on all addresses \
                     (`ss -ltnp 'sport = :{port}'` shows which)",
                    self.slot
                );
                self.refuse(&query, libc::EADDRINUSE);
            }
            Ok(socket) if routed && before != Some(port) => {
                match self.sockets.address_of(&socket) {
                    Ok(address) => {
                        self.held.iter_mut().for_each(|held| held.routed = false);
                        self.say_if_elsewhere(port, &address);
                        notices.push(Notice::Routed(Arc::clone(&socket), address));
                        self.grant(query, socket, true);
                    }
                    Err(error) => self.not_bound(&query, &error),
                }
            }
            Ok(socket) => {
                if !routed {
                    self.say_not_routed(port);
                }
                self.grant(query, socket, routed);
            }
            Err(error) => self.not_bound(&query, &error),
        }
    }

    fn say_not_routed(&self, port: u16) {
        let (slot, to) = (&self.slot, self.servers.routed().unwrap_or_default());
        warn!(
            %slot,
            "{slot} listens on port {port} too, but clients of all listeners are brought to its \
             port {to}"
        );
    }

    /// Clients come to one port, and the application listens on another.
    fn say_if_elsewhere(&self, port: u16, address: &Address) {
        let Some(expected) = self.expected.filter(|expected| *expected != port) else {
            return;
        };
        let slot = &self.slot;
        match address {
            Address::Probe { .. } => {}
            _ if self.sockets.is_direct() => warn!(
                %slot,
                "{slot} listens on port {port}, and its clients come to {expected}: homescar has \
                 to relay them. For direct mode let it listen on {expected} (PORT says so), or \
                 homescar on {port}"
            ),
            _ => info!(
                %slot,
                "{slot} listens on port {port}: clients of port {expected} are brought there"
            ),
        }
    }

    /// A server that is not the one that clients are brought to.
    fn share(&mut self, query: Query, port: u16) {
        match self.shared.at(&query, port) {
            Ok((socket, new)) => {
                if new {
                    info!(
                        slot = %self.slot,
                        "{} listens on port {port} too: all workers share it as under Node's own \
                         cluster, so it is not sticky",
                        self.slot
                    );
                }
                self.grant(query, socket, false);
            }
            Err(error) => self.not_bound(&query, &error),
        }
    }

    fn grant(&mut self, query: Query, socket: Arc<TcpListener>, routed: bool) {
        self.wire
            .post(&message::granted(&query), Some(Arc::clone(&socket)));
        self.held.push(Held {
            key: query.key(),
            query,
            socket,
            routed,
        });
    }

    fn not_bound(&mut self, query: &Query, error: &io::Error) {
        debug!(slot = %self.slot, ?query, %error, "no socket");
        self.refuse(query, error.raw_os_error().unwrap_or(libc::EINVAL));
    }

    fn refuse(&mut self, query: &Query, errno: i32) {
        self.wire.post(&message::refused(query, errno), None);
    }
}

fn has_port(socket: &TcpListener, port: u16) -> bool {
    socket.local_addr().is_ok_and(|at| at.port() == port)
}
