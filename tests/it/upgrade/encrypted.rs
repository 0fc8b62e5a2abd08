//! Connections that cannot come along, as they are encrypted or are HTTP/2: what is under way ends well,
//! or as it is documented; and nobody's session, cookie or id is forgotten.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig,
    version::{TLS12, TLS13},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    accept_async, client_async,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};

use super::Replaceable;
use crate::{
    http::{Peer, soon},
    support::{
        client::address_of_client,
        homescar::{WORKER, message},
    },
    tls::pki::{Authority, TlsClient},
};

/// A homescar with an encrypted listener `web`.
struct Front {
    one: Replaceable,
    authority: Authority,
    _folder: TempDir,
    web: SocketAddr,
}

impl Front {
    async fn start(mode: &str, source: &str, cluster: &str) -> Self {
        let authority = Authority::new();
        let folder = TempDir::new().unwrap();
        let (cert, key) = authority.pair(&["a.test"]).write(folder.path());
        let one = Replaceable::serve(&format!(
            r#"
            threads = 2
            [listener.web]
            bind = "127.0.0.1:0"
            mode = "{mode}"
            cluster = "app"
            tls = {{ cert = "{}", key = "{}" }}
            [cluster.app]
            {source}
            {cluster}
            "#,
            cert.display(),
            key.display()
        ));
        let web = one.homescar.address("web").await;
        Self {
            one,
            authority,
            _folder: folder,
            web,
        }
    }

    /// A client that speaks this by ALPN.
    fn client(&self, protocol: &str) -> Arc<ClientConfig> {
        let mut config = self.authority.client_with(None, rustls::ALL_VERSIONS);
        config.alpn_protocols = vec![protocol.into()];
        Arc::new(config)
    }

    async fn http2(&self) -> http2::SendRequest<Empty<Bytes>> {
        let tls = TlsClient::connect(self.web, &self.client("h2"))
            .await
            .unwrap();
        let io = TokioIo::new(tls.stream.into_inner());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

/// A backend that is the test itself, by what it does with a request.
async fn backend<F, A>(answer: F) -> String
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Answer>> + Send + 'static,
{
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answered = answer(request);
                async { Ok::<_, Infallible>(answered.await) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    format!("backends = [\"{address}\"]")
}

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

fn text(text: &str) -> Response<Answer> {
    Response::new(Full::from(text.to_owned()).boxed_unsync())
}

/// A body whose pieces come when the test says so.
fn slowly() -> (mpsc::UnboundedSender<&'static str>, Answer) {
    let (sender, mut pieces) = mpsc::unbounded_channel::<&str>();
    let pieces = futures_util::stream::poll_fn(move |cx| {
        let piece = pieces.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    });
    (sender, StreamBody::new(pieces).boxed_unsync())
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("http://a.test{path}"));
    request.body(Empty::new()).unwrap()
}

/// One of each that cannot come along, busy when the upgrade begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one story, told in one piece")]
async fn what_is_under_way_is_finished() {
    let (began, mut begun) = mpsc::unbounded_channel();
    let source = backend(move |request: Request<Incoming>| {
        let began = began.clone();
        async move {
            if request.method() == "POST" {
                let _here = began.send(None);
                let body = request.into_body().collect().await.unwrap();
                return text(&format!("{} bytes", body.to_bytes().len()));
            }
            let (pieces, body) = slowly();
            let _here = began.send(Some(pieces));
            Response::new(body)
        }
    })
    .await;
    let front = Front::start("http", &source, "drain = { timeout = \"30s\" }").await;
    let (one, web) = (&front.one, front.web);

    // A long download over HTTP/2.
    let mut sender = front.http2().await;
    let response = sender.send_request(get("/long"));
    let response = tokio::spawn(response);
    let pieces = soon("the request", begun.recv()).await.unwrap().unwrap();
    pieces.send("one ").unwrap();
    let mut download = soon("the head", response)
        .await
        .unwrap()
        .unwrap()
        .into_body();

    // An upload over HTTP/1.1 that takes its time.
    let tls = TlsClient::connect(web, &front.client("http/1.1"))
        .await
        .unwrap();
    let (mut upload, connection) = http1::handshake(TokioIo::new(tls.stream.into_inner()))
        .await
        .unwrap();
    tokio::spawn(connection);
    let (parts, body) = slowly();
    parts.send("half of it ").unwrap();
    let post = Request::post("/up").header("host", "a.test").body(body);
    let uploaded = tokio::spawn(upload.send_request(post.unwrap()));
    soon("the upload", begun.recv()).await.unwrap();

    // A connection that is kept, and idle.
    let mut idle = TlsClient::connect(web, &front.client("http/1.1"))
        .await
        .unwrap();
    idle.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    soon("the request", begun.recv()).await.unwrap();
    let mut answer = vec![0; 17];
    tokio::io::AsyncReadExt::read_exact(&mut idle.stream, &mut answer)
        .await
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 200 OK\r\n");

    let upgrade = async {
        let receipt = one.must_upgrade().await;
        assert_eq!(
            (&receipt["cut"], &receipt["connections"]),
            (&0.into(), &0.into())
        );
    };
    let rest = async {
        // An orderly end, said in TLS, as soon as the upgrade has begun.
        idle.rest().await.unwrap();
        // Who comes now is served, by the old image still.
        let mut fresh = front.http2().await;
        // Others have been asked again and again by then; who has only just come is not.
        sleep(Duration::from_millis(300)).await;
        let answer = tokio::spawn(fresh.send_request(get("/new")));
        let others = soon("the request", begun.recv()).await.unwrap().unwrap();
        others.send("new").unwrap();
        drop(others);
        let answer = soon("the answer", answer).await.unwrap().unwrap();
        assert_eq!(
            answer.into_body().collect().await.unwrap().to_bytes(),
            "new"
        );
        drop(fresh);

        pieces.send("two").unwrap();
        parts.send("and the rest").unwrap();
        drop((pieces, parts));
        let answer = soon("the answer", uploaded).await.unwrap().unwrap();
        assert_eq!(answer.headers()["connection"], "close");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "23 bytes");
        let mut whole = Vec::new();
        while let Some(frame) = soon("a piece", download.frame()).await {
            whole.extend(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(whole, b"one two");
        // GOAWAY.
        let gone = async {
            while sender.ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        soon("the end", gone).await;
    };
    tokio::join!(upgrade, rest);
}

/// Those that do not end by the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_end_is_cut() {
    let (began, mut begun) = mpsc::unbounded_channel();
    let source = backend(move |_| {
        let (pieces, body) = slowly();
        pieces.send("one ").unwrap();
        began.send(pieces).unwrap();
        async { Response::new(body) }
    })
    .await;
    let front = Front::start("http", &source, "drain = { timeout = \"300ms\" }").await;
    let mut sender = front.http2().await;
    let response = soon("the head", sender.send_request(get("/endless"))).await;
    let mut download = response.unwrap().into_body();
    let pieces = soon("the request", begun.recv()).await.unwrap();
    soon("a piece", download.frame()).await.unwrap().unwrap();
    let receipt = front.one.must_upgrade().await;
    assert_ne!(receipt["cut"], 0);
    let rest = soon("the end", download.frame()).await;
    assert!(rest.unwrap().is_err(), "it is not taken for whole");
    let is_record = |line: &Value| message(line) == "request";
    let record = front.one.homescar.line("the record", is_record).await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"proxy".into(), &"cut".into())
    );
    drop(pieces);
}

/// Relays with TLS have no goodbye: they may end by themselves, or are cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_relay_may_end_by_itself() {
    let source = format!("workers = {{ command = [\"{WORKER}\"], count = 2 }}");
    let front = Front::start("tcp", &source, "drain = { timeout = \"2s\" }").await;
    front.one.homescar.all_ready("app", 2).await;
    let tls = front.authority.client();
    let mut ends = TlsClient::connect(front.web, &tls).await.unwrap();
    ends.start_echo().await.unwrap();
    ends.echo(b"begun").await.unwrap();
    let mut stays = TlsClient::connect(front.web, &tls).await.unwrap();
    stays.whoami().await.unwrap();
    let here = stays.local_addr();
    let mark = front.one.homescar.mark();
    let client = async {
        let is_begun = |line: &Value| message(line).starts_with("connections that cannot come");
        front
            .one
            .homescar
            .line_after(mark, "the drain", is_begun)
            .await;
        ends.echo(&vec![7; 500_000]).await.unwrap();
        ends.shutdown().await.unwrap();
        assert!(ends.rest().await.unwrap().is_empty());
    };
    let (receipt, ()) = tokio::join!(front.one.must_upgrade(), client);
    assert_eq!(receipt["cut"], 1);
    assert!(stays.rest().await.is_err());
    let record = front.one.homescar.record_of(here).await;
    assert_eq!(record["reason"], "cut");
}

/// A WebSocket over TLS is told to come again; what was said before is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_websocket_is_told() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source = format!("backends = [\"{}\"]", socket.local_addr().unwrap());
    let cluster = "drain = { timeout = \"20s\", spread = \"100ms\" }";
    let front = Front::start("http", &source, cluster).await;
    let tls = TlsClient::connect(front.web, &front.client("http/1.1"))
        .await
        .unwrap();
    let accept = async {
        let (stream, _) = socket.accept().await.unwrap();
        accept_async(stream).await.unwrap()
    };
    let client = client_async("wss://a.test/", tls.stream.into_inner());
    let (client, mut served) = soon("a handshake", async { tokio::join!(client, accept) }).await;
    let (mut client, _) = client.unwrap();
    client.send(Message::text("hello")).await.unwrap();
    soon("a message", served.next()).await.unwrap().unwrap();
    let talks = async {
        let message = Message::binary(vec![7; 10_000]);
        while served.send(message.clone()).await.is_ok() {}
    };
    let hears = async {
        let mut told = None;
        while let Some(message) = soon("a message", client.next()).await {
            match message.expect("no protocol error") {
                Message::Close(frame) => told = frame.map(|frame| frame.code),
                message => assert_eq!(message.len(), 10_000),
            }
        }
        told
    };
    let (receipt, told, ()) = tokio::join!(front.one.must_upgrade(), hears, talks);
    assert_eq!(told, Some(CloseCode::Restart));
    assert_eq!(
        (&receipt["cut"], &receipt["connections"]),
        (&0.into(), &0.into())
    );
}

/// For so long a new connection is not told to go before its first request; a little less, as it is older
/// than its client knows.
const FIRST_REQUEST: Duration = Duration::from_millis(800);

/// Clients of HTTP/1.1 and HTTP/2 over TLS that go elsewhere when they are told: each request is
/// answered, and none is done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_a_well_behaved_client_fails() {
    let done = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&done);
    let source = backend(move |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        assert!(seen.lock().unwrap().insert(path.clone()), "{path} twice");
        async move {
            sleep(Duration::from_millis(fastrand::u64(0..20))).await;
            text(&path)
        }
    })
    .await;
    let cluster = "drain = { timeout = \"20s\" }";
    let front = Arc::new(Front::start("http", &source, cluster).await);
    let (over, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut lanes = JoinSet::new();
    for lane in 0..6 {
        let (front, done) = (Arc::clone(&front), Arc::clone(&done));
        let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
        lanes.spawn(async move {
            let mut number = 0;
            while !over.load(Relaxed) {
                let is_http2 = lane % 2 == 0;
                // A connection, for as long as it is good.
                let mut sender = Sender::connect(&front, is_http2).await;
                let opened = Instant::now();
                let mut is_fresh = true;
                while !over.load(Relaxed) && sender.is_good().await {
                    number += 1;
                    let path = format!("/{lane}/{number}");
                    match soon(&format!("an answer to {path}"), sender.get(&path)).await {
                        Some(body) => assert_eq!(body, path),
                        // It ended before the request was sent.
                        None => {
                            let is_done = done.lock().unwrap().contains(&path);
                            assert!(!is_done, "{path} was done, and not answered");
                            let is_new = is_fresh && opened.elapsed() < FIRST_REQUEST;
                            assert!(!is_new, "{path} on a new connection");
                        }
                    }
                    is_fresh = false;
                    answered.fetch_add(1, Relaxed);
                }
            }
        });
    }
    for _ in 0..5 {
        let before = answered.load(Relaxed);
        crate::support::homescar::eventually("requests", crate::support::homescar::SOON, || {
            answered.load(Relaxed) > before + 30
        })
        .await;
        let receipt = front.one.must_upgrade().await;
        assert_eq!(receipt["cut"], 0);
    }
    over.store(true, Relaxed);
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap_or_else(|error| panic!("{error}\n{}", front.one.homescar.tail()));
    }
    let is_bad = |line: &&Value| message(line) == "request" && line["status"] != 200;
    let log = front.one.homescar.log();
    let bad: Vec<_> = log.iter().filter(is_bad).collect();
    assert!(bad.is_empty(), "{bad:?}");
    // What was sent again had not been done.
    assert!(done.lock().unwrap().len() <= answered.load(Relaxed));
}

/// A client's connection of either version.
enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    /// Not hyper's: when GOAWAY comes just after it has sent a request, that resets its stream, though it is
    /// one of those that are to be answered.
    Http2(h2::client::SendRequest<Bytes>),
}

impl Sender {
    async fn connect(front: &Front, is_http2: bool) -> Self {
        let protocol = if is_http2 { "h2" } else { "http/1.1" };
        let tls = TlsClient::connect(front.web, &front.client(protocol))
            .await
            .unwrap();
        let stream = tls.stream.into_inner();
        if is_http2 {
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            return Self::Http2(sender);
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    async fn is_good(&mut self) -> bool {
        match self {
            Self::Http1(sender) => soon("readiness", sender.ready()).await.is_ok(),
            Self::Http2(sender) => {
                let ready = poll_fn(|cx| sender.poll_ready(cx));
                soon("readiness", ready).await.is_ok()
            }
        }
    }

    /// The body of an answer; nothing when the request is known not to have been done.
    async fn get(&mut self, path: &str) -> Option<Bytes> {
        let sender = match self {
            Self::Http2(sender) => sender,
            Self::Http1(sender) => {
                let request = Request::get(path).header("host", "a.test");
                let request = request.body(Empty::new()).unwrap();
                // An idle connection may end at the moment at which it is used (RFC 9112 §9.3.1).
                let response = sender.send_request(request).await.ok()?;
                return Some(response.into_body().collect().await.unwrap().to_bytes());
            }
        };
        // GOAWAY says what was not done.
        let is_told = |error: &h2::Error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        };
        let request = get(path).map(|_| ());
        let response = match sender.send_request(request, true) {
            Ok((response, _)) => response.await,
            Err(error) => Err(error),
        };
        let mut body = match response {
            Ok(response) => response.into_body(),
            Err(error) => {
                assert!(is_told(&error), "{path}: {error:?}");
                return None;
            }
        };
        let mut whole = Vec::new();
        while let Some(piece) = body.data().await {
            whole.extend(piece.unwrap());
        }
        Some(whole.into())
    }
}

#[tokio::test]
async fn sessions_are_resumed_after_an_upgrade() {
    let source = format!("workers = {{ command = [\"{WORKER}\"], count = 1 }}");
    let front = Front::start("tcp", &source, "").await;
    front.one.homescar.all_ready("app", 1).await;
    for versions in [&[&TLS13], &[&TLS12]] {
        let tls = Arc::new(front.authority.client_with(None, versions));
        let connect = async || {
            let mut client = TlsClient::connect(front.web, &tls).await.unwrap();
            client.whoami().await.unwrap();
            client.is_resumed()
        };
        assert!(!connect().await);
        front.one.must_upgrade().await;
        assert!(connect().await);
        front.one.must_upgrade().await;
        front.one.must_upgrade().await;
        assert!(connect().await);
    }
}

/// One that was verified by an authority is not believed by its ticket once that has gone, be it in
/// the very moment of the upgrade.
#[tokio::test]
async fn tickets_are_forgotten_with_the_authority() {
    let folder = TempDir::new().unwrap();
    let (first, second) = (Authority::new(), Authority::new());
    let (cert, key) = first.pair(&["a.test"]).write(folder.path());
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, first.pem()).unwrap();
    let one = Replaceable::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        tls = {{ cert = "{}", key = "{}", client_ca = "{}" }}
        [cluster.app]
        workers = {{ command = ["{WORKER}"], count = 1 }}
        "#,
        cert.display(),
        key.display(),
        ca.display()
    ));
    one.homescar.all_ready("app", 1).await;
    let web = one.homescar.address("web").await;
    let tls = first.client_with(Some(&first.pair(&["client"])), rustls::ALL_VERSIONS);
    let tls = Arc::new(tls);
    let connect = async || {
        let mut client = TlsClient::connect(web, &tls).await?;
        client.whoami().await.map(|_| client.is_resumed())
    };
    assert!(!connect().await.unwrap());
    one.must_upgrade().await;
    assert!(connect().await.unwrap());
    // Not seen by the old image, which looks every two seconds and believes the second look.
    fs::write(&ca, second.pem()).unwrap();
    one.must_upgrade().await;
    assert!(connect().await.is_err());
}

/// Who is at home by a cookie, or by an id that its worker has given it, stays there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one story, told in one piece")]
async fn cookies_and_ids_are_believed_after_an_upgrade() {
    let mut names = Vec::new();
    for index in 0..5 {
        let source = backend(move |request: Request<Incoming>| async move {
            match request.uri().query() {
                None => text(&format!(
                    "0{{\"sid\":\"session-of-{index}\",\"pingInterval\":25000}}"
                )),
                Some(_) => text(&index.to_string()),
            }
        })
        .await;
        let address = source.split('"').nth(1).unwrap().to_owned();
        names.push(format!("{{ name = \"{index}\", address = \"{address}\" }}"));
    }
    let names = names.join(", ");
    let one = Replaceable::serve(&format!(
        r#"
        [listener.cookie]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "cookie"
        [listener.id]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "id"
        [cluster.cookie]
        backends = [{names}]
        affinity = {{ key = "cookie" }}
        [cluster.id]
        backends = [{names}]
        affinity = {{ key = "query:sid" }}
        "#
    ));
    let (by_cookie, by_id) = (
        one.homescar.address("cookie").await,
        one.homescar.address("id").await,
    );
    let ask = async |from: usize, to: SocketAddr, target: &str, header: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address_of_client(from), 0).into()).unwrap();
        let mut peer = Peer(socket.connect(to).await.unwrap());
        peer.say(format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\n{header}Connection: close\r\n\r\n"
        ))
        .await;
        peer.rest().await
    };
    let body = |answer: &str| answer.rsplit("\r\n\r\n").next().unwrap().to_owned();
    let mut cookies = Vec::new();
    let mut ids = Vec::new();
    for client in 0..20 {
        let answer = ask(client, by_cookie, "/?who", "").await;
        let cookie = answer
            .lines()
            .find_map(|line| line.strip_prefix("Set-Cookie: "))
            .unwrap();
        let cookie = cookie.split(';').next().unwrap();
        cookies.push((format!("Cookie: {cookie}\r\n"), body(&answer)));
        let given = body(&ask(client, by_id, "/socket.io/", "").await);
        let id = given.split('"').nth(3).unwrap().to_owned();
        let index = id.strip_prefix("session-of-").unwrap().to_owned();
        ids.push((format!("/socket.io/?sid={id}"), index));
    }
    for _ in 0..3 {
        one.must_upgrade().await;
        let mark = one.homescar.mark();
        for (client, (cookie, home)) in cookies.iter().enumerate() {
            let answer = ask(100 + client, by_cookie, "/?who", cookie).await;
            assert_eq!(body(&answer), *home);
        }
        for (client, (target, home)) in ids.iter().enumerate() {
            assert_eq!(body(&ask(100 + client, by_id, target, "").await), *home);
        }
        for key in ["cookie", "learned"] {
            let is_one = |line: &Value| message(line) == "request" && line["key"] == key;
            one.homescar.line_after(mark, key, is_one).await;
        }
    }
}
