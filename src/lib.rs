//! homescar: starts your worker processes, keeps them alive, and sends every client to its own one.

#![forbid(clippy::await_holding_lock)]

pub mod affinity;
pub mod app;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod health;
mod log;
pub mod proxy;
pub mod supervisor;
