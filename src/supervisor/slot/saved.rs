//! A slot that stands still for the next image of the program, and goes on there.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::warn;

use super::{SlotTask, Want};
use crate::{
    cluster::{Event, Health, Skip},
    handover::Outgoing,
    supervisor::{
        contract::SavedRoom,
        generation::{Generation, SavedGeneration},
        halt::Piece,
        process::Process,
        saved::Resumption,
        worker::{SavedWorker, Worker},
    },
};

/// Between two looks whether what was under way is over.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The slot of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedSlot {
    pub name: Arc<str>,
    worker: SavedWorker,
    room: SavedRoom,
    pub running: Option<SavedGeneration>,
    standing: Option<Standing>,
}

/// What the cluster takes it to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Standing {
    health: Health,
    leaving: Option<Skip>,
    skip: Option<Skip>,
}

/// How a slot goes on.
#[derive(Debug)]
pub(super) struct Resumed {
    worker: Worker,
    standing: Option<Standing>,
    /// Dropped once the cluster knows.
    reporting: mpsc::Sender<Infallible>,
}

impl SlotTask {
    /// Everything is to stand still for the next image. What is under way is finished first; who
    /// calls waits for that for a while.
    pub(super) async fn stand_still(&mut self, worker: &Worker) {
        if !self.is_quiet() {
            return sleep(LOOK_AGAIN).await;
        }
        self.member.describe(|outgoing| {
            let saved = self.saved(worker, outgoing)?;
            Ok(Piece::Slot(Box::new(saved)))
        });
        self.member.goes_on().await;
    }

    fn is_quiet(&self) -> bool {
        self.successor.is_none()
            && self.fresh.is_none()
            && self.drained_by.is_none()
            && self.leaving.is_empty()
            && self.orders.borrow().want == Want::Run
            && self.running.as_ref().is_none_or(Generation::is_quiet)
    }

    fn saved(&self, worker: &Worker, outgoing: &mut Outgoing) -> io::Result<SavedSlot> {
        let configured = Arc::clone(&self.orders.borrow().workers);
        let running = self.running.as_ref();
        let running = running.map(|running| running.saved(&self.room, &configured, outgoing));
        let snapshot = self.cluster.load();
        let standing = snapshot.entry(&self.name).map(|entry| {
            let backend = entry.backend.as_ref();
            Standing {
                health: backend.map_or(Health::Unknown, |backend| backend.health.clone()),
                leaving: backend.and_then(|backend| backend.leaving),
                skip: entry.down,
            }
        });
        Ok(SavedSlot {
            name: Arc::clone(&self.name),
            worker: worker.saved(Instant::now()),
            room: self.room.saved(outgoing)?,
            running: running.transpose()?,
            standing,
        })
    }

    /// Goes on where an earlier image has stood still. A worker that cannot be taken over is ended,
    /// and its slot starts anew.
    pub(in crate::supervisor) fn resume(&mut self, saved: SavedSlot, from: &mut Resumption) {
        let pid = saved.running.as_ref().map(|running| running.pid);
        if let Err(error) = self.try_to_resume(saved, from) {
            warn!(
                slot = %self.name, pid, %error,
                "{} cannot be taken over from the image before: it starts anew", self.name
            );
            // When there is one, dropping it kills it.
            drop(pid.map(Process::with_id));
            self.running = None;
            self.resumed = None;
        }
    }

    fn try_to_resume(&mut self, saved: SavedSlot, from: &mut Resumption) -> io::Result<()> {
        let orders = self.orders.borrow().clone();
        self.room
            .resume(saved.room, &orders.entrances, &mut from.incoming)?;
        if let Some(running) = saved.running {
            let mut running = Generation::resumed(
                running,
                &self.home,
                &self.room,
                &orders,
                &mut from.outputs,
                &mut from.incoming,
            )?;
            running.stats = self.counters();
            self.running = Some(running);
        }
        self.resumed = Some(Resumed {
            worker: Worker::resumed(saved.worker),
            standing: saved.standing,
            reporting: from.reporting.clone(),
        });
        Ok(())
    }

    /// The worker to begin with. One that was taken over is where the cluster had it before.
    pub(super) async fn first(&mut self) -> Worker {
        let Some(Resumed {
            worker,
            standing,
            reporting,
        }) = self.resumed.take()
        else {
            return Worker::new(Instant::now());
        };
        let standing = standing.unwrap_or(Standing {
            health: Health::Unknown,
            leaving: None,
            skip: None,
        });
        for event in self.events_of(standing) {
            self.cluster.report(event).await;
        }
        drop(reporting);
        worker
    }

    fn events_of(&self, standing: Standing) -> Vec<Event> {
        let slot = || Arc::clone(&self.name);
        let Some(running) = &self.running else {
            let generation = self.last.load(std::sync::atomic::Ordering::Relaxed);
            let why = standing.skip.unwrap_or(Skip::Restarting);
            return vec![Event::Gone {
                slot: slot(),
                generation,
                why,
            }];
        };
        let generation = running.number;
        let mut events = match (running.was_ready, running.said_ready) {
            (true, _) => vec![running.replaced()],
            (false, true) => vec![running.started(), running.ready()],
            (false, false) => vec![running.started()],
        };
        if standing.health != Health::Unknown {
            events.push(Event::Checked {
                slot: slot(),
                generation,
                health: standing.health,
            });
        }
        events.extend(standing.leaving.map(|why| running.stopping(why)));
        events
    }
}
