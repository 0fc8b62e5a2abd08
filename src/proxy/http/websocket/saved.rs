//! A WebSocket between two of its moments, for the next image of the program. What makes no sense is
//! not read.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use tokio::time::Instant;

use super::{
    backlog::Backlog,
    frame::{Direction, Tracker},
    tunnel::{Party, Phase, Tunnel},
    upgraded::{Begun, Earlier, Upgraded, WebSocket},
};
use crate::{
    affinity::{AffinityKey, SlotId},
    handover::{Moment, text},
    proxy::{
        Listener, Settings,
        connect::Upstream,
        http::{
            out::Out,
            record::{RequestRecord, SavedRequest},
        },
        record::Traffic,
        registry::Leaving,
        secure::Downstream,
    },
};

/// A [`WebSocket`] without its connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::proxy) struct SavedWebSocket {
    /// The one that it goes to.
    cluster: Arc<str>,
    request: SavedRequest,
    key: u32,
    /// The slot that its client will name.
    known: Option<u64>,
    /// When and why it is to go, if it was asked to.
    leaves: Option<(Moment, Leaving)>,
    tunnel: SavedTunnel,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedTunnel {
    #[serde(with = "text")]
    to_up: Vec<u8>,
    #[serde(with = "text")]
    to_down: Vec<u8>,
    #[serde(deserialize_with = "of_client")]
    upward: Tracker,
    #[serde(deserialize_with = "of_backend")]
    downward: Tracker,
    client_ended: bool,
    backend_ended: bool,
    phase: Phase,
    first_close: Option<SavedClose>,
    asked: Option<Leaving>,
    up: u64,
    down: u64,
    patience: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedClose {
    by: Party,
    code: Option<u16>,
}

impl<D: Downstream> Upgraded<D> {
    /// What the next image has to know of it.
    pub(super) fn saved(&self) -> Option<SavedWebSocket> {
        let record = &self.connection.record;
        let request = self.brief.as_ref()?.saved(record.client());
        let ticket = &self.connection.ticket;
        // Who is in no slot has none of this.
        let stay = ticket.stay();
        let known = stay.as_ref().and_then(|stay| stay.known);
        Some(SavedWebSocket {
            cluster: Arc::clone(self.cluster.name()),
            request,
            key: stay.map_or(0, |stay| stay.key.bits()),
            known: known.map(SlotId::bits),
            leaves: ticket.said().map(|(at, why)| (Moment::of(at), why)),
            tunnel: self.tunnel.saved(self.tunnel.patience(ticket)),
        })
    }
}

impl WebSocket {
    /// The same again; nothing when its cluster is not there.
    pub(in crate::proxy) fn resumed(
        saved: SavedWebSocket,
        upstream: Upstream,
        listener: &Arc<Listener>,
        settings: &Settings,
    ) -> Option<Self> {
        let SavedWebSocket {
            cluster,
            request,
            key,
            known,
            leaves,
            tunnel,
        } = saved;
        let mut clusters = settings.clusters();
        let cluster = clusters.find(|found| *found.name() == cluster)?.clone();
        let snapshot = cluster.load();
        Some(Self {
            record: RequestRecord::resumed(request, Arc::clone(listener), &snapshot, true),
            upstream,
            begun: Begun {
                key: AffinityKey::from_bits(key),
                known: known.map(SlotId::from_bits),
                earlier: Some(Earlier {
                    leaves: leaves.map(|(at, why)| (at.instant(), why)),
                    patience: tunnel.patience.map(Moment::instant),
                }),
            },
            tunnel: Tunnel::resumed(tunnel),
            cluster,
        })
    }
}

impl Tunnel {
    fn saved(&self, patience: Option<Instant>) -> SavedTunnel {
        SavedTunnel {
            to_up: self.to_up.waiting().to_vec(),
            to_down: self.to_down.waiting().to_vec(),
            upward: self.upward.clone(),
            downward: self.downward.clone(),
            client_ended: self.client_ended,
            backend_ended: self.backend_ended,
            phase: self.phase,
            first_close: self.first_close.map(|(by, code)| SavedClose { by, code }),
            asked: self.asked,
            up: self.traffic.up,
            down: self.traffic.down,
            patience: patience.map(Moment::of),
        }
    }

    fn resumed(saved: SavedTunnel) -> Self {
        let mut tunnel = Self::new(Out::default(), &[], &[]);
        tunnel.to_up = Backlog::holding(saved.to_up);
        tunnel.to_down = Backlog::holding(saved.to_down);
        tunnel.upward = saved.upward;
        tunnel.downward = saved.downward;
        tunnel.client_ended = saved.client_ended;
        tunnel.backend_ended = saved.backend_ended;
        tunnel.phase = saved.phase;
        tunnel.first_close = saved.first_close.map(|SavedClose { by, code }| (by, code));
        tunnel.asked = saved.asked;
        tunnel.traffic = Traffic {
            up: saved.up,
            down: saved.down,
        };
        tunnel
    }
}

fn of_client<'de, D: Deserializer<'de>>(from: D) -> Result<Tracker, D::Error> {
    tracker(Direction::FromClient, from)
}

fn of_backend<'de, D: Deserializer<'de>>(from: D) -> Result<Tracker, D::Error> {
    tracker(Direction::FromBackend, from)
}

fn tracker<'de, D: Deserializer<'de>>(goes: Direction, from: D) -> Result<Tracker, D::Error> {
    let tracker = Tracker::deserialize(from)?;
    match tracker.direction() == goes {
        true => Ok(tracker),
        false => Err(D::Error::custom("frames that go the other way")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tunnel() -> Tunnel {
        let mut tunnel = Tunnel::new(Out::default(), &[0x82, 0xfe, 1], &[0x81, 2, b'h']);
        tunnel.first_close = Some((Party::Backend, None));
        tunnel.phase = Phase::Leaving;
        tunnel.asked = Some(Leaving::Home);
        tunnel
    }

    #[test]
    fn a_tunnel_goes_on_where_it_stood_still() {
        let until = Some(Instant::now() + Duration::from_secs(60));
        let saved = tunnel().saved(until);
        let text = serde_json::to_string(&saved).unwrap();
        let again: SavedTunnel = serde_json::from_str(&text).unwrap();
        assert_eq!(again, saved);
        let mut resumed = Tunnel::resumed(again);
        let patience = saved.patience.map(Moment::instant);
        assert_eq!(resumed.saved(patience), saved);
        assert_eq!(resumed.to_up.waiting(), [0x82, 0xfe, 1]);
        resumed.downward.feed(b"i");
        assert!(resumed.downward.is_between_frames());
        assert_eq!(resumed.downward.frames, 1);
        assert_eq!(resumed.first_close, Some((Party::Backend, None)));
    }

    #[test]
    fn what_makes_no_sense_is_not_read() {
        let saved = tunnel().saved(None);
        let good = serde_json::to_value(&saved).unwrap();
        let wrong = |path: &[&str], value: serde_json::Value| {
            let mut text = good.clone();
            let place = path.iter().fold(&mut text, |at, name| &mut at[*name]);
            assert_ne!(*place, value);
            *place = value;
            let read = serde_json::from_value::<SavedTunnel>(text);
            assert!(read.is_err(), "{path:?}: {read:?}");
        };
        wrong(&["upward", "direction"], "FromBackend".into());
        wrong(&["phase"], "Elsewhere".into());
        wrong(&["first_close", "by"], "nobody".into());
        wrong(&["first_close", "why"], 1.into());
        wrong(&["to_up"], "!".into());
        wrong(&["more"], 1.into());
    }
}
