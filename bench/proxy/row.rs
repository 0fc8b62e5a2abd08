//! The rows: what the proxy is made to do.

use super::{
    peer::{Kind, Mode},
    tls::Tls,
};

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Row {
    /// A 64-byte round trip, on 64 connections.
    TcpRr,
    /// The same on one connection.
    TcpRrC1,
    /// A round trip of 16 KiB, on 64 connections.
    #[value(name = "tcp-rr-16k")]
    TcpRr16k,
    /// A connection with one round trip of 64 bytes.
    TcpCrr,
    /// A gigabyte from the clients to the backends, on 4 connections.
    TcpUp,
    /// A gigabyte from the backends to the clients, on 4 connections.
    TcpDown,
    /// Memory of an idle connection.
    IdleTcp,
    /// A request over HTTP/1.1 with an answer of 64 bytes, on 64 connections that are kept.
    HttpRr,
    /// The same with an answer of 16 KiB.
    #[value(name = "http-rr-16k")]
    HttpRr16k,
    /// A connection with one request.
    HttpCrr,
    /// Memory of a connection that is idle after a request.
    IdleHttp,
    /// A message and its answer over a WebSocket, 64 of them.
    WsRr,
    /// Memory of a WebSocket that is idle after a message.
    IdleWs,
    /// http-rr over TLS.
    HttpsRr,
    /// A request over HTTP/2 and TLS, on 16 connections of 4 streams.
    H2Rr,
    /// A connection over TLS with a full handshake and one round trip.
    TlsFull,
    /// A connection over TLS with a resumed session and one round trip.
    TlsResumed,
    /// tcp-rr over TLS.
    TlsRr,
    /// tcp-down over TLS.
    TlsDown,
    /// Memory of a connection over TLS that is idle after a message.
    IdleTls,
    /// System calls of a 64-byte round trip; needs strace.
    CallsRr,
    /// System calls of a connection with one round trip; needs strace.
    CallsCrr,
    /// System calls of a request on a kept connection; needs strace.
    CallsHttp,
    /// The same configuration is read again under load.
    Reload,
    /// A backend is taken out of the configuration under load.
    Remove,
    /// A worker dies under load.
    Restart,
}

/// What clients and backends do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Round trips of so many bytes on so many connections.
    RoundTrips { connections: u64, bytes: usize },
    /// Connections with one round trip.
    Short,
    /// Bulk to the backends.
    Up,
    /// Bulk from the backends.
    Down,
    /// Requests with answers of so many bytes.
    Requests { body: usize },
    /// Connections with one request.
    ShortRequests,
    /// Requests over HTTP/2.
    Http2,
    /// Messages over WebSockets.
    Messages,
}

/// What is found out about the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// What a unit of it costs.
    Cpu,
    /// What a connection holds that has done one unit of it.
    Memory,
    /// The system calls of a unit.
    Calls,
    /// What clients notice of it.
    Event(Event),
}

/// What happens to a proxy under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It reads the same configuration again.
    Reload,
    /// It reads one in which the last of the backends is gone.
    Remove,
    /// A worker is killed, and started again: by homescar itself, behind others by who supervises it.
    Restart,
}

/// A row in full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    pub(crate) tls: Option<Tls>,
    pub(crate) work: Work,
    pub(crate) measure: Measure,
}

const PING_PONG: Work = Work::RoundTrips {
    connections: 64,
    bytes: 64,
};

impl Row {
    /// All of them.
    pub(crate) const ALL: &[Self] = &[
        Self::TcpRr,
        Self::TcpRrC1,
        Self::TcpRr16k,
        Self::TcpCrr,
        Self::TcpUp,
        Self::TcpDown,
        Self::IdleTcp,
        Self::HttpRr,
        Self::HttpRr16k,
        Self::HttpCrr,
        Self::IdleHttp,
        Self::WsRr,
        Self::IdleWs,
        Self::HttpsRr,
        Self::H2Rr,
        Self::TlsFull,
        Self::TlsResumed,
        Self::TlsRr,
        Self::TlsDown,
        Self::IdleTls,
        Self::CallsRr,
        Self::CallsCrr,
        Self::CallsHttp,
        Self::Reload,
        Self::Remove,
        Self::Restart,
    ];

    pub(crate) const fn spec(self) -> Spec {
        const REQUESTS: Work = Work::Requests { body: 64 };
        match self {
            Self::TcpRr => Spec::tcp("tcp-rr", PING_PONG),
            Self::TcpRrC1 => Spec::tcp("tcp-rr-c1", round_trips(1, 64)),
            Self::TcpRr16k => Spec::tcp("tcp-rr-16k", round_trips(64, 16 * 1024)),
            Self::TcpCrr => Spec::tcp("tcp-crr", Work::Short),
            Self::TcpUp => Spec::tcp("tcp-up", Work::Up),
            Self::TcpDown => Spec::tcp("tcp-down", Work::Down),
            Self::IdleTcp => Spec::tcp("idle-tcp", PING_PONG).of(Measure::Memory),
            Self::HttpRr => Spec::http("http-rr", REQUESTS),
            Self::HttpRr16k => Spec::http("http-rr-16k", Work::Requests { body: 16 * 1024 }),
            Self::HttpCrr => Spec::http("http-crr", Work::ShortRequests),
            Self::IdleHttp => Spec::http("idle-http", REQUESTS).of(Measure::Memory),
            Self::WsRr => Spec::http("ws-rr", Work::Messages),
            Self::IdleWs => Spec::http("idle-ws", Work::Messages).of(Measure::Memory),
            Self::HttpsRr => Spec::http("https-rr", REQUESTS).over(Some("http/1.1"), false),
            Self::H2Rr => Spec::http("h2-rr", Work::Http2).over(Some("h2"), false),
            Self::TlsFull => Spec::tcp("tls-full", Work::Short).over(None, false),
            Self::TlsResumed => Spec::tcp("tls-resumed", Work::Short).over(None, true),
            Self::TlsRr => Spec::tcp("tls-rr", PING_PONG).over(None, false),
            Self::TlsDown => Spec::tcp("tls-down", Work::Down).over(None, false),
            Self::IdleTls => Spec::tcp("idle-tls", PING_PONG)
                .over(None, false)
                .of(Measure::Memory),
            Self::CallsRr => Spec::tcp("calls-rr", PING_PONG).of(Measure::Calls),
            Self::CallsCrr => Spec::tcp("calls-crr", Work::Short).of(Measure::Calls),
            Self::CallsHttp => Spec::http("calls-http", REQUESTS).of(Measure::Calls),
            Self::Reload => event("reload", Event::Reload),
            Self::Remove => event("remove", Event::Remove),
            Self::Restart => event("restart", Event::Restart),
        }
    }
}

impl Spec {
    const fn tcp(name: &'static str, work: Work) -> Self {
        Self {
            name,
            mode: Mode::Tcp,
            tls: None,
            work,
            measure: Measure::Cpu,
        }
    }

    const fn http(name: &'static str, work: Work) -> Self {
        Self {
            mode: Mode::Http,
            ..Self::tcp(name, work)
        }
    }

    const fn over(self, alpn: Option<&'static str>, resumes: bool) -> Self {
        Self {
            tls: Some(Tls { alpn, resumes }),
            ..self
        }
    }

    const fn of(self, measure: Measure) -> Self {
        Self { measure, ..self }
    }

    /// Whether a peer can be asked for it: where there is no proxy there is only CPU to measure, and
    /// Envoy is changed by other means than its file and a signal.
    pub(crate) const fn is_for(self, peer: Kind) -> bool {
        match self.measure {
            Measure::Cpu => true,
            Measure::Memory | Measure::Calls => !matches!(peer, Kind::None),
            Measure::Event(_) => !matches!(peer, Kind::None | Kind::Envoy),
        }
    }
}

impl Work {
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::RoundTrips { .. } => "round trip",
            Self::Messages => "message and its answer",
            Self::Short | Self::ShortRequests => "connection",
            Self::Up | Self::Down => "GB",
            Self::Requests { .. } | Self::Http2 => "request",
        }
    }

    /// Whether there is more to carry at once than a page or two.
    pub(crate) const fn is_large(self) -> bool {
        match self {
            Self::RoundTrips { bytes, .. } | Self::Requests { body: bytes } => bytes > 8 * 1024,
            _ => self.is_bulk(),
        }
    }

    /// Bulk is counted in bytes, all else in units.
    pub(crate) const fn is_bulk(self) -> bool {
        matches!(self, Self::Up | Self::Down)
    }
}

const fn event(name: &'static str, event: Event) -> Spec {
    Spec::tcp(name, Work::Short).of(Measure::Event(event))
}

const fn round_trips(connections: u64, bytes: usize) -> Work {
    Work::RoundTrips { connections, bytes }
}
