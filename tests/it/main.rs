//! The one integration binary: a file a behaviour.

mod config;
mod demo;
mod health;
mod supervisor;
mod support;
