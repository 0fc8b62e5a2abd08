//! The one integration binary: a file a behaviour.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests may"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start processes and tasks of their own, and see to their end"
)]

mod admin;
mod bulk;
mod calls;
mod capacity;
mod commands;
mod config;
mod day;
mod death;
mod demo;
mod direct;
mod direct_counts;
mod drain;
mod exhaustion;
mod explain;
mod explain_http;
mod health;
mod http;
mod http2_floods;
mod http_affinity;
mod http_crowds;
mod http_enemies;
mod http_learning;
mod http_limits;
mod http_slow;
mod http_table;
mod kernel;
mod languages;
mod load;
mod log_stall;
mod metrics;
mod node;
mod operate;
mod passive;
mod pause;
mod proxy_header;
mod real_clients;
mod rebalance;
mod relay;
mod reload;
mod same_name;
mod scaling;
mod servers;
mod stickiness;
mod supervisor;
mod support;
mod systemd;
mod tidy;
mod tls;
mod top;
mod upgrade;
mod websocket;
