//! The configuration as the program uses it: typed, validated, immutable.
//!
//! [`Config::load`] reads a file and [`Config::for_run`] a command line: `file` is what the user
//! typed, `resolve` finds all its [`Faults`] at once, and this is the result. Nothing here is an
//! `Option` that must be `Some`. What a file means on a machine depends on its [`Facts`].
//! [`Config::to_toml`] is the way back.

mod address;
mod defaults;
mod effective;
mod facts;
mod fault;
mod file;
mod keys;
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

pub use facts::Facts;
pub use fault::{Fault, Faults, Position};
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
    /// The log.
    pub log: Log,
}

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
    /// From whom a PROXY header is believed. Required when `accept_proxy` is set.
    pub trusted: Vec<Network>,
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
    /// Not at all: the kernel hands each connection to its worker.
    Direct,
}

/// Slots behind a direct listener: what the kernel takes as one program.
pub const MAX_DIRECT_SLOTS: usize = 180;

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
    /// Open at one time for one client (its affinity key). Default: none.
    pub per_client: Option<u32>,
}

/// Deadlines of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the whole PROXY header to arrive. Default 10 s.
    pub header: Duration,
    /// Without a byte in either direction. Default 1 h; `None` for `"off"`.
    pub idle: Option<Duration>,
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
    /// How connections of a slot that leaves are ended.
    pub drain: Drain,
    /// For a connection to a backend to be established. Default 2 s.
    pub connect_timeout: Duration,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq)]
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
    /// When set, a worker must send `WATCHDOG=1` at least this often. Default: off.
    pub watchdog: Option<Duration>,
}

impl Workers {
    /// Whether more than the count differs.
    #[must_use]
    pub fn runs_differently(&self, other: &Self) -> bool {
        let count = other.count;
        let same_count = Self {
            count,
            ..self.clone()
        };
        same_count != *other
    }
}

/// How a worker gets its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyBy {
    /// Whichever comes first (the default).
    Auto,
    /// `READY=1` on its `NOTIFY_SOCKET` only.
    Notify,
    /// A healthy check only.
    Check,
}

/// How clients are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// What identifies a client.
    pub key: Key,
    /// Mixed into every hash: clusters with different seeds spread clients differently. Default 0.
    pub seed: u64,
}

/// What identifies a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The client's address, masked.
    Address {
        /// Leading bits of an IPv4 address. Default 32.
        prefix_v4: u8,
        /// Leading bits of an IPv6 address. Default 64.
        prefix_v6: u8,
    },
    /// Nothing: every connection goes anywhere.
    None,
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
    /// For one check to succeed. Default 500 ms.
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
}

/// How connections of a slot or listener that leaves are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// They may run on for this long. Default 30 s.
    pub timeout: Duration,
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least severe level that is written. Default `info`.
    pub level: LogLevel,
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
