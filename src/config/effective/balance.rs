//! How much a slot is given, as it is written in a file.

use std::fmt::{self, Write};

use super::{duration_or_off, or_off};
use crate::config::{
    Balance, Capacity, Passive,
    value::{duration_of, per_second_of},
    word,
};

pub(super) fn write(out: &mut String, balance: &Balance) -> fmt::Result {
    match &balance.passive {
        Some(passive) => write_passive(out, passive)?,
        None => writeln!(out, "passive = \"off\"")?,
    }
    let slow_start = duration_or_off(balance.slow_start);
    writeln!(out, "slow_start = \"{slow_start}\"")?;
    // With a point, also where there is nothing behind it.
    let max_load = balance.max_load.map(|load| format!("{load:?}"));
    writeln!(out, "max_load = {}", or_off(max_load))?;
    let capacity = &balance.capacity;
    let per_slot = capacity.as_ref().map(|capacity| capacity.per_slot);
    writeln!(out, "max_connections_per_slot = {}", or_off(per_slot))?;
    if let Some(capacity) = capacity {
        write_queue(out, capacity)?;
    }
    let rebalance = balance.rebalance.map(per_second_of);
    writeln!(
        out,
        "rebalance = \"{}\"",
        rebalance.as_deref().unwrap_or("off")
    )
}

fn write_passive(out: &mut String, passive: &Passive) -> fmt::Result {
    writeln!(
        out,
        "passive = {{ failures = {}, window = \"{}\", failure_rate = {:?}, eject = \"{}\", \
         max_eject = \"{}\", max_share = {:?}, server_errors = {} }}",
        passive.failures,
        duration_of(passive.window),
        passive.failure_rate,
        duration_of(passive.eject),
        duration_of(passive.max_eject),
        passive.max_share,
        passive.server_errors
    )
}

fn write_queue(out: &mut String, capacity: &Capacity) -> fmt::Result {
    writeln!(out, "on_full = \"{}\"", word::word_of(capacity.on_full))?;
    writeln!(
        out,
        "queue = {{ length = {}, timeout = \"{}\" }}",
        capacity.queue_length,
        duration_of(capacity.queue_timeout)
    )
}
