//! Where the two planes meet: slots, what stands in them, and the one pointer that is swapped.
//!
//! The control plane reports [`Event`]s; the [`Controller`] is the only one that turns them into
//! a [`Snapshot`]; the data plane loads one snapshot for each connection. Nothing here knows how
//! a worker is started, how health is found out, or how bytes are carried.

mod backlog;
mod controller;
mod event;
mod exhaustion;
mod identity;
mod learned;
mod load;
mod rebalance;
mod residents;
mod route;
mod seats;
mod slot;
mod snapshot;
mod stats;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use crate::affinity::Secrets;

pub use backlog::Backlog;
pub use controller::Controller;
pub use event::{Event, Health, Started};
pub use exhaustion::is_exhaustion;
pub use identity::{Identity, Shown, key_of_address};
pub use learned::{Giver, Learned, SavedLearned};
pub use load::{Live, View};
pub use rebalance::{Asked, Rebalance, SavedAsked, Standing, Stay, Step};
pub use residents::Residents;
pub use route::{Asker, Route};
pub use seats::{Seat, Seats, Waiting};
pub use slot::{AdminState, Backend, Load, Skip, Slot, SlotStats};
pub use snapshot::{Entry, Snapshot};
pub use stats::{
    AffinityStats, CheckResult, CheckStats, ExitKind, LagStats, StartReason, StateStats,
    StopReason, WorkerStats,
};

use crate::{config, tls::Connector};

/// Events that may wait for the controller; reporters wait when it is full.
const INBOX: usize = 1024;

/// The shared handle of a cluster: cheap to clone, held by both planes.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    current: ArcSwap<Snapshot>,
    /// The number of the current snapshot; the way to wait for the next.
    number: watch::Sender<u64>,
    secrets: ArcSwapOption<Secrets>,
    learned: Learned,
    /// Who was asked to go home.
    asked: Asked,
    /// A WebSocket has come to another slot than its home.
    strays: Notify,
    inbox: mpsc::Sender<Event>,
    connector: ArcSwapOption<Connector>,
}

impl Cluster {
    /// A cluster as configured, and its controller, which must be run for anything to change.
    #[must_use]
    pub fn new(config: &config::Cluster) -> (Self, Controller) {
        let (inbox, events) = mpsc::channel(INBOX);
        let first = Snapshot::configured(config);
        first.set_seats();
        let shared = Shared {
            name: Arc::clone(&config.name),
            number: watch::Sender::new(first.number),
            current: ArcSwap::from_pointee(first),
            secrets: ArcSwapOption::empty(),
            learned: Learned::new(),
            asked: Asked::default(),
            strays: Notify::new(),
            inbox,
            connector: ArcSwapOption::empty(),
        };
        let cluster = Self(Arc::new(shared));
        let controller = Controller::new(cluster.clone(), events);
        (cluster, controller)
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// All routing state of this moment.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.current.load_full()
    }

    /// What signs its cookies, once that is known.
    #[must_use]
    pub fn secrets(&self) -> Option<Arc<Secrets>> {
        self.0.secrets.load_full()
    }

    /// Changes what signs its cookies.
    pub fn sign_with(&self, secrets: Arc<Secrets>) {
        self.0.secrets.store(Some(secrets));
    }

    /// Which of its slots gave out which ids. Only where clients are told apart by a parameter is
    /// there anything in it.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.0.learned
    }

    /// Which of its WebSockets were asked to go home.
    #[must_use]
    pub fn asked(&self) -> &Asked {
        &self.0.asked
    }

    /// What encrypts connections to the backends. Whether they are to be encrypted is for the
    /// configuration in the snapshot to say: where it does, and there is nothing to do it with,
    /// there is no connection.
    #[must_use]
    pub fn connector(&self) -> Option<Arc<Connector>> {
        self.0.connector.load_full()
    }

    /// Gives the cluster what encrypts connections to its backends: before it is configured so.
    pub fn set_connector(&self, connector: Arc<Connector>) {
        self.0.connector.store(Some(connector));
    }

    /// Tells the controller what happened. Waits while its inbox is full; an event for a
    /// controller that has ended is of no use to anybody and is dropped.
    pub async fn report(&self, event: Event) {
        let _ended = self.0.inbox.send(event).await;
    }

    /// Notes a WebSocket that was just opened: there may be reason to send it home later that no
    /// snapshot will tell of.
    pub fn note_stay(&self, stay: &Stay) {
        let now = self.load();
        let standing = now.standing(stay, &now.live());
        if matches!(standing, Standing::Away(_) | Standing::Later) {
            self.0.strays.notify_one();
        }
    }

    /// Waits until there is one more of these. One task at a time can.
    pub async fn strayed(&self) {
        self.0.strays.notified().await;
    }

    /// A receiver that changes with every new snapshot; its value is the snapshot's number.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.number.subscribe()
    }

    /// The next snapshot after `number`, or the current one when `deadline` has passed.
    pub async fn changed_since(&self, number: u64, deadline: Instant) -> Arc<Snapshot> {
        let mut numbers = self.subscribe();
        let changed = numbers.wait_for(|now| *now > number);
        let _timed_out = tokio::time::timeout_at(deadline, changed).await.is_err();
        self.load()
    }

    /// The first snapshot that satisfies `condition`, or `None` after `within`.
    pub async fn wait_until(
        &self,
        within: Duration,
        condition: impl Fn(&Snapshot) -> bool,
    ) -> Option<Arc<Snapshot>> {
        let mut numbers = self.subscribe();
        let found = numbers.wait_for(|_| condition(&self.load()));
        tokio::time::timeout(within, found).await.ok()?.ok()?;
        Some(self.load())
    }

    /// Publishes a snapshot. Only the controller may.
    fn publish(&self, snapshot: Snapshot) {
        let number = snapshot.number;
        snapshot.set_seats();
        self.0.current.store(Arc::new(snapshot));
        self.0.number.send_replace(number);
    }
}
