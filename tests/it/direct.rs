//! Direct mode: the kernel leads each client to its worker, and homescar is not on the path.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use nix::sys::signal::{Signal, kill};
use tokio::{task::JoinSet, time::timeout};

use crate::support::{
    client::{Client, Who, address_of_client, is_turned_away},
    homescar::{Homescar, SOON, WORKER, descriptors, message, pid},
    process::stop,
};

const WORKERS: usize = 4;
const CLIENTS: usize = 200;
/// So many that none of them is killed often enough for a crash loop.
const MANY: usize = 25;
const KILLS: u32 = 100;

fn config(bind: &str, options: &str, workers: usize, on_down: &str) -> String {
    format!(
        r#"
        [listener.web]
        bind = "{bind}"
        mode = "direct"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}"{options}], count = {workers}, contract = "fd" }}
        on_down = "{on_down}"
        "#
    )
}

async fn start(config: &str, workers: usize) -> (Homescar, SocketAddr) {
    let homescar = Homescar::serve(config);
    let bound = homescar.address("web").await;
    homescar.all_ready("app", workers).await;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port()));
    (homescar, to)
}

async fn who(from: IpAddr, to: SocketAddr) -> Who {
    let mut client = Client::connect_from(from, to).await.unwrap();
    client.whoami().await.unwrap()
}

async fn homes(to: SocketAddr) -> HashMap<IpAddr, Who> {
    let mut homes = HashMap::new();
    for index in 0..CLIENTS {
        let from = address_of_client(index);
        homes.insert(from, who(from, to).await);
    }
    homes
}

fn probe(slot: u8) -> IpAddr {
    Ipv4Addr::new(127, 72, 83, slot).into()
}

#[tokio::test]
async fn the_kernel_leads_every_client_to_the_slot_that_a_relay_would() {
    let (homescar, to) = start(&config(":0", "", WORKERS, "hold 10s"), WORKERS).await;
    let direct = homes(to).await;
    for (from, met) in &direct {
        assert_eq!(
            met.peer.parse::<SocketAddr>().unwrap().ip().to_canonical(),
            *from,
            "nobody is between"
        );
        assert_eq!(who(*from, to).await.slot, met.slot, "{from}");
    }
    let met: BTreeSet<_> = direct.values().map(|who| &who.slot).collect();
    assert_eq!(met.len(), WORKERS);
    for slot in 0..WORKERS as u8 {
        assert_eq!(who(probe(slot), to).await.slot, format!("app/{slot}"));
    }
    assert!(homescar.records().is_empty(), "homescar saw nobody");

    let relayed = config("127.0.0.1:0", "", WORKERS, "hold 10s").replace("direct", "tcp");
    let (_relay, to) = start(&relayed, WORKERS).await;
    for (from, met) in homes(to).await {
        assert_eq!(met.slot, direct[&from].slot, "{from}");
    }
}

/// Clients whose worker is killed wait in its backlog, which outlives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_fail_no_attempt_and_move_nobody() {
    let config = config("127.0.0.1:0", ", \"--banner\"", MANY, "hold 10s");
    let (homescar, to) = start(&config, MANY).await;
    let mut before = HashMap::new();
    for index in 0..CLIENTS {
        let from = address_of_client(index);
        let mut client = Client::connect_from(from, to).await.unwrap();
        before.insert(from, client.answer().await.unwrap().slot);
    }
    let before = Arc::new(before);
    let (attempts, stop) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut lanes = JoinSet::new();
    for lane in 0..8 {
        let (before, attempts, stop) = (before.clone(), attempts.clone(), stop.clone());
        lanes.spawn(async move {
            let mut lost_with_the_worker = 0;
            let mut index = lane;
            while !stop.load(Relaxed) {
                let from = address_of_client(index % CLIENTS);
                index += 8;
                attempts.fetch_add(1, Relaxed);
                let mut client = Client::connect_from(from, to).await.unwrap();
                match client.answer().await {
                    Ok(who) => {
                        assert_eq!(who.slot, before[&from], "{from} was moved");
                        // The kernel keeps only so many in TIME_WAIT, which others count.
                        client.reset();
                    }
                    // Accepted by a worker that was killed before it said a word.
                    Err(_) => lost_with_the_worker += 1,
                }
            }
            lost_with_the_worker
        });
    }
    let mut pids = homescar.all_ready("app", MANY).await;
    for kills in 0..KILLS as usize {
        let slot = kills % MANY;
        let mark = homescar.mark();
        kill(pid(pids[slot]), Signal::SIGKILL).unwrap();
        pids[slot] = homescar.ready_after(mark, &format!("app/{slot}")).await;
    }
    stop.store(true, Relaxed);
    let lost: u32 = lanes.join_all().await.into_iter().sum();
    let attempts = attempts.load(Relaxed);
    assert!(attempts > 1000, "{attempts} attempts are no load");
    // A kill meets a worker between accept and greeting at most once for each lane.
    assert!(lost <= KILLS, "{lost} of {attempts} were lost");
}

/// Past the hold its clients go to their next choice, also those who waited already.
#[tokio::test]
async fn a_slot_that_stays_down_is_left_and_who_waits_there_is_rescued() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    let script = format!("test -e {} && exit 1; exec {WORKER}", broken.display());
    let config = config("127.0.0.1:0", "", WORKERS, "hold 1s").replace(
        &format!("[\"{WORKER}\"]"),
        &format!("[\"/bin/sh\", \"-c\", \"{script}\"]"),
    );
    let (homescar, to) = start(&config, WORKERS).await;
    let before = homes(to).await;
    let victim = &before[&address_of_client(0)];
    std::fs::write(&broken, "").unwrap();
    kill(pid(victim.pid), Signal::SIGKILL).unwrap();
    homescar.message("ended: signal KILL").await;

    // It knocks while the slot is held, and is answered by another.
    let rescued = who(address_of_client(0), to).await;
    assert_ne!(rescued.slot, victim.slot);
    assert!(rescued.peer.starts_with("127.72.83."), "{}", rescued.peer);
    homescar
        .line("a record of it", |line| message(line) == "connection")
        .await;
    // From now on the kernel does that by itself, and moves nobody else.
    for (from, met) in homes(to).await {
        if before[&from].slot == victim.slot {
            assert_ne!(met.slot, victim.slot);
        } else {
            assert_eq!(met.slot, before[&from].slot, "{from}");
        }
    }
    let mark = homescar.mark();
    std::fs::remove_file(&broken).unwrap();
    homescar.ready_after(mark, &victim.slot).await;
    // The kernel is told once it is ready.
    let back = async { while who(address_of_client(0), to).await.slot != victim.slot {} };
    timeout(SOON, back).await.unwrap();
    for (from, met) in homes(to).await {
        assert_eq!(met.slot, before[&from].slot, "{from} is home again");
    }
}

/// An event loop that stands still: a check by the probe address is not answered, so the kernel
/// leads its clients on, who waits there is rescued, and its process is ended and replaced.
#[tokio::test]
async fn a_hung_worker_is_left_and_replaced() {
    let config = config("127.0.0.1:0", ", \"--ignore-term\"", WORKERS, "next");
    let health = r#"health = { http = "/", interval = "200ms", timeout = "300ms", fall = 2 }"#;
    let config = format!("{config}\n{health}\n").replace(
        "contract = \"fd\"",
        "contract = \"fd\", stop_timeout = \"3s\"",
    );
    let (homescar, to) = start(&config, WORKERS).await;
    let from = address_of_client(0);
    let (victim, mark) = (who(from, to).await, homescar.mark());
    stop(victim.pid).await;
    let mut waiting = Client::connect_from(from, to).await.unwrap();
    waiting.send("whoami\n").await.unwrap();
    let rescued = waiting.answer().await.unwrap();
    assert_ne!(rescued.slot, victim.slot);
    assert!(rescued.peer.starts_with("127.72.83."), "{}", rescued.peer);
    let led_on = async {
        loop {
            let met = who(from, to).await;
            assert_eq!(met.slot, rescued.slot);
            if met.peer.starts_with(&from.to_string()) {
                return;
            }
        }
    };
    timeout(SOON, led_on).await.expect("the kernel leads it on");
    let next = homescar.ready_after(mark, &victim.slot).await;
    assert_ne!(next, victim.pid);
    let back = async { while who(from, to).await.slot != victim.slot {} };
    timeout(SOON, back).await.unwrap();
    assert_eq!(who(from, to).await.generation, 2);
}

/// From another machine a probe address leads nowhere, although that machine sends from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probe_addresses_are_not_reached_from_outside() {
    let story = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns/outside.sh");
    let told = tokio::task::spawn_blocking(move || {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", story])
            .args([env!("CARGO_BIN_EXE_homescar"), WORKER])
            .output()
    });
    let told = timeout(3 * SOON, told).await.unwrap().unwrap().unwrap();
    let (said, log) = (
        String::from_utf8_lossy(&told.stdout),
        String::from_utf8_lossy(&told.stderr),
    );
    assert!(told.status.success(), "{said}\n{log}");
    let of = |who: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(who));
        line.unwrap_or_else(|| panic!("nothing of {who}in\n{said}\n{log}"))
    };
    assert!(of("inside ").contains("app/1"), "{said}");
    assert!(of("outside ").contains("10.72.83.2"), "{said}");
    assert_eq!(of("as-probe "), "nobody answers", "{said}");
    assert_ne!(of("knocks "), "0", "it did knock: {said}");
    assert_eq!(
        of("after ").split(':').next(),
        of("outside ").split(':').next()
    );
}

#[tokio::test]
async fn with_reject_the_clients_of_a_slot_that_is_down_are_reset() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    let script = format!("test -e {} && exit 1; exec {WORKER}", broken.display());
    let config = config("127.0.0.1:0", "", 2, "reject").replace(
        &format!("[\"{WORKER}\"]"),
        &format!("[\"/bin/sh\", \"-c\", \"{script}\"]"),
    );
    let (homescar, to) = start(&config, 2).await;
    let from = address_of_client(0);
    let victim = who(from, to).await;
    std::fs::write(&broken, "").unwrap();
    kill(pid(victim.pid), Signal::SIGKILL).unwrap();
    homescar.message("ended: signal KILL").await;
    let mut client = Client::connect_from(from, to).await.unwrap();
    let error = client.rest().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Sockets join the group behind the others, and the others keep their clients.
#[tokio::test]
async fn it_grows_and_shrinks_by_a_reload() {
    let (homescar, to) = start(&config("127.0.0.1:0", "", 3, "hold 10s"), 3).await;
    let three = homes(to).await;
    homescar
        .reload(&config("127.0.0.1:0", "", 5, "hold 10s"))
        .await;
    homescar.all_ready("app", 5).await;
    let five = homes(to).await;
    for (from, met) in &five {
        let new = ["app/3", "app/4"].contains(&&*met.slot);
        assert!(
            new || met.slot == three[from].slot,
            "{from} moved to {}",
            met.slot
        );
    }
    let met: BTreeSet<_> = five.values().map(|who| &who.slot).collect();
    assert_eq!(met.len(), 5);
    homescar
        .reload(&config("127.0.0.1:0", "", 3, "hold 10s"))
        .await;
    homescar.message("app/4 stopped").await;
    homescar.message("app/3 stopped").await;
    for (from, met) in homes(to).await {
        assert_eq!(met.slot, three[&from].slot);
    }
    assert!(descriptors(homescar.pid()) < 200);
}

#[tokio::test]
async fn a_reload_that_would_change_its_sockets_changes_nothing() {
    let (homescar, to) = start(&config("127.0.0.1:0", "", 2, "hold 10s"), 2).await;
    let other = config("127.0.0.2:0", "", 2, "hold 10s");
    std::fs::write(homescar.config_file(), other).unwrap();
    homescar.signal(Signal::SIGHUP);
    let line = homescar.message("not reloaded").await;
    assert!(
        message(&line).contains("only when homescar is restarted"),
        "{line}"
    );
    who(address_of_client(0), to).await;
}

#[tokio::test]
async fn several_addresses_lead_to_the_same_slots() {
    let both = "127.0.0.1:0\", \"[::1]:0";
    let config = config("X", "", 2, "hold 10s").replace("\"X\"", &format!("[\"{both}\"]"));
    let homescar = Homescar::serve(&config);
    let bound = homescar.addresses("web", 2).await;
    homescar.all_ready("app", 2).await;
    for to in bound {
        let first = who(to.ip(), to).await;
        assert_eq!(who(to.ip(), to).await.slot, first.slot, "{to}");
    }
}

/// Another process of the same user joins later: it gets nobody, and the group does not grow
/// behind it until it is gone.
#[tokio::test]
async fn a_stranger_in_the_group_gets_nobody() {
    let (homescar, to) = start(&config("127.0.0.1:0", "", 2, "hold 10s"), 2).await;
    let two = homes(to).await;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&to.into()).unwrap();
    socket.listen(16).unwrap();
    let mark = homescar.mark();
    homescar
        .reload(&config("127.0.0.1:0", "", 3, "hold 10s"))
        .await;
    let said = |line: &serde_json::Value| {
        message(line).contains("app/2 ended: it could not be started: another process listens on")
    };
    homescar.line_after(mark, "a clear line", said).await;
    for (from, met) in homes(to).await {
        assert!(two.contains_key(&from) && met.slot != "app/2");
    }
    assert!(socket.accept().is_err(), "it got somebody");
    drop(socket);
    homescar.ready_after(mark, "app/2").await;
    for slot in 0..3 {
        let met = async { while who(probe(slot), to).await.slot != format!("app/{slot}") {} };
        timeout(SOON, met).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_else_listens_there() {
    let (homescar, to) = start(&config("127.0.0.1:0", "", 2, "hold 10s"), 2).await;
    let mut second = Homescar::serve(&config(&to.to_string(), "", 2, "hold 10s"));
    assert_eq!(second.exit().await.code(), Some(69));
    assert!(
        second.tail().contains("another process listens there"),
        "{}",
        second.tail()
    );
    drop(homescar);
}

async fn done(homescar: &Homescar, arguments: &[&str]) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    command.args(arguments).arg("--socket");
    let output = command.arg(homescar.admin_socket()).output().await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// What the operator has taken out takes nobody, as in the other modes, whatever `on_down` says; and
/// when that is all, clients are refused, and recorded.
#[tokio::test]
async fn a_slot_that_is_taken_out_takes_nobody() {
    for on_down in ["hold 10s", "next", "reject"] {
        let (homescar, to) = start(&config("127.0.0.1:0", "", 2, on_down), 2).await;
        let mut clients: [Vec<IpAddr>; 2] = Default::default();
        for index in 0..20 {
            let from = address_of_client(index);
            clients[usize::from(who(from, to).await.slot == "app/1")].push(from);
        }
        // Known before it is there: the answer says that it is wanted, and the program follows.
        let led = async |from: IpAddr, slot: Option<&str>| {
            let deadline = tokio::time::Instant::now() + SOON;
            loop {
                let mut client = Client::connect_from(from, to).await.ok();
                let met = match &mut client {
                    Some(client) => client.whoami().await.ok(),
                    None => None,
                };
                if met.as_ref().map(|who| &*who.slot) == slot {
                    return;
                }
                let late = tokio::time::Instant::now() > deadline;
                assert!(!late, "{on_down}: {met:?}, not {slot:?}");
            }
        };
        done(&homescar, &["drain", "app/0"]).await;
        led(clients[0][0], Some("app/1")).await;
        for from in &clients[0] {
            assert_eq!(who(*from, to).await.slot, "app/1", "{on_down}");
        }
        done(&homescar, &["maint", "app/1"]).await;
        led(clients[0][0], None).await;
        let mark = homescar.mark();
        for from in clients.iter().flatten() {
            is_turned_away(*from, to).await;
        }
        let refused = |line: &serde_json::Value| {
            message(line) == "connection" && line["reason"] == "no_backend"
        };
        homescar.line_after(mark, "a record", refused).await;
        // Checks go on, and so it is known to be well.
        assert_eq!(who(probe(1), to).await.slot, "app/1");
        done(&homescar, &["ready", "app/1"]).await;
        led(clients[1][0], Some("app/1")).await;
        for from in clients.iter().flatten() {
            assert_eq!(who(*from, to).await.slot, "app/1", "{on_down}");
        }
    }
}
