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
    affinity::{AffinityKey, Secrets},
    cluster::{Asker, Entry, Giver, Identity, Route, Shown, Skip, Snapshot, View},
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
        let mut found = self.find(
            &snapshot.config.affinity,
            &snapshot,
            cluster.secrets().as_deref(),
            |id| cluster.learned().find(id, Instant::now()),
        );
        if board.is_direct(cluster.name()) {
            found.steps.push(
                "in mode direct the kernel leads by the same table; who is held waits in the \
                 backlog of the slot's socket"
                    .into(),
            );
        }
        let lives = |entry: &Entry| !entry.leaving.is_empty();
        if found.known.is_none() && snapshot.entries.iter().any(lives) {
            found.steps.push(
                "while a generation before drains, a client that has a relayed connection there (mode \
                 tcp) goes there with the next ones too"
                    .into(),
            );
        }
        Ok(self.explain(found, &snapshot, &snapshot.live()))
    }

    /// What identifies the client: found as for one that comes, and told.
    fn find(
        &self,
        affinity: &Affinity,
        snapshot: &Snapshot,
        secrets: Option<&Secrets>,
        learned: impl FnOnce(&[u8]) -> Option<Giver>,
    ) -> Found {
        let now = unix_seconds(SystemTime::now());
        let shown = Shown {
            client: self.client,
            cookies: self.cookie.iter().map(String::as_bytes),
            value: self.value.as_deref().map(str::as_bytes),
        };
        let identity = Identity::of(affinity, shown, secrets, learned, now);
        let home = identity.home();
        let known = home.and_then(|(slot, _)| snapshot.position_of(slot));
        let name = known.map(|index| &*snapshot.entries[index].slot.name);
        let mut steps = Vec::new();
        match &affinity.key {
            Key::Address => {}
            Key::Cookie(_) => steps.push(match identity.token {
                Some(token) => match name {
                    Some(name) => {
                        format!("the cookie says {name}, generation {}", token.generation)
                    }
                    None => "the cookie says a slot that is not there any more".to_owned(),
                },
                None => self.why_no_cookie(secrets, now),
            }),
            Key::Header(name) => steps.extend(self.why_no_value(&format!("header {name}"))),
            Key::Query(name) => steps.extend(self.why_no_value(&format!("parameter {name}"))),
            Key::None => {
                steps.push("each connection draws its key anew; this is one draw of many".into());
            }
        }
        steps.extend(self.how_it_hashes(identity.by, affinity));
        steps.extend(identity.giver.map(|giver| match name {
            Some(name) => format!(
                "{name}, generation {}, gave the client this value, which goes before the key",
                giver.generation
            ),
            None => "a slot that is not there any more gave the client this value".to_owned(),
        }));
        Found {
            key: identity.key,
            known,
            generation: home.map(|(_, generation)| generation),
            by: identity.by,
            steps,
        }
    }

    fn why_no_cookie(&self, secrets: Option<&Secrets>, now: u64) -> String {
        let Some(text) = &self.cookie else {
            return "no cookie was told: the address decides".into();
        };
        let signed = secrets.and_then(|secrets| secrets.read(text.as_bytes(), 0));
        match signed {
            None => "the cookie counts for nothing: none of the secrets signed it".to_owned(),
            Some(token) => format!(
                "the cookie counts for nothing: it ended {} s ago",
                now.saturating_sub(token.expires)
            ),
        }
    }

    fn why_no_value(&self, what: &str) -> Option<String> {
        let has_none = self.value.as_deref().is_none_or(str::is_empty);
        has_none.then(|| format!("no value of the {what} was told: the address decides"))
    }

    fn how_it_hashes(&self, by: &str, affinity: &Affinity) -> Option<String> {
        match (by, self.client) {
            ("none", _) => None,
            ("header" | "query" | "learned", _) => {
                let value = self.value.as_deref().unwrap_or_default();
                Some(format!("the key is a hash of the value {value:?}"))
            }
            (_, IpAddr::V4(client)) => Some(format!(
                "the key is the first {} bits of the address {client}",
                affinity.prefix_v4.min(32),
            )),
            (_, IpAddr::V6(client)) => Some(format!(
                "the key is a hash of the first {} bits of the address {client}",
                affinity.prefix_v6.min(128),
            )),
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
