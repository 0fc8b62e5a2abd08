//! Other processes: whether they run, and how they are made not to.

use std::{fs, path::PathBuf, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

pub(crate) fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap())
}

/// Whether any thread of a process runs; one that nobody has reaped yet does not. The first thread
/// may be dead before the others, one of which may still take a connection with it.
pub(crate) fn is_alive(pid: u32) -> bool {
    !threads_are(pid, &["Z", "X"])
}

/// Whether a process, with all of its threads, is stopped.
pub(crate) fn is_stopped(pid: u32) -> bool {
    is_alive(pid) && threads_are(pid, &["T"])
}

fn threads_are(pid: u32, states: &[&str]) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return states.contains(&"X");
    };
    let mut states_of = threads
        .flatten()
        .filter_map(|thread| stat(thread.path().join("stat")));
    states_of.all(|stat| states.contains(&&*stat[0]))
}

/// What follows the name in a `stat` file of `/proc`: state, parent, group, …
pub(crate) fn stat(file: PathBuf) -> Option<Vec<String>> {
    let text = fs::read_to_string(file).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

pub(crate) fn kill_9(process: u32) {
    kill(pid(process), Signal::SIGKILL).unwrap();
}

pub(crate) async fn until_dead(pid: u32, within: Duration) {
    until(pid, within, "dead", |pid| !is_alive(pid)).await;
}

/// Stops a process: once this is over, none of its threads does anything any more.
pub(crate) async fn stop(process: u32) {
    kill(pid(process), Signal::SIGSTOP).unwrap();
    until(process, Duration::from_secs(20), "stopped", is_stopped).await;
}

async fn until(pid: u32, within: Duration, what: &str, is_so: fn(u32) -> bool) {
    let deadline = Instant::now() + within;
    while !is_so(pid) {
        assert!(Instant::now() < deadline, "{pid} is not {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
