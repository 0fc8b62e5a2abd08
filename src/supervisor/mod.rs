//! Starts worker processes, keeps each slot of a cluster filled with one, and ends them.
//!
//! One task a slot carries out what a pure state machine (`worker.rs`) decides.
//! The supervisor tells the cluster what happens to processes and learns from its snapshots
//! whether a worker is ready or hung; it knows nothing of checks and nothing of connections, but
//! for their number in a slot that is being emptied.
//!
//! All of it belongs on one thread, that of the control plane's current-thread runtime: the
//! kernel kills a worker when the thread that spawned it ends.

mod contract;
mod entrance;
mod exec;
mod generation;
mod guard;
mod halt;
mod home;
mod node;
mod notify;
mod output;
mod pass;
mod process;
mod report;
mod restart;
mod saved;
mod slot;
mod sweep;
mod trial;
mod worker;

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::task::TaskTracker;
use tracing::info;

pub use entrance::{Doors, Entrances, SlotDoors};
pub use exec::exec_worker_main;
pub use guard::guard_main;
pub use home::{Home, SavedHome};
pub use process::{CHECK_UPGRADE, EXEC_WORKER, GUARD};
pub use saved::{Resumption, Saved, Standstill, StillGuard};
pub use trial::{CAN_TAKE_OVER, try_image};

use crate::{
    cluster::Cluster,
    config::{Contract, Workers},
};
use node::SharedSockets;
use slot::{Orders, SlotTask, Turns, Want};

/// The worker processes of one cluster. When it is dropped before [`stop`](Self::stop) has
/// returned, its workers are killed.
#[derive(Debug)]
pub struct Supervisor {
    cluster: Cluster,
    home: Arc<Home>,
    workers: Arc<Workers>,
    entrances: Entrances,
    shared: Arc<SharedSockets>,
    turns: Arc<Turns>,
    /// By their number; those at the end may be retired.
    slots: Vec<SlotHandle>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct SlotHandle {
    orders: watch::Sender<Orders>,
}

impl Supervisor {
    /// Starts `workers.count` workers, for the slots of the same number in the cluster's table.
    ///
    /// # Panics
    /// Outside of a runtime; it should be a current-thread one.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        home: Arc<Home>,
        workers: Arc<Workers>,
        entrances: Entrances,
    ) -> Self {
        Self::begin(cluster, home, workers, entrances, None)
    }

    /// Goes on with those that an earlier image of the program has started; slots without one are
    /// as they were, too.
    ///
    /// # Panics
    /// Outside of a runtime; it should be a current-thread one.
    #[must_use]
    pub fn resume(
        cluster: Cluster,
        home: Arc<Home>,
        workers: Arc<Workers>,
        entrances: Entrances,
        from: &mut Resumption,
    ) -> Self {
        Self::begin(cluster, home, workers, entrances, Some(from))
    }

    fn begin(
        cluster: Cluster,
        home: Arc<Home>,
        workers: Arc<Workers>,
        entrances: Entrances,
        mut from: Option<&mut Resumption>,
    ) -> Self {
        let mut supervisor = Self {
            cluster,
            home,
            workers,
            entrances,
            shared: Arc::default(),
            turns: Arc::default(),
            slots: Vec::new(),
            tasks: TaskTracker::new(),
        };
        for index in 0..supervisor.workers.count.get() {
            supervisor.start(index, from.as_deref_mut());
        }
        supervisor
    }

    /// Lets no worker be replaced, until what this gives is dropped. Waits for the replacement that
    /// is under way.
    pub async fn hold_replacements(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.hold().await
    }

    /// Takes on another configuration, which the cluster was told before. Slots beyond the new
    /// count are emptied: their worker ends once their connections have, or after `drain`. All
    /// else holds from each worker's next generation on. Where a worker's socket is ours
    /// (contracts `fd` and `node`), that is now: one slot after the other starts it beside the
    /// present one, and lets that go when it is ready.
    pub fn configure(&mut self, workers: Arc<Workers>, entrances: Entrances, drain: Duration) {
        let shared = matches!(workers.contract, Contract::Fd | Contract::Node);
        if self.workers.runs_differently(&workers) && !shared {
            info!(
                cluster = %self.cluster.name(),
                "the workers' configuration has changed: those that run keep the old one until \
                 they are restarted"
            );
        }
        self.workers = workers;
        self.entrances = entrances;
        let count = self.workers.count.get();
        for index in 0..self.slots.len().max(count) {
            let want = if index < count {
                Want::Run
            } else {
                Want::Retire(drain)
            };
            match self.slots.get(index) {
                Some(slot) if !slot.orders.is_closed() => {
                    slot.order(&self.workers, &self.entrances, want);
                }
                _ if want == Want::Run => self.start(index, None),
                _ => {}
            }
        }
    }

    /// Empties all slots, which the cluster no longer has: each worker ends once its connections
    /// have, or after `drain`. Returns when none is left.
    pub async fn retire(&self, drain: Duration) {
        for slot in &self.slots {
            slot.order(&self.workers, &self.entrances, Want::Retire(drain));
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends all workers in good order (TERM, `stop_timeout`, KILL of the whole group) and
    /// returns when none is left.
    pub async fn stop(&self) {
        for slot in &self.slots {
            slot.order(&self.workers, &self.entrances, Want::Stop);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Kills all workers now; [`stop`](Self::stop) then returns soon.
    pub fn kill_now(&self) {
        for slot in &self.slots {
            slot.order(&self.workers, &self.entrances, Want::Kill);
        }
    }

    /// Starts the task of a slot that has none.
    fn start(&mut self, index: usize, from: Option<&mut Resumption>) {
        let orders = Orders {
            workers: Arc::clone(&self.workers),
            entrances: self.entrances.clone(),
            want: Want::Run,
        };
        let (orders, receiver) = watch::channel(orders);
        let mut task = SlotTask::new(
            self.cluster.clone(),
            Arc::clone(&self.home),
            (Arc::clone(&self.shared), Arc::clone(&self.turns)),
            index,
            receiver,
        );
        if let Some(from) = from
            && let Some(saved) = from
                .slots
                .remove(&format!("{}/{index}", self.cluster.name()) as &str)
        {
            task.resume(saved, from);
        }
        // The task has its handle: it ends when `orders` does.
        drop(self.tasks.spawn(task.run()));
        let handle = SlotHandle { orders };
        match self.slots.get_mut(index) {
            Some(slot) => *slot = handle,
            None => self.slots.push(handle),
        }
    }
}

impl SlotHandle {
    /// Gives orders; the same again change nothing, and nothing takes a kill back.
    fn order(&self, workers: &Arc<Workers>, entrances: &Entrances, want: Want) {
        self.orders.send_if_modified(|orders| {
            let retired = matches!(orders.want, Want::Retire(_));
            let other = !Arc::ptr_eq(&orders.workers, workers);
            let same = orders.want == want || (retired && matches!(want, Want::Retire(_)));
            orders.workers = Arc::clone(workers);
            orders.entrances = entrances.clone();
            if same || orders.want == Want::Kill {
                return other && orders.want == Want::Run;
            }
            orders.want = want;
            true
        });
    }
}
