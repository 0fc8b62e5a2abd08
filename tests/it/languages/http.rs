//! A client's HTTP/1.1 connection, kept alive.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{task::JoinSet, time::timeout};

use super::Conversation;
use crate::support::{
    client::{Client, Who},
    homescar::SOON,
};

/// One connection, request after request.
pub(super) struct Http {
    sender: SendRequest<Full<Bytes>>,
    /// Carries it, until this is dropped.
    _connection: JoinSet<()>,
}

impl Http {
    /// Status and body of what a GET is answered with.
    pub(super) async fn get(&mut self, target: &str) -> io::Result<(u16, String)> {
        let request = Request::get(target).header(HOST, "app");
        self.ask(request.body(Full::default()).unwrap()).await
    }

    /// The same of a POST.
    pub(super) async fn post(&mut self, target: &str, body: &str) -> io::Result<(u16, String)> {
        let request = Request::post(target).header(HOST, "app");
        let body = Full::from(body.to_owned());
        self.ask(request.body(body).unwrap()).await
    }

    async fn ask(&mut self, request: Request<Full<Bytes>>) -> io::Result<(u16, String)> {
        let asking = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        let answer: hyper::Result<_> = timeout(SOON, asking).await?;
        answer.map_err(io::Error::other)
    }
}

impl Conversation for Http {
    async fn open(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let stream = Client::connect_from(from, to).await?.stream.into_inner();
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        let mut carried = JoinSet::new();
        carried.spawn(async move {
            // Whoever waits for an answer hears of its end.
            let _ended = connection.await;
        });
        Ok(Self {
            sender,
            _connection: carried,
        })
    }

    async fn who(&mut self) -> io::Result<Who> {
        let (status, body) = self.get("/whoami").await?;
        assert_eq!(status, 200, "{body}");
        Ok(serde_json::from_str(&body)?)
    }

    async fn goes_on(&mut self) -> io::Result<()> {
        let (status, _) = self.get("/health").await?;
        assert_eq!(status, 200);
        Ok(())
    }

    async fn end(self) -> io::Result<()> {
        Ok(())
    }
}
