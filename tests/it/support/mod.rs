//! What the tests share.

pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod homescar;
mod log;
mod rig;

pub(crate) use log::Log;
pub(crate) use rig::{
    DEADLINE, Rig, ask, cluster_of, connect, is_alive, kill_9, number_after, pid_of,
    static_cluster, until_dead, whoami, workers,
};
