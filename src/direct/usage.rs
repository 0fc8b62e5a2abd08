//! What the slots of a direct listener are used for: their connections, by whoever holds them.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    net::IpAddr,
    sync::atomic::Ordering,
    time::Duration,
};

use ahash::HashMap;

use super::{
    Direct,
    diag::{Detail, Seen, Traffic, each_connection},
};
use crate::cluster::Backlog;

/// A slot's connections at this moment, health checks left out. They move while they are looked
/// at: one that is just being accepted may be in both counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Those that processes of its worker's group hold.
    pub connections: u64,
    /// Those that its worker has yet to accept, health checks among them.
    pub waiting: u64,
    /// Bytes that the connections have brought from their clients so far.
    pub received: u64,
    /// Bytes of the connections that their clients have acknowledged so far; a FIN counts as one.
    pub sent: u64,
    /// The mean of the connections' round-trip times, as far as the kernel has measured them.
    pub rtt: Option<Duration>,
}

impl Direct {
    /// How many clients are connected to the slots, accepted or not yet. Those that `rescue` has
    /// accepted are connections of the relay.
    ///
    /// It takes some milliseconds with thousands of clients: not for a thread that serves others.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn connections(&self) -> io::Result<u64> {
        let mut connections = 0;
        self.each(|_client| connections += 1)?;
        Ok(connections)
    }

    /// The addresses of these clients, once for each connection. The same holds for it.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn clients(&self) -> io::Result<Vec<IpAddr>> {
        let mut clients = Vec::new();
        self.each(|client| clients.push(client))?;
        Ok(clients)
    }

    /// Shows the client of each connection that is not ours.
    fn each(&self, mut see: impl FnMut(IpAddr)) -> io::Result<()> {
        let relayed = self.has_relayed.load(Ordering::Relaxed);
        let ours = if relayed {
            own_sockets()?
        } else {
            HashSet::new()
        };
        each_connection(&self.addresses(), Detail::Existence, |seen| {
            let relayed = seen.inode.is_some_and(|inode| ours.contains(&inode));
            if !relayed && !self.is_probe(seen.peer) {
                see(seen.peer);
            }
        })
    }

    /// What each slot is used for. `workers` has, by slot, the process group of its worker, if
    /// there is one.
    ///
    /// It reads the descriptors of all these processes: some tens of milliseconds with
    /// ten thousand clients, so it is not for a thread that serves others.
    ///
    /// # Errors
    /// When the kernel does not say. A worker whose descriptors may not be read (one of another
    /// user, for a homescar that is not root) has no connections in this.
    pub fn usage(&self, workers: &[Option<u32>]) -> io::Result<Vec<Usage>> {
        // In the order of a connection's life: one that is accepted meanwhile is seen twice
        // rather than not at all.
        let waiting = (0..workers.len()).map(|slot| self.waiting(slot));
        let waiting = waiting.collect::<io::Result<Vec<_>>>()?;
        let mut seen = Vec::new();
        each_connection(&self.addresses(), Detail::Traffic, |connection| {
            if !self.is_probe(connection.peer) {
                seen.push(connection);
            }
        })?;
        let holders = holders(workers)?;
        let mut tallies = vec![Tally::default(); workers.len()];
        for Seen { inode, traffic, .. } in seen {
            if let Some(slot) = inode.and_then(|inode| holders.get(&inode)) {
                tallies[*slot].add(traffic);
            }
        }
        let slots = tallies.into_iter().zip(waiting);
        Ok(slots.map(|(tally, waiting)| tally.usage(waiting)).collect())
    }

    /// How many connections a slot's worker has, accepted or not yet; one that is just being
    /// accepted may count twice. The same holds for it as for [`usage`](Self::usage).
    ///
    /// # Errors
    /// As there.
    pub fn connections_of(&self, slot: usize, worker: u32) -> io::Result<u64> {
        let waiting = self.waiting(slot)?;
        let mut inodes = Vec::new();
        each_connection(&self.addresses(), Detail::Existence, |seen| {
            if !self.is_probe(seen.peer) {
                inodes.extend(seen.inode);
            }
        })?;
        let holders = holders(&[Some(worker)])?;
        let held = inodes.iter().filter(|inode| holders.contains_key(inode));
        Ok(waiting + held.count() as u64)
    }

    fn waiting(&self, slot: usize) -> io::Result<u64> {
        let groups = self.groups();
        let waiting = groups.iter().filter_map(|group| group.present(slot));
        let waiting = waiting.map(|socket| Backlog::new(socket).waiting().map(u64::from));
        waiting.sum()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    connections: u64,
    received: u64,
    sent: u64,
    measured: u32,
    rtt: Duration,
}

impl Tally {
    fn add(&mut self, traffic: Option<Traffic>) {
        self.connections += 1;
        let Some(Traffic {
            received,
            sent,
            rtt,
        }) = traffic
        else {
            return;
        };
        self.received += received;
        self.sent += sent;
        if !rtt.is_zero() {
            self.measured += 1;
            self.rtt += rtt;
        }
    }

    fn usage(self, waiting: u64) -> Usage {
        Usage {
            connections: self.connections,
            waiting,
            received: self.received,
            sent: self.sent,
            rtt: self.rtt.checked_div(self.measured),
        }
    }
}

/// The inode of every socket that one of these process groups holds, with the group's position.
/// Processes that end meanwhile, or may not be read, hold nothing.
fn holders(groups: &[Option<u32>]) -> io::Result<HashMap<u32, usize>> {
    let groups = groups.iter().enumerate();
    let groups: BTreeMap<u32, usize> = groups
        .filter_map(|(position, group)| Some(((*group)?, position)))
        .collect();
    let mut holders = HashMap::default();
    for process in fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some(position) = group_of(pid).and_then(|group| groups.get(&group)) else {
            continue;
        };
        let sockets = sockets_of(&pid.to_string()).unwrap_or_default();
        holders.extend(sockets.into_iter().map(|inode| (inode, *position)));
    }
    Ok(holders)
}

/// The sockets of this very process.
fn own_sockets() -> io::Result<HashSet<u32>> {
    Ok(sockets_of("self")?.into_iter().collect())
}

/// The fifth field of `/proc/PID/stat`; the second may hold anything, also brackets.
fn group_of(pid: u32) -> Option<u32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(&stat[after..]).ok()?;
    fields.split_ascii_whitespace().nth(2)?.parse().ok()
}

fn sockets_of(process: &str) -> io::Result<Vec<u32>> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd"))?.flatten();
    let sockets = descriptors.filter_map(|descriptor| {
        let what = fs::read_link(descriptor.path()).ok()?;
        let inode = what.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    });
    Ok(sockets.collect())
}
