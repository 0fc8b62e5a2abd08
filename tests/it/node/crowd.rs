//! socket.io, polling and WebSocket, through unmodified processes that are killed.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{script, serve_in};
use crate::support::homescar::{message, pid};

const CLIENTS: usize = 300;
const ADDRESSES: usize = 100;
/// How often a worker is killed, one each second.
const KILLS: usize = 5;

struct Crowd {
    child: Child,
    orders: ChildStdin,
    lines: Option<BufReader<ChildStdout>>,
}

impl Crowd {
    fn start(port: u16) -> Self {
        let mut child = Command::new("node")
            .arg(script("crowd.mjs"))
            .args([port.into(), CLIENTS, ADDRESSES].map(|n: usize| n.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let lines = Some(BufReader::new(child.stdout.take().unwrap()));
        Self {
            child,
            orders,
            lines,
        }
    }

    /// Who serves everybody, once everybody has an answer.
    async fn count(&mut self) -> Value {
        self.orders.write_all(b"count\n").unwrap();
        let mut lines = self.lines.take().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            (line, lines)
        });
        let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
        let (line, lines) = read.expect("an answer in time").unwrap();
        self.lines = Some(lines);
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// By client: slot and how often it has connected.
fn homes(count: &Value) -> Vec<(String, String, u64)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = count["all"].as_array().unwrap().iter();
    all.map(|one| {
        (
            text(&one["address"]),
            text(&one["slot"]),
            one["connects"].as_u64().unwrap(),
        )
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_io_never_meets_a_stranger() {
    never_meets_a_stranger("tcp").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_in_direct_mode() {
    never_meets_a_stranger("direct").await;
}

async fn never_meets_a_stranger(mode: &str) {
    let homescar = serve_in(
        mode,
        "127.0.0.1:0",
        &["socket.io"],
        "count = 4",
        "on_down = \"hold 10s\"",
    );
    let mut pids = homescar.all_ready("app", 4).await;
    let to = homescar.address("web").await;
    let mut crowd = Crowd::start(to.port());
    let first = crowd.count().await;
    let before = homes(&first);
    assert_eq!(before.len(), CLIENTS);
    assert_eq!(first["unknown"], 0, "{first:#}");
    let mut by_address = BTreeMap::new();
    for (address, slot, connects) in &before {
        let home = by_address.entry(address).or_insert(slot);
        assert_eq!(home, &slot, "{address} has one home");
        assert_eq!(*connects, 1);
    }
    assert_eq!(by_address.len(), ADDRESSES);

    // Of three slots only, so that somebody is not touched.
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for round in 0..KILLS {
        ticks.tick().await;
        let (victim, mark) = (round % 3, homescar.mark());
        kill(pid(pids[victim]), Signal::SIGKILL).unwrap();
        let slot = format!("app/{victim}");
        let ended =
            |line: &Value| line["slot"] == *slot && message(line).contains("ended: signal KILL");
        homescar.line_after(mark, "its death", ended).await;
        pids[victim] = homescar.ready_after(mark, &slot).await;
    }
    let last = crowd.count().await;
    assert_eq!(last["unknown"], 0, "{:#}", last["failures"]);
    for (then, now) in before.iter().zip(homes(&last)) {
        assert_eq!((&then.0, &then.1), (&now.0, &now.1), "the same home");
        if then.1 == "app/3" {
            assert_eq!(now.2, 1, "{} was not to notice", now.0);
        } else {
            assert!(now.2 > 1, "{} was cut", now.0);
        }
    }
    assert!(
        last["upgrades"].as_u64().unwrap() >= CLIENTS as u64,
        "{last:#}"
    );
}
