//! WebSocket through HTTP mode: over HTTP/1.1 and HTTP/2, its goodbyes and its records.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Empty;
use hyper::{body::Bytes, ext::Protocol};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, accept_async, client_async,
    tungstenite::{Message, protocol::Role},
};

use crate::{
    http::{Peer, soon},
    support::homescar::Homescar,
};

type Socket = WebSocketStream<TcpStream>;

/// A front whose one backend is the test itself.
struct Front {
    homescar: Homescar,
    address: SocketAddr,
    backend: TcpListener,
}

impl Front {
    async fn start(cluster: &str) -> Self {
        Self::start_with("", cluster).await
    }

    async fn start_with(listener: &str, cluster: &str) -> Self {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let homescar = Homescar::serve(&format!(
            r#"
            threads = 2
            [listener.web]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            {listener}
            [cluster.app]
            backends = ["{}"]
            {cluster}
            "#,
            backend.local_addr().unwrap()
        ));
        let address = homescar.address("web").await;
        Self {
            homescar,
            address,
            backend,
        }
    }

    /// A client and the backend's end of its WebSocket.
    async fn open(&self) -> (Socket, Socket) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let client = client_async(format!("ws://{}/chat", self.address), stream);
        let accept = async {
            let (stream, _) = self.backend.accept().await.unwrap();
            accept_async(stream).await.unwrap()
        };
        let (client, backend) = soon("a handshake", async { tokio::join!(client, accept) }).await;
        (client.unwrap().0, backend)
    }

    async fn record(&self) -> serde_json::Value {
        let is_request = |line: &serde_json::Value| line["message"] == "request";
        self.homescar.line("a record", is_request).await
    }
}

async fn next<S>(socket: &mut WebSocketStream<S>) -> Message
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let message = soon("a message", socket.next()).await;
    message.expect("not the end").expect("no protocol error")
}

fn code(message: &Message) -> Option<u16> {
    match message {
        Message::Close(Some(frame)) => Some(frame.code.into()),
        _ => None,
    }
}

#[tokio::test]
async fn messages_go_both_ways_and_are_counted() {
    let front = Front::start("").await;
    let (mut client, mut backend) = front.open().await;
    for len in [0, 5, 200, 70_000] {
        let text = Message::text("x".repeat(len));
        client.send(text.clone()).await.unwrap();
        assert_eq!(next(&mut backend).await, text);
        backend.send(text.clone()).await.unwrap();
        backend.send(text.clone()).await.unwrap();
        assert_eq!(next(&mut client).await, text);
        assert_eq!(next(&mut client).await, text);
    }
    client.close(None).await.unwrap();
    assert!(matches!(next(&mut backend).await, Message::Close(_)));
    assert!(backend.next().await.is_none());
    let record = front.record().await;
    assert_eq!(record["status"], 101);
    assert_eq!(
        (&record["frames_up"], &record["frames_down"]),
        (&5.into(), &9.into())
    );
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"client".into(), &"closed".into())
    );
    assert_eq!(record["closed_by"], "client");
}

#[tokio::test]
async fn one_that_is_idle_is_ended_and_one_that_is_not_is_not() {
    const IDLE: Duration = Duration::from_millis(800);
    let front = Front::start_with("timeouts = { idle = \"800ms\" }", "").await;
    let [(mut silent, mut left), (mut client, mut backend)] =
        [front.open().await, front.open().await];
    // Either side keeps it.
    let began = tokio::time::Instant::now();
    let ended = async {
        left.send(Message::text("first")).await.unwrap();
        next(&mut silent).await;
        let quiet_since = tokio::time::Instant::now();
        let end = soon("its end", silent.next()).await;
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
        quiet_since.elapsed()
    };
    let kept = async {
        let mut from_client = true;
        while began.elapsed() < 3 * IDLE {
            tokio::time::sleep(IDLE / 4).await;
            let text = Message::text("still here");
            let (from, to) = match from_client {
                true => (&mut client, &mut backend),
                false => (&mut backend, &mut client),
            };
            from.send(text.clone()).await.unwrap();
            assert_eq!(next(to).await, text);
            from_client = !from_client;
        }
    };
    let (after, ()) = tokio::join!(ended, kept);
    assert!(after >= IDLE, "too early: {after:?}");
    let record = front.record().await;
    assert_eq!(
        (&record["by"], &record["reason"], &record["frames_down"]),
        (&"proxy".into(), &"idle_timeout".into(), &1.into())
    );
    let end = soon("the backend's end", left.next()).await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

#[tokio::test]
async fn what_comes_with_the_handshake_is_not_lost() {
    let front = Front::start("").await;
    let mut client = Peer(TcpStream::connect(front.address).await.unwrap());
    let handshake = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // The first frame is sent before the handshake was answered.
    client
        .say([handshake.as_bytes(), &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']].concat())
        .await;
    let mut backend = Peer(front.backend.accept().await.unwrap().0);
    let head = backend.head().await;
    for line in ["Connection: Upgrade\r\n", "Upgrade: websocket\r\n"] {
        assert!(head.contains(line), "{head}");
    }
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                    Upgrade: WebSocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    backend
        .say([accepted.as_bytes(), &[0x81, 2, b'y', b'o']].concat())
        .await;
    assert!(client.until("yo").await.starts_with("HTTP/1.1 101 "));
    assert!(backend.until("hi").await.ends_with("hi"));
}

#[tokio::test]
async fn an_upgrade_that_was_not_asked_for_or_not_accepted_is_none() {
    let front = Front::start("").await;
    for accept in ["", "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n"] {
        let mut client = Peer(TcpStream::connect(front.address).await.unwrap());
        client
            .say(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await;
        let mut backend = Peer(front.backend.accept().await.unwrap().0);
        backend.head().await;
        backend
            .say(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                 Upgrade: websocket\r\n{accept}\r\n"
            ))
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 502 "));
    }
    // Refused: what follows is not read as another request.
    let mut client = Peer(TcpStream::connect(front.address).await.unwrap());
    client
        .say(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\
             GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    let mut backend = Peer(front.backend.accept().await.unwrap().0);
    backend.head().await;
    backend
        .say("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        .await;
    let answer = client.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("no"),
        "{answer}"
    );
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test]
async fn a_backend_that_goes_without_a_word_leaves_its_clients_a_close() {
    let front = Front::start("drain = { reason = \"restarting\" }").await;
    for is_reset in [false, true] {
        let (mut client, mut backend) = front.open().await;
        backend.send(Message::text("hello")).await.unwrap();
        next(&mut client).await;
        if is_reset {
            socket2::SockRef::from(backend.get_ref())
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        drop(backend);
        let last = next(&mut client).await;
        assert_eq!(code(&last), Some(1012), "{last:?}");
        assert!(
            last.to_text().unwrap_or_default().contains("restarting"),
            "{last:?}"
        );
        let end = soon("the end", client.next()).await;
        assert!(end.is_none(), "{end:?}");
    }
    let record = front.record().await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"backend".into(), &"gone".into())
    );
    assert_eq!(
        (&record["closed_by"], &record["code"]),
        (&"proxy".into(), &1012.into())
    );
}

#[tokio::test]
async fn at_the_end_each_client_is_told_in_its_turn() {
    const CLIENTS: usize = 60;
    let front = Front::start("drain = { timeout = \"20s\", spread = \"2s\", close = 1001 }").await;
    let (told, mut codes) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let (mut client, mut backend) = front.open().await;
        let told = told.clone();
        // Both sides never stop talking: the Close finds its place between frames.
        tasks.spawn(async move {
            let message = Message::binary(vec![7; 64 * 1024]);
            while backend.send(message.clone()).await.is_ok() {}
        });
        tasks.spawn(async move {
            loop {
                match client.next().await {
                    Some(Ok(Message::Binary(data))) => assert_eq!(data.len(), 64 * 1024),
                    Some(Ok(message)) => {
                        let now = tokio::time::Instant::now();
                        told.send((code(&message), now)).unwrap();
                    }
                    Some(Err(error)) => panic!("{error}"),
                    None => return,
                }
            }
        });
    }
    let began = tokio::time::Instant::now();
    front.homescar.signal(Signal::SIGTERM);
    let mut times = Vec::new();
    for _ in 0..CLIENTS {
        let (code, at) = soon("a close", codes.recv()).await.unwrap();
        assert_eq!(code, Some(1001));
        times.push((at - began).as_millis());
    }
    // Evenly, those of each thread for themselves. A busy machine makes them later, and never earlier.
    for (within, most) in [(500, 20), (1000, 35), (1500, 50)] {
        let early = times.iter().filter(|at| **at < within).count();
        assert!(early <= most, "{early} within {within} ms: {times:?}");
    }
    let mut homescar = front.homescar;
    homescar.exit().await;
}

/// A WebSocket as a browser opens it over HTTP/2 (RFC 8441).
#[tokio::test]
async fn an_extended_connect_becomes_an_upgrade_for_the_backend() {
    let front = Front::start("drain = { spread = \"1ms\" }").await;
    let stream = TcpStream::connect(front.address).await.unwrap();
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let driver = tokio::spawn(connection);
    soon("settings", sender.ready()).await.unwrap();
    let request = || {
        hyper::Request::connect("http://site/chat")
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
            .body(Empty::new())
            .unwrap()
    };
    let accept = async {
        let (stream, _) = front.backend.accept().await.unwrap();
        accept_async(stream).await.unwrap()
    };
    let open = async {
        // Until the server's settings say that it may, the client's library refuses to ask.
        loop {
            match sender.send_request(request()).await {
                Ok(response) => return response,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let (response, mut backend) = soon("a handshake", async { tokio::join!(open, accept) }).await;
    assert_eq!(response.status(), 200);
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let mut client =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    for len in [5, 70_000] {
        let text = Message::text("x".repeat(len));
        client.send(text.clone()).await.unwrap();
        assert_eq!(next(&mut backend).await, text);
        backend.send(text.clone()).await.unwrap();
        assert_eq!(next(&mut client).await, text);
    }
    front.homescar.signal(Signal::SIGTERM);
    assert_eq!(code(&next(&mut client).await), Some(1012));
    drop(client);
    driver.abort();
    let record = front.record().await;
    assert_eq!(record["version"], "2", "{record}");
    assert_eq!(record["code"], 1012, "{record}");
}
