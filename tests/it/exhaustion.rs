//! The machine has nothing left to give: homescar waits, harms nobody, and recovers.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time::sleep};

use crate::support::{
    client::Client,
    homescar::{
        Homescar, SOON, WORKER, cpu_time, eventually, is_alive, limit_descriptors, message,
    },
};

/// More than homescar has descriptors for, fewer than wait in an accept queue.
const CLIENTS: usize = 120;

/// A homescar with few descriptors and two workers, and a door at which who says nothing takes
/// exactly one of them.
async fn poor() -> (Homescar, Vec<u32>, SocketAddr) {
    let config = format!(
        r#"
        threads = 1
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [listener.silent]
        bind = "127.0.0.1:0"
        cluster = "app"
        accept_proxy = true
        trusted = ["127.0.0.0/8"]
        timeouts = {{ header = "10m" }}
        [cluster.app]
        workers = {{ command = ["{WORKER}", "--banner"], count = 2 }}
        health = {{ tcp = true, interval = "50ms", timeout = "40ms", fall = 2 }}
        "#
    );
    let homescar = Homescar::serve(&config);
    let pids = homescar.all_ready("app", 2).await;
    let silent = homescar.address("silent").await;
    limit_descriptors(homescar.pid(), CLIENTS / 2);
    (homescar, pids, silent)
}

async fn crowd(door: SocketAddr) -> VecDeque<TcpStream> {
    let mut clients = VecDeque::new();
    for _ in 0..CLIENTS {
        clients.push_back(TcpStream::connect(door).await.unwrap());
    }
    clients
}

fn said(homescar: &Homescar, text: &str) -> usize {
    let log = homescar.log();
    log.iter()
        .filter(|line| message(line).contains(text))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_it_waits_and_no_worker_is_taken_for_hung() {
    let (homescar, pids, silent) = poor().await;
    let clients = crowd(silent).await;
    homescar.message("cannot accept").await;
    let before = cpu_time(homescar.pid());
    // Forty checks' worth.
    sleep(Duration::from_secs(2)).await;
    let used = cpu_time(homescar.pid()) - before;
    assert!(used < Duration::from_millis(400), "spins: {used:?}");
    for pid in &pids {
        assert!(is_alive(*pid), "{}", homescar.tail());
    }
    assert_eq!(said(&homescar, "cannot accept"), 1, "{}", homescar.tail());

    drop(clients);
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    let who = client.answer().await.unwrap();
    assert!(pids.contains(&who.pid), "{who:?} of {pids:?}");
    eventually("all are recorded", SOON, || {
        homescar.records().len() == CLIENTS
    })
    .await;
    assert_eq!(
        said(&homescar, "takes no clients"),
        0,
        "{}",
        homescar.tail()
    );
}

/// Clients that come and go at the edge of the limit make no flood of lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_edge_of_its_descriptors_it_does_not_flood_the_log() {
    let (homescar, _, silent) = poor().await;
    let mut clients = crowd(silent).await;
    homescar.message("cannot accept").await;
    for gone in 1..=CLIENTS / 4 {
        clients.pop_front();
        eventually("a record", SOON, || homescar.records().len() >= gone).await;
    }
    let (begun, over) = (
        said(&homescar, "cannot accept"),
        said(&homescar, "accepting again"),
    );
    assert!(begun <= 2 && over <= begun, "{begun} and {over} lines");
}
