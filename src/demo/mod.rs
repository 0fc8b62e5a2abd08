//! The chat demo: worker processes that show what a home is good for.
//!
//! ```text
//!   browser ── front door ──┬── worker chat/0 ──┐
//!                           ├── worker chat/1 ──┤  bus: the hub in the demo's parent,
//!                           ├── worker chat/2 ──┤       or a Redis (REDIS_URL)
//!                           └── worker chat/3 ──┘
//! ```
//!
//! A worker is this binary again, started as `homescar demo-worker`: one process, **one event
//! loop** (a current-thread runtime, as in Node), and beside it a small bounded pool of threads for
//! CPU-bound work. It serves the page, the WebSocket of the chat, and `POST /hash`, on the pool or,
//! so that everyone sees why not, on the event loop itself. It knows nothing of homescar but its
//! environment, like every other worker.
//!
//! | file | noun |
//! |---|---|
//! | [`worker`] | the process: accept loop, signals, orderly end |
//! | `env` | what it is told |
//! | `notify` | `READY=1`, `WATCHDOG=1`, `STOPPING=1` to the supervisor |
//! | `http` | the routes |
//! | `session` | one WebSocket: reads, bounded queue out, pings, Close |
//! | `chat` | the rooms of this worker, and their tie to the bus |
//! | `bus` | what joins the workers: to the hub or to Redis, with reconnects |
//! | [`hub`] | the embedded bus: history, fan-out and presence; runs in the demo's parent |
//! | `message`, `hub_wire` | what page and worker, and worker and hub, say to each other |
//! | `hash`, `pool`, `loop_delay` | the CPU-bound work, where it runs, and what it does to the loop |
//! | `page` | the page's three files, inside the binary |
//!
//! How the parent fits the pieces together:
//!
//! 1. `Hub::bind` a path in its private runtime directory, and run it until the workers are gone
//!    (not needed when `REDIS_URL` is set, but it does no harm: workers prefer Redis);
//! 2. start workers with [`WORKER_COMMAND`] as their argument, [`HUB_VAR`] naming that path, and
//!    contract `port` or `unix`; they send `READY=1`, and answer [`HEALTH_PATH`];
//! 3. in the worker process: `worker::run(WorkerEnv::from_env()?)`;
//! 4. stop the workers (TERM; they need at most [`STOP_WITHIN`]), then end the hub.
//!
//! Lines of chat are delivered at least once: the page gives every line an id, keeps it until it
//! comes back over the bus, sends it again after a reconnect, and shows an id once. History lives
//! with the bus, so it survives a worker's death.

use std::{io, time::Duration};

mod bus;
mod chat;
mod env;
mod hash;
mod http;
pub mod hub;
mod hub_wire;
mod loop_delay;
mod message;
mod notify;
mod page;
mod pool;
mod session;
mod unix_socket;
pub mod worker;

/// The hidden subcommand under which the binary becomes a worker.
pub const WORKER_COMMAND: &str = "demo-worker";
/// The environment variable with the path of the hub's Unix socket.
pub const HUB_VAR: &str = "HOMESCAR_DEMO_HUB";
/// The environment variable with the Redis that is used in place of the hub.
pub const REDIS_VAR: &str = "REDIS_URL";
/// The name of the demo's cluster, hence of its slots (`chat/0`).
pub const CLUSTER: &str = "chat";
/// `GET` it: 200 when the worker's event loop turns.
pub const HEALTH_PATH: &str = "/health";
/// From SIGTERM to the worker's exit, at the most.
pub const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A variable of the environment is missing.
    #[error("the environment has no {name}: {hint}")]
    Missing {
        /// The variable.
        name: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A variable of the environment has a value that makes no sense.
    #[error("{name}={value:?} is not {expected}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The worker's address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address, or the path of the Unix socket.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// `REDIS_URL` is not the URL of a Redis. The URL itself is not shown: it may hold a password.
    #[error("REDIS_URL is not usable; write redis://host:port or redis+unix:///path")]
    RedisUrl {
        /// What the client library said.
        source: redis::RedisError,
    },
    /// The system refused a thread, a signal handler, a timer or a socket.
    #[error("cannot set up {what}")]
    System {
        /// What was being set up.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
