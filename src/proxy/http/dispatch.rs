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
use tokio::time::Instant;

use super::{
    super::{connect::Search, record::Home, registry::Ticket},
    body::Framing,
    cookies,
    fields::{self, Kind},
    forwarded::{self, Origin},
    key::Decided,
    lesson::Lesson,
    record::RequestRecord,
    refusal::Refusal,
    request::{Request, Terms},
    response::Response,
    visitor::Visitor,
};
use crate::{
    affinity::AffinityKey,
    cluster::{Cluster, Snapshot, Stay},
    config::{self, Cookie, Key},
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
    decided: Decided,
    is_encrypted: bool,
}

/// The fields that homescar adds to a response.
#[derive(Debug, Default)]
pub(super) struct Extra {
    id: String,
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
        let decided = Decided::of(
            &cluster.load().config.affinity,
            all,
            request.target,
            origin.client,
            cluster.secrets().as_deref(),
            |id| cluster.learned().find(id, Instant::now()),
            now(),
        );
        record.key = decided.by;

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
            decided,
            is_encrypted: origin.is_encrypted,
        };
        Ok(Self {
            terms: request.terms,
            destination,
        })
    }
}

impl Destination {
    /// What identifies the client.
    pub(super) const fn key(&self) -> AffinityKey {
        self.decided.key
    }

    /// For the response to begin.
    pub(super) fn response_timeout(&self) -> Option<Duration> {
        self.cluster.load().config.response_timeout
    }

    /// Whether a response's status counts against the slot. A WebSocket may be refused as the
    /// application likes.
    pub(super) fn is_failure(&self, status: u16, terms: &Terms) -> bool {
        status >= 500 && terms.websocket.is_none() && {
            let snapshot = self.cluster.load();
            let passive = snapshot.config.balance.passive.as_ref();
            passive.is_some_and(|passive| passive.server_errors)
        }
    }

    /// The cluster as configured now.
    pub(super) fn config(&self) -> Arc<config::Cluster> {
        Arc::clone(&self.cluster.load().config)
    }

    /// The search for the backend.
    pub(super) fn search(&self, may_hold: bool, may_reuse: bool) -> Search<'_> {
        let mut search = Search::new(&self.cluster, self.decided.key, may_hold);
        let Decided { token, giver, .. } = self.decided;
        let by_token = token.map(|token| (token.slot, Some(token.generation)));
        search.at_home_in(by_token.or_else(|| giver.map(|slot| (slot, None))));
        search.reuse(may_reuse);
        search
    }

    /// What is added to the response of the backend that was found.
    pub(super) fn extra(&self, id: &str, home: &Home) -> Extra {
        Extra {
            id: id.to_owned(),
            cookie: self.cookie(home),
        }
    }

    /// What watches the response for the id that the client may get with it.
    pub(super) fn lesson(&self, home: &Home) -> Lesson {
        if !self.decided.is_nameless {
            return Lesson::default();
        }
        match &self.cluster.load().config.affinity.key {
            Key::Query(name) => Lesson::new(&self.cluster, name, home.slot().id),
            _ => Lesson::default(),
        }
    }

    /// Notes that the request has become a WebSocket.
    pub(super) fn note_tunnel(&self, home: &Home, ticket: &Ticket) {
        let stay = Arc::new(self.stay(home));
        ticket.is_tunnel(Arc::clone(&stay));
        // Only now would a look find it.
        self.cluster.note_stay(&stay);
    }

    /// What is to be known to send it home, should it come to be away.
    fn stay(&self, home: &Home) -> Stay {
        let snapshot = self.cluster.load();
        let Decided { token, giver, .. } = self.decided;
        let known = match &snapshot.config.affinity.key {
            Key::Cookie(config) if self.is_cookie_due(&snapshot, home, config, now()) => {
                Some(home.slot().id)
            }
            _ => token.map(|token| token.slot).or(giver),
        };
        Stay {
            slot: Arc::clone(&home.slot().stats),
            load: Arc::clone(home.load()),
            key: self.decided.key,
            known,
            config: Arc::clone(&snapshot.config),
            since: Instant::now(),
        }
    }

    fn is_cookie_due(&self, now: &Snapshot, home: &Home, config: &Cookie, time: u64) -> bool {
        let token = self.decided.token;
        let is_known = token.is_some_and(|token| now.position_of(token.slot).is_some());
        let place = (home.slot().id, home.generation());
        cookies::is_due(token, place, is_known, time, config)
    }

    fn cookie(&self, home: &Home) -> Option<String> {
        let snapshot = self.cluster.load();
        let Key::Cookie(config) = &snapshot.config.affinity.key else {
            return None;
        };
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

impl Extra {
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
        if let Ok(id) = HeaderValue::from_str(&self.id) {
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
    let fields = request.head.fields.iter();
    let mut ids = fields.filter(|field| Kind::of(field.name) == Kind::RequestId);
    let fits = |id: &&[u8]| {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~+/=:".contains(byte);
        !id.is_empty() && id.len() <= LONGEST && id.iter().all(is_plain)
    };
    match (ids.next().map(|field| field.value).filter(fits), ids.next()) {
        (Some(id), None) => String::from_utf8_lossy(id).into_owned(),
        _ => new_id(),
    }
}

/// 128 random bits.
pub(super) fn new_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}
