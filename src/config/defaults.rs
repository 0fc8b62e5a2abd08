//! What holds where nothing is written.

use std::{
    ffi::OsStr,
    net::Ipv4Addr,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Admin, Affinity, Balance, Capacity, Check, Cluster, Contract, Cookie, Drain, Health, Key,
    Limits, Log, LogFormat, LogLevel, OnDown, OnFull, Passive, ReadyBy, Records, SameSite, Secure,
    Source, Timeouts, Workers,
};

/// Where `homescar run` listens.
pub(super) const LISTEN: &str = "127.0.0.1:3000";

/// How many connections may wait at each socket of a listener.
pub(super) const BACKLOG: u32 = 4096;

/// The probe address of slot 0 in direct mode.
pub(super) const PROBES: Ipv4Addr = Ipv4Addr::new(127, 72, 83, 0);

/// The status that an HTTP check expects.
pub(super) const EXPECT: u16 = 200;

impl Default for Limits {
    /// None on connections and bodies.
    fn default() -> Self {
        Self {
            connections: None,
            per_client: None,
            head_bytes: 32 * 1024,
            headers: 100,
            target_bytes: 8 * 1024,
            body_bytes: None,
            streams: 128,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body: Duration::from_secs(30),
            keepalive: Duration::from_secs(75),
            idle: Some(Duration::from_secs(3600)),
        }
    }
}

impl Default for Affinity {
    /// The whole IPv4 address, or the /64 of an IPv6 address, seed 0.
    fn default() -> Self {
        Self {
            key: Key::Address,
            prefix_v4: 32,
            prefix_v6: 64,
            seed: 0,
        }
    }
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            name: "homescar".to_owned(),
            path: "/".to_owned(),
            domain: None,
            secure: Secure::Auto,
            http_only: true,
            same_site: SameSite::Lax,
            ttl: Duration::from_secs(24 * 3600),
            secrets: None,
        }
    }
}

impl Default for OnDown {
    fn default() -> Self {
        Self::Hold(Duration::from_secs(2))
    }
}

impl Default for Health {
    /// By TCP connect.
    fn default() -> Self {
        Self {
            check: Check::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: NonZeroU32::new(2).unwrap_or(NonZeroU32::MIN),
            fall: NonZeroU32::new(3).unwrap_or(NonZeroU32::MIN),
        }
    }
}

impl Health {
    /// What workers have where nothing else is configured. One that serves one client after the other (gunicorn's
    /// sync workers) accepts nobody for as long as a request takes, and is not hung: as long as gunicorn
    /// gives it by default, 30 s, in three checks.
    #[must_use]
    pub fn of_workers() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            ..Self::default()
        }
    }
}

impl Default for Passive {
    fn default() -> Self {
        Self {
            failures: NonZeroU32::new(5).unwrap_or(NonZeroU32::MIN),
            window: Duration::from_secs(10),
            failure_rate: 0.5,
            eject: Duration::from_secs(10),
            max_eject: Duration::from_secs(300),
            max_share: 0.5,
            server_errors: false,
        }
    }
}

impl Capacity {
    /// This many, and all else as where nothing is written.
    #[must_use]
    pub const fn of(per_slot: NonZeroUsize) -> Self {
        Self {
            per_slot,
            on_full: OnFull::Queue,
            queue_length: 1024,
            queue_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            spread: Duration::from_secs(10),
            close_code: 1012,
            close_reason: "".into(),
        }
    }
}

impl Admin {
    /// The Unix socket alone.
    #[must_use]
    pub const fn at(socket: PathBuf) -> Self {
        Self { socket, tcp: None }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: LogLevel::Info,
            records: Records::ALL,
        }
    }
}

impl Cluster {
    /// The processes that fill its slots, when homescar runs them.
    #[must_use]
    pub fn supervised(&self) -> Option<&Workers> {
        match &self.source {
            Source::Workers(workers) => Some(workers),
            Source::Static(_) => None,
        }
    }

    /// How many workers it has.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.supervised().map_or(0, |workers| workers.count.get())
    }

    /// A cluster of which only the name and the source were written. Workers are checked by TCP
    /// connect, static backends by what their clients meet.
    #[must_use]
    pub fn new(name: &str, source: Source) -> Self {
        let (health, passive) = match &source {
            Source::Workers(_) => (Some(Health::of_workers()), None),
            Source::Static(_) => (None, Some(Passive::default())),
        };
        Self {
            name: name.into(),
            source,
            affinity: Affinity::default(),
            on_down: OnDown::default(),
            send_proxy: None,
            health,
            balance: Balance {
                passive,
                rebalance: NonZeroU32::new(10),
                ..Balance::default()
            },
            drain: Drain::default(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Some(Duration::from_secs(60)),
            tls: None,
        }
    }
}

impl Contract {
    /// The contract of workers of which it is not said: [`Contract::Node`] when the program is
    /// `node` or `nodejs`, wherever it stands, else [`Contract::Port`].
    #[must_use]
    pub fn of_command(command: &[String]) -> Self {
        let program = command.first().map(Path::new).and_then(Path::file_name);
        match program.and_then(OsStr::to_str) {
            Some("node" | "nodejs") => Self::Node,
            _ => Self::Port,
        }
    }
}

impl Workers {
    /// Workers of which only the command and the number were written.
    #[must_use]
    pub fn new(command: Vec<String>, count: NonZeroUsize) -> Self {
        Self {
            contract: Contract::of_command(&command),
            command,
            count,
            env: std::collections::BTreeMap::new(),
            cwd: None,
            user: None,
            ready: ReadyBy::Auto,
            ready_timeout: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(30),
            stable: Duration::from_secs(5),
            max_rss: None,
            watchdog: None,
        }
    }
}
