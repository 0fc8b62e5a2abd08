//! HTTP mode: requests, each carried to the home of who sent it.
//!
//! `client` reads a head; `request` judges it; `dispatch` decides where it goes; `exchange` carries
//! it to a `backend` and the response back; `record` says how it ended. `http1` is that line as
//! code, and what of a connection lasts. What is parsed is in `scan`, `head`, `fields`, `body` and `response`.

mod answer;
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

pub(super) use self::{
    http1::{ResumedVisit, SavedVisit, Visit},
    http2::serve as serve_http2,
    turn_away::{place, turn_away},
    visitor::Visitor,
    websocket::{SavedWebSocket, Upgraded, WebSocket},
};
