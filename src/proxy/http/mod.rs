//! HTTP mode: requests, each carried to the home of who sent it.
//!
//! `client` reads a head; `request` judges it; `dispatch` decides where it goes; `exchange` carries
//! it to a `backend` and the response back; `record` says how it ended. `http1` is that line as
//! code. What is parsed is in `scan`, `head`, `fields`, `body` and `response`.

mod backend;
mod body;
mod buffers;
mod client;
mod deadline;
mod dispatch;
mod exchange;
mod fields;
mod head;
mod http1;
mod out;
pub(super) mod pool;
mod record;
mod refusal;
mod request;
mod response;
mod scan;
mod visitor;

pub(super) use self::{http1::serve, visitor::Visitor};
