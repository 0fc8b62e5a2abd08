//! `homescar demo` as a person meets it: the front, four workers, two clients in a real browser.

use std::{collections::HashSet, time::Duration};

use fantoccini::Client as Window;
use nix::sys::signal::Signal;

use super::{
    chromium::{Chromium, WIDE, screenshot},
    process::RedisProcess,
    tour,
};
use crate::support::{
    client::{Client, address_of_client},
    homescar::{Homescar, eventually, is_alive},
};

const WORKERS: usize = 4;

/// The demo on a free port of both loopback addresses: a browser on this machine comes from one
/// or the other, and so is two clients.
async fn demo(env: &[(&str, &str)]) -> (Homescar, String, String) {
    start("http", &[], env).await
}

async fn start(scheme: &str, more: &[&str], env: &[(&str, &str)]) -> (Homescar, String, String) {
    let mut arguments = vec!["demo", "--log-format", "json"];
    arguments.extend(["--listen", "127.0.0.1:0", "--listen", "[::1]:0"]);
    arguments.extend(more);
    let homescar = Homescar::command(&arguments, env);
    homescar.all_ready("chat", WORKERS).await;
    let urls: Vec<_> = homescar
        .addresses("web", 2)
        .await
        .iter()
        .map(|addr| format!("{scheme}://{addr}"))
        .collect();
    (homescar, urls[0].clone(), urls[1].clone())
}

async fn chat(ada: &Window, ben: &Window) {
    tour::rename(ada, "Ada").await;
    tour::rename(ben, "Ben").await;
    tour::say(ada, "hello Ben, from my worker to yours").await;
    let from_ada = tour::sees(ben, "hello Ben, from my worker to yours").await;
    tour::say(ben, "hello Ada").await;
    let from_ben = tour::sees(ada, "hello Ada").await;
    assert_ne!(from_ada, from_ben, "two workers");
}

/// Kills the worker of a window by the page's button, and sees it come home.
async fn kill_and_come_home(homescar: &Homescar, window: &Window) {
    let before = tour::home(window).await;
    let mark = homescar.mark();
    tour::press(window, "kill").await;
    let entry = tour::journey(window, "home again").await;
    let after = tour::home(window).await;
    assert_eq!(after.slot, before.slot, "{entry}");
    assert_eq!(
        (before.generation.as_str(), after.generation.as_str()),
        ("1", "2")
    );
    assert_ne!(after.pid, before.pid);
    assert_eq!(
        homescar.ready_after(mark, &after.slot).await.to_string(),
        after.pid
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tabs_two_slots_a_kill_and_the_way_home() {
    let (mut homescar, v4, v6) = demo(&[]).await;
    let chromium = Chromium::start().await;
    let [ada, ben] = [chromium.window(WIDE).await, chromium.window(WIDE).await];
    let at_ada = tour::visit(&ada, &v4).await;
    let at_ben = tour::visit(&ben, &v6).await;
    assert_ne!(
        at_ada.slot, at_ben.slot,
        "the demo's two clients have two homes"
    );
    // A client's second tab and its plain requests meet the same worker.
    let second = chromium.window(WIDE).await;
    assert_eq!(tour::visit(&second, &v4).await, at_ada);
    second.close().await.unwrap();

    chat(&ada, &ben).await;
    kill_and_come_home(&homescar, &ada).await;
    assert_eq!(tour::home(&ben).await, at_ben, "nobody else notices");
    // History has survived the worker, and the chat goes on.
    tour::sees(&ada, "hello Ada").await;
    tour::say(&ada, "I am back").await;
    tour::sees(&ben, "I am back").await;

    let on_pool = tour::hash(&ada, "pool", 8).await;
    let on_loop = tour::hash(&ada, "loop", 8).await;
    assert_eq!((on_pool.answered, on_loop.answered), (8, 8));
    assert!(on_loop.worst > on_pool.worst, "{on_loop:?} {on_pool:?}");
    screenshot(&ada, "demo").await;

    // Ctrl-C, with both pages open.
    let pids: HashSet<u32> = homescar
        .log()
        .iter()
        .filter_map(|line| line["pid"].as_u64()?.try_into().ok())
        .collect();
    assert_eq!(pids.len(), WORKERS + 1);
    homescar.signal(Signal::SIGINT);
    let status = homescar.exit_within(Duration::from_secs(8)).await;
    assert_eq!(status.code(), Some(0), "{}", homescar.tail());
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    ada.close().await.unwrap();
    ben.close().await.unwrap();
}

/// The same over TLS: the page and its WebSocket by HTTP/2, the way home by a cookie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_cookie_leads_home() {
    let (mut homescar, v4, v6) = start("https", &["--tls"], &[]).await;
    let chromium = Chromium::start().await;
    let [ada, ben] = [chromium.window(WIDE).await, chromium.window(WIDE).await];
    let at_ada = tour::visit(&ada, &v4).await;
    tour::visit(&ben, &v6).await;
    let front = "return document.getElementById('front-text').textContent";
    let front = ada.execute(front, Vec::new()).await.unwrap();
    assert_eq!(front, "mode http · HTTP/2, TLS");
    tour::rename(&ada, "Ada").await;
    tour::say(&ada, "hello over TLS").await;
    tour::sees(&ben, "hello over TLS").await;
    kill_and_come_home(&homescar, &ada).await;
    // The window goes and comes: the cookie is what it brings.
    assert_eq!(tour::visit(&ada, &v4).await.slot, at_ada.slot);
    let by_cookie = |line: &serde_json::Value| line["key"] == "cookie" && line["status"] == 101;
    let by_cookie_h2 = |line: &serde_json::Value| line["key"] == "cookie" && line["status"] == 200;
    screenshot(&ada, "demo-tls").await;
    ada.close().await.unwrap();
    ben.close().await.unwrap();
    homescar
        .line("a record", |line| by_cookie(line) || by_cookie_h2(line))
        .await;
    homescar.signal(Signal::SIGINT);
    let status = homescar.exit_within(Duration::from_secs(8)).await;
    assert_eq!(status.code(), Some(0), "{}", homescar.tail());
}

/// With a real Redis as the bus, history and messages go through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redis_the_chat_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let redis = RedisProcess::start(&socket).await;
    let url = format!("redis+unix://{}", socket.display());
    let (homescar, v4, v6) = demo(&[("REDIS_URL", &url)]).await;
    let chromium = Chromium::start().await;
    let [ada, ben] = [chromium.window(WIDE).await, chromium.window(WIDE).await];
    tour::visit(&ada, &v4).await;
    tour::visit(&ben, &v6).await;
    chat(&ada, &ben).await;
    kill_and_come_home(&homescar, &ada).await;
    tour::sees(&ada, "hello Ada").await;
    ada.close().await.unwrap();
    ben.close().await.unwrap();
    redis.kill().await;
}

/// `/health`, `/whoami` and `/hash` of the starting document, by address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_routes_are_sticky_by_address() {
    let (homescar, _, _) = demo(&[]).await;
    let to = homescar.addresses("web", 2).await[0];
    let get = async |from: usize, path: &str| {
        let mut client = Client::connect_from(address_of_client(from), to)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n");
        client.send(request).await.unwrap();
        let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    assert_eq!(get(1, "/health").await, "ok");
    let mut slots = HashSet::new();
    for from in 0..24 {
        let answer = get(from, "/whoami").await;
        assert_eq!(get(from, "/whoami").await, answer);
        let who: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (&who["generation"], &who["path"]),
            (&1.into(), &"/whoami".into())
        );
        assert!(who["pid"].is_u64());
        slots.insert(who["slot"].as_str().unwrap().to_owned());
    }
    assert_eq!(slots.len(), WORKERS, "{slots:?}");
    let pids = homescar.all_ready("chat", WORKERS).await;
    drop(homescar);
    eventually("nobody survives", Duration::from_secs(2), || {
        !pids.iter().any(|pid| is_alive(*pid))
    })
    .await;
}
