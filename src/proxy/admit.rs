//! Limits: who may come in. Every count is a guard, so that nothing is counted for ever.

use std::{
    collections::hash_map::Entry,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ahash::{HashMap, RandomState};
use tokio::sync::Notify;

/// Counts what is open, refuses above a limit, and tells when nothing is open any more.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    open: AtomicU64,
    none_open: Notify,
}

/// One that is open.
#[derive(Debug)]
pub(super) struct Permit(Arc<Gauge>);

impl Gauge {
    /// Counts one more, unless that makes more than `limit`.
    pub(super) fn enter(self: &Arc<Self>, limit: u64) -> Option<Permit> {
        self.count(limit).then(|| Permit(Arc::clone(self)))
    }

    /// The same, until it is [told](Self::uncount) that this one is gone.
    pub(super) fn count(&self, limit: u64) -> bool {
        let is_allowed = self.open.fetch_add(1, Relaxed) < limit;
        if !is_allowed {
            self.uncount();
        }
        is_allowed
    }

    /// One that was counted is gone.
    pub(super) fn uncount(&self) {
        if self.open.fetch_sub(1, Relaxed) == 1 {
            self.none_open.notify_waiters();
        }
    }

    pub(super) fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Waits until nothing is open.
    pub(super) async fn wait_until_none(&self) {
        loop {
            let notified = self.none_open.notified();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.uncount();
    }
}

/// The limit over all listeners.
#[derive(Debug)]
pub(super) struct Admission {
    open: Arc<Gauge>,
    limit: AtomicU64,
}

impl Admission {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            open: Arc::default(),
            limit: AtomicU64::new(limit),
        }
    }

    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Counts one more connection, unless that makes more than the limit.
    pub(super) fn enter(&self) -> Option<Permit> {
        self.open.enter(self.limit.load(Relaxed))
    }

    /// Counts one that is there already.
    pub(super) fn enter_anyhow(&self) -> Option<Permit> {
        self.open.enter(u64::MAX)
    }

    pub(super) fn open(&self) -> u64 {
        self.open.open()
    }

    pub(super) async fn wait_until_none(&self) {
        self.open.wait_until_none().await;
    }
}

/// Maps a client's address to one of several locks, so that threads rarely meet at one.
const SHARDS: usize = 16;

/// Counts connections per client. Only listeners with a `per_client` limit ask it.
#[derive(Debug)]
pub(super) struct Clients {
    hasher: RandomState,
    shards: [Mutex<HashMap<IpAddr, u32>>; SHARDS],
}

/// One connection of a client.
#[derive(Debug)]
pub(super) struct ClientPermit {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: Default::default(),
        }
    }

    /// Counts one more of this client's, unless that makes more than `limit`.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr, limit: u32) -> Option<ClientPermit> {
        let mut counts = self
            .shard(client)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(ClientPermit {
            clients: Arc::clone(self),
            client,
        })
    }

    fn shard(&self, client: IpAddr) -> &Mutex<HashMap<IpAddr, u32>> {
        let hash = self.hasher.hash_one(client);
        &self.shards[hash as usize % SHARDS]
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        let mut counts = self
            .clients
            .shard(self.client)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauge_refuses_above_its_limit_and_counts_back() {
        let gauge = Arc::new(Gauge::default());
        let first = gauge.enter(2).unwrap();
        let _second = gauge.enter(2).unwrap();
        assert!(gauge.enter(2).is_none());
        assert_eq!(gauge.open(), 2);
        drop(first);
        assert_eq!(gauge.open(), 1);
        assert!(gauge.enter(2).is_some());
    }

    #[test]
    fn clients_are_counted_apart_and_forgotten_when_gone() {
        let clients = Arc::new(Clients::new());
        let [a, b] = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2])];
        let first = clients.enter(a, 1).unwrap();
        assert!(clients.enter(a, 1).is_none());
        let second = clients.enter(b, 1).unwrap();
        drop((first, second));
        assert!(
            clients
                .shards
                .iter()
                .all(|shard| shard.lock().unwrap().is_empty())
        );
    }
}
