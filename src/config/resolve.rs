//! From what the user typed to what the program uses, with all faults at once.
//!
//! Every reader here returns `None` (or a default) for what is faulty, after it has written the
//! fault down; the result is used only when nothing was written down.

mod cluster;
mod direct;
mod workers;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::de::DeTable;

use super::{
    Bind, Config, Facts, Faults, Limits, Listener, Log, Mode, Timeouts, address, defaults,
    fault::Ledger,
    file::{Item, Section},
    keys::{self, closest},
    value,
};

/// How many threads or workers there may be.
pub(super) const MAX_COUNT: usize = 1024;

/// The kernel keeps it in an `int`.
const MAX_BACKLOG: u64 = i32::MAX as u64;

/// What the readers need besides the file.
struct Context<'a> {
    facts: &'a Facts,
    /// The file's folder, absolute: relative paths start here.
    folder: PathBuf,
}

/// A bind address and where it stands in the file.
struct Bound {
    bind: Bind,
    path: String,
}

/// The configuration that a text means.
pub(super) fn resolve(text: &str, file: &str, facts: &Facts) -> Result<Config, Faults> {
    let text = text.trim_start_matches('\u{feff}');
    let ledger = Ledger::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        super::syntax::write_down(&errors, text, &ledger);
    }
    // What the parser recovers after an error is a guess: its faults would be guesses too.
    let config = match errors.is_empty() {
        true => {
            let parent = Path::new(file).parent().unwrap_or_else(|| Path::new(""));
            let context = Context {
                facts,
                folder: facts.folder.join(parent),
            };
            let root = Section::root(&ledger, table.get_ref(), &keys::ROOT);
            Some(context.config(&root))
        }
        false => None,
    };
    ledger.close(Some(file), text)?;
    config.ok_or_else(|| Faults::of_file(file, "cannot be read as TOML".to_owned()))
}

impl Context<'_> {
    fn config(&self, root: &Section<'_>) -> Config {
        let clusters = root.get("cluster").map(|item| item.entries());
        let names: Vec<&str> = clusters.iter().flatten().map(|entry| entry.name).collect();
        let known = clusters.is_some() || !root.meant("cluster");
        let clusters = clusters.iter().flatten();
        let clusters: Vec<_> = clusters.filter_map(|entry| self.cluster(entry)).collect();
        let workers = clusters.iter().map(super::Cluster::workers).sum();
        Config {
            threads: self.threads(root),
            max_connections: self.max_connections(root, workers),
            listeners: listeners(root, known.then_some(&names), &clusters),
            clusters,
            log: log(root),
        }
    }

    fn threads(&self, root: &Section<'_>) -> NonZeroUsize {
        let threads = root.get("threads").and_then(|item| auto_or_count(&item));
        threads.flatten().unwrap_or_else(|| self.cores())
    }

    /// The number that `"auto"` means.
    fn cores(&self) -> NonZeroUsize {
        self.facts
            .cores
            .min(NonZeroUsize::new(MAX_COUNT).unwrap_or(NonZeroUsize::MAX))
    }

    fn max_connections(&self, root: &Section<'_>, workers: usize) -> u64 {
        let allowed = self.facts.max_connections(workers);
        let limits = root.get("limits");
        let limits = limits.and_then(|item| item.section(&keys::GLOBAL_LIMITS));
        let Some(item) = limits.and_then(|limits| limits.get("connections")) else {
            return allowed;
        };
        let wanted = item.integer(1..=u64::MAX).unwrap_or(allowed);
        if wanted > allowed {
            let descriptors = self.facts.max_descriptors;
            item.fault(format!(
                "is {wanted}, but the limit of {descriptors} open files allows {allowed}; lower \
                 it, or raise the limit (ulimit -Hn, or LimitNOFILE= of systemd)"
            ));
        }
        wanted
    }
}

/// `"auto"` (`Some(None)`) or a number of threads or workers.
fn auto_or_count(item: &Item<'_>) -> Option<Option<NonZeroUsize>> {
    match item.as_text() {
        Some("auto") => return Some(None),
        Some(text) if text.parse::<usize>().is_err() => {
            let typed = value::quoted(text);
            item.fault(format!("must be \"auto\" or a number, is {typed}"));
            return None;
        }
        _ => {}
    }
    let count = usize::try_from(item.integer(1..=MAX_COUNT as u64)?).ok()?;
    NonZeroUsize::new(count).map(Some)
}

/// The listeners, in the order of the file. `names` are those of the clusters that exist, if that
/// much is known.
fn listeners(
    root: &Section<'_>,
    names: Option<&Vec<&str>>,
    clusters: &[super::Cluster],
) -> Vec<Listener> {
    let what = "add a table [listener.NAME] with `bind` and `cluster`";
    let Some(item) = root.require("listener", what) else {
        return Vec::new();
    };
    let entries = item.entries();
    if entries.is_empty() && item.is_table() {
        item.fault(format!("is empty; {what}"));
    }
    let mut bound = Vec::new();
    let mut listeners = Vec::new();
    for entry in entries {
        if let Err(why) = value::name(entry.name) {
            entry.fault(why);
        }
        let Some(section) = entry.item.section(&keys::LISTENER) else {
            continue;
        };
        let cluster = section.require("cluster", "name the cluster that it serves");
        let cluster = cluster.and_then(|item| known_cluster(&item, names));
        let bind = section.require("bind", "write where to listen, as in \"127.0.0.1:3000\"");
        let bind = bind.map(|item| binds(&item, &mut bound));
        let mode = section.get("mode").and_then(|item| item.word());
        let backlog = section.get("backlog");
        let backlog = backlog.and_then(|item| item.integer(1..=MAX_BACKLOG));
        let probes = section.get("probes");
        let probes = probes.and_then(|item| item.parsed(address::probes));
        let accept_proxy = section.get("accept_proxy").and_then(|item| item.boolean());
        let accept_proxy = accept_proxy.unwrap_or(false);
        let listener = Listener {
            name: entry.name.into(),
            bind: bind.unwrap_or_default(),
            mode: mode.unwrap_or(Mode::Tcp),
            backlog: backlog
                .and_then(|backlog| u32::try_from(backlog).ok())
                .unwrap_or(defaults::BACKLOG),
            probes: probes.unwrap_or(defaults::PROBES),
            cluster: cluster.unwrap_or_else(|| Arc::from("")),
            accept_proxy,
            trusted: trusted(&section, accept_proxy),
            tls: None,
            routes: Vec::new(),
            limits: limits(&section),
            timeouts: timeouts(&section),
        };
        if listener.mode == Mode::Direct {
            direct::check(&section, &listener, clusters, &listeners);
        }
        listeners.push(listener);
    }
    listeners
}

fn known_cluster(item: &Item<'_>, clusters: Option<&Vec<&str>>) -> Option<Arc<str>> {
    let name = item.text()?;
    if let Some(clusters) = clusters.filter(|clusters| !clusters.contains(&name)) {
        let typed = value::quoted(name);
        let hint = match (closest(name, clusters), clusters.as_slice()) {
            (Some(meant), _) => format!("did you mean \"{meant}\"?"),
            (None, []) => format!("add a table [cluster.{}]", value::key(name)),
            (None, clusters) => format!("there is: {}", clusters.join(", ")),
        };
        item.fault(format!("there is no cluster {typed}; {hint}"));
    }
    Some(name.into())
}

/// One bind address or several; `bound` are those of all listeners so far.
fn binds(item: &Item<'_>, bound: &mut Vec<Bound>) -> Vec<Bind> {
    let items = match item.is_list() {
        true => item.filled_list("[\"127.0.0.1:3000\"]").unwrap_or_default(),
        false => return one_bind(item, bound).into_iter().collect(),
    };
    let binds = items.iter().filter_map(|item| one_bind(item, bound));
    binds.collect()
}

fn one_bind(item: &Item<'_>, bound: &mut Vec<Bound>) -> Option<Bind> {
    let bind = match item.is_integer() {
        true => Bind::all(u16::try_from(item.integer(0..=65535)?).ok()?),
        false => item.parsed(address::bind)?,
    };
    if let Some(first) = bound.iter().find(|first| first.bind.clashes_with(bind)) {
        let path = &first.path;
        item.fault(match first.bind == bind {
            true => format!("\"{bind}\" is already bound by {path}; remove one of the two"),
            false => {
                let other = first.bind;
                format!(
                    "\"{bind}\" overlaps \"{other}\" of {path} (\":PORT\" is all IPv4 and IPv6 \
                     addresses); remove one of the two"
                )
            }
        });
        return None;
    }
    bound.push(Bound {
        bind,
        path: item.path.clone(),
    });
    Some(bind)
}

fn trusted(section: &Section<'_>, accept_proxy: bool) -> Vec<super::Network> {
    let example = "[\"10.0.0.0/8\"]";
    let what = format!(
        "accept_proxy needs to know whose PROXY header to believe: list the addresses of your \
         load balancers, as in {example}"
    );
    let item = match accept_proxy {
        true => section.require("trusted", &what),
        false => section.get("trusted"),
    };
    let Some(item) = item else {
        return Vec::new();
    };
    let items = item.list(example);
    if accept_proxy && items.as_ref().is_some_and(Vec::is_empty) {
        item.fault(format!("is empty; {what}"));
    }
    let items = items.unwrap_or_default();
    let networks = items
        .iter()
        .filter_map(|item| item.parsed(address::network));
    networks.collect()
}

fn limits(section: &Section<'_>) -> Limits {
    let limits = section.get("limits");
    let limits = limits.and_then(|item| item.section(&keys::LIMITS));
    let limit = |key: &str, most: u64| {
        let item = limits.as_ref()?.get(key)?;
        item.unless_off(|item| item.integer(1..=most)).flatten()
    };
    Limits {
        connections: limit("connections", u64::MAX),
        per_client: limit("per_client", u32::MAX.into())
            .and_then(|limit| u32::try_from(limit).ok()),
        ..Limits::default()
    }
}

fn timeouts(section: &Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let timeouts = section.get("timeouts");
    let Some(timeouts) = timeouts.and_then(|item| item.section(&keys::TIMEOUTS)) else {
        return default;
    };
    let header = timeouts.get("header").and_then(|item| item.duration());
    let idle = timeouts.get("idle");
    let idle = idle.and_then(|item| item.unless_off(Item::duration));
    Timeouts {
        header: header.unwrap_or(default.header),
        idle: idle.unwrap_or(default.idle),
        ..default
    }
}

fn log(root: &Section<'_>) -> Log {
    let default = Log::default();
    let log = root.get("log").and_then(|item| item.section(&keys::LOG));
    let Some(log) = log else {
        return default;
    };
    let format = log.get("format").and_then(|item| item.word());
    let level = log.get("level").and_then(|item| item.word());
    Log {
        format: format.unwrap_or(default.format),
        level: level.unwrap_or(default.level),
    }
}
