//! HTTP/2 clients that do what no client does: each is cut off, and costs only itself.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    http::{Front, soon},
    support::homescar::{SOON, resident_kib},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA_AT_MOST: usize = 16_384;
// GET, http, /, and `a` as the authority, in HPACK (RFC 7541).
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

async fn connect(front: &Front) -> TcpStream {
    let mut client = TcpStream::connect(front.address).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    client
}

/// Sends pieces until the connection is over, reading what comes; whether it ended, and whether a
/// GOAWAY said so.
async fn flood(client: TcpStream, pieces: impl Iterator<Item = Vec<u8>>) -> (bool, bool) {
    let (mut read, mut write) = client.into_split();
    let reading = tokio::spawn(async move {
        let mut heard = Vec::new();
        let _reset = read.read_to_end(&mut heard).await;
        heard
    });
    for piece in pieces {
        match timeout(Duration::from_secs(2), write.write_all(&piece)).await {
            Ok(Ok(())) => {}
            // It takes no more.
            _ => break,
        }
    }
    let Ok(heard) = timeout(SOON, reading).await else {
        return (false, false);
    };
    let heard = heard.unwrap();
    let mut rest = &heard[..];
    while let [a, b, c, kind, _flags, _, _, _, _, ..] = rest {
        if *kind == GOAWAY {
            return (true, true);
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    (true, false)
}

/// A client of another connection is served as ever.
async fn is_well(front: &Front) {
    let mut client = front.client().await;
    client.say("GET /well HTTP/1.1\r\nHost: a\r\n\r\n").await;
    loop {
        let mut backend = front.accept().await;
        let Some(head) = soon("a head", backend.next_head()).await else {
            continue;
        };
        if head.starts_with("GET /well ") {
            backend
                .say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
            client.until("ok").await;
            return;
        }
    }
}

#[tokio::test]
async fn requests_that_are_given_up_at_once_end_the_connection() {
    let front = Front::start("", "").await;
    let client = connect(&front).await;
    // CVE-2023-44487.
    let resets = (0..20_000_u32).map(|n| {
        let stream = 2 * n + 1;
        let cancel = 8_u32.to_be_bytes();
        [
            frame(HEADERS, 0x5, stream, GET),
            frame(RST_STREAM, 0, stream, &cancel),
        ]
        .concat()
    });
    assert_eq!(flood(client, resets).await, (true, true));
    is_well(&front).await;
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let front = Front::start("", "").await;
    let before = resident_kib(front.homescar.pid());
    let client = connect(&front).await;
    // CVE-2024-27316 and its kin.
    let more = std::iter::once(frame(HEADERS, 0x1, 1, GET)).chain((0..20_000).map(|_| {
        let field = [
            &[0x40, 1, b'x', 0x7f, 0x81, 0x7f][..],
            &[b'y'; 16_384 - 127],
        ]
        .concat();
        frame(CONTINUATION, 0, 1, &field[..field.len().min(DATA_AT_MOST)])
    }));
    let (ended, _) = flood(client, more).await;
    assert!(ended);
    is_well(&front).await;
    let grown = resident_kib(front.homescar.pid()).saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more");
}

#[tokio::test]
async fn pings_and_settings_are_not_hoarded() {
    let front = Front::start("timeouts = { header = \"3s\" }", "").await;
    for piece in [
        frame(PING, 0, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
    ] {
        let before = resident_kib(front.homescar.pid());
        let mut client = connect(&front).await;
        // It does not read one of the answers.
        let many = piece.repeat(1000);
        let mut sent = 0;
        while let Ok(Ok(written)) = timeout(Duration::from_secs(1), client.write(&many)).await {
            sent += written;
            if sent > 64 * 1024 * 1024 {
                break;
            }
        }
        let grown = resident_kib(front.homescar.pid()).saturating_sub(before);
        assert!(grown < 16 * 1024, "{grown} KiB more for {sent} bytes");
        is_well(&front).await;
    }
}
