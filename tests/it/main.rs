//! The one integration binary: a file a behaviour.

mod config;
mod health;
mod supervisor;
mod support;
