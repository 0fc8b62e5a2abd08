//! A record of a request that has become a WebSocket, in few bytes: there are many, and they last.

use std::{
    borrow::Cow,
    mem,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::time::Instant;

use super::{Outcome, RequestRecord, Version};
use crate::proxy::{
    Listener,
    record::{Journey, Traffic},
};

/// A [`RequestRecord`] without what its connection knows, and without its end. Whoever has it makes a
/// record of it again, in any case: that is what is written.
#[derive(Debug)]
pub(in super::super) struct Brief {
    pub(super) began: Instant,
    pub(in super::super) journey: Journey,
    /// The id, so many bytes of it, and behind it what was asked for.
    text: Box<str>,
    id_len: u16,
    pub(super) status: u16,
    pub(super) key: Cow<'static, str>,
    pub(super) client: Option<IpAddr>,
    pub(super) version: Version,
}

impl RequestRecord {
    /// The same in few bytes.
    pub(in super::super) fn brief(mut self) -> Brief {
        self.is_moved = true;
        let id_len = u16::try_from(self.id.len()).unwrap_or_default();
        let mut text = mem::take(&mut self.id);
        text.reserve_exact(self.line.len());
        text.push_str(&self.line);
        Brief {
            began: self.began,
            journey: mem::take(&mut self.journey),
            text: text.into(),
            id_len,
            status: self.status,
            key: mem::take(&mut self.key),
            client: self.client,
            version: self.version,
        }
    }
}

impl Brief {
    /// The id, and what was asked for.
    pub(super) fn text(&self) -> (&str, &str) {
        self.text.split_at(self.id_len.into())
    }

    /// The record again, of a request that came by this listener and from this peer.
    pub(in super::super) fn record(
        self,
        listener: Arc<Listener>,
        peer: SocketAddr,
    ) -> RequestRecord {
        let (id, line) = self.text();
        let (id, line) = (id.to_owned(), line.to_owned());
        RequestRecord {
            listener,
            peer,
            client: self.client,
            began: self.began,
            version: self.version,
            line,
            id,
            journey: self.journey,
            key: self.key,
            traffic: Traffic::default(),
            status: self.status,
            outcome: Outcome::CUT,
            is_tunnel: true,
            tunnel: None,
            is_moved: false,
        }
    }
}
