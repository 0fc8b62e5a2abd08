//! homescar starts your worker processes, keeps them alive, and is the front door that sends each
//! client to *its* worker: for the life of the connection, and at every visit after.
//!
//! This page is the map. Read it first; it is kept true.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | client, downstream | who connects to us; *downstream* and *upstream* are only directions |
//! | [`Listener`](proxy::Listener) | a front door: addresses, limits, and the cluster behind it |
//! | [`Cluster`](cluster::Cluster) | the named group of slots behind a listener |
//! | [`Slot`](cluster::Slot) | a stable home inside a cluster, `app/0`, `app/1`, … Clients hash to *slots*, never to processes, ports or addresses |
//! | [`Backend`](cluster::Backend) | what stands in a slot now: address, generation, health |
//! | worker | a process that we supervise; it fills a slot. Its restart is the slot's next **generation** |
//! | [`AffinityKey`](affinity::AffinityKey) | what identifies a client: its masked address |
//! | [`Snapshot`](cluster::Snapshot) | all routing state of a cluster at one moment: immutable, built whole, swapped whole, numbered |
//! | [`Controller`](cluster::Controller) | the only writer of snapshots: one task, one inbox |
//! | drain | the orderly end: no new work, finish the old, by a deadline |
//!
//! # The life of a connection
//!
//! `proxy/door.rs` accepts → `proxy/admit.rs` counts → `proxy/identify.rs` finds out who the
//! client is → [`tls`] decrypts → [`AffinityKey`](affinity::AffinityKey) → [`Snapshot::route`](cluster::Snapshot::route)
//! decides → `proxy/connect.rs` connects, holds, queues, or goes on to the next candidate →
//! `proxy/link.rs` is all that is left of it, where both sides are bare sockets
//! (`proxy/connection/life.rs` knows what else there can be) →
//! `proxy/relay.rs` carries until both sides are done, bulk by `relay/pipe.rs` → `proxy/record.rs` says
//! how it ended. `proxy/connection.rs` is that line as code.
//!
//! # The life of a request
//!
//! In HTTP mode a connection brings requests: `proxy/http/client.rs` reads a head →
//! `proxy/http/request.rs` judges it → [`Identity`](cluster::Identity) is what tells its client apart →
//! `proxy/http/dispatch.rs` decides, on what only HTTP knows →
//! `proxy/connect.rs` finds the backend, or a kept connection to it → `proxy/http/exchange.rs` carries
//! both ways, with `proxy/http/lesson.rs` looking on → `proxy/http/record.rs`. `proxy/http/http1.rs` is
//! that line as code, and all that there is of a connection between two requests;
//! `proxy/http/stream.rs` is the same for a stream of HTTP/2, which h2 reads. A WebSocket becomes
//! a tunnel, `proxy/http/websocket/`.
//!
//! # The life of a worker
//!
//! [`supervisor`] spawns it and reports `Started`; it says `READY=1`, or listens (a Node worker,
//! which has its sockets from us), or [`health`] finds it well; the
//! [`Controller`](cluster::Controller) publishes a snapshot in which its slot takes clients. When it
//! exits, hangs or is told to go, the slot is passed over, waited for or refused
//! ([`OnDown`](config::OnDown)) until the next generation stands in it. The hash table does not
//! change by any of this: same slots, same names, same clients.
//!
//! A worker is replaced on demand, for its configuration or for its memory: the next generation gets
//! ready beside it and stays so for `stable`, then takes the slot over, and the one before finishes
//! what it has. One that does not get that far replaces nobody.
//!
//! A WebSocket that meanwhile went to another slot is sent home once its own has settled:
//! [`Rebalance`](cluster::Rebalance) decides who and when, for the whole cluster.
//!
//! # The life of an image
//!
//! On SIGUSR2 the process becomes another program, `app/upgrade/`: everything stands still
//! (`supervisor/halt.rs`, `proxy/registry/freeze.rs`), the `saved.rs` of each room says what the next
//! image has to know, descriptors pass by their numbers ([`handover`]), and that image goes on with them.
//! Until it is up nothing moves, and the image before can have everything back.
//!
//! # Two planes
//!
//! The data plane ([`proxy::DataPlane`]) has threads of its own, each with a runtime and a socket
//! of its own. The control plane is one runtime on the main thread. They meet in [`cluster`]: the
//! data plane loads a snapshot by one atomic pointer.
//!
//! # Who may use whom
//!
//! Each may use only what stands above it; a test holds the source to it.
//!
//! | room | may use |
//! |---|---|
//! | [`affinity`] | nothing of ours |
//! | [`metrics`] | nothing of ours |
//! | [`text`] | nothing of ours |
//! | [`config`] | nothing of ours |
//! | [`handover`] | nothing of ours |
//! | [`log`] | `config`, `text` |
//! | [`tls`] | `config`, `handover` |
//! | [`cluster`] | `affinity`, `config`, `handover`, `metrics`, `tls` |
//! | [`health`], [`supervisor`] | `cluster`, `config`; never each other, never `proxy`; `health` also `tls`, `supervisor` also `handover` |
//! | [`proxy`] | `cluster`, `affinity`, `config`, `handover`, `log`, `metrics`, `text`, `tls` |
//! | [`direct`] | `proxy`, `cluster`, `affinity`, `config`, `handover` |
//! | [`admin`] | `affinity`, `cluster`, `config`, `direct`, `log`, `metrics`, `proxy`, `supervisor` |
//! | [`demo`] | nothing of ours: it is a program of its own inside this binary |
//! | [`app`] | all of these |
//! | [`cli`] | `admin`, `app`, `config`, `demo`, `log`, and `supervisor` for the programs inside this one |
//!
//! # Invariants
//!
//! 1. The data plane never waits for the control plane, but where a client is held for its slot,
//!    bounded in time and number.
//! 2. A connection decides on exactly one snapshot; one that was held or queued decides anew on the
//!    snapshot that ends its wait.
//! 3. `affinity` and every state machine take time and randomness as arguments.
//! 4. Every task has an owner that can await or cut it; every queue and loop has a bound; every
//!    wait has a deadline.
//! 5. Every accepted connection, or in HTTP mode every request of it, yields exactly one record,
//!    also when it is cut.
//! 6. A slot's identity is its name: weight, health, address and pid are not part of it.
//! 7. Only `main` decides the exit code.

pub mod admin;
pub mod affinity;
pub mod app;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod direct;
pub mod handover;
pub mod health;
pub mod log;
pub mod metrics;
pub mod proxy;
pub mod supervisor;
pub mod text;
pub mod tls;
