//! Whether every client was served as it should be, and where not, whose doing that was.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

use super::{
    ledger::{Kill, Ledger, time_of},
    street::{Kind, Outcome, Visit},
};
use crate::support::{client::Who, homescar::message};

/// What came of all visits.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) served: BTreeMap<Kind, usize>,
    /// Of those who came to another slot than their own, which was away.
    pub(super) elsewhere: usize,
    /// Those who were asked to go, and did.
    pub(super) told: usize,
    /// Sessions that ended with the generation that had them.
    pub(super) sessions: usize,
    /// Kept connections that were closed between two requests, with their generation.
    pub(super) stale: usize,
    /// What was lost with a worker that was killed: one line each.
    pub(super) killed: Vec<String>,
    /// In direct mode: what was lost with a broken release that crashed while it was tried. It has
    /// the same socket as the generation before, and may take clients from it.
    pub(super) crashed: usize,
    /// What nothing explains.
    pub(super) faults: Vec<String>,
    /// The longest that anybody waited who met no killed worker, by kind.
    pub(super) longest: BTreeMap<Kind, (f64, String)>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            served,
            elsewhere,
            told,
            sessions,
            stale,
            killed,
            crashed,
            faults,
            longest,
        } = self;
        writeln!(
            text,
            "served {served:?}; elsewhere {elsewhere}; told to go {told}; sessions that ended with \
             their generation {sessions}; closed between requests {stale}; lost with a killed worker \
             {}, with a crashed release {crashed}; faults {}",
            killed.len(),
            faults.len()
        )?;
        for (kind, (seconds, what)) in longest {
            writeln!(text, "longest {kind:?}: {seconds:.2} s: {what}")?;
        }
        for line in faults.iter().take(40) {
            writeln!(text, "  {line}")?;
        }
        Ok(())
    }
}

pub(super) struct Judge<'a> {
    pub(super) mode: &'a str,
    pub(super) ledger: &'a Ledger,
    pub(super) log: &'a [Value],
    /// When the day began.
    pub(super) dawn: f64,
}

impl Judge<'_> {
    pub(super) fn judge(&self, mut visits: Vec<Visit>) -> Verdict {
        visits.sort_by(|a, b| a.ended.total_cmp(&b.ended));
        let mut verdict = Verdict::default();
        let mut by_client: BTreeMap<(Kind, &str, IpAddr), Vec<&Visit>> = BTreeMap::new();
        for visit in &visits {
            let key = (visit.kind, visit.cluster, visit.client);
            by_client.entry(key).or_default().push(visit);
        }
        for visits in by_client.values() {
            for (index, visit) in visits.iter().enumerate() {
                self.judge_one(visit, &visits[..index], &visits[index + 1..], &mut verdict);
            }
        }
        verdict
    }

    fn judge_one(&self, visit: &Visit, before: &[&Visit], after: &[&Visit], verdict: &mut Verdict) {
        let same = before.iter().rev();
        let is_same =
            |other: &&&Visit| visit.from.is_some() && other.begun.total_cmp(&visit.begun).is_eq();
        let same = same.take_while(is_same);
        let at = same.filter_map(|other| served(other)).next();
        let fault = match &visit.outcome {
            Outcome::Served(who) => {
                *verdict.served.entry(visit.kind).or_default() += 1;
                self.judge_served(visit, who, at, verdict)
            }
            _ if let Some(why) = self.lost_with_its_worker(visit, at) => {
                verdict.killed.push(why);
                None
            }
            Outcome::Told(code @ (1001 | 1012)) => {
                verdict.told += 1;
                let next = after.iter().find_map(|next| served(next));
                self.judge_told(visit, at, next, *code)
            }
            Outcome::Lost(_) => {
                verdict.sessions += 1;
                self.judge_lost(visit, before, after)
            }
            Outcome::Stale(_) => {
                verdict.stale += 1;
                let next = after.iter().find_map(|next| served(next));
                self.judge_told(visit, at, next, 0)
            }
            Outcome::Failed(_) if self.is_lost_with_a_release(visit, at) => {
                verdict.crashed += 1;
                None
            }
            Outcome::Told(_) | Outcome::Failed(_) => Some("failed".to_owned()),
        };
        if let Some(fault) = fault {
            let told = self.tell(visit, at, &fault);
            verdict.faults.push(told + &self.events_around(visit));
        }
    }

    fn judge_served(
        &self,
        visit: &Visit,
        who: &Who,
        at: Option<&Who>,
        verdict: &mut Verdict,
    ) -> Option<String> {
        let took = visit.ended - visit.asked;
        let near = self.ledger.kills.iter();
        let mut near = near.filter(|kill| kill.at <= visit.ended && visit.asked <= kill.back);
        if near.all(|kill| kill.slot[..4] != *visit.cluster) {
            let longest = verdict.longest.entry(visit.kind).or_default();
            if took > longest.0 {
                *longest = (took, self.tell(visit, at, &who.slot));
            }
        }
        let by_request = self.mode == "http" && matches!(visit.kind, Kind::Short | Kind::Kept);
        if let Some(at) = at.filter(|_| !by_request) {
            let is_same = at.pid == who.pid;
            return (!is_same).then(|| format!("one connection, and two workers: {at:?} {who:?}"));
        }
        let from = if by_request { visit.asked } else { visit.begun };
        // A session may have been begun long before.
        let from = if visit.kind == Kind::Session {
            from - 2.0
        } else {
            from
        };
        let is_home = self
            .ledger
            .is_moved(visit.cluster, visit.client, &who.slot, (0.0, 0.0));
        verdict.elsewhere += usize::from(is_home.is_some());
        let window = (from, visit.ended);
        let better = self
            .ledger
            .is_moved(visit.cluster, visit.client, &who.slot, window);
        better.map(|better| format!("moved: {better} was there, {} has served", who.slot))
    }

    /// Asked to go: there was a reason, and the same slot takes it up, or its own is away.
    fn judge_told(
        &self,
        visit: &Visit,
        at: Option<&Who>,
        next: Option<&Who>,
        code: u16,
    ) -> Option<String> {
        let (Some(at), Some(next)) = (at, next) else {
            return Some(format!("told {code}, before it was served or for ever"));
        };
        let has_changed = at.pid != next.pid;
        let upgraded = self.mode == "http"
            && self
                .ledger
                .is_upgrading(visit.begun.max(visit.asked - 1.0), visit.ended);
        (!has_changed && !upgraded).then(|| format!("told {code} for no reason: {at:?} {next:?}"))
    }

    /// A session: who had it has left, or other clients' slots have come or gone. In direct mode both
    /// generations have the slot's socket while the next one is tried, and whoever opens a connection
    /// for each poll meets the one or the other.
    fn judge_lost(&self, visit: &Visit, before: &[&Visit], after: &[&Visit]) -> Option<String> {
        let is_served = |visit: &&&Visit| served(visit).is_some();
        let Some(next) = after.iter().find(is_served) else {
            return Some("and nobody took it up".to_owned());
        };
        let last = before.iter().rev().find(is_served)?;
        let (from, to) = (last.asked, next.ended);
        let is_same = served(last).map(|who| who.pid) == served(next).map(|who| who.pid);
        let is_explained = self.ledger.has_changed(visit.cluster, from, to)
            || self.ledger.is_upgrading(from, to)
            || (self.mode == "direct" && self.ledger.is_rolling(visit.cluster, from, to));
        (is_same && !is_explained).then(|| "its worker had not changed".to_owned())
    }

    /// A worker that was killed with this on its hands. Where homescar is on the path, its record of
    /// the connection says the same.
    fn lost_with_its_worker(&self, visit: &Visit, at: Option<&Who>) -> Option<String> {
        let slots = match at {
            Some(at) => vec![at.slot.clone()],
            None => {
                let Visit {
                    cluster, client, ..
                } = visit;
                let begun = visit.begun
                    - if visit.kind == Kind::Session {
                        2.0
                    } else {
                        0.0
                    };
                self.ledger.may_meet(cluster, *client, begun, visit.ended)
            }
        };
        let mut kills = self.ledger.killed(&slots, visit.begun, visit.ended);
        let from = visit.from.filter(|_| self.mode != "direct");
        let pids = from.map(|from| self.pids_of(from));
        let is_its = |kill: &&Kill| {
            let recorded = pids.as_ref();
            at.is_none_or(|at| at.pid == kill.pid || self.mode == "http")
                && recorded.is_none_or(|pids| match pids[..] {
                    // Nobody was there when it had been held for long enough.
                    [] => self.ledger.are_all_away(visit.cluster, visit.ended),
                    _ => self.may_have_had(kill, pids),
                })
        };
        let kill = kills.find(is_its)?;
        Some(format!(
            "{:?} {} at {:.3}: {} (pid {}) was killed at {:.3}",
            visit.kind,
            visit.client,
            visit.ended - self.dawn,
            kill.slot,
            kill.pid,
            kill.at - self.dawn
        ))
    }

    /// Whether a worker that was killed may have had a connection that was brought to one of these: to
    /// itself, or to one before it that was killed, in whose socket it has waited for the next.
    fn may_have_had(&self, kill: &Kill, brought_to: &[u64]) -> bool {
        let is_one = |kill: &Kill| brought_to.contains(&u64::from(kill.pid));
        let mut before = self.ledger.kills.iter();
        is_one(kill) || before.any(|one| one.slot == kill.slot && one.at < kill.at && is_one(one))
    }

    fn is_lost_with_a_release(&self, visit: &Visit, at: Option<&Who>) -> bool {
        let slots = match at {
            Some(at) => vec![at.slot.clone()],
            None => self
                .ledger
                .may_meet(visit.cluster, visit.client, visit.begun, visit.ended),
        };
        let is_tried = self.ledger.has_crashed(&slots, visit.begun, visit.ended);
        self.mode == "direct" && is_tried
    }

    /// Whom homescar says that it has brought a connection to.
    fn pids_of(&self, from: SocketAddr) -> Vec<u64> {
        let from = from.to_string();
        let is_of = |line: &&Value| {
            line["client"] == *from && matches!(message(line), "connection" | "request")
        };
        let records = self.log.iter().filter(is_of);
        records.filter_map(|line| line["pid"].as_u64()).collect()
    }

    fn tell(&self, visit: &Visit, at: Option<&Who>, what: &str) -> String {
        let Visit {
            kind,
            cluster,
            client,
            from,
            begun,
            asked,
            ended,
            outcome,
        } = visit;
        let [begun, asked, ended] = [begun, asked, ended].map(|time| time - self.dawn);
        let mut text = format!(
            "{what}: {kind:?} {cluster} {client} {from:?} begun {begun:.3} asked {asked:.3} ended \
             {ended:.3}"
        );
        let at = at.map(|at| (&at.slot, at.generation, at.pid));
        let _infallible = write!(text, " at {at:?}: {outcome}");
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        for record in self.records_of(&from) {
            let _infallible = write!(text, "\n    {record}");
        }
        text
    }

    fn records_of(&self, from: &str) -> impl Iterator<Item = &Value> {
        let records = self.log.iter();
        records.filter(move |line| line["client"] == *from)
    }

    /// What else the log says of the slots that it met, at about that time.
    fn events_around(&self, visit: &Visit) -> String {
        let from = visit.from.map(|from| from.to_string()).unwrap_or_default();
        let slots: Vec<_> = self.records_of(&from).map(|line| &line["slot"]).collect();
        let mut text = String::new();
        for line in self.log {
            let is_event = !matches!(message(line), "connection" | "request");
            if is_event && slots.contains(&&line["slot"]) {
                let at = time_of(line);
                if (visit.begun - 5.0..visit.ended + 5.0).contains(&at) {
                    let _infallible = write!(text, "\n    {:.3} {line}", at - self.dawn);
                }
            }
        }
        text
    }
}

fn served(visit: &Visit) -> Option<&Who> {
    match &visit.outcome {
        Outcome::Served(who) => Some(who),
        _ => None,
    }
}
