//! The end: TERM, TERM again, and KILL.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use hyper::Request;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet, time::timeout};
use tokio_tungstenite::{client_async, tungstenite::Message};

use crate::{
    http::Front,
    metrics::until,
    support::{
        client::{Client, address_of_client, is_refused},
        homescar::{Homescar, SOON, WORKER, eventually, is_alive, message},
        process::stop,
    },
};

fn config(drain: &str, options: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}"{options}], count = 4, stop_timeout = "2s" }}
        drain = {{ timeout = "{drain}" }}
        "#
    )
}

/// Under load: accepted work finishes, new connections are refused, exit 0 before the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn term_finishes_accepted_work_and_refuses_new() {
    let mut homescar = Homescar::serve(&config("20s", ""));
    let pids = homescar.all_ready("app", 4).await;
    let web = homescar.address("web").await;

    // Work in progress: each has sent half of what it has to say.
    let mut working = Vec::new();
    for index in 0..200 {
        let mut client = Client::connect_from(address_of_client(index), web)
            .await
            .unwrap();
        client.send("sink\n").await.unwrap();
        client.send(vec![b'x'; 1000]).await.unwrap();
        working.push(client);
    }
    // And a load of new ones all the while.
    let (served, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut load = JoinSet::new();
    for lane in 0..4 {
        let (served, refused) = (Arc::clone(&served), Arc::clone(&refused));
        load.spawn(async move {
            for index in (lane..).step_by(4) {
                let attempt = Client::connect_from(address_of_client(index % 250), web).await;
                match attempt {
                    Ok(mut client) => {
                        client.whoami().await?;
                        served.fetch_add(1, Relaxed);
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        refused.fetch_add(1, Relaxed);
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
    }
    eventually("the load runs", SOON, || served.load(Relaxed) > 200).await;
    homescar.signal(Signal::SIGTERM);
    let began = Instant::now();
    while let Some(joined) = load.join_next().await {
        joined
            .unwrap()
            .expect("a connection that was accepted was served");
    }
    assert_eq!(refused.load(Relaxed), 4);
    assert!(is_refused(web).await);

    for client in &mut working {
        client.send(vec![b'y'; 500]).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("1500 "), "{answer:?}");
    }
    let status = homescar.exit().await;
    assert_eq!(status.code(), Some(0), "{}", homescar.tail());
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let cut = homescar
        .records()
        .iter()
        .filter(|record| record["reason"] == "cut")
        .count();
    assert_eq!(cut, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlives_the_drain_is_cut_and_recorded() {
    let mut homescar = Homescar::serve(&config("500ms", ""));
    homescar.all_ready("app", 4).await;
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    client.whoami().await.unwrap();
    homescar.signal(Signal::SIGTERM);
    let rest = client.rest().await;
    assert!(rest.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    assert_eq!(homescar.exit().await.code(), Some(0));
    let records = homescar.records();
    assert_eq!(records.len(), 1);
    assert_eq!(
        (&records[0]["by"], &records[0]["reason"]),
        (&"proxy".into(), &"cut".into())
    );
    assert!(records[0]["slot"].as_str().unwrap().starts_with("app/"));
}

/// Invariant 5: in HTTP mode every request has one record, and a connection that brought some has none.
#[tokio::test]
async fn what_is_cut_of_http_is_recorded_once() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut front = Front::start("", "drain = { timeout = \"300ms\" }").await;
    // Heads that never come whole, or are none.
    for head in [
        "nonsense\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(200_000)),
    ] {
        let mut client = front.client().await;
        client.say(head).await;
        assert!(client.rest().await.starts_with("HTTP/1.1 4"));
    }
    // One that has asked before, and asks again.
    let mut kept = front.client().await;
    kept.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    backend
        .say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .await;
    kept.head().await;
    kept.say(GET).await;
    backend.head().await;
    // A WebSocket.
    let mut websocket = front.client().await;
    let _switched = front.websocket(&mut websocket).await;
    // HTTP/2.
    let stream = TcpStream::connect(front.address).await.unwrap();
    let (mut http2, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("http://a/").body(()).unwrap();
    let _asked = http2.send_request(request, true).unwrap();
    let mut asked = front.accept().await;
    asked.head().await;

    front.homescar.signal(Signal::SIGTERM);
    assert_eq!(front.homescar.exit().await.code(), Some(0));
    let log = front.homescar.log();
    let of = |kind: &str| {
        log.iter()
            .filter(|line| message(line) == kind)
            .cloned()
            .collect::<Vec<_>>()
    };
    let requests = of("request");
    assert_eq!(requests.len(), 6, "{requests:?}");
    let cut = requests.iter().filter(|line| line["reason"] == "cut");
    assert!(cut.count() >= 2, "{requests:?}");
    assert_eq!(of("connection"), Vec::<Value>::new());
    drop(connection);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_term_does_not_wait_for_connections_nor_a_third_for_workers() {
    let mut homescar =
        Homescar::serve(&config("60s", r#", "--ignore-term""#).replace("\"2s\"", "\"60s\""));
    let pids = homescar.all_ready("app", 4).await;
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    client.whoami().await.unwrap();
    homescar.signal(Signal::SIGTERM);
    homescar.message("draining").await;
    homescar.signal(Signal::SIGTERM);
    homescar.message("cutting 1 connections").await;
    assert!(client.rest().await.is_err());
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    homescar.signal(Signal::SIGINT);
    homescar.message("killing workers").await;
    assert_eq!(homescar.exit().await.code(), Some(0));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

/// `kill -9` of homescar: nothing that it started is left soon after, be it daemonised. (A moment on an
/// idle machine; a machine that builds something else beside needs more.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_survives_a_homescar_that_was_killed() {
    let mut homescar = Homescar::serve(&config("30s", r#", "--children", "--ignore-term""#));
    let workers = homescar.all_ready("app", 4).await;
    // Grandchildren may take longer than it takes their worker to be ready.
    eventually("workers, children and grandchildren", SOON, || {
        family_of(homescar.pid()).len() >= 4 * 3
    })
    .await;
    let family = family_of(homescar.pid());
    assert!(workers.iter().all(|pid| family.contains(pid)));
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    client
        .stream
        .get_mut()
        .write_all(b"whoami\n")
        .await
        .unwrap();

    homescar.signal(Signal::SIGKILL);
    eventually("all are gone", Duration::from_secs(5), || {
        family.iter().all(|pid| !is_alive(*pid))
    })
    .await;
    homescar.exit().await;
    client.rest().await.ok();
}

/// All processes that a homescar has started: its descendants, and those that left the family tree
/// (daemonised) but still carry its mark in their environment.
fn family_of(homescar: u32) -> Vec<u32> {
    let mark_of = |pid: u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mark = environ
            .split(|byte| *byte == 0)
            .find(|v| v.starts_with(b"HOMESCAR_INSTANCE="))?;
        Some(mark.to_vec())
    };
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    let all: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let mut family = vec![homescar];
    loop {
        let is_child = |pid: &u32| parent_of(*pid).is_some_and(|parent| family.contains(&parent));
        let is_new = |pid: &&u32| !family.contains(pid) && is_child(pid);
        let children: Vec<u32> = all.iter().filter(is_new).copied().collect();
        if children.is_empty() {
            break;
        }
        family.extend(children);
    }
    let mark = family
        .iter()
        .find_map(|pid| mark_of(*pid))
        .expect("a worker with the mark");
    let strays = all
        .iter()
        .filter(|pid| mark_of(**pid).as_ref() == Some(&mark));
    let strays: Vec<u32> = strays
        .filter(|pid| !family.contains(pid))
        .copied()
        .collect();
    family.extend(strays);
    family.retain(|pid| *pid != homescar);
    family
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_doors_are_closed_at_once() {
    let listeners: String = (0..16)
        .map(|index| format!("[listener.l{index}]\nbind = \"127.0.0.1:0\"\ncluster = \"app\"\n"))
        .collect();
    let mut homescar = Homescar::serve(&format!(
        "{listeners}\n[cluster.app]\nbackends = [\"127.0.0.1:9\"]"
    ));
    homescar.address("l15").await;
    let began = Instant::now();
    homescar.signal(Signal::SIGTERM);
    assert!(homescar.exit().await.success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_was_stopped_does_not_keep_homescar() {
    let mut homescar = Homescar::serve(&config("20s", ""));
    homescar.all_ready("app", 4).await;
    let task = format!("/proc/{0}/task/{0}/children", homescar.pid());
    let children = fs::read_to_string(task).unwrap();
    let guard = children.split_whitespace().find(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains("\0__guard\0")
    });
    let guard: i32 = guard.unwrap().parse().unwrap();
    kill(Pid::from_raw(guard), Signal::SIGSTOP).unwrap();
    homescar.signal(Signal::SIGTERM);
    assert!(homescar.exit().await.success());
}

/// A WebSocket to a worker that is stopped for as long as `meanwhile` takes: what it is told then.
async fn told_to_a_late_websocket<F: Future>(
    text: &str,
    meanwhile: impl FnOnce(Homescar) -> F,
) -> (u16, F::Output) {
    let homescar = Homescar::serve(text);
    let old = homescar.all_ready("app", 1).await[0];
    let web = homescar.address("web").await;
    stop(old).await;
    let opens = async {
        let stream = Client::connect(web).await.unwrap().stream.into_inner();
        client_async("ws://app/ws", stream).await.unwrap().0
    };
    let meanwhile = async {
        let done = meanwhile(homescar).await;
        // Whoever is there by now has been asked to go.
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill(Pid::from_raw(old as i32), Signal::SIGCONT).unwrap();
        done
    };
    let (mut socket, done) = tokio::join!(opens, meanwhile);
    let told = async {
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Close(frame) => return u16::from(frame.unwrap().code),
                greeting => assert!(greeting.to_string().contains(&old.to_string())),
            }
        }
    };
    (timeout(SOON, told).await.unwrap(), done)
}

fn config_of_one() -> String {
    let text = config("60s", "").replace("cluster = \"app\"", "cluster = \"app\"\nmode = \"http\"");
    text.replace("count = 4", "count = 1, stable = \"50ms\"")
}

/// A WebSocket that is being opened while its worker is replaced is told to go, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_late_to_an_old_generation_is_told() {
    let text = config_of_one();
    let (code, _homescar) = told_to_a_late_websocket(&text, async |homescar| {
        let mark = homescar.mark();
        let text = text.replace("stable", "env = { RELEASE = \"2\" }, stable");
        homescar.reload(&text).await;
        let is_taken = |line: &Value| message(line).contains("has taken over");
        homescar
            .line_after(mark, "the next generation", is_taken)
            .await;
        homescar
    })
    .await;
    assert_eq!(code, 1012);
}

/// And one while its slot is taken out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_late_to_a_slot_in_maintenance_is_told() {
    let (code, _homescar) = told_to_a_late_websocket(&config_of_one(), async |homescar| {
        // Also the connection has to have come, which the stopped worker has in its queue.
        until(&homescar, "homescar_connections_active", &[], 1.0).await;
        let mut maint = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
        maint.args(["maint", "app/0", "--socket"]);
        let told = maint.arg(homescar.admin_socket()).output().await.unwrap();
        assert!(told.status.success(), "{told:?}");
        homescar
    })
    .await;
    assert_eq!(code, 1012);
}
