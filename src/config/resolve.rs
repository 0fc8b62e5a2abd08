//! From what the user typed to what the program uses, with all faults at once.
//!
//! Every reader here returns `None` (or a default) for what is faulty, after it has written the
//! fault down; the result is used only when nothing was written down.

mod admin;
mod affinity;
mod balance;
mod cluster;
mod direct;
mod http;
mod listener;
mod workers;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::de::DeTable;

use super::{
    Config, Facts, Faults, Log,
    fault::Ledger,
    file::{Item, Section},
    keys::{self, closest},
    value,
};

/// How many threads or workers there may be.
pub const MAX_COUNT: usize = 1024;

/// What the readers need besides the file.
struct Context<'a> {
    facts: &'a Facts,
    /// The file's folder, absolute: relative paths start here.
    folder: PathBuf,
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
            listeners: self.listeners(root, known.then_some(&names), &clusters),
            clusters,
            admin: self.admin(root),
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

fn log(root: &Section<'_>) -> Log {
    let default = Log::default();
    let log = root.get("log").and_then(|item| item.section(&keys::LOG));
    let Some(log) = log else {
        return default;
    };
    let format = log.get("format").and_then(|item| item.word());
    let level = log.get("level").and_then(|item| item.word());
    let records = log
        .get("records")
        .and_then(|item| item.number_or_text(value::records));
    Log {
        format: format.unwrap_or(default.format),
        level: level.unwrap_or(default.level),
        records: records.unwrap_or(default.records),
    }
}
