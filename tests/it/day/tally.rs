//! What homescar weighs, and what it says that has happened.

use std::{cell::RefCell, fmt, fs, time::Duration};

use serde_json::Value;
use tokio::time::sleep;

use super::{
    ledger::Ledger,
    operator::{MOST, Operator, WORKERS},
    street::{Street, now},
};
use crate::{
    metrics::{Page, until},
    support::homescar::{Homescar, descriptors, message},
};

/// What a process has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    descriptors: usize,
    /// Private memory, in KiB.
    memory: u64,
    /// Its share of all memory, in KiB.
    share: u64,
}

/// For memory that was freed to be found again: the allocator keeps some.
const MARGIN: u64 = 2048;
/// Longer than homescar keeps a connection to a worker that nobody uses, in seconds.
const KEPT: f64 = 6.0;

impl Weight {
    pub(super) async fn of(homescar: &Homescar, mode: &str) -> Self {
        until(homescar, "homescar_connections_active", &[], 0.0).await;
        let pid = homescar.pid();
        let kib = |file: &str, name: &str| -> u64 {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        // The admin's own connection goes, and so do those to workers that are kept for a while.
        let mut fewest = usize::MAX;
        let end = now() + if mode == "http" { KEPT } else { 0.5 };
        while now() < end {
            fewest = fewest.min(descriptors(pid));
            sleep(Duration::from_millis(25)).await;
        }
        Self {
            descriptors: fewest,
            memory: kib("status", "RssAnon:"),
            share: kib("smaps_rollup", "Pss:"),
        }
    }

    /// What there is more of than before. In direct mode the sockets of slots that were scaled away
    /// stay for the next time: there are as many as there ever were slots.
    pub(super) fn grown(self, before: Self, mode: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let stay = if mode == "direct" {
            2 * (MOST - WORKERS)
        } else {
            0
        };
        if self.descriptors != before.descriptors + stay {
            faults.push(format!("descriptors: {before:?} {self:?}"));
        }
        let is_more = |now, before| now >= before + MARGIN;
        if is_more(self.memory, before.memory) || is_more(self.share, before.share) {
            faults.push(format!("memory grows: {before:?} {self:?}"));
        }
        faults
    }
}

/// Everything that has happened is in the metrics and in the log, and is there as often; what is not.
pub(super) fn check(
    operator: &Operator,
    street: &Street,
    page: &Page,
    log: &[Value],
) -> Vec<String> {
    let tally = Tally {
        mode: operator.mode,
        ledger: &operator.ledger,
        page,
        log,
        faults: RefCell::default(),
    };
    tally.what_the_operator_did();
    for cluster in ["node", "rust"] {
        // Those that were there all day; of slots that have left nothing is shown.
        for slot in 0..3 {
            tally.workers_of(cluster, slot);
        }
        match operator.mode {
            "tcp" => tally.connections(cluster, street),
            "http" => tally.requests(cluster, street),
            _ => tally.same(cluster, tally.records("connection", cluster).count(), 0),
        }
    }
    tally.same(
        "dropped",
        page.sum("homescar_log_lines_dropped_total", &[]),
        0.0,
    );
    tally.faults.into_inner()
}

struct Tally<'a> {
    mode: &'a str,
    ledger: &'a Ledger,
    page: &'a Page,
    log: &'a [Value],
    faults: RefCell<Vec<String>>,
}

impl Tally<'_> {
    /// What homescar says is as it was.
    fn same<T: PartialEq + fmt::Debug>(&self, what: &str, said: T, was: T) {
        if said != was {
            let fault = format!("{what}: homescar says {said:?}, it was {was:?}");
            self.faults.borrow_mut().push(fault);
        }
    }

    fn what_the_operator_did(&self) {
        let said = |what: &dyn Fn(&str) -> bool| {
            let lines = self.log.iter();
            lines.filter(|line| what(message(line))).count()
        };
        let Ledger {
            kills,
            upgrades,
            restarts,
            aborts,
            reloads,
            faults,
            drains,
            scales,
            ..
        } = self.ledger;
        self.same(
            "upgrades, HUPs",
            (upgrades.len(), reloads + faults),
            (5, 20),
        );
        self.same("restarts, scales", (*restarts, *scales), (2 * 5, 2 * 3));
        let rolled = |said: &str| said.starts_with("rolling restart of ") && said.contains(": ");
        let counted = [
            (said(&|said| said == "upgraded"), upgrades.len()),
            (said(&|said| said == "reloaded"), *reloads),
            (said(&|said| said.starts_with("not reloaded")), *faults),
            (said(&rolled), *restarts),
            (
                said(&|said| said.contains("aborted after 0 slots")),
                *aborts,
            ),
            (said(&|said| said.contains(" is scaled from ")), *scales),
            (said(&|said| said == "takes no clients: draining"), *drains),
            (
                said(&|said| said.contains("ended: signal KILL")),
                kills.len(),
            ),
        ];
        for (index, (said, done)) in counted.into_iter().enumerate() {
            self.same(&format!("event {index}"), said, done);
        }
        let reloaded = |result| {
            let name = "homescar_config_reloads_total";
            self.page.sum(name, &[("result", result)])
        };
        let counted = (reloaded("ok"), reloaded("failed"));
        self.same("reloads", counted, (*reloads as f64, *faults as f64));
    }

    /// How often the log has such a line of this slot.
    fn lines(&self, slot: &str, what: &str) -> f64 {
        let is_one = |line: &&Value| line["slot"] == *slot && message(line).contains(what);
        self.log.iter().filter(is_one).count() as f64
    }

    fn workers_of(&self, cluster: &str, index: usize) {
        let slot = &*format!("{cluster}/{index}");
        let of = |name: &str, key: &str, value: &str| {
            self.page.sum(name, &[("slot", slot), (key, value)])
        };
        let starts = |reason| of("homescar_worker_starts_total", "reason", reason);
        let exits = |kind| of("homescar_worker_exits_total", "kind", kind);
        let kills = self.ledger.kills.iter();
        let kills = kills.filter(|kill| kill.slot == slot).count() as f64;
        let beside = self.lines(slot, "the next generation starts beside it");
        let started = (starts("first"), starts("restart"), starts("replacement"));
        self.same(&format!("{slot} started"), started, (1.0, kills, beside));
        // Of broken releases only the first slot sees anything: by it one has crashed, and the others
        // were killed or took too much.
        let broken = match (index, self.mode) {
            (1.., _) => (0.0, 0.0),
            (_, "direct") => (1.0, 2.0),
            _ => (1.0, 3.0),
        };
        let departed = self.lines(slot, "ended: exit code 0");
        let ended = (exits("success"), exits("failure"), exits("signal"));
        let all_ended = (departed, broken.0, kills + broken.1);
        self.same(&format!("{slot} ended"), ended, all_ended);
        let others = (exits("oom"), exits("unknown"));
        self.same(&format!("{slot} ended otherwise"), others, (0.0, 0.0));
        let all = started.0 + started.1 + started.2;
        let one_is_there = ended.0 + ended.1 + ended.2 + 1.0;
        self.same(&format!("{slot} in all"), all, one_is_there);
        let ready = self
            .page
            .sum("homescar_worker_ready_seconds_count", &[("slot", slot)]);
        let said = self.lines(slot, "ready after");
        self.same(&format!("{slot} ready"), ready, said);
        let drained = of("homescar_slot_transitions_total", "to", "draining");
        self.same(&format!("{slot} drained"), drained, 1.0);
    }

    fn records(&self, what: &'static str, cluster: &str) -> impl Iterator<Item = &Value> {
        let records = self.log.iter().filter(move |line| message(line) == what);
        records.filter(move |line| line["listener"] == *cluster)
    }

    fn connections(&self, cluster: &str, street: &Street) {
        let of = |name: &str| self.page.sum(name, &[("listener", cluster)]);
        let records = self.records("connection", cluster).count() as f64;
        self.same(
            "homescar_listener_connections_total",
            of("homescar_listener_connections_total"),
            records,
        );
        self.same(
            "homescar_closes_total",
            of("homescar_closes_total"),
            records,
        );
        self.same(
            "homescar_connection_duration_seconds_count",
            of("homescar_connection_duration_seconds_count"),
            records,
        );
        let of_street = |line: &&Value| {
            let client = line["client"].as_str().unwrap_or_default();
            client.starts_with("127.1.") && !client.starts_with("127.1.9.")
        };
        let ours = self.records("connection", cluster).filter(of_street);
        self.same(cluster, ours.count(), street.connections(cluster));
        self.moved("connection", cluster);
    }

    fn requests(&self, cluster: &str, street: &Street) {
        let of = |name: &str| self.page.sum(name, &[("listener", cluster)]);
        let records = self.records("request", cluster).count() as f64;
        self.same(
            "homescar_requests_total",
            of("homescar_requests_total"),
            records,
        );
        self.same(
            "homescar_request_ends_total",
            of("homescar_request_ends_total"),
            records,
        );
        let websockets = || {
            let records = self.records("request", cluster);
            records.filter(|line| line["status"] == 101)
        };
        let opened = of("homescar_websockets_total");
        self.same("WebSockets", opened, websockets().count() as f64);
        let closed = of("homescar_websocket_closes_total");
        self.same("WebSockets closed", closed, websockets().count() as f64);
        let of_street = |line: &&Value| {
            let client = line["client"].as_str().unwrap_or_default();
            !client.starts_with("127.1.9.")
        };
        let ours = websockets().filter(of_street).count();
        self.same(cluster, ours, street.websockets(cluster));
        self.moved("request", cluster);
    }

    /// Whoever was served by another slot than its own, says both why.
    fn moved(&self, what: &'static str, cluster: &str) {
        for index in 0..3 {
            let slot = &*format!("{cluster}/{index}");
            let name = "homescar_affinity_total";
            let counted = self.page.sum(name, &[("slot", slot), ("result", "moved")]);
            let is_moved = |line: &&Value| line["slot"] == *slot && !line["passed"].is_null();
            let said = self.records(what, cluster).filter(is_moved).count();
            self.same(&format!("{slot} moved"), counted, said as f64);
        }
    }
}
