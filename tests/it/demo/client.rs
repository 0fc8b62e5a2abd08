//! A client of one worker: plain HTTP requests, and the chat's WebSocket.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream, UnixStream},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::CloseFrame},
};

use super::within;

/// What a worker answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: http::response::Parts,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.head
            .headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) async fn get(worker: SocketAddr, target: &str) -> Answer {
    let request = Request::get(target).body(Full::default()).unwrap();
    ask(worker, request).await
}

pub(crate) async fn post(worker: SocketAddr, target: &str, body: impl Into<Bytes>) -> Answer {
    let request = Request::post(target).body(Full::new(body.into())).unwrap();
    ask(worker, request).await
}

/// Sends `request` over a connection of its own.
pub(crate) async fn ask(worker: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let stream = TcpStream::connect(worker).await.unwrap();
    ask_over(stream, request).await.expect("an answer")
}

/// Asks a worker that listens on a Unix socket.
pub(crate) async fn get_unix(path: &str, target: &str) -> Answer {
    let stream = UnixStream::connect(path).await.unwrap();
    let request = Request::get(target).body(Full::default()).unwrap();
    ask_over(stream, request).await.expect("an answer")
}

/// Sends `request` over `stream`; an error when the connection breaks before the answer.
pub(crate) async fn ask_over<I>(
    stream: I,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer, hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let headers = request.headers_mut();
    headers
        .entry("host")
        .or_insert(hyper::header::HeaderValue::from_static("worker"));
    within("an answer", async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let asking = async {
            let answer: Response<Incoming> = sender.send_request(request).await?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok(Answer { head, body })
        };
        let mut asking = std::pin::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // The connection may end with its answer.
            _ = connection => asking.await,
        }
    })
    .await
}

/// A page without a browser.
pub(crate) struct Page {
    socket: WebSocketStream<TcpStream>,
    /// The first message.
    pub(crate) hello: Value,
    /// The last presence that was read, whatever was looked for then.
    presence: Value,
}

impl Page {
    /// Connects, and waits until the bus is up.
    pub(crate) async fn open(worker: SocketAddr) -> Self {
        Self::open_over(TcpStream::connect(worker).await.unwrap(), worker).await
    }

    /// Connects with the smallest of buffers, so that a client that does not read is soon noticed.
    pub(crate) async fn open_narrow(worker: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        Self::open_over(socket.connect(worker).await.unwrap(), worker).await
    }

    async fn open_over(stream: TcpStream, worker: SocketAddr) -> Self {
        let url = format!("ws://{worker}/ws");
        let (socket, _) = within("the upgrade", client_async(url, stream))
            .await
            .unwrap();
        let mut page = Self {
            socket,
            hello: Value::Null,
            presence: Value::Null,
        };
        page.hello = page.next("hello").await;
        page.bus(true).await;
        page
    }

    /// Connects and enters the lobby.
    pub(crate) async fn open_as(worker: SocketAddr, name: &str) -> Self {
        let mut page = Self::open(worker).await;
        page.send(json!({"type": "join", "room": "lobby", "name": name}))
            .await;
        page.next("history").await;
        page
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.send_text(message.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Enters a room, if the socket still stands, and reads nothing.
    pub(crate) async fn ask_for(&mut self, room: &str) {
        let join = json!({"type": "join", "room": room, "name": "Slow"});
        // That it does not stand is what is waited for elsewhere.
        drop(self.socket.send(Message::text(join.to_string())).await);
    }

    pub(crate) async fn say(&mut self, id: &str, text: &str) {
        self.send(json!({"type": "say", "id": id, "text": text}))
            .await;
    }

    /// The next message of this type; all others are passed over.
    pub(crate) async fn next(&mut self, wanted: &str) -> Value {
        self.find(wanted, |_| true).await
    }

    /// The next message of this type that is `right`.
    pub(crate) async fn find(&mut self, wanted: &str, right: impl Fn(&Value) -> bool) -> Value {
        within(wanted, async {
            loop {
                let message = self.socket.next().await.expect("an open socket").unwrap();
                let Message::Text(text) = message else {
                    continue;
                };
                let value: Value = serde_json::from_str(&text).unwrap();
                if value["type"] == "presence" {
                    self.presence = value.clone();
                }
                if value["type"] == wanted && right(&value) {
                    return value;
                }
            }
        })
        .await
    }

    /// Waits for the bus to be up or down.
    pub(crate) async fn bus(&mut self, up: bool) -> Value {
        self.find("bus", |bus| bus["up"] == up).await
    }

    /// Waits until so many people are present.
    pub(crate) async fn people(&mut self, people: u32) -> Value {
        if self.presence["people"] == people {
            return self.presence.clone();
        }
        self.find("presence", |presence| presence["people"] == people)
            .await
    }

    /// Reads until the end: the Close, if there is one.
    pub(crate) async fn closed(&mut self) -> Option<CloseFrame> {
        within("the end of the socket", async {
            let mut close = None;
            while let Some(Ok(message)) = self.socket.next().await {
                if let Message::Close(frame) = message {
                    close = frame;
                }
            }
            close
        })
        .await
    }
}
