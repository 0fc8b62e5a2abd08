//! From a request to where it goes and what the backend is sent: the same for all versions.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, SET_COOKIE},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    super::{connect::Search, record::Home},
    body::Framing,
    cookies, fields,
    forwarded::{self, Origin},
    key::identify,
    lesson::Lesson,
    record::RequestRecord,
    refusal::Refusal,
    request::{Request, Terms},
    response::Response,
    visitor::Visitor,
};
use crate::text;
use crate::{
    affinity::{AffinityKey, SlotId, Token},
    cluster::{Cluster, Giver, Identity, Snapshot},
    config::{self, Cookie, Key},
    proxy::Settings,
};

/// A request that is ready to go.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) terms: Terms,
    pub(super) destination: Destination,
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Destination {
    cluster: Cluster,
    /// The cluster as it was configured when the request came.
    config: Arc<config::Cluster>,
    identity: Identity,
    is_encrypted: bool,
}

/// A [`Destination`] for the next image of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedDestination {
    cluster: Arc<str>,
    key: u32,
    /// Slot, generation and end.
    token: Option<(u64, u32, u64)>,
    /// Slot and generation.
    giver: Option<(u64, u32)>,
    is_nameless: bool,
    is_encrypted: bool,
}

/// The fields that homescar adds to a response.
#[derive(Debug, Default)]
pub(super) struct Extra<'a> {
    id: &'a str,
    cookie: Option<String>,
}

impl Dispatch {
    /// Decides where a request goes, and writes its head for the backend to `out`.
    pub(super) fn new(
        request: Request<'_>,
        visitor: &Visitor,
        record: &mut RequestRecord,
        out: &mut Vec<u8>,
    ) -> Result<Self, Refusal> {
        let config = &visitor.settings.config;
        if request.target.len() > config.limits.target_bytes {
            return Err(Refusal::TARGET_LENGTH);
        }
        if let (Framing::Length(length), Some(limit)) =
            (request.terms.framing, config.limits.body_bytes)
            && length > limit
        {
            return Err(Refusal::BODY);
        }
        let all = request.head.fields;
        let peer = visitor.client.ip().to_canonical();
        let origin = Origin::of(peer, visitor.is_encrypted, all, &config.trusted);
        record.comes_from(origin.client);
        let cluster = visitor
            .settings
            .cluster_for(request.host, request.target)
            .clone();
        let of_cluster = Arc::clone(&cluster.load().config);
        let secrets = match &of_cluster.affinity.key {
            Key::Cookie(_) => cluster.secrets(),
            _ => None,
        };
        let identity = identify(
            &of_cluster.affinity,
            all,
            request.target,
            origin.client,
            secrets.as_deref(),
            |id| cluster.learned().find(id, Instant::now()),
            secrets.as_ref().map_or(0, |_| now()),
        );
        record.key = identity.by.into();

        request.write_head(out, origin.from_trusted);
        forwarded::write(out, &request, visitor.client, origin);
        fields::write(out, "X-Request-Id", record.id.as_bytes());
        if let Some(certificate) = &visitor.certificate {
            // RFC 9440 §2.1: a byte sequence of structured fields.
            let text = format!(":{}:", BASE64_STANDARD.encode(certificate));
            fields::write(out, "Client-Cert", text.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        let destination = Destination {
            cluster,
            config: of_cluster,
            identity,
            is_encrypted: origin.is_encrypted,
        };
        Ok(Self {
            terms: request.terms,
            destination,
        })
    }
}

impl Destination {
    /// What the next image has to know of it.
    pub(super) fn saved(&self) -> SavedDestination {
        let Identity { token, giver, .. } = self.identity;
        SavedDestination {
            cluster: Arc::clone(self.cluster.name()),
            key: self.identity.key.bits(),
            token: token.map(|token| (token.slot.bits(), token.generation, token.expires)),
            giver: giver.map(|giver| (giver.slot.bits(), giver.generation)),
            is_nameless: self.identity.is_nameless,
            is_encrypted: self.is_encrypted,
        }
    }

    /// The same again, in the cluster as it is configured now; nothing when that is not there.
    pub(super) fn resumed(saved: &SavedDestination, settings: &Settings) -> Option<Self> {
        let mut clusters = settings.clusters();
        let cluster = clusters.find(|found| *found.name() == saved.cluster)?;
        let token = |(slot, generation, expires)| Token {
            slot: SlotId::from_bits(slot),
            generation,
            expires,
        };
        let giver = |(slot, generation)| Giver {
            slot: SlotId::from_bits(slot),
            generation,
        };
        let identity = Identity {
            key: AffinityKey::from_bits(saved.key),
            token: saved.token.map(token),
            giver: saved.giver.map(giver),
            is_nameless: saved.is_nameless,
            // The request's record has it.
            by: "",
        };
        Some(Self {
            config: Arc::clone(&cluster.load().config),
            cluster: cluster.clone(),
            identity,
            is_encrypted: saved.is_encrypted,
        })
    }

    pub(super) const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What identifies the client.
    pub(super) const fn key(&self) -> AffinityKey {
        self.identity.key
    }

    /// For the response to begin.
    pub(super) fn response_timeout(&self) -> Option<Duration> {
        self.config.response_timeout
    }

    /// Whether a response's status counts against the slot. A WebSocket may be refused as the
    /// application likes.
    pub(super) fn is_failure(&self, status: u16, terms: &Terms) -> bool {
        status >= 500 && terms.websocket.is_none() && {
            let passive = self.config.balance.passive.as_ref();
            passive.is_some_and(|passive| passive.server_errors)
        }
    }

    /// The cluster as configured now.
    pub(super) fn config(&self) -> Arc<config::Cluster> {
        Arc::clone(&self.cluster.load().config)
    }

    /// The search for the backend.
    pub(super) fn search(&self, may_hold: bool, may_reuse: bool) -> Search<'_> {
        let mut search = Search::new(&self.cluster, self.identity.key, may_hold);
        search.at_home_in(self.identity.home());
        search.reuse(may_reuse);
        search
    }

    /// What is added to the response of the backend that was found.
    pub(super) fn extra<'a>(&self, id: &'a str, home: &Home) -> Extra<'a> {
        Extra {
            id,
            cookie: self.cookie(home),
        }
    }

    /// What watches the response for the id that the client may get with it.
    pub(super) fn lesson(&self, home: &Home) -> Lesson {
        if !self.identity.is_nameless {
            return Lesson::default();
        }
        match &self.config.affinity.key {
            Key::Query(name) => {
                let giver = Giver {
                    slot: home.slot().id,
                    generation: home.generation(),
                };
                Lesson::new(&self.cluster, name, giver)
            }
            _ => Lesson::default(),
        }
    }

    /// The slot that the client will name when it comes again, if it names one.
    pub(super) fn known(&self, home: &Home) -> Option<SlotId> {
        match &self.config.affinity.key {
            Key::Cookie(config)
                if self.is_cookie_due(&self.cluster.load(), home, config, now()) =>
            {
                Some(home.slot().id)
            }
            _ => self.identity.home().map(|(slot, _)| slot),
        }
    }

    fn is_cookie_due(&self, now: &Snapshot, home: &Home, config: &Cookie, time: u64) -> bool {
        let token = self.identity.token;
        let is_known = token.is_some_and(|token| now.position_of(token.slot).is_some());
        let place = (home.slot().id, home.generation());
        cookies::is_due(token, place, is_known, time, config)
    }

    fn cookie(&self, home: &Home) -> Option<String> {
        let Key::Cookie(config) = &self.config.affinity.key else {
            return None;
        };
        let snapshot = self.cluster.load();
        let (slot, generation, now) = (home.slot().id, home.generation(), now());
        if !self.is_cookie_due(&snapshot, home, config, now) {
            return None;
        }
        let secrets = self.cluster.secrets()?;
        let is_encrypted = self.is_encrypted;
        let text = cookies::set_cookie(config, &secrets, slot, generation, now, is_encrypted);
        Some(text)
    }
}

impl Extra<'_> {
    /// As lines of the head of this response.
    pub(super) fn write(&self, out: &mut Vec<u8>, response: &Response<'_>) {
        fields::write(out, "X-Request-Id", self.id.as_bytes());
        if let Some(cookie) = &self.cookie {
            fields::write(out, "Set-Cookie", cookie.as_bytes());
            if cookies::may_be_shared(response.head.status, response.fields()) {
                fields::write(out, "Cache-Control", b"private");
            }
        }
    }

    /// As headers of HTTP/2, beside those of a backend's response of this status.
    pub(super) fn insert(&self, status: u16, headers: &mut HeaderMap) {
        if let Ok(mut id) = HeaderValue::from_str(self.id) {
            // No other response has it: it would only fill the table of fields that come again
            // (RFC 7541 §2.3.2), and be compared with all that are in there.
            id.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-request-id"), id);
        }
        let cookie = self.cookie.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(cookie)) = cookie {
            headers.append(SET_COOKIE, cookie);
            let all = headers.iter();
            let all = all.map(|(name, value)| (name.as_str(), value.as_bytes()));
            if cookies::may_be_shared(status, all) {
                headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
            }
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The request's own id, when it has one that can stand in logs, else a new one.
pub(super) fn request_id(request: &Request<'_>) -> String {
    const LONGEST: usize = 128;
    let fits = |id: &&[u8]| {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~+/=:".contains(byte);
        !id.is_empty() && id.len() <= LONGEST && id.iter().all(is_plain)
    };
    match request.id.filter(fits) {
        Some(id) => String::from_utf8_lossy(id).into_owned(),
        None => new_id(),
    }
}

/// 128 random bits.
pub(super) fn new_id() -> String {
    text::whole(fastrand::u128(..))
}
