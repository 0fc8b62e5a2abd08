//! Carries a WebSocket until it is over, and says goodbye when it has to go.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    carriage::Carriage,
    frame::{Direction, Tracker},
};
use crate::{
    config::Drain,
    proxy::{
        http::{
            deadline::{Deadline, NEVER},
            out::Out,
            record::Outcome,
        },
        record::Traffic,
        registry::{self, Farewell, Leaving},
        relay::Side,
    },
};

/// For the other side to end too, once one has ended or all is said.
pub(super) const LAST: Duration = Duration::from_secs(1);

/// A WebSocket between two of its moments.
#[derive(Debug)]
pub(in super::super) struct Tunnel {
    pub(super) to_up: Out,
    pub(super) to_down: Out,
    pub(super) upward: Tracker,
    pub(super) downward: Tracker,
    pub(super) client_ended: bool,
    pub(super) backend_ended: bool,
    pub(super) phase: Phase,
    /// Who sent the first Close frame, and its status code.
    pub(super) first_close: Option<(&'static str, Option<u16>)>,
    /// Why it was asked to go, if it was.
    pub(super) asked: Option<Leaving>,
    pub(super) traffic: Traffic,
    /// Until when something has to happen; set when it begins.
    pub(super) patience: Option<Instant>,
}

/// What a WebSocket is carried by.
#[derive(Debug)]
pub(in super::super) struct Conduct<'a> {
    pub(in super::super) idle: Option<Duration>,
    /// What is said when it has to go.
    pub(in super::super) drain: &'a Drain,
    pub(in super::super) farewell: &'a Farewell,
}

/// How a WebSocket ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct TunnelEnd {
    pub(in super::super) outcome: Outcome,
    /// Who sent the first Close frame, and its status code.
    pub(in super::super) closed_by: Option<&'static str>,
    pub(in super::super) code: Option<u16>,
    pub(in super::super) frames_up: u64,
    pub(in super::super) frames_down: u64,
    pub(in super::super) traffic: Traffic,
    /// Nobody is to be told by a reset.
    pub(in super::super) is_orderly: bool,
}

impl Tunnel {
    /// One that begins. `to_down` is what is left of the handshake; `from_client` and `from_backend`
    /// came before.
    pub(in super::super) fn new(to_down: Out, from_client: &[u8], from_backend: &[u8]) -> Self {
        let mut tunnel = Self {
            to_up: Out::default(),
            to_down,
            upward: Tracker::new(Direction::FromClient),
            downward: Tracker::new(Direction::FromBackend),
            client_ended: false,
            backend_ended: false,
            phase: Phase::Open,
            first_close: None,
            asked: None,
            traffic: Traffic::default(),
            patience: None,
        };
        tunnel.early(from_client, from_backend);
        tunnel
    }

    fn early(&mut self, from_client: &[u8], from_backend: &[u8]) {
        self.upward.feed(from_client);
        if !from_client.is_empty() {
            self.to_up.append(from_client);
            self.traffic.up += from_client.len() as u64;
        }
        self.downward.feed(from_backend);
        if !from_backend.is_empty() {
            self.to_down.append(from_backend);
            self.traffic.down += from_backend.len() as u64;
        }
    }

    /// Carries it until it is over. Where both sides are nothing but descriptors, it stands still when
    /// it has to, and gives nothing: it goes on from here.
    pub(in super::super) async fn run<D: Side, U: Side>(
        &mut self,
        (down, up): (&mut D, &mut U),
        conduct: Conduct<'_>,
    ) -> Option<TunnelEnd> {
        let Conduct {
            idle,
            drain,
            farewell,
        } = conduct;
        let can_be_carried = down.descriptor().is_some() && up.descriptor().is_some();
        let idle = idle.unwrap_or(NEVER);
        let patience = self.patience.unwrap_or_else(|| Instant::now() + idle);
        let mut carriage = Carriage {
            down,
            up,
            tunnel: self,
            deadline: Deadline::new(patience),
            idle,
            drain,
        };
        let mut asked = pin!(farewell.wait());
        let over = poll_fn(|cx| {
            if can_be_carried && registry::is_frozen() {
                return Poll::Ready(None);
            }
            if carriage.tunnel.asked.is_none()
                && let Poll::Ready(why) = asked.as_mut().poll(cx)
            {
                carriage.tunnel.asked = Some(why);
                if carriage.tunnel.phase == Phase::Open {
                    carriage.tunnel.phase = Phase::Leaving;
                }
            }
            carriage.poll(cx).map(Some)
        })
        .await;
        let Some((outcome, is_orderly)) = over else {
            carriage.tunnel.patience = Some(carriage.deadline.at());
            return None;
        };
        if is_orderly {
            let farewell = tokio::io::AsyncWriteExt::shutdown(carriage.down);
            // Large, and needed once.
            let _gone = Box::pin(tokio::time::timeout(LAST, farewell)).await;
        } else {
            carriage.down.reset_on_close();
        }
        let (closed_by, code) = self.first_close.unzip();
        Some(TunnelEnd {
            outcome,
            closed_by,
            code: code.flatten(),
            frames_up: self.upward.frames,
            frames_down: self.downward.frames,
            traffic: self.traffic,
            is_orderly,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Both sides are there.
    Open,
    /// It has to go as soon as the backend's frame is over.
    Leaving,
    /// We have sent the client a Close frame, and hear no more of the backend.
    Said,
    /// All is said, or one side has ended: the other one gets a moment.
    Ending,
}
