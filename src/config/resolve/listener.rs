//! `[listener.NAME]`: where clients come in, and how they are carried.

use std::sync::Arc;

use super::{Context, direct, http, known_cluster};
use crate::config::{
    Bind, Cluster, Limits, Listener, MAX_HEADERS, Mode, Network, Timeouts, address, defaults,
    file::{Item, Section},
    keys, value,
};

/// The kernel keeps it in an `int`.
const MAX_BACKLOG: u64 = i32::MAX as u64;

/// A bind address and where it stands in the file.
struct Bound {
    bind: Bind,
    path: String,
}

/// A head is kept whole while it comes in.
const MAX_HEAD_BYTES: u64 = 1024 * 1024;

/// Requests at one time on one connection.
const MAX_STREAMS: u64 = 10_000;

impl Context<'_> {
    /// The listeners, in the order of the file. `names` are those of the clusters that exist, if that
    /// much is known.
    pub(super) fn listeners(
        &self,
        root: &Section<'_>,
        names: Option<&Vec<&str>>,
        clusters: &[Cluster],
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
            let listener = self.listener(entry.name, &section, names, &mut bound);
            match listener.mode {
                Mode::Direct => direct::check(&section, &listener, clusters, &listeners),
                mode => http::check(&section, mode, &listener, clusters),
            }
            listeners.push(listener);
        }
        listeners
    }

    fn listener(
        &self,
        name: &str,
        section: &Section<'_>,
        names: Option<&Vec<&str>>,
        bound: &mut Vec<Bound>,
    ) -> Listener {
        let cluster = section.require("cluster", "name the cluster that it serves");
        let cluster = cluster.and_then(|item| known_cluster(&item, names));
        let bind = section.require("bind", "write where to listen, as in \"127.0.0.1:3000\"");
        let bind = bind.map(|item| binds(&item, bound));
        let mode = section.get("mode").and_then(|item| item.word());
        let mode = mode.unwrap_or(Mode::Tcp);
        let backlog = section.get("backlog");
        let backlog = backlog.and_then(|item| item.integer(1..=MAX_BACKLOG));
        let probes = section.get("probes");
        let probes = probes.and_then(|item| item.parsed(address::probes));
        let accept_proxy = section.get("accept_proxy").and_then(|item| item.boolean());
        let accept_proxy = accept_proxy.unwrap_or(false);
        let tls = section.get("tls").and_then(|item| self.tls(&item, mode));
        Listener {
            name: name.into(),
            bind: bind.unwrap_or_default(),
            mode,
            backlog: backlog
                .and_then(|backlog| u32::try_from(backlog).ok())
                .unwrap_or(defaults::BACKLOG),
            probes: probes.unwrap_or(defaults::PROBES),
            cluster: cluster.unwrap_or_else(|| Arc::from("")),
            accept_proxy,
            trusted: trusted(section, accept_proxy),
            tls: tls.map(Arc::new),
            routes: http::routes(section, names),
            limits: limits(section),
            timeouts: timeouts(section),
        }
    }
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

fn trusted(section: &Section<'_>, accept_proxy: bool) -> Vec<Network> {
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
    let default = Limits::default();
    let limits = section.get("limits");
    let Some(limits) = limits.and_then(|item| item.section(&keys::LIMITS)) else {
        return default;
    };
    let limit = |key: &str, most: u64| {
        let item = limits.get(key)?;
        item.unless_off(|item| item.integer(1..=most)).flatten()
    };
    let bytes = |key: &str, least: u64, most: u64| {
        let bytes = limits.get(key)?.bytes(least..=most)?;
        usize::try_from(bytes).ok()
    };
    let number = |key: &str, most: u64| {
        let number = limits.get(key)?.integer(1..=most)?;
        u32::try_from(number).ok()
    };
    let body = limits.get("body_bytes");
    let body = body.and_then(|item| item.unless_off(|item| item.bytes(0..=u64::MAX)));
    Limits {
        connections: limit("connections", u64::MAX),
        per_client: limit("per_client", u32::MAX.into())
            .and_then(|limit| u32::try_from(limit).ok()),
        head_bytes: bytes("head_bytes", 1024, MAX_HEAD_BYTES).unwrap_or(default.head_bytes),
        headers: number("headers", MAX_HEADERS as u64)
            .map_or(default.headers, |headers| headers as usize),
        target_bytes: bytes("target_bytes", 64, MAX_HEAD_BYTES).unwrap_or(default.target_bytes),
        body_bytes: body.unwrap_or(default.body_bytes),
        streams: number("streams", MAX_STREAMS).unwrap_or(default.streams),
    }
}

fn timeouts(section: &Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let timeouts = section.get("timeouts");
    let Some(timeouts) = timeouts.and_then(|item| item.section(&keys::TIMEOUTS)) else {
        return default;
    };
    let duration = |key: &str| timeouts.get(key).and_then(|item| item.duration());
    let idle = timeouts.get("idle");
    let idle = idle.and_then(|item| item.unless_off(Item::duration));
    Timeouts {
        header: duration("header").unwrap_or(default.header),
        body: duration("body").unwrap_or(default.body),
        keepalive: duration("keepalive").unwrap_or(default.keepalive),
        idle: idle.unwrap_or(default.idle),
    }
}
