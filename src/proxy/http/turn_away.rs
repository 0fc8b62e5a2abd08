//! A client that is told that there is no room for it.

use std::future::poll_fn;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use super::{
    super::{record::CloseReason, relay::Side},
    client::Client,
    dispatch::{new_id, request_id},
    head::{RequestHead, Room, Version},
    http1::{record_of, write_refusal},
    http2,
    record::{Outcome, RequestRecord},
    request::Request,
    visitor::Visitor,
};

/// Connections of the whole process that are told so at one time; those above are reset.
static PLACES: Semaphore = Semaphore::const_new(64);

/// The right to be told. Being told costs a descriptor and a buffer, beyond the limits.
pub(in super::super) type Place = SemaphorePermit<'static>;

/// A place, if there is one.
pub(in super::super) fn place() -> Option<Place> {
    PLACES.try_acquire().ok()
}

/// Answers the first request of a client with 503, for this reason, if its head comes before the
/// deadline; counts it among the `requests` then. `early` was read before.
///
/// It waits for the head, as no client expects an answer to what it has not asked.
pub(in super::super) async fn turn_away<S: Side>(
    visitor: &Visitor,
    stream: S,
    early: Vec<u8>,
    why: CloseReason,
    deadline: Instant,
    requests: &mut u32,
) {
    let limits = &visitor.settings.config.limits;
    let mut client = Client::new(stream, early);
    let head = poll_fn(|cx| client.poll_head(cx, limits));
    let Ok(Ok(len)) = timeout_at(deadline, head).await else {
        return;
    };
    // Its answer would have to be one of HTTP/2.
    if &client.input[..len] == http2::PREFACE_HEAD {
        return;
    }
    *requests = client.heads;
    let (record, is_head) = judge(visitor, &client.input[..len], why);
    client.input.drain(..len);
    write_refusal(&mut client, &record, is_head, false);
    drop(record);
    client.linger().await;
}

/// The record of a request that is turned away, and whether it is one of HEAD.
fn judge(visitor: &Visitor, bytes: &[u8], why: CloseReason) -> (RequestRecord, bool) {
    let mut room: Room<'_> = [const { std::mem::MaybeUninit::uninit() }; _];
    let limit = visitor.settings.config.limits.headers;
    match RequestHead::parse(bytes, &mut room, limit).and_then(Request::judge) {
        Ok(request) => {
            let mut record = record_of(visitor, request.head.version, request_id(&request));
            record.asks(request.head.method, request.host, request.target);
            record.status = 503;
            record.outcome = Outcome::new(why.by(), why.as_str());
            (record, request.terms.is_head)
        }
        Err(refusal) => {
            let mut record = record_of(visitor, Version::Http11, new_id());
            record.refused(refusal);
            (record, false)
        }
    }
}
