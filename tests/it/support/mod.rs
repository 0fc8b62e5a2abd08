//! What the tests share.

pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod homescar;
mod log;
pub(crate) mod process;
mod rig;

pub(crate) use log::Log;
pub(crate) use process::{is_alive, kill_9, until_dead};
pub(crate) use rig::{
    DEADLINE, Rig, ask, cluster_of, connect, number_after, pid_of, static_cluster, whoami, workers,
};
