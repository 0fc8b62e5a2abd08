//! How much of its clients a slot is given, and what becomes of one that fails them.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

/// What keeps a slot from getting more than it can bear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balance {
    /// Ejection of slots that fail their clients. Default: on for static backends, off for workers,
    /// whose deaths and hangs homescar sees itself.
    pub passive: Option<Passive>,
    /// How long a slot that comes back takes to get all of its new clients again. Default: off.
    pub slow_start: Option<Duration>,
    /// The most that a slot may have before its new clients go to their next choice, as a multiple
    /// of its fair share. Default: off, as a client that is moved is one that is not at home.
    pub max_load: Option<f64>,
    /// How many clients a slot may have at all. Default: off.
    pub capacity: Option<Capacity>,
    /// How many WebSockets a second are sent home that are in another slot than their own, once that
    /// takes them again. Default 10.
    pub rebalance: Option<NonZeroU32>,
}

/// When a slot is ejected for what its clients met.
#[derive(Clone, Debug, PartialEq)]
pub struct Passive {
    /// Failures within the window that it takes. Default 5.
    pub failures: NonZeroU32,
    /// Default 10 s.
    pub window: Duration,
    /// The share of all attempts in the window that must have failed as well. Default 0.5.
    pub failure_rate: f64,
    /// How long the first ejection lasts; each that follows in a row lasts twice as long. Default
    /// 10 s.
    pub eject: Duration,
    /// The longest. Default 5 min.
    pub max_eject: Duration,
    /// The share of the slots that may be ejected at one time; one of two or more always may.
    /// Default 0.5.
    pub max_share: f64,
    /// Whether in HTTP the application's own responses of 500 and above are failures. Default no.
    pub server_errors: bool,
}

/// How many clients a slot may have, and what happens to those above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections, or in HTTP requests, at one time.
    pub per_slot: NonZeroUsize,
    /// What happens to a client whose slot is full. Default: queue.
    pub on_full: OnFull,
    /// How many may wait for a slot. Default 1024.
    pub queue_length: usize,
    /// How long one may wait. Default 5 s.
    pub queue_timeout: Duration,
}

/// What happens to a client whose slot is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// Wait for it, in order; then go to the next candidate with room, or be refused.
    Queue,
    /// Go to the next candidate with room at once; wait only when all are full.
    Next,
    /// Be refused.
    Reject,
}
