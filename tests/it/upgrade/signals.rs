//! Signals at any moment of an upgrade, and programs that hang or fail late.

use std::{fs, path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{Load, Replaceable, config, tunnels};
use crate::support::{
    client::Client,
    homescar::{SOON, eventually, is_alive, message},
};

/// Moments after the request for an upgrade: closely after each other at first, up to beyond its end.
fn moments() -> impl Iterator<Item = Duration> {
    let steps = (0..14).map(|step| 3.0 * 1.65_f64.powi(step) - 3.0);
    steps.map(|millis| Duration::from_secs_f64(millis / 1000.0))
}

#[derive(Clone, Copy, Debug)]
enum Stop {
    Term,
    /// By the admin API.
    Told,
}

impl Stop {
    async fn apply(self, one: &Replaceable) {
        let Self::Told = self else {
            return one.homescar.signal(Signal::SIGTERM);
        };
        let deadline = Instant::now() + SOON;
        loop {
            let mut stop = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
            stop.args(["stop", "--socket"]);
            let told = stop.arg(one.homescar.admin_socket()).output().await;
            let told = told.unwrap();
            if told.status.success() {
                return;
            }
            // The image that was asked may have been followed by another at that very moment.
            assert!(Instant::now() < deadline, "{told:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_at_any_moment_ends_it() {
    it_ends_in_order(Stop::Term).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_moment_ends_it() {
    it_ends_in_order(Stop::Told).await;
}

/// Homescar ends in its order: its connections have their records, its workers are gone.
async fn it_ends_in_order(stop: Stop) {
    let mut trials = JoinSet::new();
    for after in moments() {
        if trials.len() == 2 {
            trials.join_next().await.unwrap().unwrap();
        }
        trials.spawn(async move {
            let text = config("tcp", "port").replace("timeout = \"5s\"", "timeout = \"300ms\"");
            let mut one = Replaceable::serve(&text);
            let workers = one.homescar.all_ready("app", 3).await;
            let web = one.homescar.address("web").await;
            let mut tunnel = tunnels(web, 1).await.remove(0);
            let here = tunnel.local_addr();
            one.homescar.signal(Signal::SIGUSR2);
            sleep(after).await;
            stop.apply(&one).await;
            let status = one.homescar.exit().await;
            assert!(
                status.success(),
                "{after:?}: {status}\n{}",
                one.homescar.tail()
            );
            assert!(workers.iter().all(|pid| !is_alive(*pid)), "{after:?}");
            assert!(tunnel.rest().await.is_err(), "{after:?}: it is cut");
            let log = one.homescar.log();
            let drains = log
                .iter()
                .filter(|line| message(line).starts_with("draining"));
            assert_eq!(drains.count(), 1, "{after:?}");
            let is_record =
                |line: &&Value| message(line) == "connection" && line["client"] == here.to_string();
            let records: Vec<_> = log.iter().filter(is_record).collect();
            assert!(
                records.len() == 1 && records[0]["reason"] == "cut",
                "{after:?}: {records:?}"
            );
        });
    }
    while let Some(trial) = trials.join_next().await {
        trial.unwrap();
    }
}

/// The file is read after the signal, whichever image reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hup_at_any_moment_is_obeyed() {
    let with =
        |workers: usize| config("tcp", "port").replace("count = 3", &format!("count = {workers}"));
    let one = Replaceable::serve(&with(3));
    one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let load = Load::of_short_connections(web);
    for (round, after) in moments().enumerate() {
        let count = 1 + (round + 1) % 2;
        let mark = one.homescar.mark();
        one.homescar.signal(Signal::SIGUSR2);
        sleep(after).await;
        // At once: the new program may be reading it at this moment.
        let file = one.homescar.config_file();
        let next = file.with_extension("next");
        fs::write(&next, with(count)).unwrap();
        fs::rename(&next, &file).unwrap();
        one.homescar.signal(Signal::SIGHUP);
        let is_receipt = |line: &Value| message(line).contains("upgraded");
        let receipt = one.homescar.line_after(mark, "a receipt", is_receipt).await;
        assert_eq!(message(&receipt), "upgraded", "{}", one.homescar.tail());
        let reads = |line: &Value| message(line) == "reloaded";
        one.homescar.line_after(mark, "a reload", reads).await;
        let folder = format!("/proc/{0}/task/{0}/children", one.homescar.pid());
        // One of them is the guard.
        let children = || {
            fs::read_to_string(&folder)
                .unwrap()
                .split_whitespace()
                .count()
                - 1
        };
        eventually("the workers", SOON, || children() == count).await;
    }
    assert!(load.end().await > 0);
}

/// It is done, or was done with the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_at_any_moment_does_no_harm() {
    let one = Replaceable::serve(&config("tcp", "port"));
    let workers = one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let load = Load::of_short_connections(web);
    let mut tunnels = tunnels(web, 4).await;
    let is_receipt = |line: &Value| message(line) == "upgraded";
    for after in moments() {
        let mark = one.homescar.mark();
        one.homescar.signal(Signal::SIGUSR2);
        sleep(after).await;
        one.homescar.signal(Signal::SIGUSR2);
        one.homescar.line_after(mark, "a receipt", is_receipt).await;
        for tunnel in &mut tunnels {
            tunnel.echo(b"still here").await.unwrap();
        }
    }
    // What was asked for last may be under way.
    let ends = Instant::now() + Duration::from_secs(2);
    let mut mark = one.homescar.mark();
    while timeout(
        ends - Instant::now(),
        one.homescar.line_after(mark, "", is_receipt),
    )
    .await
    .is_ok()
    {
        mark = one.homescar.mark();
    }
    assert!(load.end().await > 0);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    let bad = |line: &&Value| message(line).starts_with("not upgraded");
    let log = one.homescar.log();
    assert_eq!(log.iter().find(bad), None);
}

/// A program that says nothing, and leaves where it is: what it was started as.
fn hangs(folder: &Path) -> String {
    let file = folder.join("pid");
    format!("#!/bin/sh\necho $$ >{}\nexec sleep 1000\n", file.display())
}

async fn pid_of(folder: &Path) -> u32 {
    let read = || fs::read_to_string(folder.join("pid")).unwrap_or_default();
    eventually("the program runs", SOON, || read().ends_with('\n')).await;
    read().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_hangs_is_not_waited_for_by_a_term() {
    let folder = TempDir::new().unwrap();
    let mut one = Replaceable::serve(&config("tcp", "port"));
    one.homescar.all_ready("app", 3).await;
    one.replace_by_script(&hangs(folder.path()));
    one.homescar.signal(Signal::SIGUSR2);
    let pid = pid_of(folder.path()).await;
    let began = Instant::now();
    one.homescar.signal(Signal::SIGTERM);
    assert!(one.homescar.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_hangs_is_given_up() {
    let folder = TempDir::new().unwrap();
    let one = Replaceable::serve(&config("tcp", "port"));
    one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let load = Load::of_short_connections(web);
    one.replace_by_script(&hangs(folder.path()));
    let mark = one.homescar.mark();
    one.homescar.signal(Signal::SIGUSR2);
    let pid = pid_of(folder.path()).await;
    // A HUP waits for its end.
    one.homescar.signal(Signal::SIGHUP);
    eventually("it is given up", Duration::from_secs(40), || !is_alive(pid)).await;
    let told =
        |line: &Value| message(line).contains("did not say within 20s whether it can take over");
    one.homescar.line_after(mark, "why", told).await;
    let reads = |line: &Value| message(line) == "reloaded";
    one.homescar.line_after(mark, "the reload", reads).await;
    assert!(load.end().await > 0);
}

/// One that fails when all is taken over and nothing has moved yet: the one before goes on.
async fn everything_is_given_back(how: &str, says: &[&str], times: usize) {
    let folder = TempDir::new().unwrap();
    let fails = folder.path().join("fails");
    fs::write(&fails, how).unwrap();
    let one = Replaceable::serve(&config("tcp", "fd"));
    let workers = one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let mut tunnels = tunnels(web, 4).await;
    let load = Load::of_short_connections(web);
    one.replace_by_script(&format!(
        "#!/bin/sh\nexport HOMESCAR_TEST_FAIL={}\nexec {} \"$@\"\n",
        fails.display(),
        env!("CARGO_BIN_EXE_homescar"),
    ));
    for _ in 0..times {
        let receipt = one.upgrade().await;
        let told = message(&receipt).to_owned();
        assert!(told.contains("the new program failed: it "), "{told}");
        assert!(says.iter().all(|said| told.contains(said)), "{told}");
        for tunnel in &mut tunnels {
            tunnel.echo(&[7; 100_000]).await.unwrap();
        }
    }
    fs::remove_file(fails).unwrap();
    one.must_upgrade().await;
    for tunnel in &mut tunnels {
        tunnel.echo(b"still here").await.unwrap();
    }
    assert!(load.end().await > 0);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    // And what ends is noticed by whoever watches now.
    nix::sys::signal::kill(crate::support::homescar::pid(workers[0]), Signal::SIGKILL).unwrap();
    let is_new = |line: &Value| line["generation"] == 2 && message(line).contains("ready after");
    one.homescar.line("the next generation", is_new).await;
    let mut client = Client::connect(web).await.unwrap();
    client.whoami().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_panics_while_it_comes_up_gives_everything_back() {
    everything_is_given_back("panic", &["panicked at", "as asked"], 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_a_thread_of_which_panics_gives_everything_back() {
    everything_is_given_back("thread", &["panicked at", "as asked"], 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_crashes_while_it_comes_up_gives_everything_back() {
    everything_is_given_back("crash", &["it crashed (SIGSEGV)"], 3).await;
}

/// Clients wait meanwhile, and are served then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_never_comes_up_gives_everything_back() {
    everything_is_given_back("hang", &["it was not up within 10 s"], 1).await;
}
