//! A worker as a process: routes, limits, signals.

use std::time::Duration;

use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Request;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{net::TcpStream, time::Instant};

use super::{
    client::{Page, ask, ask_over, get, get_unix, post},
    process::{Bus, HubTask, WorkerProcess, command},
    within,
};

/// `hashlib.pbkdf2_hmac('sha256', b'correct horse', b'salt', 150000)` of Python.
const HASH: &str = "7731d507659d6b8b7c9e1d17193d72e464b98c3d4e3a800e4203d05c5a1c9883";

/// A hub and one worker.
async fn one() -> (tempfile::TempDir, HubTask, WorkerProcess) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub");
    let hub = HubTask::start(&path);
    let worker = WorkerProcess::start("chat/3", &Bus::Hub(path)).await;
    (dir, hub, worker)
}

#[tokio::test]
async fn answers_its_routes_and_refuses_the_rest() {
    let (_dir, hub, worker) = one().await;
    let at = worker.address();
    let health = get(at, "/health").await;
    assert_eq!((health.status(), health.body.as_str()), (200, "ok"));
    let expected =
        json!({"pid": worker.pid(), "slot": "chat/3", "generation": 1, "path": "/whoami"});
    assert_eq!(get(at, "/whoami").await.json(), expected);
    for (path, media_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ] {
        let file = get(at, path).await;
        assert_eq!(
            (file.status(), file.header("content-type")),
            (200, media_type)
        );
        assert!(file.body.len() > 300, "{path}");
    }
    let stats = get(at, "/stats").await.json();
    assert_eq!(stats["pool"]["queue_limit"], 16);
    assert!(stats["loop_delay"]["samples"].is_array());

    let nothing = get(at, "/nothing").await;
    assert_eq!(
        (nothing.status(), nothing.json()["error"].is_string()),
        (404, true)
    );
    let wrong = get(at, "/hash").await;
    assert_eq!((wrong.status(), wrong.header("allow")), (405, "POST"));
    assert_eq!(post(at, "/health", "").await.status(), 405);
    assert_eq!(get(at, "/ws").await.status(), 426);
    assert_eq!(post(at, "/hash", "{}").await.status(), 400);
    assert_eq!(
        post(at, "/hash?on=moon", r#"{"password":"x"}"#)
            .await
            .status(),
        400
    );
    assert_eq!(post(at, "/hash", vec![b' '; 5000]).await.status(), 413);
    let foreign = Request::post("/kill").header("origin", "http://evil.example");
    let foreign = ask(at, foreign.body(Full::default()).unwrap()).await;
    assert_eq!(foreign.status(), 403);
    assert_eq!(post(at, "/kill?pid=1", "").await.status(), 409);
    assert_eq!(get(at, "/health").await.status(), 200, "it still lives");
    hub.stop().await;
}

#[tokio::test]
async fn hashes_in_both_places() {
    let (_dir, hub, worker) = one().await;
    for on in ["pool", "loop"] {
        let target = format!("/hash?on={on}");
        let answer = post(worker.address(), &target, r#"{"password":"correct horse"}"#).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.json()["hash"], HASH);
        assert_eq!(answer.json()["on"], on);
        assert!(answer.json()["ms"].as_f64().unwrap() > 1.0);
    }
    hub.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_into_the_pool_is_told_so_at_once() {
    let (_dir, hub, worker) = one().await;
    let at = worker.address();
    let asked = (0..60).map(|_| post(at, "/hash", r#"{"password":"x"}"#));
    let answers = join_all(asked).await;
    let count = |status| {
        answers
            .iter()
            .filter(|answer| answer.status() == status)
            .count()
    };
    let (done, full) = (count(200), count(429));
    assert_eq!(done + full, 60);
    assert!(full > 0);
    let refused = answers
        .iter()
        .find(|answer| answer.status() == 429)
        .unwrap();
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.json()["error"].is_string());
    let pool = &get(at, "/stats").await.json()["pool"];
    let threads = usize::try_from(pool["threads"].as_u64().unwrap()).unwrap();
    assert!(
        done >= threads + 16,
        "{done} of {threads} threads and 16 places"
    );
    assert_eq!(
        (&pool["done"], &pool["refused"]),
        (&json!(done), &json!(full))
    );
    hub.stop().await;
}

#[tokio::test]
async fn a_hash_on_the_loop_holds_it_up_and_one_on_the_pool_does_not() {
    let (_dir, hub, worker) = one().await;
    let mut page = Page::open(worker.address()).await;
    let mut worst = Vec::new();
    for on in ["pool", "loop"] {
        for id in 0..6 {
            let hash = json!({"type": "hash", "id": id, "password": "x", "on": on});
            page.send(hash).await;
        }
        let mut slowest = 0.0_f64;
        for _ in 0..6 {
            let hash = page.next("hash").await;
            assert_eq!(hash["status"], 200);
            slowest = slowest.max(hash["ms"].as_f64().unwrap());
        }
        // The window in which the last one fell is pushed after it.
        page.next("delay").await;
        page.next("delay").await;
        let samples = get(worker.address(), "/stats").await.json();
        worst.push((samples["loop_delay"]["max_ms"].as_f64().unwrap(), slowest));
    }
    let [(calm, _), (held_up, longest_hash)] = worst[..] else {
        panic!()
    };
    assert!(
        held_up >= longest_hash - 25.0,
        "{held_up} by a hash of {longest_hash} ms"
    );
    assert!(held_up > calm, "{held_up} {calm}");
    hub.stop().await;
}

#[tokio::test]
async fn ends_in_order_on_sigterm_and_frees_its_unix_socket() {
    let (dir, hub, mut tcp) = one().await;
    let bus = Bus::Hub(dir.path().join("hub"));
    let path = dir.path().join("worker.sock");
    let mut unix = WorkerProcess::start_at(path.to_str().unwrap(), "chat/0", 5, &bus).await;
    let who = get_unix(&unix.listens, "/whoami").await.json();
    assert_eq!(
        (&who["generation"], &who["pid"]),
        (&json!(5), &json!(unix.pid()))
    );
    tcp.notification("WATCHDOG=1").await;

    let mut page = Page::open_as(tcp.address(), "Ada").await;
    let idle = TcpStream::connect(tcp.address()).await.unwrap();
    let asked = Instant::now();
    tcp.signal(Signal::SIGTERM);
    tcp.notification("STOPPING=1").await;
    let close = page.closed().await.expect("a Close frame");
    assert_eq!(u16::from(close.code), 1001);
    assert!(tcp.exit().await.success());
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    drop(idle);

    unix.signal(Signal::SIGTERM);
    assert!(unix.exit().await.success());
    assert!(!path.exists());
    hub.stop().await;
}

#[tokio::test]
async fn a_killed_worker_leaves_without_an_answer_and_its_path_can_be_used_again() {
    let (dir, hub, mut tcp) = one().await;
    let stream = TcpStream::connect(tcp.address()).await.unwrap();
    let kill = Request::post(format!("/kill?pid={}", tcp.pid()));
    assert!(
        ask_over(stream, kill.body(Full::default()).unwrap())
            .await
            .is_err()
    );
    assert!(!tcp.exit().await.success());

    let bus = Bus::Hub(dir.path().join("hub"));
    let path = dir.path().join("worker.sock");
    let unix = WorkerProcess::start_at(path.to_str().unwrap(), "chat/0", 1, &bus).await;
    unix.signal(Signal::SIGKILL);
    let next = unix.next_generation().await;
    assert_eq!(
        get_unix(&next.listens, "/whoami").await.json()["generation"],
        2
    );
    hub.stop().await;
}

#[tokio::test]
async fn bad_messages_are_answered_and_long_ones_end_the_socket() {
    let (_dir, hub, worker) = one().await;
    let mut page = Page::open(worker.address()).await;
    page.send_text("{".to_owned()).await;
    assert_eq!(page.next("error").await["code"], "malformed");
    page.say("1", "before joining").await;
    let refused = page.next("error").await;
    assert_eq!(
        (&refused["code"], &refused["id"]),
        (&json!("no-room"), &json!("1"))
    );
    page.send(json!({"type": "join", "room": "x".repeat(25), "name": "Ada"}))
        .await;
    assert_eq!(page.next("error").await["code"], "room");
    page.send_text(" ".repeat(5000)).await;
    page.closed().await;
    hub.stop().await;
}

#[tokio::test]
async fn one_who_floods_is_slowed_down() {
    let (_dir, hub, worker) = one().await;
    let mut page = Page::open_as(worker.address(), "Ada").await;
    for id in 0..100 {
        page.say(&id.to_string(), "me!").await;
    }
    let refused = page.next("error").await;
    assert_eq!(refused["code"], "too-fast");
    assert!(
        refused["id"].is_string(),
        "the page knows which one to send again"
    );
    hub.stop().await;
}

#[tokio::test]
async fn one_who_does_not_read_is_disconnected_and_holds_up_nobody() {
    let (_dir, hub, worker) = one().await;
    let mut ada = Page::open_as(worker.address(), "Ada").await;
    for id in 0..50 {
        ada.say(&format!("line {id}"), &"€".repeat(500)).await;
        ada.next("line").await;
        // As fast as it is allowed.
        if id > 30 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // Asks for one history of 75 KB after the other, until those fill every buffer on the way, and
    // then what is said in the room fills its queue.
    let mut slow = Page::open_narrow(worker.address()).await;
    within("the end of the slow one", async {
        let mut said = 0;
        while get(worker.address(), "/stats").await.json()["sockets"] == 2 {
            said += 1;
            for room in ["attic", "lobby"] {
                slow.ask_for(room).await;
            }
            ada.say(&format!("more {said}"), "still here").await;
            ada.find("line", |line| line["line"]["id"] == format!("more {said}"))
                .await;
            // As fast as it is allowed.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    hub.stop().await;
}

#[tokio::test]
async fn says_what_it_misses() {
    let mut worker = command(env!("CARGO_BIN_EXE_homescar"));
    worker
        .arg("demo-worker")
        .env_remove("PORT")
        .stderr(std::process::Stdio::piped());
    let output = within("its end", worker.output()).await.unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("the environment has no PORT"), "{told}");
}
