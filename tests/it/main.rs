//! homescar as its users meet it.

mod config;
