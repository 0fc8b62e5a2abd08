//! What happened between two looks.

use tokio::time::Instant;

use crate::admin::view::{Backend, Slot, Status};

/// How things stood at a moment.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) status: Status,
    pub(super) at: Instant,
}

/// A slot, and what happened in it a second.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    /// Its state in words, with what is beside and behind.
    pub(super) state: String,
    pub(super) mood: Mood,
    pub(super) generation: Option<u32>,
    pub(super) pid: Option<u32>,
    pub(super) active: u64,
    pub(super) rates: Rates,
    /// Processors in use, in per cent of one.
    pub(super) cpu: Option<f64>,
    pub(super) memory: Option<u64>,
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// It takes clients.
    Good,
    /// It takes none, as is to be expected for a time.
    Passing,
    /// It takes none.
    Bad,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Connections or requests.
    pub(super) new: f64,
    /// Failed attempts to connect.
    pub(super) failed: f64,
    /// Bytes from clients.
    pub(super) up: f64,
    /// Bytes to clients.
    pub(super) down: f64,
}

impl Rates {
    /// Their sum over slots.
    pub(super) fn of_all(rows: &[Row]) -> Self {
        rows.iter().fold(Self::default(), |sum, row| Self {
            new: sum.new + row.rates.new,
            failed: sum.failed + row.rates.failed,
            up: sum.up + row.rates.up,
            down: sum.down + row.rates.down,
        })
    }
}

/// All slots in the order of their clusters. Without a look before there are no rates.
pub(super) fn rows(now: &Look, before: Option<&Look>) -> Vec<Row> {
    // What was counted before an upgrade or a restart is another count.
    let before = before.filter(|before| before.status.since == now.status.since);
    let seconds = before.map_or(1.0, |before| (now.at - before.at).as_secs_f64());
    let clusters = now.status.clusters.iter();
    let slots = clusters.flat_map(|cluster| &cluster.slots);
    let row = |slot: &Slot| row(slot, before.and_then(|look| same(look, slot)), seconds);
    slots.map(row).collect()
}

fn same<'a>(look: &'a Look, slot: &Slot) -> Option<&'a Slot> {
    let mut slots = look.status.clusters.iter().flat_map(|one| &one.slots);
    slots.find(|before| before.name == slot.name)
}

fn row(slot: &Slot, before: Option<&Slot>, seconds: f64) -> Row {
    let rate = |of: fn(&Slot) -> u64| {
        let grown = before.map_or(0, |before| of(slot).saturating_sub(of(before)));
        grown as f64 / seconds
    };
    let backend = slot.backend.as_ref();
    let used = |backend: Option<&Backend>| backend.and_then(|one| Some((one.pid?, one.cpu?)));
    let cpu = used(backend).zip(used(before.and_then(|before| before.backend.as_ref())));
    let cpu = cpu.filter(|((pid, _), (same, _))| pid == same);
    Row {
        name: slot.name.clone(),
        state: state(slot),
        mood: match slot.state.as_str() {
            "ready" => Mood::Good,
            "starting" | "stopping" | "draining" | "maint" | "warming_up" => Mood::Passing,
            _ => Mood::Bad,
        },
        generation: backend.map(|one| one.generation).filter(|one| *one > 0),
        pid: backend.and_then(|backend| backend.pid),
        active: slot.active,
        rates: Rates {
            new: rate(|slot| slot.total),
            failed: rate(|slot| slot.connect_failures),
            up: rate(|slot| slot.bytes_up),
            down: rate(|slot| slot.bytes_down),
        },
        cpu: cpu.map(|((_, now), (_, before))| now.saturating_sub(before) as f64 / 10.0 / seconds),
        memory: backend.and_then(|backend| backend.rss),
    }
}

fn state(slot: &Slot) -> String {
    let mut parts = vec![slot.state.clone()];
    parts.extend(slot.why.clone());
    if slot.held > 0 {
        parts.push(format!("{} wait", slot.held));
    }
    let next = slot.next.as_ref();
    parts.extend(next.map(|next| format!("gen {} gets ready", next.generation)));
    let leaving = slot.leaving.iter();
    parts.extend(leaving.map(|one| format!("gen {} drains {}", one.generation, one.active)));
    parts.join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admin::view::Cluster;

    pub(in crate::cli::top) fn slot(name: &str) -> Slot {
        Slot {
            name: name.to_owned(),
            state: "ready".to_owned(),
            why: None,
            weight: 1,
            backend: Some(backend(2, 100)),
            next: None,
            leaving: Vec::new(),
            active: 7,
            held: 0,
            total: 1000,
            connect_failures: 1,
            bytes_up: 4096,
            bytes_down: 1 << 20,
            loop_lag_ms: None,
        }
    }

    pub(in crate::cli::top) fn backend(generation: u32, pid: u32) -> Backend {
        Backend {
            address: "127.0.0.1:4000".to_owned(),
            generation,
            pid: Some(pid),
            active: 3,
            rss: Some(50 << 20),
            cpu: Some(60_000),
        }
    }

    pub(in crate::cli::top) fn look(slots: Vec<Slot>, at: Instant) -> Look {
        let cluster = Cluster {
            name: "app".to_owned(),
            snapshot: 1,
            affinity: "address".to_owned(),
            supervised: true,
            slots,
        };
        let status = Status {
            version: "1.2.3".to_owned(),
            pid: 42,
            since: 1_700_000_000,
            uptime: 7_530,
            phase: "running".to_owned(),
            config: None,
            reloads: Default::default(),
            connections: 9,
            listeners: Vec::new(),
            clusters: vec![cluster],
        };
        Look { status, at }
    }

    #[test]
    fn rates_are_by_the_second_whatever_the_interval() {
        let start = Instant::now();
        let before = look(vec![slot("app/0")], start);
        let mut later = slot("app/0");
        later.total += 50;
        later.bytes_up += 1000;
        later.backend.as_mut().unwrap().cpu = Some(61_000);
        let now = look(vec![later], start + Duration::from_secs(2));
        let [row] = rows(&now, Some(&before)).try_into().unwrap();
        assert_eq!((row.rates.new, row.rates.up), (25.0, 500.0));
        assert_eq!((row.rates.failed, row.rates.down), (0.0, 0.0));
        assert_eq!(row.cpu, Some(50.0), "a second of two");
        let [first] = rows(&now, None).try_into().unwrap();
        assert_eq!((first.rates, first.cpu), (Rates::default(), None));
    }

    #[test]
    fn another_process_is_another_count() {
        let start = Instant::now();
        let before = look(vec![slot("app/0")], start);
        let mut next = slot("app/0");
        next.backend = Some(backend(3, 101));
        next.total = 0;
        let mut now = look(vec![next, slot("app/1")], start + Duration::from_secs(1));
        let of = |now: &Look| rows(now, Some(&before));
        assert_eq!((of(&now)[0].cpu, of(&now)[0].rates.new), (None, 0.0));
        assert_eq!(of(&now)[1].rates, Rates::default(), "it was not there");
        now.status.since += 1;
        assert!(of(&now).iter().all(|row| row.rates == Rates::default()));
    }

    #[test]
    fn what_is_beside_and_behind_is_told() {
        let mut slot = slot("app/0");
        assert_eq!(state(&slot), "ready");
        slot.held = 2;
        slot.next = Some(backend(3, 101));
        slot.leaving = vec![backend(1, 99)];
        assert_eq!(
            state(&slot),
            "ready, 2 wait, gen 3 gets ready, gen 1 drains 3"
        );
    }
}
