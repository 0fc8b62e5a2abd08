//! What is known of a request over HTTP/1, for the next image of the program.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Brief, Outcome, RequestRecord, Version};
use crate::{
    cluster::Snapshot,
    handover::Moment,
    proxy::{
        Listener,
        record::{Journey, SavedJourney, Traffic},
    },
};

/// A [`RequestRecord`] of a request, or a WebSocket, over HTTP/1 that is not over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct SavedRequest {
    peer: SocketAddr,
    client: Option<IpAddr>,
    began: Moment,
    #[serde(default = "http11")]
    version: Version,
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
            version: self.version,
            line: self.line.clone(),
            id: self.id.clone(),
            journey: self.journey.saved(),
            key: self.key.clone(),
            status: self.status,
        }
    }

    /// The same again; `is_tunnel` says that it has become a WebSocket.
    pub(in super::super) fn resumed(
        saved: SavedRequest,
        listener: Arc<Listener>,
        snapshot: &Snapshot,
        is_tunnel: bool,
    ) -> Self {
        Self {
            listener,
            peer: saved.peer,
            client: saved.client,
            began: saved.began.instant(),
            version: saved.version,
            line: saved.line,
            id: saved.id,
            journey: Journey::resumed(saved.journey, snapshot),
            key: saved.key,
            traffic: Traffic::default(),
            status: saved.status,
            outcome: Outcome::CUT,
            is_tunnel,
            tunnel: None,
            is_moved: false,
        }
    }
}

impl Brief {
    /// What the next image has to know of it, of a request that came from this peer.
    pub(in super::super) fn saved(&self, peer: SocketAddr) -> SavedRequest {
        let (id, line) = self.text();
        SavedRequest {
            peer,
            client: self.client,
            began: Moment::of(self.began),
            version: self.version,
            line: line.to_owned(),
            id: id.to_owned(),
            journey: self.journey.saved(),
            key: self.key.clone(),
            status: self.status,
        }
    }
}

/// That of all that images of the format before have saved.
const fn http11() -> Version {
    Version::Http11
}
