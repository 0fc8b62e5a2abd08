//! `[cluster.NAME]`: where the slots come from, and how clients are brought to them.

use std::{num::NonZeroU32, sync::Arc};

use super::{Context, balance};
use crate::config::{
    Check, Cluster, Drain, Health, Source, StaticBackend, address, defaults,
    file::{Entry, Item, Section},
    keys, value,
};

/// How much larger than the lightest the heaviest backend may be.
const MAX_WEIGHT: u64 = 256;

impl Context<'_> {
    pub(super) fn cluster(&self, entry: &Entry<'_>) -> Option<Cluster> {
        if let Err(why) = value::name(entry.name) {
            entry.fault(why);
        }
        let section = entry.item.section(&keys::CLUSTER)?;
        let source = self.source(&section);
        let source = source.unwrap_or_else(|| Source::Static(Vec::new()));
        let default = Cluster::new(entry.name, source);
        let health = match section.get("health") {
            Some(item) => health(&item, matches!(default.source, Source::Workers(_))),
            None => default.health.clone(),
        };
        let on_down = section.get("on_down");
        let on_down = on_down.and_then(|item| item.parsed(value::on_down));
        let send_proxy = section.get("send_proxy");
        let send_proxy = send_proxy.and_then(|item| item.word());
        let timeouts = section.get("timeouts");
        let timeouts = timeouts.and_then(|item| item.section(&keys::CLUSTER_TIMEOUTS));
        let connect = timeouts
            .as_ref()
            .and_then(|timeouts| timeouts.get("connect"));
        let connect = connect.and_then(|item| item.duration());
        let response = timeouts
            .as_ref()
            .and_then(|timeouts| timeouts.get("response"));
        let response = response.and_then(|item| item.unless_off(Item::duration));
        let tls = section.get("tls");
        Some(Cluster {
            affinity: self.affinity(&section),
            on_down: on_down.unwrap_or(default.on_down),
            send_proxy: send_proxy.unwrap_or(default.send_proxy),
            health,
            balance: balance::balance(&section, default.balance),
            drain: drain(&section),
            connect_timeout: connect.unwrap_or(default.connect_timeout),
            response_timeout: response.unwrap_or(default.response_timeout),
            tls: tls
                .and_then(|item| self.backend_tls(&item, &default.source))
                .map(Arc::new),
            ..default
        })
    }

    fn source(&self, section: &Section<'_>) -> Option<Source> {
        match (section.get("backends"), section.get("workers")) {
            (Some(backends), None) => Some(Source::Static(static_backends(&backends))),
            (None, Some(workers)) => self.workers(&workers).map(Source::Workers),
            (Some(backends), Some(workers)) => {
                static_backends(&backends);
                self.workers(&workers);
                let second = if workers.at > backends.at {
                    workers
                } else {
                    backends
                };
                second.fault(
                    "a cluster has either `backends` (somebody else runs them) or `workers` \
                     (homescar runs them), not both; make two clusters of it, or remove one",
                );
                None
            }
            (None, None) => {
                let meant = section.meant("backends") || section.meant("workers");
                if !meant && section.get("discover").is_none() {
                    section.fault(
                        "needs either `backends = [\"10.0.0.1:3000\"]` or \
                         `workers = { command = [\"node\", \"server.js\"] }`",
                    );
                }
                None
            }
        }
    }
}

fn static_backends(item: &Item<'_>) -> Vec<StaticBackend> {
    let mut backends: Vec<StaticBackend> = Vec::new();
    let items = item.filled_list("[\"10.0.0.1:3000\"]").unwrap_or_default();
    for item in &items {
        let Some(backend) = static_backend(item) else {
            continue;
        };
        if backends.iter().any(|other| other.name == backend.name) {
            let name = value::quoted(&backend.name);
            item.fault(format!(
                "there is already a backend {name} in this cluster; give each a name of its own, \
                 as in {{ name = \"NAME\", address = \"{}\" }}",
                backend.address
            ));
            continue;
        }
        backends.push(backend);
    }
    backends
}

fn static_backend(item: &Item<'_>) -> Option<StaticBackend> {
    if !item.is_table() {
        let address = item.parsed(address::address)?;
        return Some(StaticBackend {
            name: item.as_text()?.into(),
            address,
            weight: NonZeroU32::MIN,
        });
    }
    let section = item.section(&keys::BACKEND)?;
    let name = section.get("name");
    let name = name.map(|item| item.parsed(|text| value::name(text).map(|()| text.to_owned())));
    let weight = section.get("weight");
    let weight = weight.and_then(|item| non_zero(&item, MAX_WEIGHT));
    let address = section.require("address", "write one as in \"10.0.0.1:3000\"")?;
    let typed = address.as_text();
    let address = address.parsed(address::address)?;
    let name = match name {
        Some(given) => given?,
        None => typed?.to_owned(),
    };
    Some(StaticBackend {
        name: name.into(),
        address,
        weight: weight.unwrap_or(NonZeroU32::MIN),
    })
}

pub(super) fn non_zero(item: &Item<'_>, most: u64) -> Option<NonZeroU32> {
    let number = u32::try_from(item.integer(1..=most)?).ok()?;
    NonZeroU32::new(number)
}

fn health(item: &Item<'_>, of_workers: bool) -> Option<Health> {
    let default = match of_workers {
        true => Health::of_workers(),
        false => Health::default(),
    };
    match item.as_text() {
        Some("off") if of_workers => {
            item.fault(
                "workers are always checked, so that nobody is sent to a dead one; remove it \
                 to check by TCP connect",
            );
            return None;
        }
        Some("off") => return None,
        _ => {}
    }
    let health = item.section(&keys::HEALTH)?;
    let interval = health.get("interval").and_then(|item| item.duration());
    let timeout = health.get("timeout").and_then(|item| item.duration());
    let count = |key: &str| non_zero(&health.get(key)?, MAX_COUNT_OF_CHECKS);
    Some(Health {
        check: check(&health).unwrap_or(Check::Tcp),
        interval: interval.unwrap_or(default.interval),
        timeout: timeout.unwrap_or(default.timeout),
        rise: count("rise").unwrap_or(default.rise),
        fall: count("fall").unwrap_or(default.fall),
    })
}

/// How many checks in a row may be asked for.
const MAX_COUNT_OF_CHECKS: u64 = 1000;

fn check(health: &Section<'_>) -> Option<Check> {
    let tcp = health.get("tcp");
    let http = health.get("http");
    let ws = health.get("ws");
    let expect = health.get("expect");
    if let Some(item) = &tcp {
        if item.boolean() == Some(false) {
            item.fault("can only be true; to check in another way write http = \"/health\"");
        } else if http.is_some() || ws.is_some() {
            item.fault("a check is one of `tcp`, `http` and `ws`; remove the others");
        }
    } else if let (Some(item), Some(_)) = (&http, &ws) {
        item.fault("a check is one of `tcp`, `http` and `ws`; remove the others");
    }
    if let (Some(item), None) = (&expect, &http) {
        item.fault("is the status of an HTTP check; add http = \"/health\", or remove it");
    }
    let expect = expect.and_then(|item| item.integer(200..=599));
    if let Some(ws) = ws {
        return Some(Check::Ws { path: path(&ws)? });
    }
    let path = path(&http?)?;
    let expect = expect.and_then(|status| u16::try_from(status).ok());
    Some(Check::Http {
        path,
        expect: expect.unwrap_or(defaults::EXPECT),
    })
}

/// A path as it stands in a request.
fn path(item: &Item<'_>) -> Option<String> {
    item.parsed(|text| {
        let typed = value::quoted(text);
        match text {
            _ if !text.starts_with('/') => Err(format!(
                "must be a path that starts with /, as in \"/health\", is {typed}"
            )),
            _ if !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains('#') => Err(format!(
                "must be a path as it stands in a request, without spaces or `#` and with other \
                 than ASCII characters %-encoded, is {typed}"
            )),
            _ => Ok(text.to_owned()),
        }
    })
}

fn drain(section: &Section<'_>) -> Drain {
    let default = Drain::default();
    let drain = section.get("drain");
    let Some(drain) = drain.and_then(|item| item.section(&keys::DRAIN)) else {
        return default;
    };
    let timeout = drain.get("timeout").and_then(|item| item.duration());
    let timeout = timeout.unwrap_or(default.timeout);
    let spread = drain.get("spread").and_then(|item| {
        let spread = item.duration()?;
        if spread > timeout {
            let timeout = value::duration_of(timeout);
            item.fault(format!(
                "is longer than drain.timeout, which is {timeout}; at that time what is left is cut"
            ));
        }
        Some(spread)
    });
    let close = drain.get("close");
    let close = close.and_then(|item| match item.integer(1000..=4999)? {
        code @ (1001 | 1012) => u16::try_from(code).ok(),
        _ => {
            item.fault("must be 1012 (Service Restart) or 1001 (Going Away)");
            None
        }
    });
    let reason = drain.get("reason").and_then(|item| {
        let reason = item.text()?;
        if reason.len() > MAX_CLOSE_REASON {
            item.fault(format!(
                "has {} bytes, and a Close frame has room for {MAX_CLOSE_REASON}",
                reason.len()
            ));
        }
        Some(reason)
    });
    Drain {
        timeout,
        spread: spread.unwrap_or(default.spread).min(timeout),
        close_code: close.unwrap_or(default.close_code),
        close_reason: reason.map_or(default.close_reason, Into::into),
    }
}

/// RFC 6455 §5.5: a control frame carries 125 bytes, two of which are the code.
const MAX_CLOSE_REASON: usize = 123;
