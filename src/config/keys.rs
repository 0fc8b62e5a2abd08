//! Which keys each table of the file may have, and what another key was likely meant to be.

/// The keys of one kind of table.
#[derive(Debug)]
pub(super) struct Keys {
    /// Those that exist.
    known: &'static [&'static str],
    /// Those that later versions will have.
    later: &'static [&'static str],
    /// The tables inside, to find the home of a key that stands one level too high.
    inner: &'static [(&'static str, &'static Self)],
    /// Whether the table has a name of the user's own, so that a dot in the name may have made
    /// a table of what should have been its second half.
    named: bool,
}

/// A key that should not be there.
#[derive(Debug)]
pub(super) struct Odd {
    /// What is wrong with it.
    pub(super) message: String,
    /// The known key that was likely meant, or [`ANY`].
    pub(super) meant: Option<&'static str>,
}

/// Stands for every key: the table as a whole is not what was meant.
pub(super) const ANY: &str = "*";

/// How alike two keys must be (Jaro-Winkler) for one to be proposed for the other.
const ALIKE: f64 = 0.84;

impl Keys {
    const fn new(known: &'static [&'static str]) -> Self {
        Self {
            known,
            later: &[],
            inner: &[],
            named: false,
        }
    }

    /// What is wrong with a key of the table at `path`, if anything.
    pub(super) fn check(&self, key: &str, path: &str, is_table: bool) -> Option<Odd> {
        if self.known.contains(&key) {
            return None;
        }
        let odd = |message: String, meant| Some(Odd { message, meant });
        if self.later.contains(&key) {
            let message = "is not available in this version; remove it";
            return odd(message.to_owned(), None);
        }
        if let Some(meant) = closest(key, self.known) {
            let message = format!("unknown key; did you mean `{meant}`?");
            return odd(message, Some(meant));
        }
        for (table, keys) in self.inner {
            if keys.known.contains(&key) || keys.later.contains(&key) {
                return odd(format!("unknown key; did you mean `{table}.{key}`?"), None);
            }
        }
        if let (true, true, Some((kind, name))) = (self.named, is_table, path.split_once('.')) {
            let message = format!(
                "unknown key; if it is part of the name, quote the name: [{kind}.\"{name}.{key}\"]"
            );
            return odd(message, Some(ANY));
        }
        let known = self.known.join(", ");
        odd(format!("unknown key; the keys here are: {known}"), None)
    }
}

/// The word that was likely meant, if any is alike enough.
pub(super) fn closest<'w>(typed: &str, words: &[&'w str]) -> Option<&'w str> {
    let typed = typed.to_lowercase();
    let alike = |word: &str| match strsim::damerau_levenshtein(&typed, word) {
        0 | 1 => 1.0,
        _ => strsim::jaro_winkler(&typed, word),
    };
    words
        .iter()
        .map(|word| (alike(word), *word))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, word)| word)
}

pub(super) static ROOT: Keys = Keys {
    inner: &[
        ("listener.NAME", &LISTENER),
        ("cluster.NAME", &CLUSTER),
        ("admin", &ADMIN),
        ("log", &LOG),
    ],
    ..Keys::new(&["listener", "cluster", "admin", "log", "threads", "limits"])
};

pub(super) static ADMIN: Keys = Keys::new(&["socket", "listen", "token_file"]);

pub(super) static GLOBAL_LIMITS: Keys = Keys::new(&["connections"]);

pub(super) static LISTENER: Keys = Keys {
    inner: &[("limits", &LIMITS), ("timeouts", &TIMEOUTS), ("tls", &TLS)],
    named: true,
    ..Keys::new(&[
        "bind",
        "mode",
        "backlog",
        "probes",
        "cluster",
        "accept_proxy",
        "trusted",
        "tls",
        "route",
        "limits",
        "timeouts",
    ])
};

pub(super) static TLS: Keys = Keys::new(&[
    "cert",
    "key",
    "certs",
    "client_ca",
    "client_optional",
    "min_version",
    "alpn",
]);

pub(super) static CERT_PAIR: Keys = Keys::new(&["cert", "key"]);

pub(super) static ROUTE: Keys = Keys::new(&["host", "path", "cluster"]);

pub(super) static LIMITS: Keys = Keys {
    later: &["rate_per_client"],
    ..Keys::new(&[
        "connections",
        "per_client",
        "head_bytes",
        "headers",
        "target_bytes",
        "body_bytes",
        "streams",
    ])
};

pub(super) static TIMEOUTS: Keys = Keys::new(&["header", "body", "keepalive", "idle"]);

pub(super) static CLUSTER: Keys = Keys {
    later: &["discover"],
    inner: &[
        ("workers", &WORKERS),
        ("affinity", &AFFINITY),
        ("health", &HEALTH),
        ("passive", &PASSIVE),
        ("queue", &QUEUE),
        ("drain", &DRAIN),
        ("tls", &BACKEND_TLS),
        ("timeouts", &CLUSTER_TIMEOUTS),
    ],
    named: true,
    ..Keys::new(&[
        "backends",
        "workers",
        "affinity",
        "on_down",
        "send_proxy",
        "tls",
        "health",
        "passive",
        "slow_start",
        "max_load",
        "max_connections_per_slot",
        "on_full",
        "queue",
        "rebalance",
        "drain",
        "timeouts",
    ])
};

pub(super) static BACKEND: Keys = Keys::new(&["name", "address", "weight"]);

pub(super) static WORKERS: Keys = Keys::new(&[
    "command",
    "count",
    "contract",
    "env",
    "cwd",
    "user",
    "ready",
    "ready_timeout",
    "stop_timeout",
    "stable",
    "max_rss",
    "watchdog",
]);

pub(super) static AFFINITY: Keys = Keys {
    inner: &[("cookie", &COOKIE)],
    ..Keys::new(&["key", "prefix_v4", "prefix_v6", "seed", "cookie"])
};

pub(super) static COOKIE: Keys = Keys::new(&[
    "name",
    "path",
    "domain",
    "secure",
    "http_only",
    "same_site",
    "ttl",
    "secrets",
]);

pub(super) static BACKEND_TLS: Keys = Keys::new(&["ca", "name", "cert", "key"]);

pub(super) static HEALTH: Keys = Keys::new(&[
    "tcp", "http", "ws", "expect", "interval", "timeout", "rise", "fall",
]);

pub(super) static PASSIVE: Keys = Keys::new(&[
    "failures",
    "window",
    "failure_rate",
    "eject",
    "max_eject",
    "max_share",
    "server_errors",
]);

pub(super) static QUEUE: Keys = Keys::new(&["length", "timeout"]);

pub(super) static DRAIN: Keys = Keys::new(&["timeout", "spread", "close", "reason"]);

pub(super) static CLUSTER_TIMEOUTS: Keys = Keys::new(&["connect", "response"]);

pub(super) static LOG: Keys = Keys::new(&["format", "level", "records"]);
