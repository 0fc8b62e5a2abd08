//! What an operator does in a day, and chance.

use std::{fs, io::Write as _, path::PathBuf, process::Output, time::Duration};

use homescar::{
    admin::{
        client::Client as Admin,
        view::{Receipt, Slot, Status},
    },
    supervisor::{Outcome, SlotReceipt},
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{
    ledger::{Away, Kill, Ledger},
    street::now,
};
use crate::{
    node::script,
    support::homescar::{SOON, WORKER, eventually, message, pid},
    upgrade::Replaceable,
};

/// How many workers each cluster has at the beginning.
pub(super) const WORKERS: usize = 4;
/// And at most.
pub(super) const MOST: usize = 8;
/// No worker is killed so often that it is a crash loop: not more often than this …
const KILLS_IN_A_ROW: usize = 4;
/// … with no longer between two than this, in which the next one has come up and run stably.
const IN_A_ROW: f64 = 16.0;

pub(super) struct Operator {
    pub(super) one: Replaceable,
    pub(super) mode: &'static str,
    pub(super) ledger: Ledger,
    /// What workers are told by it at their start.
    folder: TempDir,
    random: fastrand::Rng,
    release: u32,
}

impl Operator {
    pub(super) fn start(mode: &'static str, seed: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let ledger = Ledger::default();
        fs::write(folder.path().join("node"), "good").unwrap();
        fs::write(folder.path().join("rust"), "").unwrap();
        let release = 1;
        let text = config(mode, folder.path().to_owned(), release);
        let mut operator = Self {
            one: Replaceable::serve(&text),
            mode,
            ledger,
            folder,
            random: fastrand::Rng::with_seed(seed),
            release,
        };
        operator.note_away(WORKERS..MOST, "not yet there");
        operator
    }

    fn config(&self) -> String {
        let folder = self.folder.path().to_owned();
        config(self.mode, folder, self.release)
    }

    /// From now on these slots are not there, in both clusters.
    fn note_away(&mut self, slots: std::ops::Range<usize>, why: &'static str) {
        for cluster in ["node", "rust"] {
            for slot in slots.clone() {
                self.ledger.away.push(Away {
                    slot: format!("{cluster}/{slot}"),
                    from: if why == "not yet there" { 0.0 } else { now() },
                    to: f64::INFINITY,
                    why,
                });
            }
        }
    }

    /// A command of the same program that speaks to this homescar.
    async fn tell(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
        command.args(arguments);
        command
            .arg("--socket")
            .arg(self.one.homescar.admin_socket());
        command.output().await.unwrap()
    }

    async fn done(&self, arguments: &[&str]) {
        let output = self.tell(arguments).await;
        let ok = output.status.success();
        let tail = || self.one.homescar.tail();
        assert!(ok, "{arguments:?}: {output:?}\n{}", tail());
    }

    pub(super) async fn slots(&self, cluster: &str) -> Vec<Slot> {
        let mut admin = Admin::connect(&self.one.homescar.admin_socket())
            .await
            .unwrap();
        let status: Status = admin.get("/status").await.unwrap();
        let mut clusters = status.clusters.into_iter();
        clusters.find(|found| found.name == cluster).unwrap().slots
    }

    /// Waits until all slots take clients, and nothing is under way with their workers.
    pub(super) async fn settled(&self) {
        let began = now();
        loop {
            let mut all = self.slots("node").await;
            all.extend(self.slots("rust").await);
            let is_calm = |slot: &Slot| {
                slot.state == "ready" && slot.next.is_none() && slot.leaving.is_empty()
            };
            if all.iter().all(is_calm) {
                return;
            }
            assert!(
                now() - began < 60.0,
                "{all:#?}\n{}",
                self.one.homescar.tail()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn restart_one(&self, cluster: &str, parallel: &str) -> (Option<i32>, Receipt) {
        let arguments = ["restart", cluster, "--json", "--parallel", parallel];
        let output = self.tell(&arguments).await;
        let receipt = serde_json::from_slice(&output.stdout);
        let receipt = receipt.unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (output.status.code(), receipt)
    }

    /// Replaces all workers of both clusters, while the file is read again and again.
    pub(super) async fn restart(&mut self, parallel: &str, hups: usize) {
        let began = now();
        let reads = async {
            for _ in 0..hups {
                sleep(Duration::from_millis(700)).await;
                self.read_again().await;
            }
        };
        let (node, rust, ()) = tokio::join!(
            self.restart_one("node", parallel),
            self.restart_one("rust", parallel),
            reads
        );
        self.ledger.reloads += hups;
        self.note_rolls(began);
        for (code, receipt) in [node, rust] {
            let tail = || self.one.homescar.tail();
            assert_eq!(
                (code, receipt.ok),
                (Some(0), true),
                "{receipt:#?}\n{}",
                tail()
            );
            for slot in &receipt.slots {
                assert_eq!(slot.outcome, Outcome::Replaced);
                let connections = &slot.connections;
                assert_eq!(connections.failed, 0, "{slot:?}");
                match self.mode {
                    "http" => self.note_cuts(slot),
                    _ => assert_eq!(connections.cut, 0, "{slot:?}"),
                }
            }
        }
    }

    /// A release that is broken in this way: of the first slot that is to have it, the present worker
    /// goes on, and of all others too.
    pub(super) async fn is_aborted(&self, cluster: &str, how: &str, why: &str) {
        let before = self.slots(cluster).await;
        let (code, receipt) = {
            let file = self.folder.path().join(cluster);
            let good = fs::read_to_string(&file).unwrap();
            fs::write(&file, how).unwrap();
            let receipt = self.restart_one(cluster, "1").await;
            fs::write(&file, good).unwrap();
            receipt
        };
        assert_eq!((code, receipt.ok), (Some(1), false), "{how}: {receipt:#?}");
        let failed = &receipt.slots[0];
        assert_eq!(failed.outcome, Outcome::Failed);
        let told = failed.why.as_deref().unwrap();
        assert!(told.contains(why), "{how}: {told:?} does not say {why:?}");
        let others = receipt.slots[1..].iter();
        assert!(
            others
                .clone()
                .all(|slot| slot.outcome == Outcome::Untouched)
        );
        let pids = |slots: &[Slot]| -> Vec<_> {
            let pid = |slot: &Slot| slot.backend.as_ref().and_then(|backend| backend.pid);
            slots.iter().map(pid).collect()
        };
        assert_eq!(pids(&self.slots(cluster).await), pids(&before), "{how}");
    }

    /// SIGHUP with a file that says the same.
    pub(super) async fn read_again(&self) {
        let answer = self.one.homescar.reload(&self.config()).await;
        assert_eq!(message(&answer), "reloaded", "{answer}");
    }

    pub(super) async fn hup(&mut self) {
        self.read_again().await;
        self.ledger.reloads += 1;
    }

    /// SIGHUP with a file that nobody understands.
    pub(super) async fn hup_with_faults(&mut self) {
        let text = self.config() + "\n[listener.other]\nbind = \"nowhere\"\ncolour = \"red\"\n";
        let answer = self.one.homescar.reload(&text).await;
        assert!(message(&answer).contains("nothing has changed"), "{answer}");
        // Nobody upgrades to a file with faults.
        fs::write(self.one.homescar.config_file(), self.config()).unwrap();
        self.ledger.faults += 1;
    }

    /// SIGHUP with another environment: all workers are replaced.
    pub(super) async fn release(&mut self) {
        self.release += 1;
        let began = now();
        let mark = self.one.homescar.mark();
        self.hup().await;
        for cluster in ["node", "rust"] {
            let rolled = format!("rolling restart of {cluster}: ");
            let log = || {
                let log = self.one.homescar.log();
                let mut lines = log[mark..].iter();
                lines.any(|line| message(line).starts_with(&rolled))
            };
            eventually(&rolled, 4 * SOON, log).await;
        }
        self.note_rolls(began);
    }

    /// Connections that did not end with their generation. Their clients are judged as all others.
    fn note_cuts(&mut self, of: &SlotReceipt) {
        self.ledger.cut += of.connections.cut as usize;
        if of.connections.cut == 0 {
            return;
        }
        let log = self.one.homescar.log();
        let records = log.iter().filter(|line| {
            line["slot"] == *of.slot
                && line["generation"].as_u64() == of.before.map(u64::from)
                && message(line) == "request"
        });
        for record in records.rev().take(4) {
            let _unheard = writeln!(std::io::stderr(), "cut? {record}");
        }
    }

    /// Both clusters have been replaced.
    fn note_rolls(&mut self, began: f64) {
        self.ledger.restarts += 2;
        for cluster in ["node", "rust"] {
            self.ledger.rolls.push((cluster.to_owned(), began, now()));
        }
    }

    /// Of both clusters a release was given up, by itself or by homescar.
    pub(super) fn note_aborts(&mut self, began: f64, has_crashed: bool) {
        self.ledger.aborts += 2;
        for cluster in ["node", "rust"] {
            self.ledger.rolls.push((cluster.to_owned(), began, now()));
            if has_crashed {
                self.ledger
                    .crashes
                    .push((format!("{cluster}/0"), began, now()));
            }
        }
    }

    pub(super) async fn upgrade(&mut self) {
        let began = now();
        let receipt = self.one.must_upgrade().await;
        let cut = receipt["cut"].as_u64().unwrap() as usize;
        match self.mode {
            // A poll that is not answered within 3 s; its client is judged as all others.
            "http" => self.ledger.cut += cut,
            _ => assert_eq!(cut, 0, "{receipt}\n{}", self.one.homescar.tail()),
        }
        self.ledger.upgrades.push((began, now()));
    }

    /// Changes the number of workers of both clusters.
    pub(super) async fn scale(&mut self, from: usize, to: usize) {
        for away in &mut self.ledger.away {
            let index: usize = away.slot[5..].parse().unwrap();
            if away.to == f64::INFINITY && (from..to).contains(&index) {
                away.to = now();
            }
        }
        match to > from {
            true => self.note_away(from..to, "new"),
            false => self.note_away(to..from, "scaled away"),
        }
        let count = to.to_string();
        for cluster in ["node", "rust"] {
            self.done(&["scale", cluster, &count]).await;
            self.ledger.scales += 1;
        }
        self.settled().await;
    }

    /// Takes each slot out and back.
    pub(super) async fn drain_each(&mut self, slots: usize) {
        for cluster in ["node", "rust"] {
            for slot in 0..slots {
                let slot = format!("{cluster}/{slot}");
                let from = now();
                self.done(&["drain", &slot]).await;
                sleep(Duration::from_millis(300)).await;
                self.done(&["ready", &slot]).await;
                self.ledger.drains += 1;
                self.ledger.away.push(Away {
                    slot,
                    from,
                    to: now(),
                    why: "drained",
                });
            }
        }
    }

    /// Kills workers at random.
    pub(super) async fn kill_for(&mut self, seconds: f64) {
        let end = now() + seconds;
        while now() < end {
            sleep(Duration::from_millis(self.random.u64(200..700))).await;
            self.kill_one().await;
        }
    }

    async fn kill_one(&mut self) {
        let mut all = self.slots("node").await;
        all.extend(self.slots("rust").await);
        let in_a_row = |slot: &Slot| {
            let kills = self.ledger.kills.iter().rev();
            let mut after = now();
            let kills = kills.filter(|kill| kill.slot == slot.name);
            let row =
                kills.take_while(|kill| after - std::mem::replace(&mut after, kill.at) < IN_A_ROW);
            row.count()
        };
        all.retain(|slot| slot.state == "ready" && in_a_row(slot) < KILLS_IN_A_ROW);
        if all.is_empty() {
            return;
        }
        let slot = &all[self.random.usize(..all.len())];
        let victim = slot.backend.as_ref().unwrap().pid.unwrap();
        let at = now();
        if kill(pid(victim), Signal::SIGKILL).is_err() {
            return;
        }
        self.ledger.kills.push(Kill {
            slot: slot.name.clone(),
            pid: victim,
            at,
            gone: f64::INFINITY,
            back: f64::INFINITY,
        });
    }

    /// The log as it is now.
    pub(super) fn log(&self) -> Vec<Value> {
        self.one.homescar.log().clone()
    }
}

fn config(mode: &str, folder: PathBuf, release: u32) -> String {
    let node = json!(["node", script("day.mjs")]);
    let (manners, options) = (folder.join("node"), folder.join("rust"));
    let options = options.to_str().unwrap();
    let mut rust = vec![WORKER, "--graceful", "--release", options];
    let mut contract = "contract = \"port\"";
    if mode == "direct" {
        // On a socket that both generations have, nobody else can tell when the next one is ready.
        rust.push("--ready-notify");
        contract = "contract = \"fd\"\nready = \"notify\"";
    }
    let rust = json!(rust);
    let manners = json!(manners);
    format!(
        r#"
        threads = 2
        [listener.node]
        bind = "127.0.0.1:0"
        mode = "{mode}"
        cluster = "node"
        [listener.rust]
        bind = "127.0.0.1:0"
        mode = "{mode}"
        cluster = "rust"
        [cluster.node]
        on_down = "hold 8s"
        health = {{ http = "/health", interval = "500ms", timeout = "4s" }}
        drain = {{ timeout = "8s", spread = "400ms" }}
        [cluster.node.workers]
        command = {node}
        count = {WORKERS}
        stable = "4s"
        ready_timeout = "12s"
        stop_timeout = "5s"
        [cluster.node.workers.env]
        MANNERS = {manners}
        NODE_OPTIONS = "--max-old-space-size=64"
        RELEASE = "{release}"
        [cluster.rust]
        on_down = "hold 8s"
        health = {{ http = "/health", interval = "500ms", timeout = "4s" }}
        drain = {{ timeout = "8s", spread = "400ms" }}
        [cluster.rust.workers]
        command = {rust}
        count = {WORKERS}
        stable = "4s"
        ready_timeout = "12s"
        stop_timeout = "5s"
        env = {{ RELEASE = "{release}" }}
        {contract}
        "#
    )
}
