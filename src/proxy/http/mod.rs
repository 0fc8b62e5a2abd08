//! HTTP mode: requests, each carried to the home of who sent it.
//!
//! `client` reads a head; `request` judges it; `dispatch` decides where it goes; `exchange` carries
//! it to a `backend` and the response back; `record` says how it ended. `http1` is that line as
//! code. What is parsed is in `scan`, `head`, `fields`, `body` and `response`.

mod backend;
mod body;
mod buffers;
mod client;
mod cookies;
#[cfg(feature = "testing")]
pub mod counts;
mod deadline;
mod dispatch;
mod exchange;
mod fields;
mod forwarded;
#[cfg(any(test, fuzzing))]
#[cfg_attr(
    not(fuzzing),
    expect(unreachable_pub, reason = "the fuzz targets reach it")
)]
pub mod fuzzing;
mod head;
mod http1;
mod http2;
mod key;
mod lesson;
mod out;
pub(super) mod pool;
mod record;
mod refusal;
mod request;
mod response;
mod scan;
mod stream;
mod turn_away;
mod visitor;
mod websocket;

use std::sync::Arc;

pub(super) use self::{
    turn_away::{place, turn_away},
    visitor::Visitor,
};
use super::{registry::Ticket, relay::Side};

/// Serves a client until its connection is over; how many requests it made. `early` was read
/// before; `is_http2` says that the version was agreed on already.
pub(super) async fn serve<S: Side>(
    visitor: &Arc<Visitor>,
    stream: S,
    early: Vec<u8>,
    is_http2: bool,
    ticket: &Ticket,
) -> u64 {
    match is_http2 {
        true => http2::serve(visitor, stream, early, ticket.farewell()).await,
        false => http1::serve(visitor, stream, early, ticket).await,
    }
}
