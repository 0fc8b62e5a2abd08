//! HTTP mode: how requests and responses are carried, and what happens when a side misbehaves.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::support::homescar::{Homescar, SOON, descriptors, eventually};

/// A front whose one backend is the test itself.
pub(crate) struct Front {
    pub(crate) homescar: Homescar,
    pub(crate) address: SocketAddr,
    backend: TcpListener,
}

impl Front {
    pub(crate) async fn start(listener: &str, cluster: &str) -> Self {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let homescar = Homescar::serve(&format!(
            r#"
            threads = 1
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

    pub(crate) async fn client(&self) -> Peer {
        Peer(TcpStream::connect(self.address).await.unwrap())
    }

    /// The next connection to the backend.
    pub(crate) async fn accept(&self) -> Peer {
        Peer(soon("a connection", self.backend.accept()).await.unwrap().0)
    }

    /// Makes a WebSocket of a client's connection; the backend's end of it.
    pub(crate) async fn websocket(&self, client: &mut Peer) -> Peer {
        client
            .say(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await;
        let mut backend = self.accept().await;
        backend.head().await;
        backend
            .say(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            )
            .await;
        client.head().await;
        backend
    }

    /// Whether nobody connects to the backend.
    fn nobody_waits(&self) -> bool {
        use futures_util::FutureExt as _;
        self.backend.accept().now_or_never().is_none()
    }
}

pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(SOON, event)
        .await
        .unwrap_or_else(|_| panic!("{what} within the deadline"))
}

/// One end of a raw connection.
pub(crate) struct Peer(pub(crate) TcpStream);

impl Peer {
    pub(crate) async fn say(&mut self, text: impl AsRef<[u8]>) {
        self.0.write_all(text.as_ref()).await.unwrap();
    }

    /// What comes, up to and with `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        let read = async {
            while !heard.ends_with(end.as_bytes()) {
                match self.0.read_u8().await {
                    Ok(byte) => heard.push(byte),
                    Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&heard)),
                }
            }
        };
        soon(end, read).await;
        String::from_utf8_lossy(&heard).into_owned()
    }

    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// The next head, unless the connection is over.
    pub(crate) async fn next_head(&mut self) -> Option<String> {
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n") {
            heard.push(self.0.read_u8().await.ok()?);
        }
        Some(String::from_utf8_lossy(&heard).into_owned())
    }

    /// What comes up to the end, which is an orderly one.
    pub(crate) async fn rest(&mut self) -> String {
        let mut heard = Vec::new();
        soon("the end", self.0.read_to_end(&mut heard))
            .await
            .unwrap();
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// Whether the connection is over.
    pub(crate) async fn is_over(&mut self) -> bool {
        let mut byte = [0];
        matches!(
            soon("the end", self.0.read(&mut byte)).await,
            Ok(0) | Err(_)
        )
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_connection_to_a_backend_carries_request_after_request() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client.say(GET).await;
    let mut backend = front.accept().await;
    for _ in 0..3 {
        let head = backend.head().await;
        assert!(head.starts_with("GET / HTTP/1.1\r\nHost: a\r\n"), "{head}");
        backend.say(OK).await;
        let answer = client.until("ok").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        client.say(GET).await;
    }
    // Another client's requests go the same way.
    backend.head().await;
    backend.say(OK).await;
    client.until("ok").await;
    let mut other = front.client().await;
    other.say(GET).await;
    backend.head().await;
    backend.say(OK).await;
    other.until("ok").await;
    assert!(front.nobody_waits());
    eventually("a record for each", SOON, || requests(&front).len() == 5).await;
}

fn requests(front: &Front) -> Vec<serde_json::Value> {
    let log = front.homescar.log();
    let is_request = |line: &&serde_json::Value| line["message"] == "request";
    log.iter().filter(is_request).cloned().collect()
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client
        .say("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    let mut backend = front.accept().await;
    for path in ["/1", "/2", "/3"] {
        assert!(backend.head().await.starts_with(&format!("GET {path} ")));
        backend
            .say(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{path}"
            ))
            .await;
    }
    let all = client.rest().await;
    let at = |path: &str| all.find(&format!("\r\n\r\n{path}")).expect(path);
    assert!(at("/1") < at("/2") && at("/2") < at("/3"), "{all}");
}

#[tokio::test]
async fn a_request_that_met_a_stale_connection_is_sent_once_more_if_that_is_safe() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    backend.say(OK).await;
    client.until("ok").await;

    client.say(GET).await;
    backend.head().await;
    drop(backend);
    let mut fresh = front.accept().await;
    fresh.head().await;
    fresh.say(OK).await;
    assert!(client.until("ok").await.starts_with("HTTP/1.1 200 "));

    client
        .say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
        .await;
    fresh.until("x").await;
    drop(fresh);
    assert!(client.head().await.starts_with("HTTP/1.1 502 "));
    assert!(front.nobody_waits(), "it may have been processed");
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways_while_they_are_written() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client
        .say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    let mut backend = front.accept().await;
    assert!(
        backend
            .until("5\r\nhello\r\n")
            .await
            .contains("Transfer-Encoding: chunked\r\n")
    );
    backend
        .say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    assert!(
        client
            .until("3\r\none\r\n")
            .await
            .starts_with("HTTP/1.1 200 OK\r\n")
    );
    client
        .say("0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n")
        .await;
    assert_eq!(backend.head().await, "0\r\nX-Sum: 1\r\n\r\n");
    backend
        .say("0\r\nX-Check: 2\r\nSet-Cookie: a=b\r\n\r\n")
        .await;
    assert_eq!(client.head().await, "0\r\nX-Check: 2\r\n\r\n");
}

#[tokio::test]
async fn a_client_that_expects_a_continue_hears_it_from_the_backend() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client
        .say("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await;
    let mut backend = front.accept().await;
    assert!(
        backend
            .head()
            .await
            .contains("\r\nExpect: 100-continue\r\n")
    );
    backend.say("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.say("hi").await;
    backend.until("hi").await;
    backend.say(OK).await;
    assert!(client.until("ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client
        .say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nstart")
        .await;
    let mut backend = front.accept().await;
    backend.until("start").await;
    backend
        .say("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        .await;
    client.say(vec![b'x'; 100_000]).await;
    let answer = client.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("big"),
        "{answer}"
    );
    assert!(answer.contains("Connection: close"));
    let mut rest = Vec::new();
    let _reset = soon("the end", backend.0.read_to_end(&mut rest)).await;
    assert!(rest.len() < 999_995, "the rest of the body never comes");
}

#[tokio::test]
async fn responses_without_a_body_end_with_their_head() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    let mut backend = None;
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
        ),
    ] {
        client
            .say(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        if backend.is_none() {
            backend = Some(front.accept().await);
        }
        let backend = backend.as_mut().unwrap();
        backend.head().await;
        backend.say(answer).await;
        let heard = client.head().await;
        let lengths = |text: &str| text.matches("Content-Length: ").count();
        assert_eq!(lengths(&heard), lengths(answer), "{heard}");
        assert!(!heard.contains("Transfer-Encoding"), "{heard}");
    }
}

#[tokio::test]
async fn a_response_that_ends_with_its_connection_is_framed_for_the_client() {
    let front = Front::start("", "").await;
    for (version, framed) in [("1.1", "4\r\nbody\r\n0\r\n\r\n"), ("1.0", "body")] {
        let mut client = front.client().await;
        client
            .say(format!(
                "GET / HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let mut backend = front.accept().await;
        backend.head().await;
        backend.say("HTTP/1.0 200 OK\r\n\r\nbody").await;
        drop(backend);
        let answer = client.rest().await;
        assert!(answer.ends_with(&format!("\r\n\r\n{framed}")), "{answer}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_never_looks_complete() {
    let front = Front::start("", "").await;
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut client = front.client().await;
        client.say(GET).await;
        let mut backend = front.accept().await;
        backend.head().await;
        backend
            .say(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nbo"))
            .await;
        client.until("bo").await;
        drop(backend);
        let mut rest = Vec::new();
        let end = soon("the end", client.0.read_to_end(&mut rest)).await;
        assert!(end.is_err(), "a reset, not an end");
    }
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_along() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    drop(client);
    assert!(backend.is_over().await);
    eventually("a record", SOON, || !requests(&front).is_empty()).await;
    let record = requests(&front).remove(0);
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"client".into(), &"gone".into())
    );
}

#[tokio::test]
async fn an_idle_backend_connection_is_closed_before_the_backend_would() {
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    client.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    backend.say(OK).await;
    client.until("ok").await;
    let closed = timeout(Duration::from_secs(5), backend.is_over());
    assert_eq!(closed.await, Ok(true));
}

#[tokio::test]
async fn a_slow_reader_holds_up_its_backend_and_nothing_else() {
    let front = Front::start("", "").await;
    let mut slow = front.client().await;
    slow.say(GET).await;
    let mut backend = front.accept().await;
    backend.head().await;
    backend
        .say("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        .await;
    let chunk = vec![b'x'; 65536];
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_secs(1), backend.0.write(&chunk)).await {
        sent += written.unwrap();
        assert!(sent < 50_000_000, "nobody reads it, so somebody keeps it");
    }
    let mut healthy = front.client().await;
    healthy.say(GET).await;
    let mut other = front.accept().await;
    other.head().await;
    other.say(OK).await;
    healthy.until("ok").await;
}

#[tokio::test]
async fn connections_leave_nothing_behind() {
    let front = Front::start("", "").await;
    let before = descriptors(front.homescar.pid());
    for _ in 0..20 {
        let mut client = front.client().await;
        client.say("nonsense\r\n\r\n").await;
        assert!(client.rest().await.starts_with("HTTP/1.1 400 "));
    }
    eventually("descriptors are closed", SOON, || {
        descriptors(front.homescar.pid()) == before
    })
    .await;
}

#[tokio::test]
async fn an_error_names_the_request_and_nothing_else() {
    let front = Front::start("", "timeouts = { connect = \"1s\" }").await;
    let Front {
        homescar,
        address,
        backend,
    } = front;
    drop(backend);
    let mut client = Peer(TcpStream::connect(address).await.unwrap());
    client
        .say("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: my-id.1\r\nConnection: close\r\n\r\n")
        .await;
    let answer = client.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
    assert!(head.contains("\r\nX-Request-Id: my-id.1\r\n"), "{head}");
    assert_eq!(body, "502 Bad Gateway\nrequest my-id.1\n");
    let record = homescar
        .line("the record", |line| line["id"] == "my-id.1")
        .await;
    assert_eq!(record["reason"], "connect_failed");
}
