//! Who is moved for the sake of load: bounded load, and slots that come back slowly.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{
    http::Peer,
    support::{
        backend::{Backend, Manners},
        client::{Client, address_of_client},
        homescar::{Homescar, message},
    },
};

async fn start(manners: Manners) -> Vec<Backend> {
    let mut backends = Vec::new();
    for index in 0..4 {
        backends.push(Backend::start(&format!("b{index}"), manners).await);
    }
    backends
}

fn front(mode: &str, backends: &[Backend], cluster: &str) -> Homescar {
    let backends = backends.iter().enumerate().map(|(index, backend)| {
        format!(
            "{{ name = \"b{index}\", address = \"{}\" }}",
            backend.address
        )
    });
    Homescar::serve(&format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "{mode}"
        cluster = "app"
        [cluster.app]
        backends = [{}]
        {cluster}
        "#,
        backends.collect::<Vec<_>>().join(", ")
    ))
}

/// Opens a connection and waits for its backend's name.
async fn open(client: usize, to: SocketAddr) -> std::io::Result<(Client, String)> {
    let mut client = Client::connect_from(address_of_client(client), to).await?;
    client.send("who?\n").await?;
    let name = client.line().await?;
    Ok((client, name))
}

/// 400 connections that stay, of which client `n` has a share that falls with 1/n: the slot of the
/// first is hot.
async fn zipf(to: SocketAddr) -> Vec<(Client, String)> {
    const CROWD: usize = 400;
    let harmonic: f64 = (1..=100).map(|n| 1.0 / f64::from(n)).sum();
    let shares = (1..=100_u32).map(|n| CROWD as f64 / f64::from(n) / harmonic);
    let mut open_now = Vec::new();
    for (client, share) in shares.enumerate() {
        for _ in 0..share.round() as usize {
            open_now.push(open(client, to).await.unwrap());
        }
    }
    open_now
}

#[tokio::test]
async fn a_hot_slot_passes_newcomers_on_at_its_bound() {
    let backends = start(Manners::Lines).await;
    let unbounded = front("tcp", &backends, "");
    let crowd = zipf(unbounded.address("web").await).await;
    let hottest = backends.iter().map(Backend::open).max().unwrap();
    let mean = crowd.len() as f64 / 4.0;
    assert!(hottest as f64 > 1.5 * mean, "{hottest} of {}", crowd.len());
    drop((crowd, unbounded));

    let backends = start(Manners::Lines).await;
    let homescar = front("tcp", &backends, "max_load = 1.25");
    let crowd = zipf(homescar.address("web").await).await;
    let mean = crowd.len() as f64 / 4.0;
    let bound = (1.25 * mean).max(mean + 3.0 * mean.sqrt()).ceil();
    for backend in &backends {
        let open = backend.open();
        assert!(open as f64 <= bound, "{open} is more than {bound}");
    }
    assert_eq!(
        backends.iter().map(Backend::open).sum::<usize>(),
        crowd.len()
    );
    drop(crowd);
    let because = |line: &Value| line["because"] == "overloaded";
    homescar
        .line("a record of one who was moved", because)
        .await;
}

/// The home of a client that has a cookie, and the cookie.
async fn visit(to: SocketAddr, cookie: Option<&str>) -> (String, Option<String>) {
    let mut peer = Peer(tokio::net::TcpStream::connect(to).await.unwrap());
    let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n"));
    let cookie = cookie.unwrap_or_default();
    peer.say(format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{cookie}Connection: close\r\n\r\n"
    ))
    .await;
    let answer = peer.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut lines = answer.lines();
    let set = lines.find_map(|line| line.strip_prefix("Set-Cookie: "));
    let set = set.map(|set| set.split(';').next().unwrap().to_owned());
    (answer.split("\r\n\r\n").nth(1).unwrap().to_owned(), set)
}

/// Newcomers wait for their turn; who has a cookie of the slot is at home at once.
#[tokio::test]
async fn a_slot_that_comes_back_gets_its_newcomers_slowly() {
    let mut backends = start(Manners::Status(200)).await;
    let homescar = front(
        "http",
        &backends,
        r#"
        slow_start = "1d"
        health = { tcp = true, interval = "50ms", rise = 1, fall = 1 }
        affinity = { key = "cookie" }
        "#,
    );
    let to = homescar.address("web").await;
    // Without a cookie the address decides, and a client of one address has one home.
    let (home, cookie) = visit(to, None).await;
    let cookie = cookie.expect("a cookie");
    assert_eq!(visit(to, None).await.0, home, "at the start nobody waits");

    let index: usize = home[1..].parse().unwrap();
    let address = backends[index].address;
    backends[index] = Backend::start("elsewhere", Manners::Status(200)).await;
    let down =
        |line: &Value| message(line).starts_with("takes no clients") && line["slot"] == *home;
    homescar.line("down", down).await;
    let (next, _) = visit(to, None).await;
    assert_ne!(next, home);

    backends[index] = Backend::start_at(address, &home, Manners::Status(200)).await;
    let back = |line: &Value| message(line) == "takes clients again" && line["slot"] == *home;
    homescar.line("back", back).await;
    let mark = homescar.mark();
    assert_eq!(visit(to, Some(&cookie)).await.0, home);
    assert_eq!(visit(to, None).await.0, next, "this one is not due yet");
    let because = |line: &Value| line["passed"] == *home && line["because"] == "warming_up";
    homescar.line_after(mark, "why", because).await;
}
