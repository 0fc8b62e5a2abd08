//! What homescar weighs, and what it says that has happened.

use std::{fs, time::Duration};

use serde_json::Value;
use tokio::time::sleep;

use super::{ledger::Ledger, operator::Operator, street::Street};
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

impl Weight {
    pub(super) async fn of(homescar: &Homescar) -> Self {
        until(homescar, "homescar_connections_active", &[], 0.0).await;
        let pid = homescar.pid();
        let kib = |file: &str, name: &str| -> u64 {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        // The admin's own connection goes, and so do those to workers that are kept for a while.
        let mut fewest = usize::MAX;
        for _ in 0..20 {
            fewest = fewest.min(descriptors(pid));
            sleep(Duration::from_millis(25)).await;
        }
        Self {
            descriptors: fewest,
            memory: kib("status", "RssAnon:"),
            share: kib("smaps_rollup", "Pss:"),
        }
    }

    pub(super) fn is_as(self, before: Self) {
        assert_eq!(self.descriptors, before.descriptors, "{before:?} {self:?}");
        assert!(
            self.memory < before.memory + MARGIN && self.share < before.share + MARGIN,
            "memory grows: {before:?} {self:?}"
        );
    }
}

/// Everything that has happened is in the metrics and in the log, and is there as often.
pub(super) fn check(operator: &Operator, street: &Street, page: &Page, log: &[Value]) {
    let tally = Tally {
        mode: operator.mode,
        ledger: &operator.ledger,
        page,
        log,
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
            _ => assert_eq!(tally.records("connection", cluster).count(), 0),
        }
    }
    assert_eq!(page.sum("homescar_log_lines_dropped_total", &[]), 0.0);
}

struct Tally<'a> {
    mode: &'a str,
    ledger: &'a Ledger,
    page: &'a Page,
    log: &'a [Value],
}

impl Tally<'_> {
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
        assert_eq!((upgrades.len(), reloads + faults), (5, 20));
        assert_eq!((*restarts, *scales), (2 * 5, 2 * 3));
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
            assert_eq!(said, done, "the event of number {index}");
        }
        let reloaded = |result| {
            let name = "homescar_config_reloads_total";
            self.page.sum(name, &[("result", result)])
        };
        let counted = (reloaded("ok"), reloaded("failed"));
        assert_eq!(counted, (*reloads as f64, *faults as f64));
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
        assert_eq!(started, (1.0, kills, beside), "{slot}");
        // Of broken releases only the first slot sees anything: by it one has crashed, and the others
        // were killed or took too much.
        let broken = match (index, self.mode) {
            (1.., _) => (0.0, 0.0),
            (_, "direct") => (1.0, 2.0),
            _ => (1.0, 3.0),
        };
        let departed = self.lines(slot, "ended: exit code 0");
        let ended = (exits("success"), exits("failure"), exits("signal"));
        assert_eq!(ended, (departed, broken.0, kills + broken.1), "{slot}");
        assert_eq!((exits("oom"), exits("unknown")), (0.0, 0.0), "{slot}");
        let all = started.0 + started.1 + started.2;
        assert_eq!(
            all,
            ended.0 + ended.1 + ended.2 + 1.0,
            "{slot}: one is there"
        );
        let ready = self
            .page
            .sum("homescar_worker_ready_seconds_count", &[("slot", slot)]);
        let said = self.lines(slot, "ready after");
        assert_eq!(ready, said, "{slot}");
        let drained = of("homescar_slot_transitions_total", "to", "draining");
        assert_eq!(drained, 1.0, "{slot}");
    }

    fn records(&self, what: &'static str, cluster: &str) -> impl Iterator<Item = &Value> {
        let records = self.log.iter().filter(move |line| message(line) == what);
        records.filter(move |line| line["listener"] == *cluster)
    }

    fn connections(&self, cluster: &str, street: &Street) {
        let of = |name: &str| self.page.sum(name, &[("listener", cluster)]);
        let records = self.records("connection", cluster).count() as f64;
        assert_eq!(of("homescar_listener_connections_total"), records);
        assert_eq!(of("homescar_closes_total"), records);
        assert_eq!(of("homescar_connection_duration_seconds_count"), records);
        let of_street = |line: &&Value| {
            let client = line["client"].as_str().unwrap_or_default();
            client.starts_with("127.1.") && !client.starts_with("127.1.9.")
        };
        let ours = self.records("connection", cluster).filter(of_street);
        assert_eq!(ours.count(), street.connections(cluster), "{cluster}");
        self.moved("connection", cluster);
    }

    fn requests(&self, cluster: &str, street: &Street) {
        let of = |name: &str| self.page.sum(name, &[("listener", cluster)]);
        let records = self.records("request", cluster).count() as f64;
        assert_eq!(of("homescar_requests_total"), records);
        assert_eq!(of("homescar_request_ends_total"), records);
        let websockets = || {
            let records = self.records("request", cluster);
            records.filter(|line| line["status"] == 101)
        };
        assert_eq!(of("homescar_websockets_total"), websockets().count() as f64);
        assert_eq!(
            of("homescar_websocket_closes_total"),
            websockets().count() as f64
        );
        let of_street = |line: &&Value| {
            let client = line["client"].as_str().unwrap_or_default();
            !client.starts_with("127.1.9.")
        };
        let ours = websockets().filter(of_street).count();
        assert_eq!(ours, street.websockets(cluster), "{cluster}");
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
            assert_eq!(counted, said as f64, "{slot}");
        }
    }
}
