//! Slots that may have so many clients and no more: who waits, in what order, and for how long.

use std::{net::SocketAddr, time::Duration};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

use crate::{
    http::Front,
    support::{
        backend::{Backend, Manners},
        client::{Client, address_of_client, is_turned_away},
        homescar::{Homescar, SOON, eventually, message},
    },
};

fn config(threads: usize, backends: &[Backend], cluster: &str) -> String {
    let backends: Vec<_> = backends
        .iter()
        .map(|b| format!("\"{}\"", b.address))
        .collect();
    format!(
        r#"
        threads = {threads}
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        backends = [{}]
        {cluster}
        "#,
        backends.join(", ")
    )
}

async fn start(count: usize) -> Vec<Backend> {
    let mut backends = Vec::new();
    for index in 0..count {
        backends.push(Backend::start(&format!("b{index}"), Manners::Lines).await);
    }
    backends
}

/// A client that has said its number.
async fn client(index: usize, to: SocketAddr) -> Client {
    let mut client = Client::connect_from(address_of_client(index), to)
        .await
        .unwrap();
    client.send(format!("{index}\n")).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_clients_of_forty_seats_are_all_served() {
    let backends = start(4).await;
    let options = r#"
        max_connections_per_slot = 10
        queue = { length = 300, timeout = "1m" }
        "#;
    let homescar = Homescar::serve(&config(2, &backends, options));
    let to = homescar.address("web").await;
    let mut crowd = JoinSet::new();
    for index in 0..300 {
        crowd.spawn(async move {
            let mut client = client(index, to).await;
            client.line().await.unwrap()
        });
    }
    let served = crowd.join_all().await;
    assert_eq!(served.len(), 300);
    for (index, backend) in backends.iter().enumerate() {
        let (most, name) = (backend.most(), format!("b{index}"));
        assert!(most <= 10, "{name} had {most}");
        let at_home = served.iter().filter(|slot| **slot == name).count();
        assert!(at_home > 10, "{name} served {at_home}");
    }
    eventually("records", SOON, || homescar.records().len() == 300).await;
    let records = homescar.records();
    assert!(records.iter().any(|record| record["queued_ms"].is_u64()));
    // In their own slot, all of them.
    assert!(records.iter().all(|record| record["because"].is_null()));
}

#[tokio::test]
async fn who_waits_is_served_in_order() {
    let backends = start(1).await;
    let options = r#"
        max_connections_per_slot = 1
        queue = { timeout = "1m" }
        "#;
    let homescar = Homescar::serve(&config(1, &backends, options));
    let to = homescar.address("web").await;
    let mut first = client(0, to).await;
    first.line().await.unwrap();
    // One thread accepts them in the order in which they connect.
    let mut waiting = Vec::new();
    for index in 1..20 {
        waiting.push(client(index, to).await);
    }
    // Who goes away waits no longer, and nobody waits for it.
    drop(waiting.remove(9));
    drop(first);
    for mut client in waiting {
        client.line().await.unwrap();
    }
    let heard = backends[0].heard();
    let expected: Vec<_> = (0..20).filter(|index| *index != 10).collect();
    // The one that went may have been connected to before that was noticed.
    let heard: Vec<usize> = heard.iter().map(|line| line.parse().unwrap()).collect();
    let heard: Vec<_> = heard.into_iter().filter(|index| *index != 10).collect();
    assert_eq!(heard, expected);
    assert_eq!(backends[0].most(), 1);
}

#[tokio::test]
async fn the_queue_has_an_end_and_a_deadline() {
    let backends = start(1).await;
    let options = r#"
        max_connections_per_slot = 1
        queue = { length = 1, timeout = "4s" }
        "#;
    let homescar = Homescar::serve(&config(1, &backends, options));
    let to = homescar.address("web").await;
    let mut first = client(0, to).await;
    first.line().await.unwrap();
    let began = Instant::now();
    let mut second = client(1, to).await;
    let reason = |client: usize, reason: &'static str| {
        let client = format!("{}:", address_of_client(client));
        move |line: &Value| {
            let is_of = |text: &str| text.starts_with(&client);
            message(line) == "connection"
                && line["client"].as_str().is_some_and(is_of)
                && line["reason"] == reason
        }
    };
    is_turned_away(address_of_client(2), to).await;
    homescar.line("no room", reason(2, "slot_full")).await;
    assert!(second.rest().await.is_err(), "reset");
    assert!(began.elapsed() >= Duration::from_secs(4));
    homescar.line("too late", reason(1, "queue_timeout")).await;
    assert_eq!(backends[0].heard(), ["0"]);
}

#[tokio::test]
async fn who_may_not_wait_goes_on_or_is_refused() {
    for on_full in ["next", "reject"] {
        let backends = start(2).await;
        let options = format!(
            "max_connections_per_slot = 1\non_full = \"{on_full}\"\nqueue = {{ timeout = \"1m\" }}"
        );
        let homescar = Homescar::serve(&config(2, &backends, &options));
        let to = homescar.address("web").await;
        let mut first = client(0, to).await;
        let home = first.line().await.unwrap();
        if on_full == "reject" {
            is_turned_away(address_of_client(0), to).await;
            continue;
        }
        let mut second = client(0, to).await;
        assert_ne!(second.line().await.unwrap(), home);
        let mut third = client(0, to).await;
        // All are full: it waits at home.
        drop(first);
        assert_eq!(third.line().await.unwrap(), home);
        drop(second);
        let because = |line: &Value| line["because"] == "full";
        homescar.line("why", because).await;
    }
}

#[tokio::test]
async fn a_reload_that_makes_room_ends_the_wait() {
    let backends = start(1).await;
    let options = |seats: &str| {
        let queue = r#"queue = { timeout = "1m" }"#;
        let queue = if seats == "\"off\"" { "" } else { queue };
        let options = format!("max_connections_per_slot = {seats}\n{queue}");
        config(1, &backends, &options)
    };
    let homescar = Homescar::serve(&options("1"));
    let to = homescar.address("web").await;
    let mut first = client(0, to).await;
    first.line().await.unwrap();
    let mut second = client(1, to).await;
    let answer = homescar.reload(&options("2")).await;
    assert_eq!(message(&answer), "reloaded", "{}", homescar.tail());
    second.line().await.unwrap();
    // One that takes it away throws nobody out.
    homescar.reload(&options("1")).await;
    first.send("again\n").await.unwrap();
    first.line().await.unwrap();
    let mut third = client(2, to).await;
    drop(second);
    drop(first);
    third.line().await.unwrap();
    assert_eq!(backends[0].most(), 2);
    // Where there is no limit any more there is nothing to wait for.
    let mut fourth = client(3, to).await;
    homescar.reload(&options("\"off\"")).await;
    fourth.line().await.unwrap();
    drop(third);
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// What counts are requests, not connections; a WebSocket is one for as long as it lives.
#[tokio::test]
async fn in_http_requests_wait_and_a_websocket_keeps_its_seat() {
    let front = Front::start(
        "",
        "max_connections_per_slot = 1\nqueue = { timeout = \"1m\" }",
    )
    .await;
    let (mut one, mut two) = (front.client().await, front.client().await);
    one.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    two.say(GET).await;
    backend
        .say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        .await;
    one.until("1").await;
    // The same connection carries the other's request, while the first client's is still open.
    backend.head().await;
    backend
        .say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n2")
        .await;
    two.until("2").await;

    let mut tunnel = front.websocket(&mut one).await;
    two.say(GET).await;
    // Nothing of it reaches the backend while the WebSocket is open.
    tunnel.say([0x81, 1, b'x']).await;
    one.until("x").await;
    drop((one, tunnel));
    let mut backend = front.accept().await;
    backend.head().await;
    backend
        .say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n3")
        .await;
    two.until("3").await;
}

#[tokio::test]
async fn in_http_who_waited_too_long_is_told_so() {
    let front = Front::start(
        "",
        "max_connections_per_slot = 1\nqueue = { timeout = \"300ms\" }",
    )
    .await;
    let (mut one, mut two) = (front.client().await, front.client().await);
    one.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    two.say(GET).await;
    let answer = two.head().await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    let why = |line: &Value| line["reason"] == "queue_timeout" && line["because"] == "full";
    front.homescar.line("why", why).await;
    backend
        .say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        .await;
    one.until("1").await;
}

/// Streams of one HTTP/2 connection are requests as all others.
#[tokio::test]
async fn streams_of_one_connection_wait_for_each_other() {
    let front = Front::start(
        "",
        "max_connections_per_slot = 1\nqueue = { length = 1, timeout = \"1m\" }",
    )
    .await;
    let stream = TcpStream::connect(front.address).await.unwrap();
    let http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = http2.handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { connection.await.unwrap() });
    let get = |path: &str| {
        let mut sender = sender.clone();
        let request = hyper::Request::get(path).body(Empty::<Bytes>::new());
        tokio::spawn(async move {
            let answer = sender.send_request(request.unwrap()).await.unwrap();
            answer.status().as_u16()
        })
    };
    let one = get("http://a/1");
    let mut backend = front.accept().await;
    backend.head().await;
    // Of the two, one waits, and the other finds the queue full.
    let (two, three) = (get("http://a/2"), get("http://a/3"));
    let reason = |line: &Value| line["reason"] == "slot_full" && line["status"] == 503;
    front.homescar.line("a refusal", reason).await;
    for answer in [1, 2] {
        backend
            .say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
            .await;
        if answer == 1 {
            backend.head().await;
        }
    }
    assert_eq!(one.await.unwrap(), 200);
    let mut others = [two.await.unwrap(), three.await.unwrap()];
    others.sort_unstable();
    assert_eq!(others, [200, 503]);
}
