//! HTTP mode: clients and backends that make work.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http2::SendRequest,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use crate::{
    http::{Front, Peer, soon},
    support::homescar::{SOON, cpu_time, message},
};

/// An HTTP/2 client, for as long as the set is held.
async fn http2(front: &Front, driver: &mut JoinSet<()>) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(front.address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    driver.spawn(async move {
        let _end = connection.await;
    });
    sender
}

fn get() -> hyper::Request<Empty<Bytes>> {
    hyper::Request::get("http://a/").body(Empty::new()).unwrap()
}

/// Each option of a connection is compared with each field: a head of them was the work of
/// hundreds.
#[tokio::test]
async fn a_head_of_nothing_but_options_costs_no_more_than_others() {
    const HEADS: usize = 50;
    let front = Front::start("", "").await;
    let fields: String = (0..90).map(|n| format!("x-{n}: y\r\n")).collect();
    let mut cost = Vec::new();
    for name in ["Long", "Connection"] {
        let value = "a,".repeat(15_000);
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n{fields}\r\n");
        let before = cpu_time(front.homescar.pid());
        for _ in 0..HEADS {
            let mut client = front.client().await;
            client.say(&head).await;
            let serve = async {
                let mut backend = front.accept().await;
                backend.head().await;
                backend
                    .say("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                    .await;
                std::future::pending::<()>().await;
            };
            let status = tokio::select! {
                head = client.head() => head[..12].to_owned(),
                () = serve => unreachable!(),
            };
            let expected = if name == "Long" {
                "HTTP/1.1 204"
            } else {
                "HTTP/1.1 400"
            };
            assert_eq!(status, expected);
        }
        cost.push(cpu_time(front.homescar.pid()) - before);
    }
    // Hundredths of a second are the measure, so some are given.
    let most = cost[0] * 3 + Duration::from_millis(100);
    assert!(cost[1] <= most, "{cost:?}");
}

/// The end of a chunked body may come long after all of its bytes; it is the end over HTTP/2, too, and the
/// backend's connection is used again.
#[tokio::test]
async fn the_end_of_a_body_may_come_by_itself() {
    let front = Front::start("", "").await;
    let mut driver = JoinSet::new();
    let mut sender = http2(&front, &mut driver).await;
    let said = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n";
    let (response, mut backend) = begun(&front, &mut sender, said).await;
    let mut body = response.into_body();
    let piece = soon("the piece", body.frame()).await.unwrap().unwrap();
    assert_eq!(piece.into_data().unwrap(), "body");
    backend.say("0\r\n\r\n").await;
    if let Some(end) = soon("the end", body.frame()).await {
        assert_eq!(end.unwrap().into_data().unwrap(), "");
    }
    let again = sender.send_request(get());
    let serve = async {
        backend.head().await;
        backend.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    };
    let (again, ()) = soon("the same connection", async { tokio::join!(again, serve) }).await;
    assert_eq!(again.unwrap().status(), 204);
}

/// A backend that says every byte by itself does not make its client's connection say it so.
#[tokio::test]
async fn a_body_of_tiny_chunks_is_not_one_of_tiny_frames() {
    const CHUNKS: usize = 20_000;
    let front = Front::start("", "").await;
    let mut driver = JoinSet::new();
    let mut sender = http2(&front, &mut driver).await;
    let response = sender.send_request(get());
    let serve = async {
        let mut backend = front.accept().await;
        backend.head().await;
        let chunks = "1\r\nx\r\n".repeat(CHUNKS);
        backend
            .say(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\nX-Sum: 1\r\n\r\n"
            ))
            .await;
        backend
    };
    let read = async {
        let mut body = response.await.unwrap().into_body();
        let (mut frames, mut bytes, mut trailers) = (0, 0, None);
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(data) => (frames, bytes) = (frames + 1, bytes + data.len()),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        (frames, bytes, trailers)
    };
    let ((frames, bytes, trailers), _backend) =
        soon("the body", async { tokio::join!(read, serve) }).await;
    assert_eq!(bytes, CHUNKS);
    assert_eq!(trailers.unwrap()["x-sum"], "1");
    assert!(frames < CHUNKS / 20, "{frames} frames");
}

/// A stream that its client resets within the response takes its request along, and nothing else.
#[tokio::test]
async fn a_stream_that_is_given_up_takes_its_backend_connection_along() {
    let front = Front::start("", "").await;
    let mut driver = JoinSet::new();
    let mut sender = http2(&front, &mut driver).await;
    let said = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
    let (response, mut backend) = begun(&front, &mut sender, said).await;
    // Of an endless body, some; then the client has had enough.
    let mut body = response.into_body();
    backend.say(vec![b'x'; 100_000]).await;
    soon("a frame", body.frame()).await.unwrap().unwrap();
    drop(body);
    let flood = async { while backend.0.write_all(&[b'x'; 65_536]).await.is_ok() {} };
    soon("the end", flood).await;
    was_given_up(&front, &mut sender).await;
}

/// The same before a word of the response: nobody waits for a backend that nobody waits for.
#[tokio::test]
async fn a_stream_that_is_given_up_before_its_response_takes_its_backend_connection_along() {
    let front = Front::start("", "").await;
    let mut driver = JoinSet::new();
    let mut sender = http2(&front, &mut driver).await;
    let mut asked = JoinSet::new();
    asked.spawn(sender.send_request(get()));
    let mut backend = front.accept().await;
    backend.head().await;
    asked.shutdown().await;
    let mut heard = Vec::new();
    let end = backend.0.read_to_end(&mut heard);
    let _end = soon("the end", end).await;
    assert!(heard.is_empty());
    was_given_up(&front, &mut sender).await;
}

/// Half a preface of HTTP/2, pings without a request: a connection on which nothing is asked ends,
/// whatever else is said on it.
#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_ends() {
    let front = Front::start("timeouts = { header = \"300ms\" }", "").await;
    let mut half = front.client().await;
    half.say("PRI * HTTP/2.0\r\n\r\n").await;
    // It says its settings, and no more.
    let mut heard = Vec::new();
    let _end = soon("the end", half.0.read_to_end(&mut heard)).await;

    // Empty lines before a request are passed over, but not for ever.
    let mut lines = front.client().await;
    let began = Instant::now();
    while lines.0.write_all(b"\r\n").await.is_ok() {
        assert!(began.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut pings = front.client().await;
    pings.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    pings.say([0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
    let ping = [[0, 0, 8, 6, 0, 0, 0, 0, 0].as_slice(), &[7; 8]].concat();
    let began = Instant::now();
    while pings.0.write_all(&ping).await.is_ok() {
        assert!(began.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Between its requests a connection has more time than for its first one.
#[tokio::test]
async fn a_connection_that_has_asked_is_kept() {
    const KEPT: Duration = Duration::from_millis(700);
    let timeouts = "timeouts = { header = \"100ms\", keepalive = \"700ms\" }";
    let front = Front::start(timeouts, "").await;
    let mut driver = JoinSet::new();
    let mut sender = http2(&front, &mut driver).await;
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    let asked = Instant::now();
    let response = answered(&front, answer, sender.send_request(get())).await;
    assert_eq!(response.unwrap().status(), 204);
    soon("the end", driver.join_next()).await;
    assert!(asked.elapsed() >= KEPT, "{:?}", asked.elapsed());
}

/// A length where there must be none (RFC 9110 §8.6) has some clients wait for it, and others end
/// the connection; where there is a body as well, none of it is the next response.
#[tokio::test]
async fn a_response_that_can_have_no_body_has_no_length() {
    let front = Front::start("", "").await;
    let mut driver = JoinSet::new();
    for (status, length) in [(204, None), (304, Some("5"))] {
        for body in ["", "hello"] {
            let answer = format!("HTTP/1.1 {status} \r\nContent-Length: 5\r\n\r\n{body}");
            let mut client = front.client().await;
            let mut sender = http2(&front, &mut driver).await;
            for _ in 0..2 {
                client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let head = answered(&front, &answer, client.head()).await;
                assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
                let said = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: "));
                assert_eq!(said, length, "{head}");

                let response = answered(&front, &answer, sender.send_request(get())).await;
                let response = response.unwrap();
                assert_eq!(response.status(), status);
                let said = response.headers().get("content-length");
                assert_eq!(said.map(|value| value.to_str().unwrap()), length);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert!(body.is_empty(), "{status}: {body:?}");
            }
        }
    }
}

/// That the client's request was, and that its connection is as good as before.
async fn was_given_up(front: &Front, sender: &mut SendRequest<Empty<Bytes>>) {
    let given_up = |line: &serde_json::Value| message(line) == "request" && line["by"] == "client";
    let record = front.homescar.line("a record", given_up).await;
    assert_eq!(record["reason"], "gone", "{record}");
    let said = "HTTP/1.1 204 No Content\r\n\r\n";
    let (response, _backend) = begun(front, sender, said).await;
    assert_eq!(response.status(), 204);
}

/// What a client gets once its request has met a new backend's connection on which this is said, and that
/// connection.
async fn begun(
    front: &Front,
    sender: &mut SendRequest<Empty<Bytes>>,
    said: &str,
) -> (hyper::Response<Incoming>, Peer) {
    let response = sender.send_request(get());
    let serve = async {
        let mut backend = front.accept().await;
        backend.head().await;
        backend.say(said).await;
        backend
    };
    let (response, backend) = soon("a head", async { tokio::join!(response, serve) }).await;
    (response.unwrap(), backend)
}

/// What a client gets while the backend gives one answer, on a connection that it then ends.
async fn answered<T>(front: &Front, answer: &str, client: impl Future<Output = T>) -> T {
    let serve = async {
        let mut backend = front.accept().await;
        backend.head().await;
        backend.say(answer).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        got = soon("an answer", client) => got,
        () = serve => unreachable!(),
    }
}
