//! What is known of a request that has become a WebSocket, for the next image of the program.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Outcome, RequestRecord, Version};
use crate::{
    cluster::Snapshot,
    handover::Moment,
    proxy::{
        Listener,
        record::{Journey, SavedJourney, Traffic},
    },
};

/// A [`RequestRecord`] of a WebSocket over HTTP/1.1 that is not over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct SavedRequest {
    peer: SocketAddr,
    client: Option<IpAddr>,
    began: Moment,
    line: String,
    id: String,
    journey: SavedJourney,
    key: Cow<'static, str>,
    status: u16,
}

impl RequestRecord {
    /// What the next image has to know of it.
    pub(in super::super) fn saved(&self) -> SavedRequest {
        SavedRequest {
            peer: self.peer,
            client: self.client,
            began: Moment::of(self.began),
            line: self.line.clone(),
            id: self.id.clone(),
            journey: self.journey.saved(),
            key: self.key.clone(),
            status: self.status,
        }
    }

    /// The same again.
    pub(in super::super) fn resumed(
        saved: SavedRequest,
        listener: Arc<Listener>,
        snapshot: &Snapshot,
    ) -> Self {
        Self {
            listener,
            peer: saved.peer,
            client: saved.client,
            began: saved.began.instant(),
            version: Version::Http11,
            line: saved.line,
            id: saved.id,
            journey: Journey::resumed(saved.journey, snapshot),
            key: saved.key,
            traffic: Traffic::default(),
            status: saved.status,
            outcome: Outcome::CUT,
            is_tunnel: true,
            tunnel: None,
        }
    }
}
