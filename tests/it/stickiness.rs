//! The promise: every client meets its own slot, also after its worker has died.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::sys::signal::{Signal, kill};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};

use crate::support::{
    client::{Client, Who, address_of_client},
    homescar::{Homescar, SOON, WORKER, eventually, message, pid},
};

const WORKERS: usize = 8;
const CLIENTS: usize = 500;
/// Connections that are tried at one time under load.
const LANES: usize = 16;

fn config(workers: usize, contract: &str, more: &str, worker_options: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}"{worker_options}], count = {workers}, contract = "{contract}" }}
        on_down = "hold 10s"
        {more}
        "#
    )
}

async fn who(from: IpAddr, to: SocketAddr) -> std::io::Result<Who> {
    Client::connect_from(from, to).await?.whoami().await
}

/// Where each of `clients` clients is at home, by asking.
async fn homes(clients: usize, to: SocketAddr) -> HashMap<IpAddr, Who> {
    let mut homes = HashMap::new();
    for index in 0..clients {
        let from = address_of_client(index);
        homes.insert(from, who(from, to).await.unwrap());
    }
    homes
}

/// 2,000 connections that are all open at once, from 500 addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_always_meets_the_same_slot() {
    let homescar = Homescar::serve(&config(WORKERS, "port", "", ""));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;

    let mut clients = JoinSet::new();
    for index in 0..4 * CLIENTS {
        clients.spawn(async move {
            let from = address_of_client(index % CLIENTS);
            let mut client = Client::connect_from(from, to).await.unwrap();
            let who = client.whoami().await.unwrap();
            (from, who, client)
        });
    }
    let mut slots: HashMap<IpAddr, Vec<String>> = HashMap::new();
    let mut open = Vec::new();
    while let Some(joined) = clients.join_next().await {
        let (from, who, client) = joined.unwrap();
        slots.entry(from).or_default().push(who.slot);
        open.push(client);
    }
    assert_eq!((open.len(), slots.len()), (4 * CLIENTS, CLIENTS));
    for (from, met) in &slots {
        assert_eq!(met.len(), 4);
        assert!(met.iter().all(|slot| slot == &met[0]), "{from} met {met:?}");
    }
    // No slot is left out, and none has a share that a fair hash would not give it.
    let mut shares: HashMap<&str, usize> = HashMap::new();
    for met in slots.values() {
        *shares.entry(&met[0]).or_default() += 1;
    }
    assert_eq!(shares.len(), WORKERS, "{shares:?}");
    assert!(
        shares.values().all(|share| (30..=100).contains(share)),
        "{shares:?}"
    );

    // The same again later, over new connections.
    drop(open);
    let later = homes(CLIENTS, to).await;
    for (from, met) in &slots {
        assert_eq!(later[from].slot, met[0], "{from}");
    }
}

/// What clients saw while one of eight workers was killed under load.
#[derive(Debug, Default)]
struct Seen {
    attempts: AtomicUsize,
    failed: AtomicUsize,
    /// Established with the worker that was then killed.
    lost_with_the_worker: AtomicUsize,
    moved: AtomicUsize,
}

/// Connects again and again from all clients, each time comparing who answers.
async fn load(
    lane: usize,
    to: SocketAddr,
    before: Arc<HashMap<IpAddr, Who>>,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
) {
    let mut index = lane;
    while !stop.load(Relaxed) {
        let from = address_of_client(index % CLIENTS);
        index += LANES;
        seen.attempts.fetch_add(1, Relaxed);
        let home = &before[&from].slot;
        match greeting(from, to).await {
            Ok(who) if who.slot != *home => {
                seen.moved.fetch_add(1, Relaxed);
            }
            Ok(_) => {}
            // The killed worker had accepted it and not greeted it yet: a clean end without a
            // byte is its to give.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && *home == "app/3" => {
                seen.lost_with_the_worker.fetch_add(1, Relaxed);
            }
            Err(_) => {
                seen.failed.fetch_add(1, Relaxed);
            }
        }
    }
}

impl Seen {
    async fn wait_for_attempts(&self, attempts: usize) {
        let more = async {
            while self.attempts.load(Relaxed) < attempts {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(3 * SOON, more).await.expect("the load goes on");
    }
}

async fn greeting(from: IpAddr, to: SocketAddr) -> std::io::Result<Who> {
    Client::connect_from(from, to).await?.answer().await
}

async fn kill_one_of_eight(contract: &str) {
    // The worker speaks first: an attempt is a connection and its greeting, and nothing is lost
    // that was sent.
    let homescar = Homescar::serve(&config(WORKERS, contract, "", r#", "--banner""#));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let mut before = HashMap::new();
    for index in 0..CLIENTS {
        let from = address_of_client(index);
        before.insert(from, greeting(from, to).await.unwrap());
    }
    let before = Arc::new(before);
    let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (before, seen, stop) = (Arc::clone(&before), Arc::clone(&seen), Arc::clone(&stop));
        lanes.spawn(load(lane, to, before, seen, stop));
    }

    seen.wait_for_attempts(1000).await;
    let mark = homescar.mark();
    kill(pid(pids[3]), Signal::SIGKILL).unwrap();
    let next = homescar.ready_after(mark, "app/3").await;
    seen.wait_for_attempts(seen.attempts.load(Relaxed) + 1000)
        .await;
    stop.store(true, Relaxed);
    while let Some(joined) = lanes.join_next().await {
        joined.unwrap();
    }

    assert_eq!(
        seen.failed.load(Relaxed),
        0,
        "{seen:?}\n{}",
        homescar.tail()
    );
    assert_eq!(seen.moved.load(Relaxed), 0, "{seen:?}");
    assert!(seen.lost_with_the_worker.load(Relaxed) <= 4, "{seen:?}");
    for index in 0..CLIENTS {
        let from = address_of_client(index);
        let (was, is) = (&before[&from], greeting(from, to).await.unwrap());
        assert_eq!(is.slot, was.slot, "{from}");
        let expected = if was.slot == "app/3" {
            (2, next)
        } else {
            (1, was.pid)
        };
        assert_eq!((is.generation, is.pid), expected, "{from}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_worker_of_eight_moves_and_fails_nobody_port() {
    kill_one_of_eight("port").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_worker_of_eight_moves_and_fails_nobody_fd() {
    kill_one_of_eight("fd").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_worker_of_eight_moves_and_fails_nobody_unix() {
    kill_one_of_eight("unix").await;
}

/// Connections to other workers do not notice a kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_of_other_slots_do_not_notice_a_kill() {
    let homescar = Homescar::serve(&config(4, "port", "", ""));
    let pids = homescar.all_ready("app", 4).await;
    let to = homescar.address("web").await;
    let mut open = Vec::new();
    for index in 0..100 {
        let mut client = Client::connect_from(address_of_client(index), to)
            .await
            .unwrap();
        let who = client.whoami().await.unwrap();
        open.push((client, who));
    }
    let mark = homescar.mark();
    kill(pid(pids[1]), Signal::SIGKILL).unwrap();
    homescar.ready_after(mark, "app/1").await;
    for (mut client, was) in open {
        let now = client.whoami().await;
        if was.slot == "app/1" {
            assert!(now.is_err(), "{was:?} answered after its death");
        } else {
            assert_eq!(now.unwrap(), was);
        }
    }
}

/// What `on_down` says happens while a slot has no worker.
async fn with_one_slot_down(on_down: &str) -> (Homescar, SocketAddr, Vec<IpAddr>) {
    let config = config(2, "port", "", r#", "--ready-after", "1500""#).replace("hold 10s", on_down);
    let homescar = Homescar::serve(&config);
    let pids = homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    let homes = homes(40, to).await;
    let of_one: Vec<_> = homes
        .into_iter()
        .filter(|(_, who)| who.slot == "app/1")
        .map(|(from, _)| from)
        .collect();
    assert!(of_one.len() > 5);
    let mark = homescar.mark();
    kill(pid(pids[1]), Signal::SIGKILL).unwrap();
    homescar
        .line_after(mark, "the exit", |line| {
            line["slot"] == "app/1" && message(line).contains("ended: signal KILL")
        })
        .await;
    (homescar, to, of_one)
}

#[tokio::test]
async fn on_down_next_goes_to_the_second_choice_and_home_again() {
    let (homescar, to, clients) = with_one_slot_down("next").await;
    let mark = homescar.mark();
    for from in &clients {
        assert_eq!(who(*from, to).await.unwrap().slot, "app/0");
    }
    homescar.ready_after(mark, "app/1").await;
    for from in &clients {
        assert_eq!(who(*from, to).await.unwrap().slot, "app/1");
    }
}

#[tokio::test]
async fn on_down_reject_refuses_its_own_clients_only() {
    let (homescar, to, clients) = with_one_slot_down("reject").await;
    for from in &clients {
        assert!(who(*from, to).await.is_err());
    }
    let refused = |line: &serde_json::Value| line["reason"] == "slot_down";
    let count = || {
        homescar
            .records()
            .iter()
            .filter(|line| refused(line))
            .count()
    };
    eventually("each refusal is recorded", SOON, || {
        count() == clients.len()
    })
    .await;
    let others = (0..40)
        .map(address_of_client)
        .filter(|from| !clients.contains(from));
    for from in others {
        assert_eq!(who(from, to).await.unwrap().slot, "app/0");
    }
}

#[tokio::test]
async fn on_down_hold_gives_up_at_its_deadline() {
    let (homescar, to, clients) = with_one_slot_down("hold 300ms").await;
    let mut client = Client::connect_from(clients[0], to).await.unwrap();
    assert_eq!(client.whoami().await.unwrap().slot, "app/0");
    let from = client.local_addr();
    drop(client);
    let record = homescar.record_of(from).await;
    assert_eq!(record["passed"], "app/1");
    let held = record["held_ms"].as_u64().unwrap();
    assert!((300..1000).contains(&held), "held for {held} ms");
}

/// Two fronts that see the same slots agree, whatever the order in their files.
#[tokio::test]
async fn two_fronts_agree_whatever_the_order_of_their_files() {
    let mut backends = Vec::new();
    for index in 0..5 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        backends.push((format!("b{index}"), listener.local_addr().unwrap()));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let name = format!("b{index}\n");
                let _gone = tokio::io::AsyncWriteExt::write_all(&mut stream, name.as_bytes()).await;
            }
        });
    }
    let front = |backends: &[(String, SocketAddr)]| {
        let list: Vec<_> = backends
            .iter()
            .map(|(name, addr)| format!(r#"{{ name = "{name}", address = "{addr}" }}"#))
            .collect();
        Homescar::serve(&format!(
            "[listener.web]\nbind = \"127.0.0.1:0\"\ncluster = \"app\"\n[cluster.app]\nbackends = [{}]\n",
            list.join(", ")
        ))
    };
    let one = front(&backends);
    backends.reverse();
    let two = front(&backends);
    let [to_one, to_two] = [one.address("web").await, two.address("web").await];
    for index in 0..60 {
        let from = address_of_client(index);
        let at_one = Client::connect_from(from, to_one)
            .await
            .unwrap()
            .line()
            .await
            .unwrap();
        let at_two = Client::connect_from(from, to_two)
            .await
            .unwrap()
            .line()
            .await
            .unwrap();
        assert_eq!(at_one, at_two, "{from}");
    }
}
