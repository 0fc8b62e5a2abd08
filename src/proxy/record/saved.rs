//! What is known of a connection, for the next image of the program, which writes its one record.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{super::Listener, ConnectionRecord, Detour, Home, Journey, Traffic};
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
    journey: SavedJourney,
    up: u64,
    down: u64,
    requests: u64,
}

/// A [`Journey`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::proxy) struct SavedJourney {
    home: Option<SavedHome>,
    passed: Option<(Arc<str>, Skip)>,
    held: Duration,
    queued: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedHome {
    slot: Arc<str>,
    generation: u32,
}

impl ConnectionRecord {
    /// What the next image has to know of it.
    pub(in crate::proxy) fn saved(&self) -> SavedRecord {
        SavedRecord {
            listener: Arc::clone(self.listener.name()),
            peer: self.peer.into(),
            accepted: Moment::of(self.accepted.into()),
            client: self.journey.detour().client,
            journey: self.journey.saved(),
            up: self.traffic.up,
            down: self.traffic.down,
            requests: self.requests.into(),
        }
    }

    /// The same again, counted in its slot where that is still in the table.
    pub(in crate::proxy) fn resumed(
        saved: SavedRecord,
        listener: Arc<Listener>,
        snapshot: &Snapshot,
    ) -> Self {
        let mut journey = Journey::resumed(saved.journey, snapshot);
        if saved.client.is_some() {
            journey.detour_mut().client = saved.client;
        }
        Self {
            listener,
            peer: saved.peer.into(),
            accepted: saved.accepted.instant().into(),
            journey,
            traffic: Traffic {
                up: saved.up,
                down: saved.down,
            },
            requests: u32::try_from(saved.requests).unwrap_or(u32::MAX),
            reason: None,
        }
    }
}

impl Journey {
    /// What the next image has to know of it.
    pub(in crate::proxy) fn saved(&self) -> SavedJourney {
        let home = self.home.as_ref();
        let Detour {
            passed,
            held,
            queued,
            ..
        } = self.detour();
        SavedJourney {
            home: home.map(|home| SavedHome {
                slot: Arc::clone(&home.slot.name),
                generation: home.generation(),
            }),
            passed: passed.clone(),
            held: *held,
            queued: *queued,
        }
    }

    /// The same again, counted in its slot where that is still in the table.
    pub(in crate::proxy) fn resumed(saved: SavedJourney, snapshot: &Snapshot) -> Self {
        let home = saved.home.and_then(|home| {
            let entry = snapshot.entry(&home.slot)?;
            let backend = entry.serving(Some(home.generation))?;
            Some(Home::enter(Arc::clone(&entry.slot), Arc::clone(backend)))
        });
        // Where seats are counted it has one, unless there are fewer than before.
        let limited = snapshot.config.balance.capacity.is_some();
        let seat = home.as_ref().filter(|_| limited);
        let seat = seat.and_then(|home| Seat::take(&home.slot.stats));
        let detour = Detour {
            passed: saved.passed,
            held: saved.held,
            queued: saved.queued,
            seat,
            ..Detour::default()
        };
        let has_waited = !(detour.held + detour.queued).is_zero();
        let is_one = has_waited || detour.passed.is_some() || detour.seat.is_some();
        Self {
            home,
            detour: is_one.then(|| Box::new(detour)),
        }
    }
}
