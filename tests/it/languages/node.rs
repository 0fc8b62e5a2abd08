//! Node: `http` and the npm package `ws`, over a port and over descriptor 3.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use futures_util::{SinkExt as _, StreamExt as _};
use nix::sys::signal::{Signal, kill};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};

use super::{Conversation, Known, config, http::Http, lives_and_dies};
use crate::support::{
    client::{Client, Who},
    homescar::{Homescar, SOON, message, pid},
};

/// The command of a Node worker.
fn workers() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    assert!(
        folder.join("node_modules/ws").is_dir(),
        "the npm package ws is not installed in {0}: run tests/run, or npm ci --prefix {0}",
        folder.display()
    );
    format!(
        r#"command = ["node", "{}"]"#,
        folder.join("server.mjs").display()
    )
}

/// A client's WebSocket.
struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn next(&mut self) -> io::Result<Message> {
        match timeout(SOON, self.0.next()).await? {
            Some(message) => message.map_err(io::Error::other),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn ask(&mut self, message: Message) -> io::Result<Message> {
        timeout(SOON, self.0.send(message))
            .await?
            .map_err(io::Error::other)?;
        self.next().await
    }
}

impl Conversation for Socket {
    async fn open(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let stream = Client::connect_from(from, to).await?.stream.into_inner();
        let upgrade = timeout(SOON, client_async("ws://app/", stream)).await?;
        let (socket, _) = upgrade.map_err(io::Error::other)?;
        Ok(Self(socket))
    }

    async fn who(&mut self) -> io::Result<Who> {
        let answer = self.ask(Message::text("whoami")).await?;
        let text = answer.to_text().map_err(io::Error::other)?;
        Ok(serde_json::from_str(text)?)
    }

    async fn goes_on(&mut self) -> io::Result<()> {
        let bytes: Vec<u8> = (0..70_000_u32).map(|n| (n % 251) as u8).collect();
        for said in [Message::text("☃"), Message::binary(bytes)] {
            assert!(
                self.ask(said.clone()).await? == said,
                "something else came back"
            );
        }
        Ok(())
    }

    async fn end(mut self) -> io::Result<()> {
        self.0.close(None).await.map_err(io::Error::other)?;
        let answer = self.next().await?;
        assert!(answer.is_close(), "{answer:?}");
        Ok(())
    }
}

#[tokio::test]
async fn node_over_port() {
    lives_and_dies::<Socket>(&workers(), "port").await;
}

#[tokio::test]
async fn node_over_fd() {
    lives_and_dies::<Socket>(&workers(), "fd").await;
}

/// Somebody else ends a worker in order: its clients are told, and are soon back.
async fn a_worker_is_told_to_end(contract: &str) {
    let workers = format!(r#"{}, contract = "{contract}""#, workers());
    let homescar = Homescar::serve(&config(2, &workers, r#"on_down = "hold 10s""#));
    let pids = homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    let mut other = Known::<Socket>::at("app/0", to).await;
    let client = Known::<Socket>::at("app/1", to).await;

    let (from, mut client) = (client.from, client.with);
    let mark = homescar.mark();
    kill(pid(pids[1]), Signal::SIGTERM).unwrap();
    let told = client.next().await.unwrap();
    let Message::Close(Some(frame)) = told else {
        panic!("{told:?}");
    };
    assert_eq!(frame.code, CloseCode::Restart);
    // Reading on answers it; then both close.
    assert!(client.next().await.is_err());
    drop(client);
    let ended = |line: &serde_json::Value| {
        line["slot"] == "app/1" && message(line).contains("ended: exit code 0")
    };
    // Whoever comes while it is on its way out waits for the next one.
    let mut again = Known::<Socket>::open(from, to).await.unwrap();
    homescar.line_after(mark, "an orderly end", ended).await;
    let next = homescar.ready_after(mark, "app/1").await;
    assert_eq!(again.who.slot, "app/1");
    assert_eq!((again.who.generation, again.who.pid), (2, next));
    again.is_as_before().await;
    other.is_as_before().await;
}

#[tokio::test]
async fn a_node_worker_is_told_to_end_port() {
    a_worker_is_told_to_end("port").await;
}

#[tokio::test]
async fn a_node_worker_is_told_to_end_fd() {
    a_worker_is_told_to_end("fd").await;
}

/// Three workers that are asked often whether they are well.
async fn often_asked() -> (Homescar, SocketAddr) {
    let workers = format!(r#"{}, contract = "port", stop_timeout = "2s""#, workers());
    let cluster = r#"
        on_down = "next"
        health = { http = "/health", interval = "200ms", timeout = "300ms", fall = 3 }
    "#;
    let homescar = Homescar::serve(&config(3, &workers, cluster));
    homescar.all_ready("app", 3).await;
    let to = homescar.address("web").await;
    (homescar, to)
}

/// A loop that never yields: no TERM handler of such a worker runs any more.
#[tokio::test]
async fn a_blocked_event_loop_is_found_by_its_health_check() {
    let (homescar, to) = often_asked().await;
    let mut crowd = Known::<Socket>::crowd(30, to).await;
    let at_home = crowd.iter().position(|known| known.who.slot == "app/1");
    let client = crowd.swap_remove(at_home.expect("somebody at home in app/1"));
    crowd.retain(|known| known.who.slot != "app/1");
    assert!(crowd.len() > 5);

    let mark = homescar.mark();
    let mut blocks = Client::connect_from(client.from, to).await.unwrap();
    blocks
        .send("GET /block?ms=60000 HTTP/1.1\r\nhost: app\r\n\r\n")
        .await
        .unwrap();
    let says = |text: &'static str| {
        let pid = client.who.pid;
        move |line: &serde_json::Value| line["pid"] == pid && message(line).contains(text)
    };
    let line = homescar
        .line_after(mark, "found", says("takes no clients: unresponsive"))
        .await;
    assert_eq!(
        (&line["slot"], &line["why"]),
        (&"app/1".into(), &"no answer within 300ms".into())
    );
    let elsewhere = client.again(to).await;
    assert_ne!(elsewhere.who.slot, "app/1");
    for known in &mut crowd {
        known.is_as_before().await;
    }
    homescar
        .line_after(mark, "ended", says("ended: signal KILL"))
        .await;
    homescar.ready_after(mark, "app/1").await;
    let back = client.again(to).await;
    assert_eq!((&*back.who.slot, back.who.generation), ("app/1", 2));
    let rest = blocks.rest().await;
    assert!(rest.as_ref().map_or(true, Vec::is_empty), "{rest:?}");
    for known in &mut crowd {
        known.is_as_before().await;
    }
}

/// A wrong answer is an answer: new clients go elsewhere, the process and its clients stay.
#[tokio::test]
async fn a_worker_that_answers_503_is_left_to_get_well() {
    let (homescar, to) = often_asked().await;
    let mut client = Known::<Http>::at("app/1", to).await;
    let mut other = Known::<Http>::at("app/0", to).await;

    let mark = homescar.mark();
    client.with.get("/sick").await.unwrap();
    let about = |text: &'static str| {
        move |line: &serde_json::Value| line["slot"] == "app/1" && message(line).contains(text)
    };
    let line = homescar
        .line_after(mark, "taken out", about("takes no clients: unhealthy"))
        .await;
    assert_eq!(line["why"], "GET /health answered 503, expected 200");
    assert_ne!(client.again(to).await.who.slot, "app/1");
    assert_eq!(client.with.who().await.unwrap(), client.who);

    client.with.get("/well").await.unwrap();
    homescar
        .line_after(mark, "taken in", about("takes clients again"))
        .await;
    assert_eq!(client.again(to).await.who, client.who, "the same process");
    client.is_as_before().await;
    other.is_as_before().await;
    assert!(!homescar.log().iter().any(about("ended")));
}
