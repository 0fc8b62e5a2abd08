//! Requests over HTTP/2, several at a time on a connection.

use std::{io, rc::Rc};

use bytes::Bytes;
use h2::{client::SendRequest, server};
use http::{Request, Response};
use tokio::{
    task::{JoinHandle, JoinSet, spawn_local},
    time::Instant,
};

use super::{
    client::Tally,
    http::{asked, fill, is_answer, path},
    stream::Stream,
};

/// Streams of a connection that are open at one time.
const AT_ONCE: usize = 4;
/// Length of the answers' bodies.
const BODY: usize = 64;

/// Requests on one connection.
pub(crate) async fn requests(stream: Stream, tally: Rc<Tally>) -> io::Result<()> {
    let (send, connection) = h2::client::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    let connection = Driven(spawn_local(async move {
        // What breaks it breaks its streams, too, which say so.
        let _broken = connection.await;
    }));
    let mut asking = JoinSet::new();
    for _ in 0..AT_ONCE {
        asking.spawn_local(one_after_the_other(send.clone(), Rc::clone(&tally)));
    }
    while let Some(ended) = asking.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    drop(connection);
    Ok(())
}

/// A connection's own task, which ends with this.
#[derive(Debug)]
struct Driven(JoinHandle<()>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn one_after_the_other(mut send: SendRequest<Bytes>, tally: Rc<Tally>) -> io::Result<()> {
    let client = tally.next_client();
    let mut number = 0;
    while tally.may_go_on() {
        number += 1;
        let began = Instant::now();
        request(&mut send, &asked(client, number)).await?;
        tally.did_one(began);
    }
    Ok(())
}

async fn request(send: &mut SendRequest<Bytes>, asked: &str) -> io::Result<()> {
    let request = Request::get(format!("https://bench.example/{asked}/{BODY}"));
    let request = request.body(()).map_err(io::Error::other)?;
    std::future::poll_fn(|context| send.poll_ready(context))
        .await
        .map_err(io::Error::other)?;
    let (response, _) = send.send_request(request, true).map_err(io::Error::other)?;
    let response = response.await.map_err(io::Error::other)?;
    let status = response.status();
    let mut body = response.into_body();
    let mut came = Vec::with_capacity(BODY);
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(io::Error::other)?;
        came.extend_from_slice(&piece);
        body.flow_control()
            .release_capacity(piece.len())
            .map_err(io::Error::other)?;
    }
    if status != 200 || !is_answer(&came, asked.as_bytes(), BODY) {
        let came = String::from_utf8_lossy(&came);
        return Err(io::Error::other(format!(
            "another answer came: {status} {came}"
        )));
    }
    Ok(())
}

/// A backend's connection, where there is no proxy.
pub(crate) async fn serve(stream: Stream) -> io::Result<()> {
    let mut connection = server::handshake(stream).await.map_err(io::Error::other)?;
    while let Some(came) = connection.accept().await {
        let (request, mut respond) = came.map_err(io::Error::other)?;
        let (asked, length) =
            path(request.uri().path().as_bytes()).ok_or(io::ErrorKind::InvalidData)?;
        let mut answer = Vec::with_capacity(length);
        fill(&mut answer, asked, length);
        let mut send = respond
            .send_response(Response::new(()), false)
            .map_err(io::Error::other)?;
        send.send_data(answer.into(), true)
            .map_err(io::Error::other)?;
    }
    Ok(())
}
