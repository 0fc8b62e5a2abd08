//! The way from a client to its slot, told step by step: the same functions decide here that decide
//! for a client that comes.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use tokio::time::Instant;

use super::{
    Board, Refused,
    view::{self, Candidate, Explanation, Outlook, unix_seconds},
};
use crate::{
    affinity::{AffinityKey, Masks, Secrets},
    cluster::{Asker, Cluster, Route, Skip, Snapshot, View},
    config::{Affinity, Key, OnDown},
};

/// Who is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    client: IpAddr,
    cluster: Option<String>,
    /// The text of its affinity cookie.
    cookie: Option<String>,
    /// Of the header or parameter that the cluster goes by.
    value: Option<String>,
}

/// What identifies the client, and how that was found.
#[derive(Clone, Debug)]
struct Found {
    key: AffinityKey,
    /// Its slot, where that is known otherwise.
    known: Option<usize>,
    /// The generation that served it, if that is known.
    generation: Option<u32>,
    by: &'static str,
    steps: Vec<String>,
}

impl Question {
    /// From the query of a request.
    pub(super) fn read(query: &str) -> Result<Self, Refused> {
        let (mut client, mut cluster, mut cookie, mut value) = (None, None, None, None);
        for (name, text) in form_urlencoded::parse(query.as_bytes()) {
            let place = match &*name {
                "client" => &mut client,
                "cluster" => &mut cluster,
                "cookie" => &mut cookie,
                "value" => &mut value,
                _ => {
                    return Err(Refused::Invalid(format!(
                        "there is no parameter {name}; there are client, cluster, cookie, value"
                    )));
                }
            };
            *place = Some(text.into_owned());
        }
        let client = client.unwrap_or_default();
        let address = address(&client).ok_or_else(|| {
            Refused::Invalid(format!("client: {client:?} is no IPv4 or IPv6 address"))
        })?;
        Ok(Self {
            client: address,
            cluster,
            cookie,
            value,
        })
    }

    /// Where the client would go now.
    pub(super) fn answer(&self, board: &Board) -> Result<Explanation, Refused> {
        let cluster = board.cluster(self.cluster.as_deref())?;
        let snapshot = cluster.load();
        let mut found = self.find(&cluster, &snapshot);
        if board.is_direct(cluster.name()) {
            found.steps.push(
                "in mode direct the kernel leads by the same table; who is held waits in the \
                 backlog of the slot's socket"
                    .into(),
            );
        }
        Ok(self.explain(found, &snapshot, &snapshot.live()))
    }

    fn find(&self, cluster: &Cluster, snapshot: &Snapshot) -> Found {
        let affinity = &snapshot.config.affinity;
        match &affinity.key {
            Key::Address => self.by_address(affinity),
            Key::Cookie(_) => self.by_cookie(affinity, snapshot, cluster.secrets().as_deref()),
            Key::Header(name) => self.by_value(affinity, &format!("header {name}"), "header"),
            Key::Query(name) => self.by_parameter(affinity, name, cluster, snapshot),
            Key::None => Found {
                key: AffinityKey::from_bits(fastrand::u32(..)),
                known: None,
                generation: None,
                by: "none",
                steps: vec!["each connection draws its key anew; this is one draw of many".into()],
            },
        }
    }

    fn by_address(&self, affinity: &Affinity) -> Found {
        let masks = Masks {
            v4: affinity.prefix_v4,
            v6: affinity.prefix_v6,
        };
        let step = match self.client {
            IpAddr::V4(_) => format!(
                "the key is the first {} bits of the address {}",
                masks.v4.min(32),
                self.client
            ),
            IpAddr::V6(_) => format!(
                "the key is a hash of the first {} bits of the address {}",
                masks.v6.min(128),
                self.client
            ),
        };
        Found {
            key: AffinityKey::from_address(self.client, masks, affinity.seed),
            known: None,
            generation: None,
            by: "address",
            steps: vec![step],
        }
    }

    fn by_cookie(
        &self,
        affinity: &Affinity,
        snapshot: &Snapshot,
        secrets: Option<&Secrets>,
    ) -> Found {
        let mut found = self.by_address(affinity);
        let Some(text) = &self.cookie else {
            found
                .steps
                .insert(0, "no cookie was told: the address decides".into());
            return found;
        };
        let now = unix_seconds(SystemTime::now());
        let signed = secrets.and_then(|secrets| secrets.read(text.as_bytes(), 0));
        let step = match signed {
            None => "the cookie counts for nothing: none of the secrets signed it".to_owned(),
            Some(token) if token.expires <= now => {
                let since = now - token.expires;
                format!("the cookie counts for nothing: it ended {since} s ago")
            }
            Some(token) => {
                found.by = "cookie";
                found.known = snapshot.position_of(token.slot);
                found.generation = Some(token.generation);
                match found.known {
                    Some(index) => format!(
                        "the cookie says {}, generation {}",
                        snapshot.entries[index].slot.name, token.generation
                    ),
                    None => "the cookie says a slot that is not there any more".to_owned(),
                }
            }
        };
        found.steps.insert(0, step);
        found
    }

    fn by_parameter(
        &self,
        affinity: &Affinity,
        name: &str,
        cluster: &Cluster,
        snapshot: &Snapshot,
    ) -> Found {
        let mut found = self.by_value(affinity, &format!("parameter {name}"), "query");
        let giver = match &self.value {
            Some(id) if !id.is_empty() => cluster.learned().find(id.as_bytes(), Instant::now()),
            _ => None,
        };
        if let Some(giver) = giver {
            found.by = "learned";
            found.known = snapshot.position_of(giver);
            found.steps.push(match found.known {
                Some(index) => {
                    let slot = &snapshot.entries[index].slot.name;
                    format!("{slot} gave the client this value, which goes before the key")
                }
                None => "a slot that is not there any more gave the client this value".to_owned(),
            });
        }
        found
    }

    fn by_value(&self, affinity: &Affinity, what: &str, by: &'static str) -> Found {
        match self.value.as_deref() {
            None | Some("") => {
                let mut found = self.by_address(affinity);
                let step = format!("no value of the {what} was told: the address decides");
                found.steps.insert(0, step);
                found
            }
            Some(value) => Found {
                key: AffinityKey::from_bytes(value.as_bytes(), affinity.seed),
                known: None,
                generation: None,
                by,
                steps: vec![format!("the key is a hash of the {what}, {value:?}")],
            },
        }
    }

    /// The decision and the way to it, over one snapshot.
    fn explain(&self, found: Found, snapshot: &Snapshot, view: &impl View) -> Explanation {
        let asker = Asker {
            known: found.known,
            may_hold: true,
            may_queue: true,
            ..Asker::new(found.key)
        };
        let candidates = snapshot.candidates(&asker, view);
        let candidates = candidates.map(|(index, skip)| {
            let entry = &snapshot.entries[index];
            Candidate {
                slot: entry.slot.name.to_string(),
                score: format!("{:08x}", snapshot.table.score(found.key, index)),
                state: entry.skip.map_or("ready", Skip::as_str).to_owned(),
                skip: skip.map(|why| why.as_str().to_owned()),
            }
        });
        let candidates = candidates.collect();
        let route = snapshot.route(&asker, view);
        let (outcome, index) = match route {
            Route::To { index, .. } => (Outlook::Goes, Some(index)),
            Route::Hold { index } => (Outlook::Held, Some(index)),
            Route::Queue { index } => (Outlook::Queues, Some(index)),
            Route::Reject { index, .. } => (Outlook::Refused, Some(index)),
            Route::Nowhere => (Outlook::Refused, None),
        };
        let served = index.filter(|_| outcome == Outlook::Goes);
        let generation = found.generation.filter(|_| served == found.known);
        let backend = served.and_then(|index| snapshot.entries[index].serving(generation));
        let mut verdict = snapshot.verdict(route, generation);
        if matches!(route, Route::Hold { .. } | Route::Queue { .. }) {
            let impatient = Asker {
                may_hold: false,
                may_queue: false,
                ..asker
            };
            let then = snapshot.route(&impatient, view);
            verdict = verdict + "; else " + &snapshot.verdict(then, generation);
        }
        Explanation {
            client: self.client.to_string(),
            cluster: snapshot.config.name.to_string(),
            snapshot: snapshot.number,
            affinity: snapshot.config.affinity.key.to_string(),
            by: found.by.to_owned(),
            steps: found.steps,
            key: format!("{:08x}", found.key.bits()),
            candidates,
            outcome,
            slot: index.map(|index| snapshot.entries[index].slot.name.to_string()),
            backend: backend.map(|backend| view::Backend::of(backend)),
            verdict,
        }
    }
}

impl Snapshot {
    /// A decision in words.
    fn verdict(&self, route: Route, generation: Option<u32>) -> String {
        let name = |index: usize| &self.entries[index].slot.name;
        match route {
            Route::To { index, passed } => {
                let backend = self.entries[index].serving(generation);
                let worker = backend.filter(|backend| backend.generation > 0);
                let worker = worker.map(|backend| {
                    let (generation, pid) = (backend.generation, backend.pid.unwrap_or(0));
                    format!(", generation {generation}, pid {pid}")
                });
                let passed =
                    passed.map(|(home, why)| format!(", as its own, {}, is {why}", name(home)));
                let (worker, passed) = (worker.unwrap_or_default(), passed.unwrap_or_default());
                format!("goes to {}{worker}{passed}", name(index))
            }
            Route::Hold { index } => {
                let why = self.entries[index].skip.map_or("ready", Skip::as_str);
                let longest = match self.config.on_down {
                    OnDown::Hold(longest) => humantime::format_duration(longest).to_string(),
                    OnDown::Next | OnDown::Reject => "0s".to_owned(),
                };
                format!(
                    "is held for {}, which is {why}, for up to {longest}",
                    name(index)
                )
            }
            Route::Queue { index } => format!("queues for {}, which is full", name(index)),
            Route::Reject { index, why } => {
                format!("is refused, because its own, {}, is {why}", name(index))
            }
            Route::Nowhere => "is refused, because no slot takes clients".to_owned(),
        }
    }
}

/// An address, with or without a port. An IPv4-mapped one is IPv4.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let with_port = || text.parse().map(|address: SocketAddr| address.ip());
    let address: IpAddr = bare.parse().or_else(|_| with_port()).ok()?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests;
