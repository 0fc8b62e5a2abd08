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
mod oom;
mod output;
mod pass;
mod place;
mod process;
mod receipt;
mod report;
mod restart;
mod rollout;
mod saved;
mod slot;
mod sweep;
mod trial;
mod worker;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use entrance::{Asked, Doors, Entrances, Guests, SlotDoors, keep_asking};
pub use exec::exec_worker_main;
pub use guard::guard_main;
pub use home::{Home, SavedHome};
pub use process::{CHECK_UPGRADE, EXEC_WORKER, GUARD, processor_time, resident};
pub use receipt::{Connections, Outcome, SlotReceipt};
pub use saved::{Resumption, Saved, Standstill, StillGuard};
pub use trial::{CAN_TAKE_OVER, try_image};

use crate::{cluster::Cluster, config::Workers};
use node::SharedSockets;
use rollout::{Participant, Reason, Replace};
use slot::{Orders, SlotTask, Want};

/// The worker processes of one cluster. When it is dropped before [`stop`](Self::stop) has
/// returned, its workers are killed.
#[derive(Debug)]
pub struct Supervisor {
    cluster: Cluster,
    home: Arc<Home>,
    workers: Arc<Workers>,
    entrances: Entrances,
    shared: Arc<SharedSockets>,
    /// Too large workers are replaced one after the other.
    turn: Arc<Semaphore>,
    /// The rolling restart that is under way, if it has not ended.
    rollout: Option<Rollout>,
    /// By their number; those at the end may be retired.
    slots: Vec<SlotHandle>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct SlotHandle {
    name: Arc<str>,
    orders: watch::Sender<Orders>,
    replace: mpsc::Sender<Replace>,
}

/// A rolling restart that is, or was, under way.
#[derive(Debug)]
struct Rollout {
    ended: CancellationToken,
    stop: CancellationToken,
}

/// A rolling restart is under way already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rolling restart is under way")]
pub struct Busy;

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
            turn: Arc::new(Semaphore::new(1)),
            rollout: None,
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
        if let Some(rollout) = &self.rollout {
            rollout.ended.cancelled().await;
        }
        Arc::clone(&self.turn).acquire_owned().await.ok()
    }

    /// A slot that was scaled away, and whose worker has not ended yet.
    #[must_use]
    pub fn retiring(&self) -> Option<&Arc<str>> {
        let mut slots = self.slots.iter().skip(self.workers.count.get());
        let slot = slots.find(|slot| !slot.orders.is_closed())?;
        Some(&slot.name)
    }

    /// Takes on another configuration, which the cluster was told before. Slots beyond the new
    /// count are emptied: their worker ends once its connections have, or after `drain`. Workers
    /// that were started with another configuration are replaced, one slot after the other.
    pub fn configure(&mut self, workers: Arc<Workers>, entrances: Entrances, drain: Duration) {
        let is_other = self.workers.runs_differently(&workers);
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
        if is_other {
            self.roll(NonZeroUsize::MIN, Reason::Changed);
        }
    }

    /// Replaces all workers, at most `parallel` slots at a time: the next generation starts beside
    /// the present one and takes over when it is ready and has stayed so; the first that does not
    /// get that far ends it. Gives what comes of each slot; it goes on when nobody looks.
    ///
    /// # Errors
    /// When that is under way already.
    pub fn restart(&mut self, parallel: NonZeroUsize) -> Result<mpsc::Receiver<SlotReceipt>, Busy> {
        let under_way = self.rollout.as_ref();
        if under_way.is_some_and(|rollout| !rollout.ended.is_cancelled()) {
            return Err(Busy);
        }
        Ok(self.roll(parallel, Reason::Asked))
    }

    /// Begins a rolling restart; one that is under way ends first, after the slots that it has begun.
    fn roll(&mut self, parallel: NonZeroUsize, reason: Reason) -> mpsc::Receiver<SlotReceipt> {
        let before = self.rollout.take();
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        let count = self.workers.count.get();
        let slots = self.slots.iter().take(count).map(|slot| Participant {
            slot: Arc::clone(&slot.name),
            ask: slot.replace.clone(),
        });
        let (progress, receipts) = mpsc::channel(count.max(1));
        let roll = rollout::roll(
            Arc::clone(self.cluster.name()),
            slots.collect(),
            parallel,
            reason,
            progress,
            (stop.clone(), ended.clone().drop_guard()),
        );
        drop(self.tasks.spawn(async move {
            if let Some(before) = before {
                before.stop.cancel();
                before.ended.cancelled().await;
            }
            roll.await;
        }));
        self.rollout = Some(Rollout { ended, stop });
        receipts
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
        let (replace, replacements) = mpsc::channel(1);
        let mut task = SlotTask::new(
            self.cluster.clone(),
            Arc::clone(&self.home),
            (Arc::clone(&self.shared), Arc::clone(&self.turn)),
            index,
            receiver,
            replacements,
        );
        let name = task.name();
        if let Some(from) = from
            && let Some(saved) = from.slots.remove(&*name)
        {
            task.resume(saved, from);
        }
        // The task has its handle: it ends when `orders` does.
        drop(self.tasks.spawn(task.run()));
        let handle = SlotHandle {
            name,
            orders,
            replace,
        };
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
