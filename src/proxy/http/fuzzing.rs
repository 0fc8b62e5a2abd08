//! What must hold for any bytes: for property tests, and for fuzzing.

use std::mem::MaybeUninit;

use super::{
    body::{BadBody, Decoder, Encoder, Framing, Piece},
    head::{MAX_FIELDS, RequestHead, ResponseHead, Room},
    request::{Request, Terms},
    response::Response,
    scan::Scan,
    websocket::{Direction, Tracker},
};

/// A request that is passed on means the same to whoever reads it after us, and nothing is left to
/// be made stricter.
pub fn request(bytes: &[u8]) {
    let Some((once, terms)) = passed_on(bytes) else {
        return;
    };
    let len = Scan::default().end(&once).expect("lines end with CR LF");
    assert_eq!(len, Some(once.len()), "the head is as long as it was");
    let (twice, again) = passed_on(&once).expect("what was passed on is well-formed");
    assert_eq!(
        (&terms.framing, terms.is_head, terms.is_idempotent),
        (&again.framing, again.is_head, again.is_idempotent)
    );
    assert_eq!(once, twice, "it was not written anew in full");
    let body = &bytes[Scan::default().end(bytes).ok().flatten().unwrap_or(0)..];
    same_body(body, terms.framing);
}

/// The same for a response.
pub fn response(bytes: &[u8]) {
    let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (_, terms) = passed_on(get).expect("it is well-formed");
    let Ok(Some(len)) = Scan::default().end(bytes) else {
        return;
    };
    let Some((once, framing)) = answered(&bytes[..len], &terms) else {
        return;
    };
    let (twice, again) = answered(&once, &terms).expect("what was passed on is well-formed");
    assert_eq!(framing, again);
    assert_eq!(once, twice, "it was not written anew in full");
    same_body(&bytes[len..], framing);
}

/// Frames are where they are, however the bytes arrive.
pub fn frames(bytes: &[u8]) {
    let (first, bytes) = bytes.split_first().unwrap_or((&1, &[]));
    let direction = match first & 1 {
        0 => Direction::FromClient,
        _ => Direction::FromBackend,
    };
    let mut whole = Tracker::new(direction);
    whole.feed(bytes);
    let mut cut = Tracker::new(direction);
    for piece in bytes.chunks(usize::from(first >> 1) + 1) {
        cut.feed(piece);
    }
    assert_eq!(whole, cut);
    let mut one = Tracker::new(direction);
    let mut rest = bytes;
    while !rest.is_empty() {
        let used = one.feed_frame(rest);
        assert!((1..=rest.len()).contains(&used));
        rest = &rest[used..];
    }
    assert_eq!(whole, one);
}

/// A request's head as the backend gets it.
fn passed_on(bytes: &[u8]) -> Option<(Vec<u8>, Terms)> {
    let len = Scan::default().end(bytes).ok()??;
    let mut room: Room<'_> = [const { MaybeUninit::uninit() }; _];
    let head = RequestHead::parse(&bytes[..len], &mut room, MAX_FIELDS).ok()?;
    let request = Request::judge(head).ok()?;
    let mut out = Vec::new();
    request.write_head(&mut out, false);
    out.extend_from_slice(b"\r\n");
    Some((out, request.terms))
}

/// A response's head as an HTTP/1.1 client gets it.
fn answered(bytes: &[u8], terms: &Terms) -> Option<(Vec<u8>, Framing)> {
    let mut room: Room<'_> = [const { MaybeUninit::uninit() }; _];
    let head = ResponseHead::parse(bytes, &mut room).ok()?;
    let response = Response::judge(head, terms).ok()?;
    let mut out = Vec::new();
    response.write_head(&mut out, response.framing);
    out.extend_from_slice(b"\r\n");
    Some((out, response.framing))
}

/// A body has the same data however it arrives, and after it was written on.
fn same_body(bytes: &[u8], framing: Framing) {
    let whole = data(bytes, framing, usize::MAX);
    for step in [1, 2, 7] {
        assert_eq!(data(bytes, framing, step), whole, "cut into {step}");
    }
    let Ok((found, true)) = whole else { return };
    let encoder = Encoder::new(framing);
    let mut out = Vec::new();
    for piece in found.chunks(3) {
        encoder.data(&mut out, piece);
    }
    encoder.end(&mut out, b"");
    assert_eq!(data(&out, framing, usize::MAX), Ok((found, true)));
}

/// The data of a body, and whether it is complete.
fn data(bytes: &[u8], framing: Framing, step: usize) -> Result<(Vec<u8>, bool), BadBody> {
    let mut decoder = Decoder::new(framing);
    let mut found = Vec::new();
    for piece in bytes.chunks(step.min(bytes.len().max(1))) {
        let mut rest = piece;
        loop {
            match decoder.next(rest)? {
                Piece::Data(range) => {
                    found.extend_from_slice(&rest[range.clone()]);
                    rest = &rest[range.end..];
                }
                Piece::More => break,
                Piece::End(_) => return Ok((found, true)),
            }
        }
    }
    let is_whole = matches!(framing, Framing::None | Framing::Length(0));
    Ok((found, is_whole))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Bytes that look like messages, more often than chance would make them.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            8 => prop::sample::select(vec![
                "GET / HTTP/1.1\r\n", "POST /a?b HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n",
                "HTTP/1.1 200 OK\r\n", "HTTP/1.0 204 No\r\n", "HTTP/1.1 304 \r\n",
                "Host: a\r\n", "Host: [::1]:80\r\n", "Content-Length: 5\r\n",
                "Content-Length: 007\r\n", "Transfer-Encoding: chunked\r\n",
                "Transfer-Encoding: gzip, chunked\r\n", "Connection: close, X-A\r\n",
                "Connection: upgrade\r\n", "Upgrade: websocket\r\n", "X-A: b\r\n", "A_b: c\r\n",
                "Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                "Expect: 100-continue\r\n", "Cookie: a=b; c\r\n", "TE: trailers\r\n",
                "\r\n", "5\r\nhello\r\n", "0\r\n\r\n", "0\r\nA: b\r\n\r\n", "1f;x\r\n",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..6),
        ];
        prop::collection::vec(word, 0..12).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn requests_are_written_anew_in_full(bytes in message()) {
            super::request(&bytes);
            let first = [b"GET / HTTP/1.1\r\nHost: a\r\n", &bytes[..]].concat();
            super::request(&first);
        }

        #[test]
        fn responses_are_written_anew_in_full(bytes in message()) {
            super::response(&bytes);
            super::response(&[b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat());
        }

        #[test]
        fn frames_are_where_they_are(bytes: Vec<u8>) {
            super::frames(&bytes);
        }
    }
}
