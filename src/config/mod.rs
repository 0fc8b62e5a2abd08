//! The configuration as the program uses it: typed, validated, immutable.
//!
//! [`Config::load`] reads a file and [`Config::for_run`] a command line: `file` is what the user
//! typed, `resolve` finds all its [`Faults`] at once, and this is the result. Nothing here is an
//! `Option` that must be `Some`. What a file means on a machine depends on its [`Facts`].
//! [`Config::to_toml`] is the way back.

mod address;
mod affinity;
mod balance;
mod defaults;
mod effective;
mod facts;
mod fault;
mod file;
mod keys;
mod listener;
mod load;
mod resolve;
mod run;
mod syntax;
mod value;
mod word;

mod network;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use affinity::{Affinity, Cookie, Key, SameSite, Secure};
pub use balance::{Balance, Capacity, OnFull, Passive};
pub use facts::Facts;
pub use fault::{Fault, Faults, Position};
pub use listener::{
    Bind, CertPair, Limits, Listener, MAX_DIRECT_SLOTS, MAX_HEADERS, Mode, Network, Route,
    Timeouts, Tls, TlsVersion,
};
pub use resolve::MAX_COUNT as MAX_WORKERS;
pub use run::RunOptions;
pub use word::ContractChoice;

/// Everything that homescar was told to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Data-plane threads. Default `"auto"`: one per core.
    pub threads: NonZeroUsize,
    /// Connections open at one time over all listeners. Default: what the descriptor limit allows.
    pub max_connections: u64,
    /// Listeners, in the order of the file; their names differ.
    pub listeners: Vec<Listener>,
    /// Clusters, in the order of the file; their names differ.
    pub clusters: Vec<Cluster>,
    /// Where it is asked and told what to do while it runs.
    pub admin: Admin,
    /// The log.
    pub log: Log,
}

/// Where a running homescar is asked and told what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// A Unix socket for its own user. Default: [`Facts::socket`].
    pub socket: PathBuf,
    /// Also over TCP, to whoever has the token. Default: no.
    pub tcp: Option<AdminTcp>,
}

/// The admin API over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTcp {
    /// Where it listens.
    pub listen: SocketAddr,
    /// A file with the token that each request must show (`Authorization: Bearer …`).
    pub token_file: PathBuf,
}

/// A named group of slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name in the file.
    pub name: Arc<str>,
    /// Where its slots come from.
    pub source: Source,
    /// How clients are told apart.
    pub affinity: Affinity,
    /// What happens to a client whose slot is down.
    pub on_down: OnDown,
    /// Whether, and in which version, backends get a PROXY protocol header.
    pub send_proxy: Option<ProxyVersion>,
    /// Active checks. Workers are always checked (by TCP connect when nothing is said);
    /// static backends only when asked for.
    pub health: Option<Health>,
    /// How much a slot is given, and when it is ejected.
    pub balance: Balance,
    /// How connections of a slot that leaves are ended.
    pub drain: Drain,
    /// For a connection to a backend to be established. Default 2 s.
    pub connect_timeout: Duration,
    /// In `http`: for a backend to begin its response, after it has the request. Default 60 s;
    /// `None` for `"off"`.
    pub response_timeout: Option<Duration>,
    /// TLS to the backends; `None` for none.
    pub tls: Option<Arc<BackendTls>>,
}

/// TLS to the backends of a cluster; their certificates are always verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// The authorities (PEM) that are believed. Default: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// The name that must be in the certificate, and that is asked for (SNI). Default: the
    /// address of the backend.
    pub name: Option<String>,
    /// What homescar shows when it is asked for a certificate.
    pub client: Option<CertPair>,
}

/// Where the slots of a cluster come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Addresses in the file.
    Static(Vec<StaticBackend>),
    /// Processes that we supervise.
    Workers(Arc<Workers>),
}

/// A backend that somebody else runs.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticBackend {
    /// The slot's name: as configured, else the address as typed.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: Address,
    /// Its share of the clients relative to the others. Default 1.
    pub weight: NonZeroU32,
}

/// The address of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
    /// A slot of a direct listener: TCP to the listener, from the address that leads to the slot.
    Probe {
        /// The listener.
        to: SocketAddr,
        /// The slot's probe address.
        from: Ipv4Addr,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Probe { to, from } => write!(f, "{to} from {from}"),
        }
    }
}

/// The processes of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workers {
    /// Program and arguments; run without a shell.
    pub command: Vec<String>,
    /// How many. Default `"auto"`: one per core.
    pub count: NonZeroUsize,
    /// How a worker gets its socket. Default `"auto"`: what suits the command, see
    /// [`Contract::of_command`].
    pub contract: Contract,
    /// Added to the environment of homescar.
    pub env: BTreeMap<String, String>,
    /// Working directory. Default: homescar's own.
    pub cwd: Option<PathBuf>,
    /// The user to run as (root only). Default: homescar's own.
    pub user: Option<String>,
    /// What counts as ready.
    pub ready: ReadyBy,
    /// From spawn to ready; past it the worker is ended and tried anew. Default 60 s.
    pub ready_timeout: Duration,
    /// From TERM to KILL. Default 30 s.
    pub stop_timeout: Duration,
    /// How long the next generation must have been ready, beside the present one, before it takes
    /// over. Default 5 s.
    pub stable: Duration,
    /// Resident memory in bytes; a worker that has more is replaced, gracefully. Default: off.
    pub max_rss: Option<u64>,
    /// When set, a worker must send `WATCHDOG=1` at least this often. Default: off.
    pub watchdog: Option<Duration>,
}

impl Workers {
    /// Whether a process of the one is another than one of the other: how many there are, and what they
    /// are allowed, is not part of it.
    #[must_use]
    pub fn runs_differently(&self, other: &Self) -> bool {
        let same_process = Self {
            count: other.count,
            ready_timeout: other.ready_timeout,
            stop_timeout: other.stop_timeout,
            stable: other.stable,
            max_rss: other.max_rss,
            ..self.clone()
        };
        same_process != *other
    }
}

/// How a worker gets its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contract {
    /// A free loopback port in `PORT`.
    Port,
    /// The path of a Unix socket in `PORT`.
    Unix,
    /// A listening socket as descriptor 3 (`LISTEN_FDS`); homescar keeps it open.
    Fd,
    /// Node's own cluster protocol, so that an unmodified `app.listen(3000)` is given the socket;
    /// homescar keeps it open.
    Node,
}

/// What makes a starting worker ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadyBy {
    /// Whichever comes first (the default).
    Auto,
    /// `READY=1` on its `NOTIFY_SOCKET` only.
    Notify,
    /// A healthy check only.
    Check,
}

/// What happens to a client whose slot is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// Wait this long for the slot's next generation, then go to the next candidate.
    /// The default, with 2 s.
    Hold(Duration),
    /// Go to the next candidate at once.
    Next,
    /// Reset the connection.
    Reject,
}

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// The line of text.
    V1,
    /// Binary, with a CRC-32c.
    V2,
}

/// Active checks.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// What is tried.
    pub check: Check,
    /// Between the starts of two checks, ± 10 %. Default 1 s.
    pub interval: Duration,
    /// For one check to succeed. Default 500 ms, for workers 10 s.
    pub timeout: Duration,
    /// Successes in a row that make it healthy. Default 2.
    pub rise: NonZeroU32,
    /// Failures in a row that make it unhealthy. Default 3.
    pub fall: NonZeroU32,
}

/// What a check tries.
#[derive(Clone, Debug, PartialEq)]
pub enum Check {
    /// A connection is accepted.
    Tcp,
    /// `GET path` is answered with the expected status.
    Http {
        /// The request target.
        path: String,
        /// The status. Default 200.
        expect: u16,
    },
    /// A WebSocket is opened at `path`, and a ping is answered.
    Ws {
        /// The request target.
        path: String,
    },
}

/// How connections of a slot or listener that leaves are ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// They may run on for this long. Default 30 s.
    pub timeout: Duration,
    /// WebSockets are closed one after the other over this long, at most `timeout`. Default 10 s.
    pub spread: Duration,
    /// The status code of the Close frame (RFC 6455 §7.4): 1012 "Service Restart" or 1001 "Going
    /// Away". Default 1012.
    pub close_code: u16,
    /// The reason in the Close frame; at most 123 bytes. Default empty.
    pub close_reason: Arc<str>,
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least severe level that is written. Default `info`.
    pub level: LogLevel,
    /// Which records are written. Default all.
    pub records: Records,
}

/// Which records of connections and requests are written. Those of what failed always are, unless
/// none are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Records(u32);

impl Records {
    /// All of them.
    pub const ALL: Self = Self(1_000_000);
    /// None.
    pub const OFF: Self = Self(0);

    /// Of a million that tell of no failure.
    #[must_use]
    pub const fn per_million(self) -> u32 {
        self.0
    }
}

/// What is said of the log elsewhere than in the file, and beats it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// How a line looks.
    pub format: Option<LogFormat>,
    /// The least severe level that is written.
    pub level: Option<LogLevel>,
}

impl LogOptions {
    /// The configured log with these options.
    #[must_use]
    pub fn over(self, configured: Log) -> Log {
        Log {
            format: self.format.unwrap_or(configured.format),
            level: self.level.unwrap_or(configured.level),
            records: configured.records,
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured at a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// What happens, and a record per connection.
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}
