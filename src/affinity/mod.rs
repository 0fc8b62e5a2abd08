//! Which slot is a client's home: pure, the same bits on every machine and in every version.

mod key;
mod rendezvous;

pub use key::{AffinityKey, Masks};
pub use rendezvous::{Candidates, Table};
