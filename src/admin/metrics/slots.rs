//! Clusters and their slots: state, traffic, affinity, checks and workers.

use std::{
    collections::BTreeMap,
    fmt,
    hash::Hasher as _,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use siphasher::sip::SipHasher13;

use super::super::Board;
use crate::{
    cluster::{
        Backend, CheckResult, Entry, ExitKind, Skip, SlotStats, Snapshot, StartReason, StopReason,
    },
    direct::Usage,
    metrics::{Labels, Page},
    supervisor,
};

type OfSlot<'a> = Labels<'a, 2>;
type OfKind<'a> = Labels<'a, 3>;

pub(super) fn write(
    page: &mut Page<'_>,
    board: &Board,
    usages: &BTreeMap<String, Vec<Usage>>,
) -> fmt::Result {
    let clusters = board.clusters();
    let loaded = clusters
        .iter()
        .map(|cluster| (cluster.name(), cluster.load()));
    let slots = Slots(loaded.collect());
    let snapshots = slots.0.iter().map(|(name, snapshot)| {
        let labels: Labels<'_, 1> = [("cluster", name)];
        (labels, snapshot.number)
    });
    page.gauge(
        "homescar_cluster_snapshot",
        "The number of the cluster's routing state; it grows with every change.",
        snapshots,
    )?;
    let tables = slots.0.iter().map(|(name, snapshot)| {
        let entries = snapshot.entries.iter();
        let slots = entries.map(|entry| (&*entry.slot.name, entry.slot.weight.get()));
        let labels: Labels<'_, 1> = [("cluster", name)];
        (labels, fingerprint(snapshot.config.affinity.seed, slots))
    });
    page.gauge(
        "homescar_table_fingerprint",
        "A number made of the seed and the slots with their weights: homescars that show the same \
         send a client to the same slot.",
        tables,
    )?;
    slots.states(page)?;
    slots.traffic(page, usages)?;
    slots.affinity(page)?;
    slots.checks(page)?;
    slots.workers(page)?;
    slots.processes(page)
}

/// All slots, by cluster.
struct Slots<'a>(Vec<(&'a Arc<str>, Arc<Snapshot>)>);

impl Slots<'_> {
    fn entries(&self) -> impl Iterator<Item = (OfSlot<'_>, &Entry)> {
        self.0.iter().flat_map(|(cluster, snapshot)| {
            snapshot.entries.iter().map(|entry| {
                let labels: OfSlot<'_> = [("cluster", cluster), ("slot", &entry.slot.name)];
                (labels, entry)
            })
        })
    }

    fn each<V>(&self, of: impl Fn(&SlotStats) -> V) -> impl Iterator<Item = (OfSlot<'_>, V)> {
        self.entries()
            .map(move |(labels, entry)| (labels, of(&entry.slot.stats)))
    }

    /// Those that are supervised.
    fn supervised(&self) -> impl Iterator<Item = (OfSlot<'_>, &SlotStats)> {
        let supervised = self.entries().filter(|(_, entry)| entry.supervised);
        supervised.map(|(labels, entry)| (labels, &*entry.slot.stats))
    }

    fn backends(&self) -> impl Iterator<Item = (OfSlot<'_>, &Backend)> {
        self.entries()
            .filter_map(|(labels, entry)| Some((labels, entry.backend.as_deref()?)))
    }

    fn states(&self, page: &mut Page<'_>) -> fmt::Result {
        let up = self.entries();
        let up = up.map(|(labels, entry)| (labels, u64::from(entry.skip.is_none())));
        page.gauge("homescar_slot_up", "1 when the slot takes new clients.", up)?;
        let states = self.entries().map(|(labels, entry)| {
            (
                with(labels, "state", entry.skip.map_or("ready", Skip::as_str)),
                1_u64,
            )
        });
        page.gauge(
            "homescar_slot_state",
            "1 for the state that the slot is in: ready, or why it takes no new clients.",
            states,
        )?;
        let changes = self.entries().flat_map(|(labels, entry)| {
            let all = Skip::ALL.into_iter().map(Some);
            [None].into_iter().chain(all).filter_map(move |state| {
                let count = entry.slot.stats.states.get(state);
                let labels = with(labels, "to", state.map_or("ready", Skip::as_str));
                (count > 0).then_some((labels, count))
            })
        });
        page.counter(
            "homescar_slot_transitions",
            "How often the slot came into each state.",
            changes,
        )?;
        let infos: Vec<_> = self
            .backends()
            .map(|(labels, backend)| {
                let pid = backend.pid.map_or_else(String::new, |pid| pid.to_string());
                (
                    labels,
                    backend.generation.to_string(),
                    pid,
                    backend.address.to_string(),
                )
            })
            .collect();
        let infos = infos.iter().map(|(labels, generation, pid, address)| {
            let [cluster, slot] = *labels;
            let more = [
                ("generation", &**generation),
                ("pid", pid),
                ("address", address),
            ];
            [cluster, slot, more[0], more[1], more[2]]
        });
        page.info("homescar_slot", "What stands in the slot now.", infos)
    }

    fn traffic(&self, page: &mut Page<'_>, usages: &BTreeMap<String, Vec<Usage>>) -> fmt::Result {
        let active = self.0.iter().flat_map(|(cluster, snapshot)| {
            let usage = usages.get(&***cluster).map_or(&[][..], Vec::as_slice);
            snapshot
                .entries
                .iter()
                .enumerate()
                .map(move |(index, entry)| {
                    let labels: OfSlot<'_> = [("cluster", cluster), ("slot", &entry.slot.name)];
                    let direct = usage.get(index).copied().unwrap_or_default();
                    let relayed = entry.slot.stats.active.load(Relaxed);
                    (labels, relayed + direct.connections + direct.waiting)
                })
        });
        page.gauge(
            "homescar_slot_connections_active",
            "Connections (in http mode, requests and WebSockets) that the slot has now, or that are on the way to it.",
            active,
        )?;
        page.gauge(
            "homescar_slot_held",
            "Clients that are held for the slot now.",
            self.each(|stats| stats.held.load(Relaxed)),
        )?;
        page.counter(
            "homescar_slot_connections",
            "Connections (in http mode, requests) that were brought to the slot by homescar.",
            self.each(|stats| stats.total.load(Relaxed)),
        )?;
        page.counter(
            "homescar_slot_connect_failures",
            "Failed attempts to connect to the slot.",
            self.each(|stats| stats.connect_failures.load(Relaxed)),
        )?;
        let bytes = self.entries().flat_map(|(labels, entry)| {
            let stats = &entry.slot.stats;
            [
                (
                    with(labels, "direction", "up"),
                    stats.bytes_up.load(Relaxed),
                ),
                (
                    with(labels, "direction", "down"),
                    stats.bytes_down.load(Relaxed),
                ),
            ]
        });
        page.counter(
            "homescar_slot_bytes",
            "Bytes from clients (up) and to clients (down), when their connection or request ended.",
            bytes,
        )?;
        page.histogram(
            "homescar_connect_duration_seconds",
            "What it took to connect to the slot, TLS included.",
            self.each(|stats| stats.connect.seen()),
        )?;
        let waiting = self.backends().filter_map(|(labels, backend)| {
            Some((labels, backend.backlog.as_ref()?.waiting().ok()?))
        });
        page.gauge(
            "homescar_slot_accept_queue",
            "Connections that the worker has yet to accept, where homescar holds its socket.",
            waiting,
        )
    }

    fn affinity(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = self.entries().flat_map(|(labels, entry)| {
            let affinity = &entry.slot.stats.affinity;
            let [cluster, slot] = labels;
            let of = move |result, reason| [cluster, slot, ("result", result), ("reason", reason)];
            let moved = Skip::ALL.into_iter().filter_map(move |why| {
                let count = affinity.moved(why);
                (count > 0).then(|| (of("moved", why.as_str()), count))
            });
            [(of("kept", "home"), affinity.kept())]
                .into_iter()
                .chain(moved)
        });
        page.counter(
            "homescar_affinity",
            "Connections (in http mode, requests) that came to their client's own slot, or why that \
             was passed over; the slot is the one that served.",
            counts,
        )
    }

    fn checks(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = self.entries().flat_map(|(labels, entry)| {
            let checks = &entry.slot.stats.checks;
            CheckResult::ALL
                .into_iter()
                .map(move |result| (with(labels, "result", result.as_str()), checks.get(result)))
        });
        page.counter("homescar_health_checks", "Active checks.", counts)?;
        page.histogram(
            "homescar_health_check_duration_seconds",
            "How long checks took that passed. Where homescar holds the worker's socket (contracts \
             fd and node), a TCP check lasts until the worker's event loop has accepted it.",
            self.each(|stats| stats.checks.latency.seen()),
        )
    }

    fn workers(&self, page: &mut Page<'_>) -> fmt::Result {
        let starts = self.supervised().flat_map(|(labels, stats)| {
            StartReason::ALL.into_iter().map(move |why| {
                (
                    with(labels, "reason", why.as_str()),
                    stats.worker.starts(why),
                )
            })
        });
        page.counter(
            "homescar_worker_starts",
            "Workers that were started.",
            starts,
        )?;
        let stops = self.supervised().flat_map(|(labels, stats)| {
            StopReason::ALL.into_iter().map(move |why| {
                (
                    with(labels, "reason", why.as_str()),
                    stats.worker.stopped(why),
                )
            })
        });
        page.counter(
            "homescar_worker_stops",
            "Workers whose end was begun while they ran.",
            stops,
        )?;
        let exits = self.supervised().flat_map(|(labels, stats)| {
            ExitKind::ALL
                .into_iter()
                .map(move |how| (with(labels, "kind", how.as_str()), stats.worker.exits(how)))
        });
        page.counter(
            "homescar_worker_exits",
            "Workers that ended, and how.",
            exits,
        )?;
        let ready = self.supervised();
        page.histogram(
            "homescar_worker_ready_seconds",
            "From a worker's start to its readiness.",
            ready.map(|(labels, stats)| (labels, stats.worker.ready.seen())),
        )?;
        let lag = self.supervised();
        page.histogram(
            "homescar_worker_loop_lag_seconds",
            "How late a worker's event loop answers a question that it gets once a second, under \
             contract node.",
            lag.map(|(labels, stats)| (labels, stats.worker.lag.seen.seen())),
        )?;
        let backoff = self.supervised();
        page.gauge(
            "homescar_worker_backoff_seconds",
            "How long the slot waits for its next worker; 0 while it has one.",
            backoff.map(|(labels, stats)| (labels, stats.worker.backoff().as_secs_f64())),
        )
    }

    fn processes(&self, page: &mut Page<'_>) -> fmt::Result {
        let workers: Vec<_> = self
            .backends()
            .filter_map(|(labels, backend)| Some((labels, backend.pid?)))
            .collect();
        let of = workers.iter();
        page.gauge(
            "homescar_worker_resident_memory_bytes",
            "Resident memory of the worker's process.",
            of.filter_map(|(labels, pid)| Some((*labels, supervisor::resident(*pid)?))),
        )?;
        let of = workers.iter();
        page.counter(
            "homescar_worker_cpu_seconds",
            "Processor time of the worker's process; it begins anew with each generation.",
            of.filter_map(|(labels, pid)| {
                let used = supervisor::processor_time(*pid)?;
                Some((*labels, used.as_secs_f64()))
            }),
        )
    }
}

/// In whatever order the slots stand; as large as a page can show exactly.
fn fingerprint<'a>(seed: impl Into<u64>, slots: impl Iterator<Item = (&'a str, u32)>) -> u64 {
    const BITS: u32 = 48;
    let mut slots: Vec<_> = slots.collect();
    slots.sort_unstable();
    let mut hasher = SipHasher13::new();
    hasher.write_u64(seed.into());
    for (name, weight) in slots {
        hasher.write_u64(name.len() as u64);
        hasher.write(name.as_bytes());
        hasher.write_u32(weight);
    }
    hasher.finish() >> (u64::BITS - BITS)
}

const fn with<'a>(labels: OfSlot<'a>, name: &'static str, value: &'a str) -> OfKind<'a> {
    let [cluster, slot] = labels;
    [cluster, slot, (name, value)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_slots_have_the_same_fingerprint_in_any_order() {
        let of = |seed: u64, slots: &[(&str, u32)]| fingerprint(seed, slots.iter().copied());
        let both = of(0, &[("a", 1), ("b", 2)]);
        assert_eq!(both, of(0, &[("b", 2), ("a", 1)]));
        for other in [
            of(1, &[("a", 1), ("b", 2)]),
            of(0, &[("a", 2), ("b", 2)]),
            of(0, &[("a", 1)]),
            of(0, &[("ab", 1), ("", 2)]),
        ] {
            assert_ne!(both, other);
        }
    }
}
