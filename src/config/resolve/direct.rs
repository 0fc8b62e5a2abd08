//! What direct mode asks of a listener and of its cluster.

use crate::config::{
    Cluster, Contract, Key, Listener, MAX_DIRECT_SLOTS, Mode, Source, file::Section,
};

/// Writes down what a direct listener cannot have. `others` are the listeners before it.
pub(super) fn check(
    section: &Section<'_>,
    listener: &Listener,
    clusters: &[Cluster],
    others: &[Listener],
) {
    let Some(mode) = section.get("mode") else {
        return;
    };
    for key in [
        "accept_proxy",
        "trusted",
        "tls",
        "route",
        "limits",
        "timeouts",
    ] {
        if let Some(item) = section.get(key) {
            item.fault(
                "is not for direct mode, in which the kernel hands connections to the worker and \
                 homescar sees none; remove it, or say mode = \"tcp\"",
            );
        }
    }
    let takes_ipv4 = |bind: &crate::config::Bind| bind.addr.is_ipv4() || bind.dual_stack;
    if !listener.bind.is_empty() && !listener.bind.iter().any(takes_ipv4) {
        mode.fault(
            "direct mode reaches its workers for checks by IPv4: bind \":PORT\" (both versions), or \
             an IPv4 address as well",
        );
    }
    let same = |other: &&Listener| {
        other.mode == Mode::Direct && other.cluster == listener.cluster && !other.cluster.is_empty()
    };
    if let Some(other) = others.iter().find(same) {
        mode.fault(format!(
            "listener.{} already leads to cluster.{} in direct mode; give all addresses to one \
             listener, as in bind = [\"10.0.0.1:80\", \"[::1]:80\"]",
            other.name, other.cluster
        ));
    }
    let cluster = clusters
        .iter()
        .find(|cluster| cluster.name == listener.cluster);
    if let Some(why) = cluster.and_then(|cluster| unfit(cluster, listener)) {
        mode.fault(why);
    }
}

/// Why a cluster cannot stand behind a direct listener.
fn unfit(cluster: &Cluster, listener: &Listener) -> Option<String> {
    let name = &cluster.name;
    let Source::Workers(workers) = &cluster.source else {
        return Some(format!(
            "direct mode is for workers that homescar runs, and cluster.{name} has backends; say \
             mode = \"tcp\""
        ));
    };
    let count = workers.count.get();
    let room = u32::MAX - listener.probes.to_bits();
    let beyond = |last: u32| !std::net::Ipv4Addr::from_bits(last).is_loopback();
    let last = listener.probes.to_bits().wrapping_add(count as u32 - 1);
    if !matches!(workers.contract, Contract::Fd | Contract::Node) {
        Some(format!(
            "direct mode hands the listening socket to the workers: set \
             cluster.{name}.workers.contract = \"fd\" (or \"node\"), or say mode = \"tcp\""
        ))
    } else if workers.contract == Contract::Node && listener.bind.len() > 1 {
        Some(format!(
            "a Node server listens on one socket, and direct mode has one for each address: bind \
             one (such as \":{}\", for IPv4 and IPv6), or say mode = \"tcp\"",
            listener.bind[0].addr.port()
        ))
    } else if cluster.send_proxy.is_some() {
        Some(format!(
            "direct mode can send no PROXY header: remove cluster.{name}.send_proxy, or say mode = \
             \"tcp\""
        ))
    } else if let Some(key) = uncountable(cluster) {
        Some(format!(
            "in direct mode the kernel hands connections to the worker and homescar counts none: \
             remove cluster.{name}.{key}, or say mode = \"tcp\""
        ))
    } else if cluster.affinity.key != Key::Address {
        Some(format!(
            "direct mode goes by the client's address: say cluster.{name}.affinity.key = \"address\", \
             or mode = \"tcp\" (or \"http\")"
        ))
    } else if count > MAX_DIRECT_SLOTS {
        Some(format!(
            "the kernel's program has room for {MAX_DIRECT_SLOTS} slots, and cluster.{name} has \
             {count}; say mode = \"tcp\""
        ))
    } else if room < count as u32 || beyond(last) {
        Some(format!(
            "listener.{}.probes leaves no room for {count} loopback addresses; choose a lower one",
            listener.name
        ))
    } else {
        None
    }
}

/// A key that needs homescar to see each connection.
const fn uncountable(cluster: &Cluster) -> Option<&'static str> {
    let balance = &cluster.balance;
    if balance.passive.is_some() {
        Some("passive")
    } else if balance.slow_start.is_some() {
        Some("slow_start")
    } else if balance.max_load.is_some() {
        Some("max_load")
    } else if balance.capacity.is_some() {
        Some("max_connections_per_slot")
    } else {
        None
    }
}
