//! WebSocket: a handshake, then frames of 64 bytes that come back.

use std::{io, rc::Rc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    client::{Door, Tally},
    http::end_of_head,
    stream::Stream,
};

/// The key and its answer of RFC 6455, 1.3: what is measured does not depend on either.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const PAYLOAD: usize = 64;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// Final, binary.
const OPCODE: u8 = 0x82;
const MASKED: u8 = 0x80;

/// Connect, upgrade and one message; the connection is returned open.
pub(crate) async fn open_one(door: &mut Door, tally: &Tally) -> io::Result<Stream> {
    let client = tally.next_client();
    let mut stream = door.connect(client).await?;
    shake(&mut stream).await?;
    message(&mut stream, client, 0).await?;
    Ok(stream)
}

/// Upgrades, then messages on one connection.
pub(crate) async fn messages(mut stream: Stream, tally: Rc<Tally>) -> io::Result<Stream> {
    let client = tally.next_client();
    shake(&mut stream).await?;
    let mut number = 0;
    while tally.may_go_on() {
        number += 1;
        let began = Instant::now();
        message(&mut stream, client, number).await?;
        tally.did_one(began);
    }
    Ok(stream)
}

async fn shake(stream: &mut Stream) -> io::Result<()> {
    let head = format!(
        "GET /chat HTTP/1.1\r\nHost: bench.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while end_of_head(&answer).is_none() {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let text = String::from_utf8_lossy(&answer);
    if !text.starts_with("HTTP/1.1 101 ") || !text.contains(ACCEPT) {
        return Err(io::Error::other(format!("no WebSocket was opened: {text}")));
    }
    Ok(())
}

async fn message(stream: &mut Stream, client: u64, number: u64) -> io::Result<()> {
    let mut payload = [0x55; PAYLOAD];
    payload[..8].copy_from_slice(&client.to_le_bytes());
    payload[8..16].copy_from_slice(&number.to_le_bytes());
    let mut frame = [0; 6 + PAYLOAD];
    frame[0] = OPCODE;
    frame[1] = MASKED | PAYLOAD as u8;
    frame[2..6].copy_from_slice(&MASK);
    frame[6..].copy_from_slice(&payload);
    mask(&mut frame[6..]);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    let mut answer = [0; 2 + PAYLOAD];
    stream.read_exact(&mut answer).await?;
    if answer[..2] != [OPCODE, PAYLOAD as u8] || answer[2..] != payload {
        return Err(io::Error::other("a message came back changed"));
    }
    Ok(())
}

/// Whether a request asks for an upgrade.
pub(crate) fn is_wanted(head: &[u8]) -> bool {
    head.starts_with(b"GET /chat ")
}

/// A backend's side.
pub(crate) async fn serve(mut stream: Stream) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut frame = [0; 6 + PAYLOAD];
    loop {
        match stream.read_exact(&mut frame).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            came => came?,
        };
        if frame[..6] != [&[OPCODE, MASKED | PAYLOAD as u8], &MASK[..]].concat() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        mask(&mut frame[6..]);
        // The answer's head is shorter by the mask.
        frame[4] = OPCODE;
        frame[5] = PAYLOAD as u8;
        stream.write_all(&frame[4..]).await?;
        stream.flush().await?;
    }
}

fn mask(payload: &mut [u8]) {
    for (byte, mask) in payload.iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
}
