//! Direct mode: homescar sees no connection itself, and still knows of them, and waits for their
//! end.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use homescar::{
    config::{Config, Facts},
    direct::{Direct, Usage},
    supervisor::{Doors, Entrances, SlotDoors},
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{Signal, kill},
};

use crate::support::{
    Rig,
    client::{Client, address_of_client},
    homescar::{Homescar, SOON, WORKER, eventually, is_alive, pid},
    pid_of,
    process::stop,
};

const CLIENTS: usize = 2000;
const WORKERS: usize = 3;

fn config(bind: &str, workers: usize, drain: &str) -> String {
    format!(
        r#"
        [listener.web]
        bind = "{bind}"
        mode = "direct"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}"], count = {workers}, contract = "fd" }}
        drain = {{ timeout = "{drain}" }}
        "#
    )
}

/// Workers behind a direct listener, in this process.
struct Bench {
    direct: Arc<Direct>,
    rig: Rig,
    /// By slot.
    pids: Vec<Option<u32>>,
    to: SocketAddr,
}

impl Bench {
    async fn start(bind: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("homescar.toml");
        fs::write(&file, config(bind, WORKERS, "30s")).unwrap();
        let config = Config::load(&file, &Facts::of_this_process()).unwrap();
        let direct = Direct::bind(&config.listeners[0], &config.clusters[0]).unwrap();
        let direct = Arc::new(direct);
        let entrances = Entrances {
            guests: None,
            ports: [].into(),
            doors: Some(Arc::new(PublicSockets(Arc::clone(&direct)))),
        };
        let rig = Rig::start_behind(entrances, &config.clusters[0]);
        let mut pids = Vec::new();
        for slot in 0..WORKERS {
            pids.push(Some(pid_of(&rig.ready(&format!("app/{slot}"), 1).await)));
        }
        let bound = direct.addresses()[0];
        let ip = match bound.ip() {
            ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        Self {
            direct,
            rig,
            pids,
            to: SocketAddr::new(ip, bound.port()),
        }
    }

    fn usage(&self) -> Vec<Usage> {
        self.direct.usage(&self.pids).unwrap()
    }

    /// Waits for these counts: a socket goes a moment after its client.
    async fn counts(&self, expected: &[u64]) {
        let counts = || -> Vec<u64> { self.usage().iter().map(|slot| slot.connections).collect() };
        eventually(&format!("{expected:?}"), SOON, || counts() == expected).await;
        let all: u64 = expected.iter().sum();
        assert_eq!(self.direct.connections().unwrap(), all);
    }
}

#[derive(Debug)]
struct PublicSockets(Arc<Direct>);

impl Doors for PublicSockets {
    fn of_slot(&self, index: usize) -> io::Result<SlotDoors> {
        Ok(SlotDoors {
            sockets: self.0.sockets(index)?,
            address: self.0.probe(index).unwrap(),
            backlog: self.0.backlog(),
        })
    }

    fn connections(&self, index: usize, worker: u32) -> io::Result<u64> {
        self.0.connections_of(index, worker)
    }
}

/// A client, the number of its slot, and the bytes that it was told.
async fn connect(from: IpAddr, to: SocketAddr) -> (Client, usize, u64) {
    let mut client = Client::connect_from(from, to).await.unwrap();
    client.send("whoami\n").await.unwrap();
    let answer = client.line().await.unwrap();
    let who: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let slot = who["slot"].as_str().unwrap().strip_prefix("app/").unwrap();
    (client, slot.parse().unwrap(), answer.len() as u64 + 1)
}

/// Those that a dual-stack listener has over IPv4 are the kernel's IPv6 connections.
#[tokio::test]
async fn each_connection_is_counted_once_where_it_is_served() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(8192).min(hard), hard).unwrap();
    let bench = Bench::start(":0").await;
    bench.counts(&[0; WORKERS]).await;
    let mut clients = Vec::new();
    let mut connections = [0; WORKERS];
    let mut told = [0; WORKERS];
    for index in 0..CLIENTS {
        // Some clients have several connections, and some come over IPv6.
        let (from, to) = match index % 10 {
            0 => (
                [0, 0, 0, 0, 0, 0, 0, 1].into(),
                ([0, 0, 0, 0, 0, 0, 0, 1], bench.to.port()).into(),
            ),
            _ => (address_of_client(index % 700), bench.to),
        };
        let (client, slot, bytes) = connect(from, to).await;
        connections[slot] += 1;
        told[slot] += bytes;
        clients.push((client, slot));
    }
    bench.counts(&connections).await;
    let acknowledged = || {
        let usage = bench.usage();
        usage
            .iter()
            .zip(&told)
            .all(|(slot, told)| slot.sent == *told)
    };
    eventually("all answers are acknowledged", SOON, acknowledged).await;
    for (slot, usage) in bench.usage().into_iter().enumerate() {
        assert!(usage.connections > 100, "{usage:?} of slot {slot}");
        assert_eq!(usage.received, usage.connections * "whoami\n".len() as u64);
        assert_eq!(usage.waiting, 0);
        let rtt = usage.rtt.unwrap();
        assert!(
            rtt > Duration::ZERO && rtt < Duration::from_secs(1),
            "{rtt:?}"
        );
    }
    for (client, slot) in clients.drain(CLIENTS / 2..) {
        connections[slot] -= 1;
        drop(client);
    }
    bench.counts(&connections).await;
    drop(clients);
    bench.counts(&[0; WORKERS]).await;
    bench.rig.stop().await;
}

#[tokio::test]
async fn who_waits_for_a_worker_is_counted_apart() {
    let bench = Bench::start("127.0.0.1:0").await;
    let from = address_of_client(0);
    let (_client, slot, _) = connect(from, bench.to).await;
    let worker = bench.pids[slot].unwrap();
    stop(worker).await;
    let mut waiting = Client::connect_from(from, bench.to).await.unwrap();
    let is_seen = || {
        let usage = bench.usage()[slot];
        (usage.connections, usage.waiting) == (1, 1)
    };
    eventually("it waits", SOON, is_seen).await;
    assert_eq!(bench.direct.connections().unwrap(), 2);
    let of_worker = || bench.direct.connections_of(slot, bench.pids[slot].unwrap());
    assert_eq!(of_worker().unwrap(), 2);
    // It has said all that it has to say, and is still to be answered.
    waiting.send("whoami\n").await.unwrap();
    waiting.shutdown().await.unwrap();
    assert_eq!(bench.direct.connections().unwrap(), 2);
    kill(pid(worker), Signal::SIGCONT).unwrap();
    waiting.answer().await.unwrap();
    waiting.rest().await.unwrap();
    let mut expected = [0; WORKERS];
    expected[slot] = 1;
    bench.counts(&expected).await;
    assert_eq!(of_worker().unwrap(), 1);
    assert_eq!(bench.usage()[slot].waiting, 0);
    bench.rig.stop().await;
}

/// The other has the same port on another address of this machine.
#[tokio::test]
async fn clients_of_another_server_and_checks_do_not_count() {
    let bench = Bench::start("127.0.0.1:0").await;
    let other = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), bench.to.port())).unwrap();
    let _client = TcpStream::connect(other.local_addr().unwrap()).unwrap();
    let _served = other.accept().unwrap();
    let (_probe, slot, _) = connect(Ipv4Addr::new(127, 72, 83, 1).into(), bench.to).await;
    assert_eq!(slot, 1);
    bench.counts(&[0; WORKERS]).await;
    let (_client, slot, _) = connect(address_of_client(0), bench.to).await;
    let mut expected = [0; WORKERS];
    expected[slot] = 1;
    bench.counts(&expected).await;
    bench.rig.stop().await;
}

async fn homescar(drain: &str) -> (Homescar, SocketAddr, Vec<u32>) {
    let homescar = Homescar::serve(&config("127.0.0.1:0", 2, drain));
    let to = homescar.address("web").await;
    let pids = homescar.all_ready("app", 2).await;
    (homescar, to, pids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn term_waits_for_a_direct_connection_which_is_served_meanwhile() {
    let (mut homescar, to, pids) = homescar("60s").await;
    let (mut client, ..) = connect(address_of_client(0), to).await;
    let (other, ..) = connect(address_of_client(1), to).await;
    homescar.signal(Signal::SIGTERM);
    let draining = homescar.message("draining for up to 1m").await;
    assert_eq!(draining["connections"], 2, "{draining}");
    drop(other);
    client.start_echo().await.unwrap();
    for _ in 0..100 {
        client.echo(b"still there").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    drop(client);
    assert_eq!(homescar.exit().await.code(), Some(0));
    let cut = |line: &serde_json::Value| line.to_string().contains("cutting");
    assert!(!homescar.log().iter().any(cut), "{}", homescar.tail());
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_deadline_direct_connections_end_with_their_workers() {
    let (mut homescar, to, _) = homescar("500ms").await;
    let (mut client, ..) = connect(address_of_client(0), to).await;
    homescar.signal(Signal::SIGTERM);
    homescar
        .message("drain.timeout has passed: cutting 1 connections")
        .await;
    let _ended = client.rest().await;
    assert_eq!(homescar.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_term_does_not_wait_for_direct_connections() {
    let (mut homescar, to, _) = homescar("60s").await;
    let (mut client, ..) = connect(address_of_client(0), to).await;
    homescar.signal(Signal::SIGTERM);
    homescar.message("draining").await;
    homescar.signal(Signal::SIGTERM);
    homescar
        .message("told again to end: cutting 1 connections")
        .await;
    let _ended = client.rest().await;
    assert_eq!(homescar.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_a_reload_takes_away_serves_its_clients_to_their_end() {
    let (homescar, to, _) = homescar("60s").await;
    let mut there = None;
    for index in 0..100 {
        let (client, slot, _) = connect(address_of_client(index), to).await;
        if slot == 1 {
            there = Some(client);
            break;
        }
    }
    let mut client = there.unwrap();
    client.start_echo().await.unwrap();
    let mark = homescar.mark();
    homescar.reload(&config("127.0.0.1:0", 1, "60s")).await;
    for _ in 0..100 {
        client.echo(b"still there").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(client);
    homescar
        .line_after(mark, "app/1 stopped", |line| {
            line.to_string().contains("app/1 stopped")
        })
        .await;
}
