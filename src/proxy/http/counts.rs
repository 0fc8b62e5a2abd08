//! One unit of what every request or frame costs, for `bench/counts.rs`, which counts instructions.

use std::mem::MaybeUninit;

use super::{
    head::{MAX_FIELDS, RequestHead, ResponseHead, Room},
    request::{Request, Terms},
    response::Response,
    scan::Scan,
    websocket::{Direction, Tracker},
};

/// Finds, reads, judges and writes on a request's head; how long it is then, 0 for none.
pub fn request(bytes: &[u8], out: &mut Vec<u8>) -> usize {
    judged(bytes, |request| {
        out.clear();
        request.write_head(out, false);
        out.len()
    })
    .unwrap_or_default()
}

/// The same for a response's head to the request `asked`.
pub fn response(asked: &[u8], bytes: &[u8], out: &mut Vec<u8>) -> usize {
    judged(asked, |request| answered(bytes, &request.terms, out))
        .flatten()
        .unwrap_or_default()
}

/// Follows the frames in what a client sends; how many there are.
pub fn frames(bytes: &[u8]) -> u64 {
    let mut tracker = Tracker::new(Direction::FromClient);
    tracker.feed(bytes);
    tracker.frames
}

fn judged<T>(bytes: &[u8], then: impl FnOnce(&Request<'_>) -> T) -> Option<T> {
    let len = Scan::default().end(bytes).ok()??;
    let mut room: Room<'_> = [const { MaybeUninit::uninit() }; _];
    let head = RequestHead::parse(&bytes[..len], &mut room, MAX_FIELDS).ok()?;
    Some(then(&Request::judge(head).ok()?))
}

fn answered(bytes: &[u8], terms: &Terms, out: &mut Vec<u8>) -> Option<usize> {
    let len = Scan::default().end(bytes).ok()??;
    let mut room: Room<'_> = [const { MaybeUninit::uninit() }; _];
    let head = ResponseHead::parse(&bytes[..len], &mut room).ok()?;
    let response = Response::judge(head, terms).ok()?;
    out.clear();
    response.write_head(out, response.framing);
    Some(out.len())
}
