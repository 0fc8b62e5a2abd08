//! A table of HTTP/1 messages that are malformed, or that two readers read in two ways: what the
//! client gets, and exactly what reaches the backend.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{http::soon, support::homescar::Homescar};

/// A front, and a backend that notes every byte and answers what it is told to.
struct Front {
    homescar: Homescar,
    address: std::net::SocketAddr,
    backend: std::net::SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    answer: Arc<Mutex<Vec<u8>>>,
    /// Connections that the backend accepted and that have not ended.
    open: watch::Receiver<usize>,
    _backend: JoinSet<()>,
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

impl Front {
    async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let homescar = Homescar::serve(&format!(
            r#"
            threads = 1
            [listener.web]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            limits = {{ head_bytes = "4KiB", headers = 20, target_bytes = "1KiB", body_bytes = 1000 }}
            [cluster.app]
            backends = ["{at}"]
            "#
        ));
        let address = homescar.address("web").await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(Mutex::new(OK.as_bytes().to_vec()));
        let mut backend = JoinSet::new();
        let (notes, words) = (Arc::clone(&heard), Arc::clone(&answer));
        let (count, open) = watch::channel(0);
        backend.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let index = {
                    let mut notes = notes.lock().unwrap();
                    notes.push(Vec::new());
                    notes.len() - 1
                };
                count.send_modify(|open| *open += 1);
                let (notes, words, count) = (Arc::clone(&notes), Arc::clone(&words), count.clone());
                connections.spawn(async move {
                    note(stream, index, notes, words).await;
                    count.send_modify(|open| *open -= 1);
                });
            }
        });
        Self {
            homescar,
            address,
            backend: at,
            heard,
            answer,
            open,
            _backend: backend,
        }
    }

    /// Sends bytes and the end of the stream's use; everything that comes back.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is an end, too.
        let _end = soon("an end", client.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Waits until every connection to the backend has ended, and all that it carried is noted:
    /// what was on its way when the client had its answer would else count for the next.
    async fn settled(&self) {
        // Connections are accepted in their order: when this one was, all before it were.
        let mut last = TcpStream::connect(self.backend).await.unwrap();
        last.shutdown().await.unwrap();
        let end = soon("an end", last.read(&mut [0])).await.unwrap();
        assert_eq!(end, 0);
        let mut open = self.open.clone();
        let all_ended = open.wait_for(|open| *open == 0);
        soon("the end of the backend's connections", all_ended)
            .await
            .unwrap();
    }

    /// What reached the backend since the last call.
    fn heard(&self) -> String {
        let mut heard = self.heard.lock().unwrap();
        heard
            .iter_mut()
            .map(|bytes| String::from_utf8_lossy(&std::mem::take(bytes)).into_owned())
            .collect()
    }
}

/// Reads one request after the other; a head and what its framing says.
async fn note(
    mut stream: TcpStream,
    index: usize,
    notes: Arc<Mutex<Vec<Vec<u8>>>>,
    words: Arc<Mutex<Vec<u8>>>,
) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if let Some(note) = notes.lock().unwrap().get_mut(index) {
            note.extend_from_slice(&buffer[..read]);
        }
        request.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let is_whole = match head.contains("Transfer-Encoding: chunked") {
            true => body.ends_with("\r\n\r\n"),
            false => {
                let length = head.split("Content-Length: ").nth(1);
                let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
                body.len() >= length.unwrap_or(0)
            }
        };
        if is_whole {
            request.clear();
            let answer = words.lock().unwrap().clone();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
            if !answer.starts_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2") {
                return;
            }
        }
    }
}

fn status(answer: &str) -> u16 {
    let words = answer.strip_prefix("HTTP/1.1 ").unwrap_or_default();
    words
        .get(..3)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

const HOST: &str = "Host: a\r\n";

/// Each is refused with this status; nothing of it reaches the backend, and the connection ends.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn refused() -> Vec<(u16, String)> {
    let head = |status, first: &str, fields: &str| (status, format!("{first}\r\n{fields}\r\n"));
    let get = |status, fields: &str| head(status, "GET / HTTP/1.1", &format!("{HOST}{fields}"));
    let post = |status, fields: &str, body: &str| {
        (
            status,
            format!("POST / HTTP/1.1\r\n{HOST}{fields}\r\n{body}"),
        )
    };
    let chunked = |status, body: &str| post(status, "Transfer-Encoding: chunked\r\n", body);
    let mut all = vec![
        // Lengths.
        post(
            400,
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        post(
            400,
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "0\r\n\r\n",
        ),
        post(400, "Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"),
        post(400, "Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
        post(400, "Content-Length: 3, 3\r\n", "abc"),
        post(400, "Content-Length: +3\r\n", "abc"),
        post(400, "Content-Length: -3\r\n", "abc"),
        post(400, "Content-Length: 0x3\r\n", "abc"),
        post(400, "Content-Length: 3 3\r\n", "abc"),
        post(400, "Content-Length: 3.0\r\n", "abc"),
        post(400, "Content-Length: 1e1\r\n", "abc"),
        post(400, "Content-Length: \"3\"\r\n", "abc"),
        post(400, "Content-Length:\r\n", "abc"),
        post(400, "Content-Length: 18446744073709551616\r\n", "abc"),
        post(400, "Content-Length: 99999999999999999999999\r\n", "abc"),
        // Transfer codings.
        post(400, "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding: identity\r\n", "abc"),
        post(400, "Transfer-Encoding: chunked;x=1\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding:\r\n", "0\r\n\r\n"),
        post(
            400,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        post(
            400,
            "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        post(501, "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding: gzip\r\n", "abc"),
        post(400, "Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        post(400, "Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        head(400, "POST / HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
        // Lines and characters.
        get(400, "A: b\r\n c\r\n"),
        get(400, "A: b\r\n\tc\r\n"),
        get(400, "A : b\r\n"),
        get(400, "A\t: b\r\n"),
        get(400, " A: b\r\n"),
        get(400, ": b\r\n"),
        get(400, "A b\r\n"),
        get(400, "A\r\n"),
        get(400, "A(b): c\r\n"),
        get(400, "A: b\0c\r\n"),
        get(400, "A\0: b\r\n"),
        get(400, "A: b\rc\r\n"),
        get(400, "A: b\u{7f}\r\n"),
        get(400, "A: b\u{1}\r\n"),
        get(400, "\u{e9}: b\r\n"),
        get(400, "A: b\nContent-Length: 3\r\n"),
        get(400, "A: b\r\r\n"),
        (400, format!("GET / HTTP/1.1\n{HOST}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{HOST}\n")),
        (400, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        (400, "GET / HTTP/1.1\r\nHost: a\n\n".to_owned()),
        // The first line.
        head(400, "GET  / HTTP/1.1", HOST),
        head(400, "GET / HTTP/1.1 ", HOST),
        head(400, " GET / HTTP/1.1", HOST),
        head(400, "GET\t/ HTTP/1.1", HOST),
        head(400, "GET /", HOST),
        head(400, "GET", HOST),
        head(400, "G(T / HTTP/1.1", HOST),
        head(505, "GET / http/1.1", HOST),
        head(505, "GET / HTTP/1", HOST),
        head(505, "GET / HTTP/1.2", HOST),
        head(505, "GET / HTTP/2.0", HOST),
        head(505, "GET / HTTP/0.9", HOST),
        head(400, "GET /\u{e9} HTTP/1.1", HOST),
        head(400, "GET /a#b HTTP/1.1", HOST),
        head(400, "GET a HTTP/1.1", HOST),
        head(400, "GET * HTTP/1.1", HOST),
        head(400, "GET a:80 HTTP/1.1", HOST),
        head(400, "GET ftp://a/ HTTP/1.1", HOST),
        head(400, "GET http:///x HTTP/1.1", HOST),
        head(400, "GET http://u:p@a/ HTTP/1.1", HOST),
        head(400, "GET http://a?x HTTP/1.1", HOST),
        head(405, "CONNECT a:443 HTTP/1.1", HOST),
        // Hosts.
        head(400, "GET / HTTP/1.1", ""),
        get(400, "Host: b\r\n"),
        get(400, "Host: a\r\n"),
        head(400, "GET / HTTP/1.1", "Host: a b\r\n"),
        head(400, "GET / HTTP/1.1", "Host: a, b\r\n"),
        head(400, "GET / HTTP/1.1", "Host: u@a\r\n"),
        head(400, "GET / HTTP/1.1", "Host: a:b\r\n"),
        head(400, "GET / HTTP/1.1", "Host: a:1:2\r\n"),
        head(400, "GET / HTTP/1.1", "Host: a/b\r\n"),
        head(400, "GET / HTTP/1.1", "Host: [::1\r\n"),
        head(400, "GET / HTTP/1.1", "Host: [x]\r\n"),
        // What a connection may not say.
        get(400, "Connection: close, Host\r\n"),
        get(400, &format!("Connection: {}\r\n", "x,".repeat(17))),
        post(
            400,
            "Content-Length: 3\r\nConnection: content-length\r\n",
            "abc",
        ),
        post(
            400,
            "Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n",
            "0\r\n\r\n",
        ),
        get(417, "Expect: 200-ok\r\n"),
        get(400, "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        get(
            400,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: short\r\n",
        ),
        get(
            426,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        // Too much.
        get(431, &"A: b\r\n".repeat(20)),
        get(431, &format!("A: {}\r\n", "b".repeat(5000))),
        head(414, &format!("GET /{} HTTP/1.1", "a".repeat(1100)), HOST),
        post(413, "Content-Length: 1001\r\n", ""),
    ];
    let bad_chunks = [
        "-1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "\r\nx\r\n0\r\n\r\n",
        "1;a=b\r\nx\r\n0\r\n\r\n",
        "1 \r\nx\r\n0\r\n\r\n",
        " 1\r\nx\r\n0\r\n\r\n",
        "1\nx\r\n0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "00000000000000001\r\nx\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nx",
        "g\r\nx\r\n0\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
    ];
    all.extend(bad_chunks.map(|body| chunked(400, body)));
    all.push(chunked(
        413,
        &format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001)),
    ));
    all
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused() {
    let front = Front::start().await;
    let table = refused();
    assert!(table.len() > 80, "{}", table.len());
    let mut wrong = Vec::new();
    for (expected, bytes) in table {
        // What follows is never read as a request of its own.
        let follows = format!("{bytes}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        for bytes in [&bytes, &follows] {
            let answer = front.say(bytes.as_bytes()).await;
            front.settled().await;
            let heard = front.heard();
            // Of a body that goes wrong the head may have gone on; its end never does.
            let (head, body) = heard.split_once("\r\n\r\n").unwrap_or((&heard, ""));
            let is_refused = status(&answer) == expected
                && answer.matches("HTTP/1.1 ").count() == 1
                && !heard.contains("smuggled")
                && (head.is_empty() || head.contains("Transfer-Encoding: chunked"))
                && !body.ends_with("0\r\n\r\n");
            if !is_refused {
                wrong.push(format!(
                    "{expected} {bytes:?}\n  got {answer:?}\n  heard {heard:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let endless = format!("GET /{}", "a".repeat(3000));
    assert_eq!(status(&front.say(endless.as_bytes()).await), 414);
}

/// Each is passed on, as these bytes: first line and fields up to those that homescar adds, and
/// the body.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn passed() -> Vec<(&'static str, &'static str, &'static str)> {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n";
    vec![
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", get, ""),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", get, ""),
        ("GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: \r\n", ""),
        (
            "GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: b\r\n",
            "",
        ),
        (
            "GET https://b:8 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: b:8\r\n",
            "",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n",
            "",
        ),
        (
            "OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: b\r\n",
            "",
        ),
        ("GET / HTTP/1.1\r\nhOsT:   a\t\r\n\r\n", get, ""),
        (
            "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]:80\r\n",
            "",
        ),
        (
            "GET / HTTP/1.1\r\nA: \u{e9}\r\nHost: a\r\nB:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: \u{e9}\r\nB: \r\n",
            "",
        ),
        // Hop-by-hop, named by Connection, look-alikes, and what only homescar may say.
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\
             Keep-Alive: 3\r\nProxy-Connection: x\r\nTE: trailers\r\nProxy: evil\r\n\
             Proxy-Authorization: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-End: 2\r\n",
            "",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\n\
             X_Forwarded_For: 9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\nClient-Cert: x\r\n\
             Forwarded: for=9.9.9.9\r\nX-Forwarded-Host: evil\r\n\r\n",
            get,
            "",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            get,
            "",
        ),
        // Bodies.
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n",
            "abc",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n03\r\nabc\r\nA\r\n0123456789\r\n000\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
            "3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: evil\r\n\
             Content-Length: 5\r\nX-Sum: 7\r\nCookie: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
            "0\r\nX-Sum: 7\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n",
            "",
        ),
    ]
}

#[tokio::test]
async fn what_is_passed_on_is_written_anew() {
    let front = Front::start().await;
    for (bytes, head, body) in passed() {
        let close = match bytes.contains("Connection:") {
            true => bytes.to_owned(),
            false => bytes.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1),
        };
        // One that asks for an upgrade has its connection closed by the next.
        let close = match close.contains("close") {
            true => close,
            false => format!("{close}GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        };
        let answer = front.say(close.as_bytes()).await;
        assert_eq!(status(&answer), 200, "{bytes:?}: {answer}");
        let heard = front.heard();
        let (fields, rest) = heard.split_once("X-Forwarded-For: ").expect("ours");
        // The framing stands between what is the client's and what is ours.
        assert_eq!(fields, head, "{bytes:?}");
        let (ours, after) = rest.split_once("\r\n\r\n").expect("the end of the head");
        assert!(
            ours.starts_with("127.0.0.1\r\nX-Forwarded-Proto: http\r\n"),
            "{ours}"
        );
        let after = after.split("GET /last").next().unwrap();
        assert_eq!(after, body, "{bytes:?}");
    }
}

/// Each is no response: the client gets 502 and not one byte of it, or, where the response had
/// begun, never a clean end.
fn lies() -> Vec<&'static str> {
    vec![
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nlie",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nlie",
        "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nlie",
        "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nlie",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nlie\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nlie",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nlie",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nlie\r\n0\r\n\r\n",
        "lie lie lie\r\n\r\n",
        "SSH-2.0-lie\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: lie\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: lie\0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: lie\r\n lie\r\n\r\n",
        "HTTP/1.1 200 OK\nX: lie\n\n",
        "HTTP/1.1 200 OK\r\nX: lie\nY: lie\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : lie\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nlie",
        "HTTP/1.1 200 OK\r\nConnection: x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x\r\nX: lie\r\n\r\n",
        "HTTP/1.1 99 lie\r\n\r\n",
        "HTTP/1.1 020 lie\r\n\r\n",
        "HTTP/1.1 1000 lie\r\n\r\n",
        "HTTP/2.0 200 lie\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3",
    ]
}

#[tokio::test]
async fn a_lying_backend_is_not_passed_on() {
    let front = Front::start().await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for lie in lies() {
        *front.answer.lock().unwrap() = lie.as_bytes().to_vec();
        let answer = front.say(get).await;
        assert_eq!(status(&answer), 502, "{lie:?}: {answer}");
        assert!(!answer.contains("lie"), "{lie:?}: {answer}");
    }
    *front.answer.lock().unwrap() = "HTTP/1.1 100 Continue\r\n\r\n".repeat(30).into_bytes();
    assert_eq!(status(&front.say(get).await), 502);

    for (begun, end) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "short"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
            "short\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nlie\r\n0\r\n\r\n",
            "",
        ),
    ] {
        *front.answer.lock().unwrap() = begun.as_bytes().to_vec();
        let mut client = TcpStream::connect(front.address).await.unwrap();
        client.write_all(get).await.unwrap();
        let mut answer = Vec::new();
        let finish = soon("an end", client.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(finish.is_err() || answer.is_empty(), "{begun:?}: {answer}");
        assert!(
            answer.ends_with(end) && !answer.contains("lie"),
            "{begun:?}: {answer}"
        );
    }

    // What stands behind a response never reaches the next client.
    *front.answer.lock().unwrap() =
        format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nlie").into_bytes();
    assert!(front.say(get).await.ends_with("\r\n\r\nok"));
    *front.answer.lock().unwrap() = OK.as_bytes().to_vec();
    for _ in 0..3 {
        let answer = front.say(get).await;
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    let log = front.homescar.log();
    let lies = log
        .iter()
        .filter(|line| line["reason"] == "not_http")
        .count();
    assert!(lies >= 18, "{lies}");
}
