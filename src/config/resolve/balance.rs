//! How much a slot is given, and when it is ejected.

use std::num::NonZeroUsize;

use super::cluster::non_zero;
use crate::config::{
    Balance, Capacity, Passive,
    file::{Item, Section},
    keys, value,
};

/// Failures that may be asked for.
const MAX_FAILURES: u64 = 1_000_000;
/// Clients that a slot may be said to have room for.
const MAX_PER_SLOT: u64 = 1_000_000;
/// Clients that may wait for a slot.
const MAX_QUEUE: u64 = 1_000_000;

pub(super) fn balance(section: &Section<'_>, default: Balance) -> Balance {
    let passive = section.get("passive");
    let passive = passive.and_then(|item| item.unless_off(passive_of));
    let slow_start = section.get("slow_start");
    let slow_start = slow_start.and_then(|item| item.unless_off(Item::duration));
    let max_load = section.get("max_load");
    let max_load = max_load.and_then(|item| item.unless_off(|item| item.number(1.0..=100.0)));
    let rebalance = section.get("rebalance");
    let rebalance =
        rebalance.and_then(|item| item.unless_off(|item| item.number_or_text(value::per_second)));
    Balance {
        rebalance: rebalance.unwrap_or(default.rebalance),
        passive: passive.unwrap_or(default.passive),
        slow_start: slow_start.unwrap_or(default.slow_start),
        max_load: max_load.unwrap_or(default.max_load),
        capacity: capacity(section),
    }
}

fn passive_of(item: &Item<'_>) -> Option<Passive> {
    let default = Passive::default();
    let passive = item.section(&keys::PASSIVE)?;
    let failures = passive.get("failures");
    let failures = failures.and_then(|item| non_zero(&item, MAX_FAILURES));
    let duration = |key: &str| passive.get(key)?.duration();
    let share = |key: &str| passive.get(key)?.number(0.0..=1.0);
    let eject = duration("eject").unwrap_or(default.eject);
    let max_eject = passive.get("max_eject").and_then(|item| {
        let longest = item.duration()?;
        if longest < eject {
            let eject = value::duration_of(eject);
            item.fault(format!(
                "is shorter than passive.eject, which is {eject}: the first ejection lasts that long"
            ));
        }
        Some(longest)
    });
    let server_errors = passive.get("server_errors");
    let server_errors = server_errors.and_then(|item| item.boolean());
    Some(Passive {
        failures: failures.unwrap_or(default.failures),
        window: duration("window").unwrap_or(default.window),
        failure_rate: share("failure_rate").unwrap_or(default.failure_rate),
        eject,
        max_eject: max_eject.unwrap_or(default.max_eject).max(eject),
        max_share: share("max_share").unwrap_or(default.max_share),
        server_errors: server_errors.unwrap_or(default.server_errors),
    })
}

fn capacity(section: &Section<'_>) -> Option<Capacity> {
    let per_slot = section.get("max_connections_per_slot");
    let is_off = match &per_slot {
        Some(item) => item.as_text() == Some("off"),
        None => !section.meant("max_connections_per_slot"),
    };
    let per_slot = per_slot.and_then(|item| item.unless_off(seats)).flatten();
    let on_full = section.get("on_full");
    let queue = section.get("queue");
    if is_off {
        for item in [&on_full, &queue].into_iter().flatten() {
            item.fault(
                "is for slots that can be full: set max_connections_per_slot as well, or remove it",
            );
        }
        return None;
    }
    let on_full = on_full.and_then(|item| item.word());
    let queue = queue.and_then(|item| item.section(&keys::QUEUE));
    let length = queue.as_ref().and_then(|queue| queue.get("length"));
    let length = length.and_then(|item| item.integer(0..=MAX_QUEUE));
    let length = length.and_then(|length| usize::try_from(length).ok());
    let timeout = queue.as_ref().and_then(|queue| queue.get("timeout"));
    let timeout = timeout.and_then(|item| item.duration());
    let default = Capacity::of(per_slot?);
    Some(Capacity {
        on_full: on_full.unwrap_or(default.on_full),
        queue_length: length.unwrap_or(default.queue_length),
        queue_timeout: timeout.unwrap_or(default.queue_timeout),
        ..default
    })
}

fn seats(item: &Item<'_>) -> Option<NonZeroUsize> {
    let number = item.integer(1..=MAX_PER_SLOT)?;
    usize::try_from(number).ok().and_then(NonZeroUsize::new)
}
