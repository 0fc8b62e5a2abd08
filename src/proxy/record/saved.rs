//! What is known of a connection, for the next image of the program, which writes its one record.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{super::Listener, CloseReason, ConnectionRecord, Home, Journey, Traffic};
use crate::{
    cluster::{Seat, Skip, Snapshot},
    handover::Moment,
};

/// A [`ConnectionRecord`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::proxy) struct SavedRecord {
    /// By which it came in.
    pub(in crate::proxy) listener: Arc<str>,
    peer: SocketAddr,
    accepted: Moment,
    client: Option<SocketAddr>,
    home: Option<SavedHome>,
    passed: Option<(Arc<str>, Skip)>,
    held: Duration,
    up: u64,
    down: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedHome {
    slot: Arc<str>,
    generation: u32,
}

impl ConnectionRecord {
    /// What the next image has to know of it.
    pub(in crate::proxy) fn saved(&self) -> SavedRecord {
        let home = self.journey.home.as_ref();
        SavedRecord {
            listener: Arc::clone(self.listener.name()),
            peer: self.peer,
            accepted: Moment::of(self.accepted, Instant::now()),
            client: self.client.as_deref().copied(),
            home: home.map(|home| SavedHome {
                slot: Arc::clone(&home.slot.name),
                generation: home.generation(),
            }),
            passed: self.journey.detour().passed.clone(),
            held: self.journey.detour().held,
            up: self.traffic.up,
            down: self.traffic.down,
        }
    }

    /// The same again, counted in its slot where that is still in the table.
    pub(in crate::proxy) fn resumed(
        saved: SavedRecord,
        listener: Arc<Listener>,
        snapshot: &Snapshot,
    ) -> Self {
        let home = saved.home.and_then(|home| {
            let entry = snapshot.entry(&home.slot)?;
            let backend = entry.serving(Some(home.generation))?;
            Some(Home::counted_before(
                Arc::clone(&entry.slot),
                Arc::clone(backend),
            ))
        });
        // Where seats are counted it has one, unless there are fewer than before.
        let limited = snapshot.config.balance.capacity.is_some();
        let seat = home.as_ref().filter(|_| limited);
        let seat = seat.and_then(|home| Seat::take(&home.slot.stats));
        let mut journey = Journey {
            home,
            seat,
            ..Journey::default()
        };
        journey.pass(saved.passed);
        if !saved.held.is_zero() {
            journey.detour_mut().held = saved.held;
        }
        Self {
            listener,
            peer: saved.peer,
            accepted: saved.accepted.at(Instant::now()),
            client: saved.client.map(Box::new),
            journey,
            traffic: Traffic {
                up: saved.up,
                down: saved.down,
            },
            requests: 0,
            reason: CloseReason::Cut,
        }
    }
}
