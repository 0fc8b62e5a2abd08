//! Requests over HTTP/1.1: what a client asks, and what a backend answers.

use std::{io, rc::Rc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    client::{Door, Tally},
    stream::Stream,
    websocket,
};

/// A client's name for its request, with which the body of the answer is filled.
pub(crate) const ASKED: usize = 64;

/// A buffer for a head, and for a piece of a body.
const BUFFER: usize = 4 * 1024;

/// Requests on one connection, which is returned open.
pub(crate) async fn requests(
    mut stream: Stream,
    tally: Rc<Tally>,
    body: usize,
) -> io::Result<Stream> {
    let client = tally.next_client();
    let mut buffer = vec![0; BUFFER + body];
    let mut number = 0;
    while tally.may_go_on() {
        number += 1;
        let began = Instant::now();
        request(&mut stream, &mut buffer, &asked(client, number), body).await?;
        tally.did_one(began);
    }
    Ok(stream)
}

/// Connect, one request, close, again and again.
pub(crate) async fn short_connections(
    mut door: Door,
    tally: Rc<Tally>,
    body: usize,
) -> io::Result<()> {
    while tally.may_go_on() {
        let began = Instant::now();
        let stream = one_request(&mut door, &tally, body).await?;
        tally.did_one(began);
        stream.close().await?;
    }
    Ok(())
}

/// Connect and one request; the connection is returned open.
pub(crate) async fn one_request(door: &mut Door, tally: &Tally, body: usize) -> io::Result<Stream> {
    let client = tally.next_client();
    let mut stream = door.connect(client).await?;
    let mut buffer = vec![0; BUFFER + body];
    request(&mut stream, &mut buffer, &asked(client, 0), body).await?;
    Ok(stream)
}

/// Never the same twice, so that an answer to another request is noticed.
pub(crate) fn asked(client: u64, number: u64) -> String {
    format!("{client:032x}{number:032x}")
}

async fn request(
    stream: &mut Stream,
    buffer: &mut [u8],
    asked: &str,
    length: usize,
) -> io::Result<()> {
    let head = format!("GET /{asked}/{length} HTTP/1.1\r\nHost: bench.example\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut filled = 0;
    let mut begins = None;
    loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            came => filled += came,
        }
        begins = begins.or_else(|| end_of_head(&buffer[..filled]));
        if begins.is_some_and(|begins| filled >= begins + length) {
            break;
        }
    }
    let body = &buffer[begins.unwrap_or_default()..filled];
    if !buffer.starts_with(b"HTTP/1.1 200 ") || !is_answer(body, asked.as_bytes(), length) {
        let answer = String::from_utf8_lossy(&buffer[..filled.min(500)]);
        return Err(io::Error::other(format!("another answer came: {answer}")));
    }
    Ok(())
}

/// Whether a body is what was asked for, again and again up to its length.
pub(crate) fn is_answer(body: &[u8], asked: &[u8], length: usize) -> bool {
    body.len() == length
        && body
            .chunks(ASKED)
            .all(|piece| *piece == asked[..piece.len()])
}

/// A backend's connection: answers each request with what it asks for.
pub(crate) async fn serve(mut stream: Stream) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    let mut filled = 0;
    let mut answer = Vec::with_capacity(256);
    loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            came => filled += came,
        }
        let Some(end) = end_of_head(&buffer[..filled]) else {
            continue;
        };
        if websocket::is_wanted(&buffer[..end]) {
            return websocket::serve(stream).await;
        }
        let (asked, length) = wanted(&buffer[..end]).ok_or(io::ErrorKind::InvalidData)?;
        answer.clear();
        answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n");
        answer.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
        fill(&mut answer, asked, length);
        stream.write_all(&answer).await?;
        stream.flush().await?;
        filled = 0;
    }
}

/// The answer to a request.
pub(crate) fn fill(answer: &mut Vec<u8>, asked: &[u8], length: usize) {
    let end = answer.len() + length;
    while answer.len() < end {
        let piece = asked.len().min(end - answer.len());
        answer.extend_from_slice(&asked[..piece]);
    }
}

/// What the path `/ASKED/LENGTH` of a head says.
fn wanted(head: &[u8]) -> Option<(&[u8], usize)> {
    let target = head.split(|&byte| byte == b' ').nth(1)?;
    path(target)
}

/// What a path `/ASKED/LENGTH` says.
pub(crate) fn path(path: &[u8]) -> Option<(&[u8], usize)> {
    let (asked, length) = path.strip_prefix(b"/")?.split_at_checked(ASKED)?;
    let length = std::str::from_utf8(length.strip_prefix(b"/")?).ok()?;
    Some((asked, length.parse().ok()?))
}

/// Where the body begins.
pub(crate) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}
