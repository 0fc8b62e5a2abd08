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
mod text;
mod turn_away;
mod visitor;
mod websocket;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub(super) use self::{
    turn_away::{place, turn_away},
    visitor::Visitor,
    websocket::{SavedWebSocket, WebSocket},
};
use super::{registry::Ticket, relay::Side};

/// What became of a client's connection.
#[derive(Debug)]
pub(super) struct Visit {
    /// How many requests it brought.
    pub(super) requests: u64,
    /// The last of them has made it a WebSocket; else it is over.
    pub(super) websocket: Option<Box<WebSocket>>,
}

impl Visit {
    const fn over(requests: u64) -> Self {
        Self {
            requests,
            websocket: None,
        }
    }
}

/// Serves a client until its connection is over, or a WebSocket. `early` was read before; `is_http2`
/// says that the version was agreed on already.
pub(super) fn serve<'a, S: Side + Send + 'a>(
    visitor: &'a Arc<Visitor>,
    stream: S,
    early: Vec<u8>,
    is_http2: bool,
    ticket: &'a Ticket,
) -> BoxFuture<'a, Visit> {
    match is_http2 {
        // Large, and none of those of HTTP/1 shall pay for it.
        true => Box::pin(async move {
            Visit::over(http2::serve(visitor, stream, early, ticket.farewell()).await)
        }),
        false => Box::pin(http1::serve(visitor, stream, early, ticket)),
    }
}
