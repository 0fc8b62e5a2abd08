//! The `SO_REUSEPORT` group of a listener whose clients the kernel itself sends home.
//!
//! All sockets of a group listen on one address. The kernel runs the group's program for the SYN
//! of each client and puts the connection into the backlog of the socket that it picks; see
//! [`Table::program`](crate::affinity::Table::program).

mod attach;

pub use attach::{AttachError, attach};
