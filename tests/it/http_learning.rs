//! `affinity.key = "query:sid"` and ids that the backends make, as socket.io does: who was given one
//! finds its giver again.

use std::net::{IpAddr, SocketAddr};

use futures_util::future::select_all;
use homescar::admin::{client::Client as Admin, view::Explanation};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpSocket};

use crate::{
    http::{Peer, soon},
    support::{
        client::address_of_client,
        homescar::{Homescar, message},
        kill_9,
    },
};

const OPEN: &str = "/socket.io/?EIO=4&transport=polling";

/// A front whose backends are the test itself.
struct Site {
    homescar: Homescar,
    address: SocketAddr,
    backends: Vec<TcpListener>,
}

/// A request at its backend.
struct Asked {
    client: Peer,
    backend: Peer,
    /// Of the backend.
    index: usize,
}

impl Site {
    async fn start() -> Self {
        let mut backends = Vec::new();
        for _ in 0..5 {
            backends.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let named = backends.iter().enumerate().map(|(index, socket)| {
            let address = socket.local_addr().unwrap();
            format!("{{ name = \"{index}\", address = \"{address}\" }}")
        });
        let homescar = Homescar::serve(&format!(
            r#"
            threads = 2
            [listener.web]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            [cluster.app]
            backends = [{}]
            on_down = "next"
            affinity = {{ key = "query:sid" }}
            "#,
            named.collect::<Vec<_>>().join(", ")
        ));
        let address = homescar.address("web").await;
        Self {
            homescar,
            address,
            backends,
        }
    }

    /// The backend that is connected to next.
    async fn accept(&self) -> (Peer, usize) {
        let all = self.backends.iter().map(|socket| Box::pin(socket.accept()));
        let (accepted, index, _) = soon("a connection", select_all(all)).await;
        (Peer(accepted.unwrap().0), index)
    }

    async fn ask(&self, from: IpAddr, target: &str) -> Asked {
        let mut client = connect(from, self.address).await;
        client
            .say(format!(
                "GET {target} HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let (mut backend, index) = self.accept().await;
        let head = backend.head().await;
        assert!(head.starts_with(&format!("GET {target} ")), "{head}");
        Asked {
            client,
            backend,
            index,
        }
    }

    /// Where this id leads from that address, and what decided it.
    async fn led(&self, from: IpAddr, id: &str) -> (usize, String) {
        let mark = self.homescar.mark();
        let mut asked = self.ask(from, &format!("{OPEN}&sid={id}")).await;
        asked.answer("", "2").await;
        let record = self
            .homescar
            .line_after(mark, "a record", |line| {
                message(line) == "request"
                    && line["request"]
                        .as_str()
                        .is_some_and(|text| text.ends_with(id))
            })
            .await;
        (asked.index, record["key"].as_str().unwrap().to_owned())
    }
}

impl Site {
    /// Where this id would lead from that address.
    async fn explain(&self, from: IpAddr, id: &str) -> Explanation {
        let socket = self.homescar.admin_socket();
        let mut admin = Admin::connect(&socket).await.unwrap();
        let path = format!("/explain?client={from}&value={id}");
        admin.get(&path).await.unwrap()
    }
}

impl Asked {
    /// Answers with this body, and sees that it arrives as it is.
    async fn answer(&mut self, fields: &str, body: &str) {
        let length = body.len();
        self.answer_raw(
            &format!(
                "HTTP/1.1 200 OK\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n"
            ),
            &[body],
        )
        .await;
    }

    /// The client has each piece before the backend sends the next.
    async fn answer_raw(&mut self, head: &str, pieces: &[&str]) {
        self.backend.say(head).await;
        self.client.head().await;
        for piece in pieces {
            self.backend.say(piece).await;
            self.client.until(piece).await;
        }
        assert_eq!(self.client.rest().await, "");
    }
}

async fn connect(from: IpAddr, to: SocketAddr) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    Peer(socket.connect(to).await.unwrap())
}

fn handshake(id: &str) -> String {
    format!(
        "0{{\"sid\":\"{id}\",\"upgrades\":[\"websocket\"],\"pingInterval\":25000,\"maxPayload\":1000000}}"
    )
}

#[tokio::test]
async fn who_was_given_an_id_finds_its_giver_from_everywhere() {
    let site = Site::start().await;
    let mut givers = Vec::new();
    for client in 0..8 {
        let mut asked = site.ask(address_of_client(client), OPEN).await;
        let id = format!("lv_VI97-{client}");
        let body = match client % 2 {
            0 => handshake(&id),
            _ => format!("97:{}", handshake(&id)),
        };
        let kind = "Content-Type: text/plain; charset=UTF-8\r\n";
        asked.answer(kind, &body).await;
        givers.push((asked.index, id));
    }
    for (client, (giver, id)) in givers.iter().enumerate() {
        for from in [client + 20, client + 40] {
            let led = site.led(address_of_client(from), id).await;
            assert_eq!(led, (*giver, "learned".to_owned()), "{id}");
            // It is told so, too.
            let told = site.explain(address_of_client(from), id).await;
            let slot = told.slot.unwrap();
            assert_eq!((&*told.by, slot), ("learned", giver.to_string()));
        }
    }
}

#[tokio::test]
async fn an_id_is_learned_however_it_arrives() {
    let site = Site::start().await;
    let body = handshake("abcdef");
    let at = body.find("def").unwrap();
    for client in 0..6 {
        let (before, after) = (&body[..at], format!("def{client}{}", &body[at + 3..]));
        let mut asked = site.ask(address_of_client(client), OPEN).await;
        let ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
        match client % 3 {
            0 => {
                let length = before.len() + after.len();
                let head = format!("{ok}Content-Length: {length}\r\n\r\n");
                asked.answer_raw(&head, &[before, &after]).await;
            }
            1 => {
                let head = format!("{ok}Transfer-Encoding: chunked\r\n\r\n");
                let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
                let [before, after] = [chunk(before), format!("{}0\r\n\r\n", chunk(&after))];
                asked.answer_raw(&head, &[&before, &after]).await;
            }
            // Up to the end of the connection; for the client in chunks.
            _ => {
                asked.backend.say(format!("{ok}\r\n{before}")).await;
                asked.client.until(&format!("{before}\r\n")).await;
                asked.backend.say(&after).await;
                asked.client.until(&format!("{after}\r\n")).await;
                drop(asked.backend);
                assert_eq!(asked.client.rest().await, "0\r\n\r\n");
            }
        }
        let led = site
            .led(address_of_client(100), &format!("abcdef{client}"))
            .await;
        assert_eq!(led, (asked.index, "learned".to_owned()), "{client}");
    }
}

#[tokio::test]
async fn what_is_no_id_in_an_answer_to_nobody_is_left_alone() {
    let site = Site::start().await;
    let far = format!("{}{}", " ".repeat(1024), handshake("far"));
    let ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
    for (id, target, head, body) in [
        ("far", OPEN, ok, &*far),
        (
            "zip",
            OPEN,
            &*format!("{ok}Content-Encoding: gzip\r\n"),
            &handshake("zip"),
        ),
        (
            "bad",
            OPEN,
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n",
            &handshake("bad"),
        ),
        ("in-text", OPEN, ok, "sid=in-text"),
        ("of-another", "/?sid=mine", ok, &handshake("of-another")),
    ] {
        let mut asked = site.ask(address_of_client(1), target).await;
        let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
        asked.answer_raw(&head, &[body]).await;
        let (index, key) = site.led(address_of_client(2), id).await;
        assert_eq!(key, "query", "{id}");
        assert_eq!(
            site.led(address_of_client(3), id).await,
            (index, key),
            "{id}"
        );
    }
}

/// A page that lists who is there takes nobody away from where he is.
#[tokio::test]
async fn an_id_stays_with_its_first_giver() {
    let site = Site::start().await;
    let mut asked = site.ask(address_of_client(1), OPEN).await;
    asked.answer("", &handshake("ann")).await;
    let giver = asked.index;
    let mut others = 0;
    for client in 2..12 {
        let mut asked = site.ask(address_of_client(client), "/sessions").await;
        asked.answer("", "[{\"sid\":\"ann\"}]").await;
        others += usize::from(asked.index != giver);
        let led = site.led(address_of_client(client), "ann").await;
        assert_eq!(led, (giver, "learned".to_owned()), "{client}");
    }
    assert!(others > 0, "all of them asked the giver");
}

#[tokio::test]
async fn an_id_given_over_http2_is_learned_too() {
    let site = Site::start().await;
    for client in 0..4 {
        let stream = connect(address_of_client(client), site.address).await.0;
        let handshaken = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
        let (mut sender, connection) = handshaken.await.unwrap();
        let driver = tokio::spawn(connection);
        let id = format!("two{client}");
        let request = hyper::Request::get(format!("http://site{OPEN}"));
        let response = sender.send_request(request.body(Empty::new()).unwrap());
        let serve = async {
            let (mut backend, index) = site.accept().await;
            backend.head().await;
            let body = handshake(&id);
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            backend.say(format!("{head}{body}")).await;
            (backend, index)
        };
        let (response, (_backend, giver)) =
            soon("an answer", async { tokio::join!(response, serve) }).await;
        let body = response.unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), handshake(&id));
        driver.abort();
        let led = site.led(address_of_client(50 + client), &id).await;
        assert_eq!(led, (giver, "learned".to_owned()));
    }
}

/// What is remembered is the slot: its next generation has the same clients.
#[tokio::test]
async fn an_id_leads_to_the_slot_through_a_restart_of_its_worker() {
    const SERVER: &str = "const { HOMESCAR_SLOT: slot, HOMESCAR_GENERATION: generation, PORT } = process.env; \
        require('http').createServer((request, response) => { \
            const known = request.url.includes('sid='); \
            response.setHeader('connection', 'close'); \
            response.end(known ? `${slot} ${generation}` : `0{\"sid\":\"${slot.replace('/', '-')}\"}`); \
        }).listen(PORT)";
    let command = serde_json::json!(["node", "-e", SERVER]);
    let homescar = Homescar::serve(&format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [cluster.app]
        workers = {{ command = {command}, count = 3, contract = "port" }}
        on_down = "hold 20s"
        affinity = {{ key = "query:sid" }}
        "#
    ));
    let address = homescar.address("web").await;
    homescar.all_ready("app", 3).await;
    let get = async |client: usize, target: &str| {
        let mut peer = connect(address_of_client(client), address).await;
        peer.say(format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ))
        .await;
        let all = peer.rest().await;
        all.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    // Enough of them that each worker has given its id.
    for client in 0..20 {
        get(client, OPEN).await;
    }
    for generation in 1..=2 {
        for slot in 0..3 {
            let name = format!("app/{slot}");
            let answer = get(30 + slot, &format!("/?sid=app-{slot}")).await;
            assert!(answer.contains(&format!("{name} {generation}")), "{answer}");
            if generation == 1 {
                let mark = homescar.mark();
                kill_9(homescar.ready(&name).await);
                homescar.ready_after(mark, &name).await;
            }
        }
    }
}
