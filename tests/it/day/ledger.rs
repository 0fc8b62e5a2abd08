//! What an operator, and chance, did to homescar, and when: what the clients' day is judged by.

use std::{net::IpAddr, num::NonZeroU32};

use homescar::affinity::{AffinityKey, Masks, Table};
use serde_json::Value;

use crate::support::homescar::message;

/// The most slots that a cluster ever has.
const SLOTS: usize = 8;
/// So much later a change may reach clients than it is in the log: the kernel's program is changed
/// after the table, and a process that is killed is gone after a while.
const SLACK: f64 = 0.3;

/// A worker that was killed.
#[derive(Clone, Debug)]
pub(super) struct Kill {
    pub(super) slot: String,
    pub(super) pid: u32,
    pub(super) at: f64,
    /// When homescar knew, and when the next generation took clients.
    pub(super) gone: f64,
    pub(super) back: f64,
}

/// A time in which a slot took no new clients.
#[derive(Clone, Debug)]
pub(super) struct Away {
    pub(super) slot: String,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) why: &'static str,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) kills: Vec<Kill>,
    pub(super) away: Vec<Away>,
    /// From the signal to the receipt.
    pub(super) upgrades: Vec<(f64, f64)>,
    /// Rolling restarts of a cluster, also aborted ones, likewise.
    pub(super) rolls: Vec<(String, f64, f64)>,
    /// Rolling restarts that replaced all, and that were aborted, of both clusters together.
    pub(super) restarts: usize,
    pub(super) aborts: usize,
    /// Slots whose next generation has crashed while it was tried, and when.
    pub(super) crashes: Vec<(String, f64, f64)>,
    /// Reloads that went well, and that were refused.
    pub(super) reloads: usize,
    pub(super) faults: usize,
    pub(super) drains: usize,
    /// Connections that were cut when their generation left.
    pub(super) cut: usize,
    pub(super) scales: usize,
}

/// When a line was logged.
pub(super) fn time_of(line: &Value) -> f64 {
    let time = line["timestamp"].as_str().unwrap_or_default();
    let time = humantime::parse_rfc3339(time).unwrap_or_else(|error| panic!("{error}: {line}"));
    let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

/// Whether a line says that something stands in this slot that takes clients.
fn is_up(line: &Value, slot: &str) -> bool {
    let said = message(line);
    line["slot"] == *slot && (said.contains("ready after") || said.contains("has taken over"))
}

impl Ledger {
    /// Looks up in the log what it knows better.
    pub(super) fn look_up(&mut self, log: &[Value]) {
        for kill in &mut self.kills {
            let its_end = log.iter().find(|line| {
                line["pid"] == kill.pid && message(line).contains("signal KILL, after")
            });
            let its_end = its_end.unwrap_or_else(|| panic!("{kill:?} is not in the log"));
            kill.gone = time_of(its_end);
            let is_back = |line: &&Value| is_up(line, &kill.slot) && time_of(line) > kill.gone;
            let back = log.iter().find(is_back);
            kill.back = back.map_or(f64::INFINITY, time_of);
            self.away.push(Away {
                slot: kill.slot.clone(),
                from: kill.at,
                to: kill.back,
                why: "killed",
            });
        }
        for away in &mut self.away {
            if away.why == "new" {
                let from = away.from;
                let is_there = |line: &&Value| is_up(line, &away.slot) && time_of(line) > from;
                away.to = log.iter().find(is_there).map_or(f64::INFINITY, time_of);
            }
        }
    }

    /// Whether a slot took no new clients at some time between these.
    fn was_away(&self, slot: &str, from: f64, to: f64) -> bool {
        let mut away = self.away.iter();
        away.any(|away| away.slot == slot && away.from <= to && from <= away.to + SLACK)
    }

    /// Whether no slot of a cluster took clients then.
    pub(super) fn are_all_away(&self, cluster: &str, at: f64) -> bool {
        let mut slots = (0..SLOTS).map(|slot| format!("{cluster}/{slot}"));
        slots.all(|slot| self.was_away(&slot, at - SLACK, at))
    }

    /// Why a client that came then may not have met this slot: the first that was better and there.
    pub(super) fn is_moved(
        &self,
        cluster: &str,
        client: IpAddr,
        slot: &str,
        (from, to): (f64, f64),
    ) -> Option<String> {
        for better in order(cluster, client) {
            if better == slot {
                return None;
            }
            if !self.was_away(&better, from, to) {
                return Some(better);
            }
        }
        Some(format!("no slot of {cluster}"))
    }

    /// Whom a client may have met then.
    pub(super) fn may_meet(
        &self,
        cluster: &str,
        client: IpAddr,
        from: f64,
        to: f64,
    ) -> Vec<String> {
        let mut met = Vec::new();
        for slot in order(cluster, client) {
            let was_away = self.was_away(&slot, from, to);
            met.push(slot);
            if !was_away {
                break;
            }
        }
        met
    }

    /// Workers of these slots that were killed while somebody was there, who noticed then.
    pub(super) fn killed(
        &self,
        slots: &[String],
        begun: f64,
        ended: f64,
    ) -> impl Iterator<Item = &Kill> {
        self.kills.iter().filter(move |kill| {
            let was_there = begun <= kill.gone + SLACK && kill.at <= ended;
            was_there && ended <= kill.back.max(kill.gone + 1.0) && slots.contains(&kill.slot)
        })
    }

    /// Whether the next generation of one of these slots has crashed then, while it was tried.
    pub(super) fn has_crashed(&self, slots: &[String], from: f64, to: f64) -> bool {
        let mut crashes = self.crashes.iter();
        crashes.any(|(slot, began, done)| slots.contains(slot) && *began <= to && from <= *done)
    }

    /// Whether a slot of this cluster came or went then.
    pub(super) fn has_changed(&self, cluster: &str, from: f64, to: f64) -> bool {
        let mut away = self.away.iter();
        away.any(|away| {
            let of = |time: f64| from <= time + SLACK && time <= to + SLACK;
            away.slot.starts_with(cluster) && (of(away.from) || of(away.to))
        })
    }

    /// Whether two generations of this cluster were there side by side.
    pub(super) fn is_rolling(&self, cluster: &str, from: f64, to: f64) -> bool {
        let mut rolls = self.rolls.iter();
        rolls.any(|(of, began, done)| of == cluster && *began <= to && from <= *done + SLACK)
    }

    pub(super) fn is_upgrading(&self, from: f64, to: f64) -> bool {
        self.upgrades
            .iter()
            .any(|(began, done)| *began <= to && from <= *done + SLACK)
    }
}

/// All slots that a cluster ever has, in the order in which they are this client's.
fn order(cluster: &str, client: IpAddr) -> Vec<String> {
    let names: Vec<_> = (0..SLOTS).map(|slot| format!("{cluster}/{slot}")).collect();
    let table = Table::new(0, names.iter().map(|name| (&**name, NonZeroU32::MIN)));
    let key = AffinityKey::from_address(client, Masks { v4: 32, v6: 64 }, 0);
    table
        .candidates(key)
        .map(|slot| names[slot].clone())
        .collect()
}
