//! How a running homescar is asked and told what to do: HTTP with JSON over a Unix socket that only
//! its own user may open, and over TCP for whoever has the token.
//!
//! `api` says what there is; `view` is what the answers look like; [`Board`] is where the
//! application shows what it is doing, so that questions never wait for it; [`Demand`]s go to it.
//! [`client`] is the other end, for the command line.

mod api;
mod board;
pub mod client;
mod demand;
mod explain;
mod metrics;
#[expect(
    dead_code,
    reason = "its functions only carry the description of what `api` does"
)]
mod openapi;
mod server;
mod simulate;
mod standing;
mod token;
pub mod view;

pub use board::{Board, Certificate, Past, Phase, Place};
pub use demand::{Answer, Demand, Refused, reply};
pub use server::{Admin, AdminError, Bound};
