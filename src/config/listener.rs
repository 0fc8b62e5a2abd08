//! A front door as configured.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// A front door: addresses, and the cluster behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its name in the file (`web` of `[listener.web]`).
    pub name: Arc<str>,
    /// Where it listens; never empty.
    pub bind: Vec<Bind>,
    /// How it carries connections. Default [`Mode::Tcp`].
    pub mode: Mode,
    /// Connections that may wait to be accepted, for each socket; the kernel cuts it to
    /// `net.core.somaxconn`. Default 4096.
    pub backlog: u32,
    /// In direct mode: a connection from this loopback address plus *i* goes to slot *i*, whatever
    /// the hash says. Default 127.72.83.0.
    pub probes: Ipv4Addr,
    /// The name of the cluster that it serves; it exists.
    pub cluster: Arc<str>,
    /// A PROXY protocol header is required in front of each connection.
    pub accept_proxy: bool,
    /// From whom a PROXY header, and in `http` an `X-Forwarded-For`, is believed. Required when
    /// `accept_proxy` is set.
    pub trusted: Vec<Network>,
    /// TLS with the clients; `None` for none.
    pub tls: Option<Arc<Tls>>,
    /// In `http`: what goes to other clusters than `cluster`, in the order of the file.
    pub routes: Vec<Route>,
    /// Limits.
    pub limits: Limits,
    /// Deadlines.
    pub timeouts: Timeouts,
}

/// How a listener carries connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A relay in user space.
    Tcp,
    /// HTTP/1.1 and HTTP/2 (and WebSocket over both), routed request by request.
    Http,
    /// Not at all: the kernel hands each connection to its worker.
    Direct,
}

/// Slots behind a direct listener: what the kernel takes as one program.
pub const MAX_DIRECT_SLOTS: usize = 180;

/// The most that a listener's `limits.headers` can be.
pub const MAX_HEADERS: usize = 256;

/// One address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bind {
    /// The address; port 0 lets the kernel choose.
    pub addr: SocketAddr,
    /// Typed as `:PORT`: all addresses of both IP versions, and `addr` is `[::]:PORT`. Else an
    /// IPv6 address is for IPv6 alone.
    pub dual_stack: bool,
}

/// An IP network in CIDR notation; a bare address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its first address.
    pub addr: std::net::IpAddr,
    /// Leading bits that count.
    pub prefix: u8,
}

/// How many connections a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open at one time on this listener. Default: no limit of its own.
    pub connections: Option<u64>,
    /// Open at one time for one client (its masked address). Default: none.
    pub per_client: Option<u32>,
    /// In `http`: bytes of a request's head, else 431. Default 32 KiB.
    pub head_bytes: usize,
    /// In `http`: header fields of a request, else 431. Default 100.
    pub headers: usize,
    /// In `http`: bytes of a request's target, else 414. Default 8 KiB.
    pub target_bytes: usize,
    /// In `http`: bytes of a request's body, else 413. Default: none.
    pub body_bytes: Option<u64>,
    /// In `http`: requests at one time on one HTTP/2 connection. Default 128.
    pub streams: u32,
}

/// Deadlines of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the whole PROXY header, for the TLS handshake, and for the whole head of a request to
    /// arrive, each; in HTTP/1 up to a quarter more. Default 10 s.
    pub header: Duration,
    /// In `http`: for the next piece of a request's body to arrive, and for the client to take
    /// the next piece of a response. Default 30 s.
    pub body: Duration,
    /// In `http`: between two requests of a connection, which may get up to a quarter more. Default 75 s.
    pub keepalive: Duration,
    /// Without a byte in either direction, of a connection in `tcp` and of a WebSocket or a
    /// response that has begun in `http`. Default 1 h; `None` for `"off"`.
    pub idle: Option<Duration>,
}

/// TLS with the clients of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates with their keys; never empty. The first is for clients that ask for none of
    /// the names in them.
    pub certs: Vec<CertPair>,
    /// The authorities (PEM) whose certificate a client must show.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is let in. Default false.
    pub client_optional: bool,
    /// The least version. Default TLS 1.2.
    pub min_version: TlsVersion,
    /// Protocols offered (ALPN), the best first. Default `h2` and `http/1.1` in `http`, none in
    /// `tcp`.
    pub alpn: Vec<String>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertPair {
    /// The chain, PEM: its own certificate first.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// Requests that go to a cluster of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The host (lower case, without a port); `*.example.org` is every name below it. Default:
    /// every host.
    pub host: Option<Arc<str>>,
    /// What the path begins with, by whole segments: `/api` is for `/api` and `/api/x`, not for
    /// `/apis`. Default `/`.
    pub path: Arc<str>,
    /// The name of the cluster; it exists.
    pub cluster: Arc<str>,
}

impl Route {
    /// Whether a request for this host (with or without a port, in any case) and target goes here.
    #[must_use]
    pub fn fits(&self, host: &str, target: &str) -> bool {
        self.fits_host(host) && self.fits_path(target)
    }

    /// Of two routes that fit, the one with the greater rank is meant: an exact host before a
    /// wildcard before none, the longer wildcard, then the longer path.
    #[must_use]
    pub fn rank(&self) -> (u8, usize, usize) {
        let host = self.host.as_deref().unwrap_or_default();
        let exactness = match host {
            "" => 0,
            host if host.starts_with('*') => 1,
            _ => 2,
        };
        (exactness, host.len(), self.path.len())
    }

    fn fits_host(&self, host: &str) -> bool {
        let Some(wanted) = &self.host else {
            return true;
        };
        let name = match host.rfind(':') {
            Some(colon) if !host.ends_with(']') => &host[..colon],
            _ => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        match wanted.strip_prefix('*') {
            None => name.eq_ignore_ascii_case(wanted),
            Some(suffix) => name
                .len()
                .checked_sub(suffix.len())
                .filter(|start| *start > 0)
                .and_then(|start| name.get(start..))
                .is_some_and(|end| end.eq_ignore_ascii_case(suffix)),
        }
    }

    fn fits_path(&self, target: &str) -> bool {
        let path = target.split('?').next().unwrap_or_default();
        let prefix = self.path.trim_end_matches('/');
        let rest = path.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str, path: &str) -> Route {
        Route {
            host: (!host.is_empty()).then(|| host.into()),
            path: path.into(),
            cluster: "app".into(),
        }
    }

    #[test]
    fn routes_fit_by_whole_names_and_segments() {
        for (wanted, host, target, fits) in [
            (route("a.org", "/"), "A.ORG:8080", "/x", true),
            (route("a.org", "/"), "a.org.", "*", false),
            (route("a.org", "/"), "b.a.org", "/", false),
            (route("*.a.org", "/"), "b.A.org", "/", true),
            (route("*.a.org", "/"), ".a.org", "/", false),
            (route("*.a.org", "/"), "a.org", "/", false),
            (route("[::1]", "/"), "[::1]:80", "/", true),
            (route("", "/api"), "x", "/api?y", true),
            (route("", "/api"), "x", "/api/", true),
            (route("", "/api/"), "x", "/api", true),
            (route("", "/api"), "x", "/apis", false),
            (route("", "/"), "", "/", true),
        ] {
            assert_eq!(
                wanted.fits(host, target),
                fits,
                "{wanted:?} {host} {target}"
            );
        }
    }

    #[test]
    fn the_most_exact_route_is_meant() {
        let order = [
            route("", "/a"),
            route("", "/a/b"),
            route("*.a.org", "/"),
            route("*.b.a.org", "/"),
            route("c.b.a.org", "/"),
            route("c.b.a.org", "/a"),
        ];
        assert!(order.is_sorted_by_key(Route::rank));
    }
}
