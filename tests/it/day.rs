//! A day in the life: all that a running homescar goes through, before Node and Rust workers, under
//! constant traffic. Nobody fails but who was on the hands of a worker that was killed; nobody is moved
//! without need; all that happens is in the metrics and in the log; and in the evening homescar is as
//! small as it was in the morning.
//!
//! What was meant, and cannot be so:
//!
//! - A relay of bytes can ask nobody to go: in tcp and direct, clients keep a connection for a second or
//!   so, and sessions of socket.io poll by a new connection each time. Such a session is lost with its
//!   slot's generation, and taken up anew; in direct mode also while a next generation is tried, as both
//!   have the slot's socket.
//! - In direct mode a broken release that listens before it crashes takes with it who it has accepted; and
//!   nothing answers 500 or listens on a wrong port there: the next generation has no port of its own that
//!   could be asked.
//! - A connection that waits in the socket of a worker that was killed is the next one's, and is lost with
//!   that if it is killed in turn; the record names the one to which it was brought.

mod judge;
mod ledger;
mod operator;
mod pollers;
mod street;
mod tally;

use std::{fmt::Write as _, io::Write as _, time::Duration};

use nix::sys::signal::Signal;
use tokio::time::sleep;

use self::{
    judge::Judge,
    operator::{MOST, Operator, WORKERS},
    pollers::Pollers,
    street::{Street, move_in, now},
    tally::Weight,
};
use crate::{
    metrics::{Page, until},
    support::homescar::is_alive,
};

/// What chance does; another one is HOMESCAR_DAY_SEED.
const SEED: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_tcp() {
    day("tcp").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_http() {
    day("http").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_direct_mode() {
    day("direct").await;
}

/// Says on a failure what repeats it.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _unheard = writeln!(std::io::stderr(), "HOMESCAR_DAY_SEED={}", self.0);
        }
    }
}

async fn day(mode: &'static str) {
    let seed = std::env::var("HOMESCAR_DAY_SEED").ok();
    let seed = Seed(seed.map_or(SEED, |seed| seed.parse().unwrap()));
    let mut operator = Operator::start(mode, seed.0);
    let homescar = &operator.one.homescar;
    homescar.all_ready("node", WORKERS).await;
    homescar.all_ready("rust", WORKERS).await;
    let node = homescar.address("node").await;
    let rust = homescar.address("rust").await;
    let dawn = now();
    let street = Street::new();
    let mut people = move_in(&street, mode, node, rust, seed.0);
    let mut town = Town {
        pollers: Pollers::start(mode, node),
        street,
        dawn,
        hours: String::new(),
    };
    sleep(Duration::from_secs(2)).await;

    let morning = morning(&mut operator, &mut town).await;
    broken_releases(&mut operator, &mut town).await;
    afternoon(&mut operator, &mut town).await;
    accidents(&mut operator, &mut town).await;
    let evening = town.weigh(&operator).await;

    town.street.close();
    while let Some(ended) = people.join_next().await {
        ended.unwrap();
    }
    town.pollers.pause().await;
    town.pollers.tell(&town.street);
    let active = "homescar_connections_active";
    until(&operator.one.homescar, active, &[], 0.0).await;
    let page = Page::of(&operator.one.homescar).await;
    let log = operator.log();
    operator.ledger.look_up(&log);
    let judge = Judge {
        mode,
        ledger: &operator.ledger,
        log: &log,
        dawn,
    };
    let verdict = judge.judge(town.street.visits());
    let told = format!(
        "mode {mode}, seed {}: {verdict}{}cut {}, morning {morning:?}, evening {evening:?}\n",
        seed.0, town.hours, operator.ledger.cut
    );
    let _unheard = std::io::stderr().write_all(told.as_bytes());
    assert!(
        verdict.faults.is_empty(),
        "{told}{}",
        operator.one.homescar.tail()
    );
    let mut faults = tally::check(&operator, &town.street, &page, &log);
    faults.extend(evening.grown(morning, mode));
    assert!(faults.is_empty(), "{faults:#?}");
    night(operator).await;
}

/// Those who come to the workers, and the time.
struct Town {
    street: std::sync::Arc<Street>,
    pollers: Pollers,
    dawn: f64,
    /// What was when.
    hours: String,
}

impl Town {
    fn strikes(&mut self, what: &str) {
        let _infallible = writeln!(self.hours, "{:6.1} {what}", now() - self.dawn);
    }

    /// What homescar weighs while nobody is there.
    async fn weigh(&mut self, operator: &Operator) -> Weight {
        operator.settled().await;
        self.pollers.pause().await;
        self.street.pause().await;
        let weight = Weight::of(&operator.one.homescar, operator.mode).await;
        self.street.go_on();
        self.pollers.go_on();
        self.strikes("weighed");
        weight
    }
}

async fn morning(operator: &mut Operator, town: &mut Town) -> Weight {
    operator.restart("2", 3).await;
    town.strikes("first restart");
    operator.upgrade().await;
    town.strikes("first upgrade");
    sleep(Duration::from_secs(2)).await;
    town.weigh(operator).await
}

/// Five releases that nobody should see.
async fn broken_releases(operator: &mut Operator, town: &mut Town) {
    let late = "was not ready in time";
    operator.hup().await;
    let began = now();
    tokio::join!(
        operator.is_aborted("node", "never", late),
        operator.is_aborted("rust", "--never-listen", late)
    );
    operator.note_aborts(began, false);
    town.strikes("never listens");
    operator.hup_with_faults().await;
    if operator.mode != "direct" {
        let began = now();
        tokio::join!(
            operator.is_aborted("node", "500", "is not well"),
            operator.is_aborted("rust", "--wrong-port", late)
        );
        operator.note_aborts(began, false);
        town.strikes("answers 500, listens on a wrong port");
    }
    operator.hup().await;
    let began = now();
    tokio::join!(
        operator.is_aborted("node", "crash", "exit code 3"),
        operator.is_aborted("rust", "--exit-after 3000 --exit-code 3", "exit code 3")
    );
    operator.note_aborts(began, true);
    town.strikes("crashes");
    let began = now();
    tokio::join!(
        operator.is_aborted("node", "memory", "signal ABRT"),
        operator.is_aborted("rust", "--greedy", "signal ABRT")
    );
    operator.note_aborts(began, true);
    town.strikes("takes too much memory");
    operator.hup().await;
}

async fn afternoon(operator: &mut Operator, town: &mut Town) {
    operator.release().await;
    operator.settled().await;
    town.strikes("second restart, by a release");
    operator.upgrade().await;
    operator.hup_with_faults().await;
    operator.upgrade().await;
    town.strikes("second and third upgrade");
    operator.scale(WORKERS, MOST).await;
    town.strikes("scaled to 8");
    operator.hup().await;
    operator.scale(MOST, 3).await;
    town.strikes("scaled to 3");
    operator.restart("3", 2).await;
    town.strikes("third restart");
    operator.upgrade().await;
    town.strikes("fourth upgrade");
    operator.drain_each(3).await;
    town.strikes("drained");
    operator.scale(3, WORKERS).await;
    town.strikes("scaled to 4");
}

/// Workers are killed, also while homescar is upgraded and its file read.
async fn accidents(operator: &mut Operator, town: &mut Town) {
    operator.kill_for(25.0).await;
    operator.hup().await;
    operator.kill_for(15.0).await;
    operator.upgrade().await;
    operator.hup_with_faults().await;
    operator.kill_for(20.0).await;
    operator.settled().await;
    town.strikes("killed, and the fifth upgrade");
    for hups in [1, 1] {
        operator.restart("4", hups).await;
        operator.settled().await;
    }
    town.strikes("fourth and fifth restart");
    for _ in 0..4 {
        operator.hup().await;
    }
    sleep(Duration::from_secs(1)).await;
}

/// It ends as any other, and leaves nobody.
async fn night(mut operator: Operator) {
    let mut pids = Vec::new();
    for cluster in ["node", "rust"] {
        let slots = operator.slots(cluster).await;
        pids.extend(
            slots
                .iter()
                .map(|slot| slot.backend.as_ref().unwrap().pid.unwrap()),
        );
    }
    operator.one.homescar.signal(Signal::SIGTERM);
    assert!(operator.one.homescar.exit().await.success());
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}
