//! The data plane: the life of a connection, in the order it is lived.
//!
//! `plane` has the threads and `bind` the sockets; `door` accepts for a `listener`; `admit` counts.
//! `connection` reads from the top to the bottom what happens next: `identify` the client, decrypt
//! it (`secure`), `connect` to its slot, `relay` (as a `link` where both sides are sockets), `record`.
//! It uses `cluster`, `affinity`, `tls`
//! and `config`, and never waits for the control plane but where a client is held for its slot, with a deadline.

mod admit;
mod bind;
mod carried;
mod connect;
mod connection;
mod door;
mod http;
mod identify;
mod link;
mod listener;
mod plane;
pub mod proxy_protocol;
mod record;
mod registry;
mod relay;
mod secure;
mod share;
pub mod stats;

pub use bind::{BindError, BoundGroup, Neighbour, listen, refuse_handshakes};
pub use carried::Carried;
pub use door::Door;
#[cfg(feature = "testing")]
pub use http::counts;
#[cfg(fuzzing)]
pub use http::fuzzing;
pub use listener::{Listener, Settings};
pub use plane::{DataPlane, Stray};
pub use record::CloseReason;
pub use registry::{Cut, Whereabouts};
pub use share::write_records;
