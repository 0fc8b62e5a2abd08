//! What came of a rolling restart, slot by slot.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cluster::Load;

/// What came of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotReceipt {
    /// Its name.
    pub slot: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The generation that serves now, if any does.
    pub generation: Option<u32>,
    /// Its process.
    pub pid: Option<u32>,
    /// The generation whose place it took.
    pub before: Option<u32>,
    /// From spawn to ready, in milliseconds.
    pub boot_ms: Option<u64>,
    /// From the new generation's first client to the old one's end, in milliseconds.
    pub drain_ms: Option<u64>,
    /// The old generation's connections (in HTTP mode its requests) in that time, as far as homescar
    /// relays them.
    pub connections: Connections,
    /// Why the slot was not replaced.
    pub why: Option<String>,
    /// What the generation that did not get ready wrote to stderr last.
    pub stderr: Vec<String>,
}

/// What came of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The next generation serves.
    Replaced,
    /// The next generation did not get ready; the present one goes on.
    Failed,
    /// Nothing was done.
    Untouched,
}

/// How connections ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connections {
    /// All of them.
    pub ended: u64,
    /// WebSockets that were closed with a goodbye.
    pub goodbyes: u64,
    /// Cut when time was up.
    pub cut: u64,
    /// Failed by the worker.
    pub failed: u64,
}

impl SlotReceipt {
    /// A slot to which nothing was done.
    pub(super) fn untouched(slot: &str, why: &str) -> Self {
        Self {
            slot: slot.to_owned(),
            outcome: Outcome::Untouched,
            generation: None,
            pid: None,
            before: None,
            boot_ms: None,
            drain_ms: None,
            connections: Connections::default(),
            why: Some(why.to_owned()),
            stderr: Vec::new(),
        }
    }

    /// A slot whose next generation did not get ready.
    pub(super) fn failed(slot: &str, present: Option<(u32, u32)>, why: String) -> Self {
        Self {
            outcome: Outcome::Failed,
            generation: present.map(|(generation, _)| generation),
            pid: present.map(|(_, pid)| pid),
            why: Some(why),
            ..Self::untouched(slot, "")
        }
    }

    /// A slot in which another generation serves now.
    pub(super) fn replaced(slot: &str, generation: u32, pid: u32, boot: Duration) -> Self {
        Self {
            outcome: Outcome::Replaced,
            generation: Some(generation),
            pid: Some(pid),
            boot_ms: Some(millis(boot)),
            why: None,
            ..Self::untouched(slot, "")
        }
    }
}

impl Connections {
    /// Those of a generation so far.
    pub(super) fn of(load: &Load) -> Self {
        Self {
            ended: load.ended.load(Relaxed),
            goodbyes: load.goodbyes.load(Relaxed),
            cut: load.cut.load(Relaxed),
            failed: load.failed.load(Relaxed),
        }
    }

    /// Those since then.
    pub(super) const fn since(self, before: Self) -> Self {
        Self {
            ended: self.ended - before.ended,
            goodbyes: self.goodbyes - before.goodbyes,
            cut: self.cut - before.cut,
            failed: self.failed - before.failed,
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
