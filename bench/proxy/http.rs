//! Requests over HTTP/1.1: what a client asks, and what a backend answers.

use std::{io, net::SocketAddr, rc::Rc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::client::{Tally, connect};

/// Length of the answers' bodies, which are what was asked for.
const BODY: usize = 64;

/// A buffer for a head and its body, at either end.
const BUFFER: usize = 4 * 1024;

/// Requests on one connection, which is returned open.
pub(crate) async fn requests(mut stream: TcpStream, tally: Rc<Tally>) -> io::Result<TcpStream> {
    let client = tally.next_client();
    let mut number = 0;
    while tally.may_go_on() {
        number += 1;
        request(&mut stream, client, number).await?;
        tally.did(1);
    }
    Ok(stream)
}

/// Connect, one request, close, again and again.
pub(crate) async fn short_connections(to: SocketAddr, tally: Rc<Tally>) -> io::Result<()> {
    while tally.may_go_on() {
        one_request(to, &tally).await?;
        tally.did(1);
    }
    Ok(())
}

/// Connect and one request; the connection is returned open.
pub(crate) async fn one_request(to: SocketAddr, tally: &Tally) -> io::Result<TcpStream> {
    let client = tally.next_client();
    let mut stream = connect(to, client).await?;
    request(&mut stream, client, 0).await?;
    Ok(stream)
}

async fn request(stream: &mut TcpStream, client: u64, number: u64) -> io::Result<()> {
    // Never the same twice, so that an answer to another request is noticed.
    let asked = format!("{client:032x}{number:032x}");
    let head = format!("GET /{asked} HTTP/1.1\r\nHost: bench.example\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut buffer = [0; BUFFER];
    let mut filled = 0;
    let body = loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            came => filled += came,
        }
        if let Some(end) = end_of_head(&buffer[..filled])
            && filled >= end + BODY
        {
            break &buffer[end..filled];
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 200 ") || body != asked.as_bytes() {
        let answer = String::from_utf8_lossy(&buffer[..filled]);
        return Err(io::Error::other(format!("another answer came: {answer}")));
    }
    Ok(())
}

/// A backend's connection: answers each request with what it asks for.
pub(crate) async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; BUFFER];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            came => filled += came,
        }
        if end_of_head(&buffer[..filled]).is_some() {
            let asked = buffer.get(b"GET /".len()..b"GET /".len() + BODY);
            let asked = asked.ok_or(io::ErrorKind::InvalidData)?;
            let mut answer = Vec::with_capacity(256);
            answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n");
            answer.extend_from_slice(format!("Content-Length: {BODY}\r\n\r\n").as_bytes());
            answer.extend_from_slice(asked);
            stream.write_all(&answer).await?;
            filled = 0;
        }
    }
}

/// Where the body begins.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    end.map(|at| at + 4)
}
