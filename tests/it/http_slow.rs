//! HTTP mode and those who take their time: each has a bound and a status, and costs only itself.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::http::{Front, Peer, soon};

const SHORT: &str = "timeouts = { header = \"1s\", body = \"1s\", keepalive = \"1s\" }";
const RESPONSE: &str = "timeouts = { response = \"1s\" }";

#[tokio::test]
async fn a_head_that_does_not_come_is_a_408() {
    let front = Front::start(SHORT, "").await;
    let mut client = front.client().await;
    client.say("GET / HTTP/1.1\r\nHost").await;
    // Each byte in time, and all of them too late.
    let trickle = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if client.0.write_all(b"a").await.is_err() {
                break;
            }
            let mut answer = [0; 12];
            if let Ok(Ok(_)) =
                timeout(Duration::from_millis(1), client.0.read_exact(&mut answer)).await
            {
                return String::from_utf8_lossy(&answer).into_owned();
            }
        }
        String::new()
    };
    assert_eq!(soon("an answer", trickle).await, "HTTP/1.1 408");
    // Nothing at all is nothing to answer.
    let mut silent = front.client().await;
    assert_eq!(silent.rest().await, "");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let front = Front::start(SHORT, "").await;
    let mut client = front.client().await;
    client
        .say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        .await;
    let mut backend = front.accept().await;
    backend.until("abc").await;
    assert!(client.rest().await.starts_with("HTTP/1.1 408 "));
    assert!(backend.is_over().await);
}

#[tokio::test]
async fn a_response_that_does_not_come_is_a_504() {
    let front = Front::start("", RESPONSE).await;
    let mut client = front.client().await;
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut backend = front.accept().await;
    backend.head().await;
    assert!(client.head().await.starts_with("HTTP/1.1 504 "));
    assert!(backend.is_over().await, "it may forget the request");
    // The connection goes on.
    client.until("\n").await;
    client.until("\n").await;
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut backend = front.accept().await;
    backend.head().await;
    backend.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn each_response_has_its_own_time() {
    let front = Front::start("", RESPONSE).await;
    let mut client = front.client().await;
    let ask = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client.say(ask).await;
    let mut backend = front.accept().await;
    // Three of them, on one connection, take longer than one may.
    for _ in 0..3 {
        backend.head().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        backend.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 204 "));
        client.say(ask).await;
    }
    backend.head().await;
    let began = Instant::now();
    assert!(client.head().await.starts_with("HTTP/1.1 504 "));
    assert!(began.elapsed() > Duration::from_millis(900));
}

#[tokio::test]
async fn messages_may_come_byte_by_byte() {
    async fn trickle(peer: &mut Peer, text: &str) {
        for byte in text.bytes() {
            peer.say([byte]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // A body in chunks, however they come to be cut on the way.
    let of = |letters: &str, chunks: &str| -> String {
        let its = chunks.chars().filter(|c| letters.contains(*c));
        its.collect()
    };
    let front = Front::start("", "").await;
    let mut client = front.client().await;
    let mut kept = None;
    // The second time over connections that carried a request before.
    for _ in 0..2 {
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        trickle(&mut client, head).await;
        let mut backend = match kept.take() {
            Some(backend) => backend,
            None => front.accept().await,
        };
        assert!(backend.head().await.starts_with("POST /x HTTP/1.1\r\n"));
        trickle(&mut client, "2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n").await;
        let asked = backend.until("0\r\nX-Sum: 1\r\n\r\n").await;
        assert_eq!(of("ab", &asked), "ab");
        let answer = "HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n";
        trickle(&mut backend, answer).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nX-A: b\r\n"), "{head}");
        trickle(&mut backend, "2\r\nok\r\n0\r\n\r\n").await;
        let body = client.until("0\r\n\r\n").await;
        assert_eq!(of("ok", &body), "ok");

        trickle(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        backend.head().await;
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        trickle(&mut backend, answer).await;
        assert!(client.until("ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
        kept = Some(backend);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let front = Front::start(SHORT, "").await;
    let mut client = front.client().await;
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut backend = front.accept().await;
    backend.head().await;
    backend
        .say("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        .await;
    let chunk = vec![b'x'; 65536];
    let pour = async { while backend.0.write_all(&chunk).await.is_ok() {} };
    soon("the cut", pour).await;
    let is_slow = |line: &serde_json::Value| line["reason"] == "slow";
    front.homescar.line("its record", is_slow).await;
}

/// Clients that trickle a head, trickle a body, or do not read, `each` of them.
fn crowd(address: SocketAddr, each: usize) -> JoinSet<()> {
    let mut crowd = JoinSet::new();
    for index in 0..3 * each {
        crowd.spawn(async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            let request: &[u8] = match index % 3 {
                0 => b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
                1 => b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx",
                _ => b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
            };
            let _gone = client.write_all(request).await;
            // It holds on for as long as it is let.
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if index % 3 != 2 && client.write_all(b"x").await.is_err() {
                    return;
                }
                if client.take_error().unwrap().is_some() {
                    return;
                }
            }
        });
    }
    crowd
}

#[tokio::test]
async fn five_hundred_of_each_kind_do_not_harm_a_healthy_client() {
    const EACH: usize = 500;
    let times = "timeouts = { header = \"4s\", body = \"4s\" }";
    let front = Front::start(times, "").await;
    let address = front.address;
    let body = vec![b'x'; 256 * 1024];
    let mut servers = JoinSet::new();
    let _crowd = crowd(address, EACH);
    let healthy = async {
        let mut client = Peer(TcpStream::connect(address).await.unwrap());
        let until = Instant::now() + Duration::from_secs(6);
        let mut answers = 0;
        while Instant::now() < until {
            client.say("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            client.until("ok").await;
            answers += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        answers
    };
    let serve = async {
        loop {
            let mut backend = front.accept().await;
            let body = body.clone();
            servers.spawn(async move {
                while let Some(head) = backend.next_head().await {
                    let answer = match () {
                        () if head.starts_with("GET /ok") => {
                            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()
                        }
                        () if head.starts_with("GET /big") => [
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())
                                .as_bytes(),
                            &body,
                        ]
                        .concat(),
                        () => continue,
                    };
                    if backend.0.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    };
    let answers = tokio::select! {
        answers = healthy => answers,
        () = serve => unreachable!("it accepts for ever"),
    };
    assert!(answers > 100, "{answers}");
}
