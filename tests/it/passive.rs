//! Passive health: what clients meet ejects a slot, for a while, and nobody else notices.

use std::net::SocketAddr;

use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    http::Peer,
    support::{
        backend::{Backend, Manners},
        client::{Client, address_of_client},
        homescar::{Homescar, SOON, free_port, message},
    },
};

const CLIENTS: usize = 60;

/// A front of these backends, named b0, b1, ….
fn front(mode: &str, backends: &[SocketAddr], cluster: &str) -> Homescar {
    let backends: Vec<_> = backends
        .iter()
        .enumerate()
        .map(|(index, address)| format!("{{ name = \"b{index}\", address = \"{address}\" }}"))
        .collect();
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
        backends.join(", ")
    ))
}

async fn start(count: usize, manners: Manners) -> Vec<Backend> {
    let mut backends = Vec::new();
    for index in 0..count {
        backends.push(Backend::start(&format!("b{index}"), manners).await);
    }
    backends
}

fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.address).collect()
}

/// Who serves this client, over TCP.
async fn line(client: usize, to: SocketAddr) -> std::io::Result<String> {
    let mut client = Client::connect_from(address_of_client(client), to).await?;
    client.send("who?\n").await?;
    client.line().await
}

async fn stream(client: usize, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address_of_client(client), 0).into()).unwrap();
    timeout(SOON, socket.connect(to)).await.unwrap().unwrap()
}

/// Status and body of a request that is sent but once.
async fn post(client: usize, to: SocketAddr) -> (u16, String) {
    let mut peer = Peer(stream(client, to).await);
    peer.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
        .await;
    let answer = peer.rest().await;
    let status = answer[9..12].parse().unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status, body.to_owned())
}

/// The same over HTTP/2.
async fn post_http2(client: usize, to: SocketAddr) -> (u16, String) {
    let stream = TokioIo::new(stream(client, to).await);
    let http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = http2.handshake(stream).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = hyper::Request::post("http://a/").body("x".to_owned());
    let answer = timeout(SOON, sender.send_request(request.unwrap())).await;
    let (head, body) = answer.unwrap().unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    (head.status.as_u16(), body)
}

fn is_ejected(line: &Value) -> bool {
    message(line) == "takes no clients: ejected"
}

fn ejections(homescar: &Homescar) -> usize {
    homescar
        .log()
        .iter()
        .filter(|line| is_ejected(line))
        .count()
}

/// Whether nobody is ejected yet, for as long as that may take.
fn nobody_is_out(homescar: &Homescar, since: Instant) -> bool {
    assert!(
        since.elapsed() < SOON,
        "nobody is ejected\n{}",
        homescar.tail()
    );
    ejections(homescar) == 0
}

/// The clients at home in each of the backends.
async fn homes(to: SocketAddr) -> Vec<String> {
    let mut homes = Vec::new();
    for client in 0..CLIENTS {
        homes.push(line(client, to).await.unwrap());
    }
    homes
}

#[tokio::test]
async fn a_backend_that_resets_is_ejected_and_comes_back() {
    let backends = start(3, Manners::Lines).await;
    let passive = r#"passive = { failures = 5, eject = "1s" }"#;
    let homescar = front("tcp", &addresses(&backends), passive);
    let to = homescar.address("web").await;
    let before = homes(to).await;

    backends[1].behave(Manners::Reset);
    let mut failures = 0;
    let began = Instant::now();
    while nobody_is_out(&homescar, began) {
        for (client, home) in before.iter().enumerate() {
            match line(client, to).await {
                Ok(slot) if home != "b1" => assert_eq!(slot, *home),
                Ok(slot) => assert_ne!(slot, "b1"),
                Err(error) => {
                    assert_eq!(home, "b1", "{error}");
                    failures += 1;
                }
            }
        }
        assert!(failures < 1000, "{}", homescar.tail());
    }
    assert!(failures >= 5, "{failures}");
    let line_of = homescar.line("an ejection", is_ejected).await;
    assert_eq!(line_of["slot"], "b1");
    assert!(
        line_of["why"]
            .as_str()
            .unwrap()
            .contains("failed within 10s; for 1s")
    );

    // It comes back by itself, to the same clients, and is watched as before.
    backends[1].behave(Manners::Lines);
    let back = |line: &Value| message(line) == "takes clients again" && line["slot"] == "b1";
    homescar.line("back", back).await;
    assert_eq!(homes(to).await, before);
}

/// Where it cannot be connected to, nobody notices even before it is ejected.
#[tokio::test]
async fn a_backend_that_refuses_is_ejected_and_no_client_sees_it() {
    let backends = start(2, Manners::Lines).await;
    let dead: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let mut all = addresses(&backends);
    all.push(dead);
    // By default, and for long enough to be seen.
    let homescar = front("tcp", &all, "");
    let to = homescar.address("web").await;
    let began = Instant::now();
    while nobody_is_out(&homescar, began) {
        for slot in homes(to).await {
            assert_ne!(slot, "b2");
        }
    }
    let mark = homescar.mark();
    homes(to).await;
    let because = |line: &Value| line["passed"] == "b2" && line["because"] == "ejected";
    homescar.line_after(mark, "passed over", because).await;
    let tried = |line: &Value| line["because"] == "connect_failed";
    assert!(
        !homescar.log()[mark..].iter().any(tried),
        "{}",
        homescar.tail()
    );
}

#[tokio::test]
async fn one_of_two_is_ejected_and_never_the_last() {
    let backends = start(2, Manners::Reset).await;
    let options = r#"passive = { failures = 1, failure_rate = 0, eject = "1m", max_share = 1 }"#;
    let homescar = front("tcp", &addresses(&backends), options);
    let to = homescar.address("web").await;
    let began = Instant::now();
    while nobody_is_out(&homescar, began) {
        for client in 0..CLIENTS {
            assert!(line(client, to).await.is_err());
        }
    }
    // The other one fails everybody now, and still is better than nothing.
    let heard = |index: usize| backends[index].heard().len();
    let ejected = homescar.line("an ejection", is_ejected).await["slot"].clone();
    let (out, left) = if ejected == "b0" { (0, 1) } else { (1, 0) };
    let before = (heard(out), heard(left));
    for _ in 0..5 {
        for client in 0..CLIENTS {
            assert!(line(client, to).await.is_err());
        }
    }
    assert_eq!(ejections(&homescar), 1, "{}", homescar.tail());
    assert_eq!(heard(out), before.0);
    assert!(heard(left) >= before.1 + 5 * CLIENTS);
    // When it is well again there is nobody whom it does not serve.
    backends[left].behave(Manners::Lines);
    for client in 0..CLIENTS {
        assert_eq!(line(client, to).await.unwrap(), format!("b{left}"));
    }
}

#[tokio::test]
async fn in_http_a_backend_that_does_not_answer_is_ejected() {
    for (is_http2, manners, status) in [
        (false, Manners::Close, 502),
        (false, Manners::Hang, 504),
        (true, Manners::Close, 502),
    ] {
        let post = async |client, to| match is_http2 {
            true => post_http2(client, to).await,
            false => post(client, to).await,
        };
        let backends = start(3, Manners::Status(200)).await;
        let options = r#"
            passive = { failures = 3, eject = "1m" }
            timeouts = { response = "300ms" }
            "#;
        let homescar = front("http", &addresses(&backends), options);
        let to = homescar.address("web").await;
        let mut homes = Vec::new();
        for client in 0..CLIENTS {
            homes.push(post(client, to).await);
        }
        backends[2].behave(manners);
        let began = Instant::now();
        while nobody_is_out(&homescar, began) {
            for (client, home) in homes.iter().enumerate() {
                let answer = post(client, to).await;
                if home.1 == "b2" {
                    let is_moved = answer.0 == 200 && answer.1 != "b2";
                    assert!(is_moved || answer.0 == status, "{answer:?}");
                } else {
                    assert_eq!(answer, *home);
                }
            }
        }
        for client in 0..CLIENTS {
            let (status, slot) = post(client, to).await;
            assert!(status == 200 && slot != "b2", "{status} {slot}");
        }
    }
}

/// What the application answers is its own business, unless it is asked to be looked at.
#[tokio::test]
async fn server_errors_count_only_when_asked_for() {
    for (more, status, is_out) in [
        ("", 500, false),
        (", server_errors = true", 404, false),
        (", server_errors = true", 500, true),
    ] {
        let backends = start(2, Manners::Status(200)).await;
        let options = format!("passive = {{ failures = 2, eject = \"1m\"{more} }}");
        let homescar = front("http", &addresses(&backends), &options);
        let to = homescar.address("web").await;
        backends[0].behave(Manners::Status(status));
        let (mut rounds, began) = (0, Instant::now());
        while (is_out || rounds < 3) && nobody_is_out(&homescar, began) {
            for client in 0..CLIENTS {
                post(client, to).await;
            }
            rounds += 1;
        }
        // When this is seen, all that came before has been seen as well, and there was more of it.
        backends[1].behave(Manners::Close);
        let began = Instant::now();
        while nobody_is_out(&homescar, began) {
            for client in 0..CLIENTS {
                post(client, to).await;
            }
        }
        let first = homescar.line("an ejection", is_ejected).await;
        let expected = if is_out { "b0" } else { "b1" };
        assert_eq!(first["slot"], expected, "{status}{more}");
    }
}
