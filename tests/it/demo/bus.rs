//! What joins the workers: the hub, and a real Redis; when it is there and when it is not.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    client::Page,
    process::{Bus, HubTask, RedisProcess, WorkerProcess},
};

#[tokio::test]
async fn the_hub_joins_workers_and_outlives_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub");
    let hub = HubTask::start(&path);
    chat_over_two_workers(&Bus::Hub(path), "hub").await;
    hub.stop().await;
}

#[tokio::test]
async fn redis_joins_workers_and_outlives_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis");
    let redis = RedisProcess::start(&path).await;
    chat_over_two_workers(&redis_at(&path), "Redis").await;
    redis.kill().await;
}

/// Lines, history and presence over two workers, one of which dies.
async fn chat_over_two_workers(bus: &Bus, name: &str) {
    let first = WorkerProcess::start("chat/0", bus).await;
    let second = WorkerProcess::start("chat/1", bus).await;
    let mut ada = Page::open_as(first.address(), "Ada").await;
    let mut ben = Page::open_as(second.address(), "Ben").await;
    assert_eq!(ada.hello["slot"], "chat/0");
    let presence = ada.people(2).await;
    assert_eq!(
        (&presence["room"], &presence["here"]),
        (&json!("lobby"), &json!(1))
    );

    ada.say("a1", " one ").await;
    for page in [&mut ada, &mut ben] {
        let line = page.next("line").await["line"].take();
        assert_eq!(line["text"], "one");
        assert_eq!(
            (&line["name"], &line["slot"]),
            (&json!("Ada"), &json!("chat/0"))
        );
    }
    // Sent again, as a page does that saw no echo: remembered once.
    ada.say("a1", "one").await;
    ben.say("b1", "two").await;
    ada.find("line", |line| line["line"]["id"] == "b1").await;

    ben.people(2).await;
    first.signal(nix::sys::signal::Signal::SIGKILL);
    ada.closed().await;
    let next = first.next_generation().await;
    ben.people(1).await;
    let mut ada = Page::open(next.address()).await;
    assert_eq!(ada.hello["generation"], 2);
    ada.send(json!({"type": "join", "room": "lobby", "name": "Ada"}))
        .await;
    let history = ada.next("history").await;
    assert_eq!(texts(&history), ["one", "two"]);
    ben.people(2).await;

    // Rooms are apart, and who leaves is no longer counted, on any worker.
    let attic = |name| json!({"type": "join", "room": "attic", "name": name});
    let mut cyd = Page::open(second.address()).await;
    cyd.send(attic("Cyd")).await;
    assert_eq!(texts(&cyd.next("history").await), [""; 0]);
    let mut dee = Page::open(next.address()).await;
    dee.send(attic("Dee")).await;
    assert_eq!(dee.people(2).await["room"], "attic");
    cyd.people(2).await;
    drop(cyd);
    assert_eq!(dee.people(1).await["here"], 1, "over the {name}");
}

#[tokio::test]
async fn a_worker_waits_for_its_hub_and_comes_back_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub");
    let hub = HubTask::start(&path);
    let worker = WorkerProcess::start("chat/0", &Bus::Hub(path.clone())).await;
    let mut ada = Page::open_as(worker.address(), "Ada").await;
    hub.stop().await;
    let down = ada.bus(false).await;
    assert_eq!((&down["name"], down["why"] != ""), (&json!("hub"), true));
    ada.say("1", "anyone?").await;
    let refused = ada.next("error").await;
    assert_eq!(
        (&refused["code"], &refused["id"]),
        (&json!("no-bus"), &json!("1"))
    );

    let hub = HubTask::start(&path);
    ada.bus(true).await;
    ada.next("history").await;
    ada.say("1", "anyone?").await;
    assert_eq!(ada.next("line").await["line"]["text"], "anyone?");
    hub.stop().await;
}

#[tokio::test]
async fn a_worker_serves_on_while_redis_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis");
    let redis = RedisProcess::start(&path).await;
    let worker = WorkerProcess::start("chat/0", &redis_at(&path)).await;
    let mut ada = Page::open_as(worker.address(), "Ada").await;
    redis.kill().await;
    assert_eq!(ada.bus(false).await["name"], "Redis");
    ada.say("1", "anyone?").await;
    assert_eq!(ada.next("error").await["code"], "no-bus");
    assert_eq!(
        super::client::get(worker.address(), "/health")
            .await
            .status(),
        200
    );

    let redis = RedisProcess::start(&path).await;
    ada.bus(true).await;
    ada.say("1", "anyone?").await;
    assert_eq!(ada.next("line").await["line"]["text"], "anyone?");
    redis.kill().await;
}

fn redis_at(path: &Path) -> Bus {
    Bus::Redis(format!("redis+unix://{}", path.display()))
}

fn texts(history: &Value) -> Vec<&str> {
    let lines = history["lines"].as_array().unwrap();
    lines
        .iter()
        .map(|line| line["text"].as_str().unwrap())
        .collect()
}
