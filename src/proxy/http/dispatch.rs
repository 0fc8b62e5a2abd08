//! From a request to where it goes and what the backend is sent: the same for all versions.

use super::{
    super::identify,
    fields::{self, Kind},
    record::RequestRecord,
    refusal::Refusal,
    request::{Request, Terms},
    visitor::Visitor,
};
use crate::{affinity::AffinityKey, cluster::Cluster};

/// A request that is ready to go.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) terms: Terms,
    pub(super) cluster: Cluster,
    pub(super) key: AffinityKey,
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
        if let (super::body::Framing::Length(length), Some(limit)) =
            (request.terms.framing, config.limits.body_bytes)
            && length > limit
        {
            return Err(Refusal::BODY);
        }
        let from_trusted = is_trusted(visitor);
        let cluster = visitor
            .settings
            .cluster_for(request.host, request.target)
            .clone();
        let key = {
            let snapshot = cluster.load();
            identify::key(visitor.client, &snapshot.config.affinity)
        };
        request.write_head(out, from_trusted);
        fields::write(out, "X-Request-Id", record.id.as_bytes());
        Ok(Self {
            terms: request.terms,
            cluster,
            key,
        })
    }
}

fn is_trusted(visitor: &Visitor) -> bool {
    let trusted = &visitor.settings.config.trusted;
    trusted
        .iter()
        .any(|network| network.contains(visitor.client.ip()))
}

/// The request's own id, when it has one that can stand in logs, else a new one.
pub(super) fn request_id(request: &Request<'_>) -> String {
    const LONGEST: usize = 128;
    let mut ids = request
        .head
        .fields
        .iter()
        .filter(|field| Kind::of(field.name) == Kind::RequestId)
        .map(|field| field.value);
    let fits = |id: &&[u8]| {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~+/=:".contains(byte);
        !id.is_empty() && id.len() <= LONGEST && id.iter().all(is_plain)
    };
    match (ids.next().filter(fits), ids.next()) {
        (Some(id), None) => String::from_utf8_lossy(id).into_owned(),
        _ => new_id(),
    }
}

/// 128 random bits.
pub(super) fn new_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}
