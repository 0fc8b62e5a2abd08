//! HTTP mode: a client above a limit is told so, where that is cheap and never for long.

use std::{io, net::SocketAddr};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    time::Instant,
};

use crate::{
    http::{Front, Peer, soon},
    support::{
        client::{Client, address_of_client, is_turned_away},
        homescar::{Homescar, SOON, eventually, message},
    },
};

const GET: &str = "GET /page HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

async fn connect(client: usize, to: SocketAddr) -> Peer {
    Peer(try_connect(client, to).await.unwrap())
}

async fn try_connect(client: usize, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address_of_client(client), 0).into())?;
    socket.connect(to).await
}

/// A client that was let in, and stays.
async fn let_in(client: usize, front: &Front) -> (Peer, Peer) {
    let mut peer = connect(client, front.address).await;
    peer.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    backend.say(OK).await;
    peer.until("ok").await;
    (peer, backend)
}

/// What a client is told; the connection has then come to an orderly end.
async fn told(client: usize, to: SocketAddr, request: &str) -> (String, String) {
    let mut peer = connect(client, to).await;
    peer.say(request).await;
    let all = peer.rest().await;
    let (head, body) = all.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

/// The record of a request that was turned away for this reason.
async fn record(homescar: &Homescar, from: usize, reason: &str) -> serde_json::Value {
    let is_it = |line: &serde_json::Value| message(line) == "request" && line["reason"] == *reason;
    homescar.line_after(from, reason, is_it).await
}

#[tokio::test]
async fn who_is_above_a_limit_is_told() {
    let front = Front::start("limits = { connections = 3, per_client = 2 }", "").await;
    let first = let_in(1, &front).await;
    let _second = let_in(1, &front).await;
    let mark = front.homescar.mark();
    let (head, body) = told(1, front.address, GET).await;
    let lines: Vec<_> = head.lines().collect();
    assert_eq!(lines[0], "HTTP/1.1 503 Service Unavailable");
    assert!(lines.contains(&"Retry-After: 1"), "{head}");
    assert!(lines.contains(&"Connection: close"), "{head}");
    let line = record(&front.homescar, mark, "limit_client").await;
    let id = line["id"].as_str().unwrap();
    assert_eq!(body, format!("503 Service Unavailable\nrequest {id}\n"));
    assert!(head.contains(&format!("X-Request-Id: {id}")), "{head}");
    assert_eq!(
        (&line["status"], &line["by"]),
        (&503.into(), &"proxy".into())
    );
    assert_eq!(line["request"], "GET a/page", "{line}");

    let (head, body) = told(1, front.address, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && body.is_empty(),
        "{head}{body}"
    );
    // What of its body is on the way does not overtake the answer as a reset.
    let upload = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n{}",
        "x".repeat(900_000)
    );
    let (head, _) = told(1, front.address, &upload).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");

    let _third = let_in(2, &front).await;
    let mark = front.homescar.mark();
    let (head, _) = told(3, front.address, GET).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    record(&front.homescar, mark, "limit_listener").await;
    assert_eq!(front.homescar.records().len(), 0, "each has one record");

    // One goes, one may come.
    drop(first);
    loop {
        let (head, _) = told(4, front.address, "GET http: HTTP/1.1\r\nHost: a\r\n\r\n").await;
        // Refused for what it says, once it is let in.
        if head.starts_with("HTTP/1.1 400 ") {
            break;
        }
    }
}

/// Also who is cut while the answer is on its way.
#[tokio::test]
async fn who_is_told_has_one_record() {
    let drain = "drain = { timeout = \"100ms\" }";
    let mut front = Front::start("limits = { connections = 1 }", drain).await;
    let _first = let_in(1, &front).await;
    let mut second = connect(2, front.address).await;
    second.say(GET).await;
    assert!(second.head().await.starts_with("HTTP/1.1 503 "));
    // It is not over while its client stays.
    front.homescar.signal(Signal::SIGTERM);
    assert_eq!(front.homescar.exit().await.code(), Some(0));
    assert_eq!(front.homescar.records(), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn the_limit_over_all_listeners_is_told_too() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        limits = {{ connections = 1 }}
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [listener.relay]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        backends = ["{}"]
        "#,
        backend.local_addr().unwrap()
    ));
    let [web, relay] = [
        homescar.address("web").await,
        homescar.address("relay").await,
    ];
    let _first = Client::connect(relay).await.unwrap();
    let _server = soon("a connection", backend.accept()).await.unwrap();
    let (head, _) = told(1, web, GET).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    record(&homescar, 0, "limit_global").await;
    is_turned_away(address_of_client(1), relay).await;
}

#[tokio::test]
async fn a_client_behind_a_proxy_is_told_in_its_own_name() {
    let front = Front::start(
        "accept_proxy = true\ntrusted = [\"127.0.0.0/8\"]\nlimits = { connections = 1 }",
        "",
    )
    .await;
    let header = "PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n";
    let mut first = connect(1, front.address).await;
    first.say(format!("{header}{GET}")).await;
    let _backend = front.accept().await;
    let (head, _) = told(1, front.address, &format!("{header}{GET}")).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let line = record(&front.homescar, 0, "limit_listener").await;
    assert_eq!(line["client"], "192.0.2.7:5000", "{line}");
}

/// A flood of connections that ask for nothing holds a few places for a moment, and that is all.
#[tokio::test]
async fn to_be_told_is_bounded_in_number_and_time() {
    const PLACES: usize = 64;
    const CLIENTS: usize = 300;
    let front = Front::start("limits = { connections = 1 }", "").await;
    let _first = let_in(1, &front).await;
    let began = Instant::now();
    let silent = join_all((0..CLIENTS).map(|client| try_connect(client, front.address))).await;
    let took = began.elapsed();
    // The others were reset before they knew that they were connected.
    for mut client in silent.into_iter().flatten() {
        let end = soon("the end", client.read(&mut [0])).await;
        assert!(end.is_err(), "{end:?}");
    }
    let refused = || {
        let records = front.homescar.records();
        let refused = records
            .into_iter()
            .filter(|line| line["reason"] == "limit_listener");
        refused.collect::<Vec<_>>()
    };
    eventually("records", SOON, || refused().len() == CLIENTS).await;
    let waited = refused()
        .iter()
        .filter(|line| line["ms"].as_u64() >= Some(900))
        .count();
    // Who comes when the first have been given up may wait in their places.
    let turns = 1 + usize::try_from(took.as_secs()).unwrap();
    assert!(
        (1..=turns * PLACES).contains(&waited),
        "{waited} in {turns}"
    );
    let (head, _) = told(2, front.address, GET).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
}

#[tokio::test]
async fn who_could_be_told_only_at_a_price_is_reset() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let tls = format!(
        "tls = {{ cert = \"{}\", key = \"{}\" }}\nlimits = {{ connections = 1 }}",
        path("cert.pem"),
        path("key.pem")
    );
    let front = Front::start(&tls, "").await;
    let _first = front.client().await;
    is_turned_away(address_of_client(1), front.address).await;

    let front = Front::start("limits = { connections = 1 }", "").await;
    let _first = let_in(1, &front).await;
    let mut client = connect(2, front.address).await;
    client.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let end = soon("the end", client.0.read(&mut [0])).await;
    assert!(end.is_err(), "{end:?}");
    let refused = |line: &serde_json::Value| {
        message(line) == "connection" && line["reason"] == "limit_listener"
    };
    front.homescar.line("the refusal", refused).await;
}
