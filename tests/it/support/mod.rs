//! What the tests share.

pub(crate) mod client;
pub(crate) mod homescar;
mod log;
mod rig;

pub(crate) use log::Log;
pub(crate) use rig::{
    DEADLINE, Rig, ask, cluster_of, connect, is_alive, static_cluster, whoami, workers,
};
