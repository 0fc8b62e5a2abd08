//! The one integration binary: a file a behaviour.

mod commands;
mod config;
mod demo;
mod drain;
mod health;
mod proxy_header;
mod relay;
mod reload;
mod stickiness;
mod supervisor;
mod support;
