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
    later: &["admin"],
    inner: &[
        ("listener.NAME", &LISTENER),
        ("cluster.NAME", &CLUSTER),
        ("log", &LOG),
    ],
    ..Keys::new(&["listener", "cluster", "log", "threads", "limits"])
};

pub(super) static GLOBAL_LIMITS: Keys = Keys::new(&["connections"]);

pub(super) static LISTENER: Keys = Keys {
    later: &["tls", "route"],
    inner: &[("limits", &LIMITS), ("timeouts", &TIMEOUTS)],
    named: true,
    ..Keys::new(&[
        "bind",
        "mode",
        "backlog",
        "probes",
        "cluster",
        "accept_proxy",
        "trusted",
        "limits",
        "timeouts",
    ])
};

pub(super) static LIMITS: Keys = Keys {
    later: &["rate_per_client"],
    ..Keys::new(&["connections", "per_client"])
};

pub(super) static TIMEOUTS: Keys = Keys {
    later: &["keepalive"],
    ..Keys::new(&["header", "idle"])
};

pub(super) static CLUSTER: Keys = Keys {
    later: &["discover", "max_load", "tls"],
    inner: &[
        ("workers", &WORKERS),
        ("affinity", &AFFINITY),
        ("health", &HEALTH),
        ("timeouts", &CLUSTER_TIMEOUTS),
    ],
    named: true,
    ..Keys::new(&[
        "backends",
        "workers",
        "affinity",
        "on_down",
        "send_proxy",
        "health",
        "drain",
        "timeouts",
    ])
};

pub(super) static BACKEND: Keys = Keys::new(&["name", "address", "weight"]);

pub(super) static WORKERS: Keys = Keys {
    later: &["max_rss"],
    ..Keys::new(&[
        "command",
        "count",
        "contract",
        "env",
        "cwd",
        "user",
        "ready",
        "ready_timeout",
        "stop_timeout",
        "watchdog",
    ])
};

pub(super) static AFFINITY: Keys = Keys::new(&["key", "prefix_v4", "prefix_v6", "seed"]);

pub(super) static HEALTH: Keys = Keys {
    later: &["ws"],
    ..Keys::new(&[
        "tcp", "http", "expect", "interval", "timeout", "rise", "fall",
    ])
};

pub(super) static DRAIN: Keys = Keys {
    later: &["spread"],
    ..Keys::new(&["timeout"])
};

pub(super) static CLUSTER_TIMEOUTS: Keys = Keys::new(&["connect"]);

pub(super) static LOG: Keys = Keys::new(&["format", "level"]);
