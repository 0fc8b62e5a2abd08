//! A backend's response that was judged: where it ends, and how it goes on.

use super::{
    body::{Framing, write_length},
    fields::{self, ConnectionOptions, Kind, is_named_by_connection, list},
    head::{NotHttp, ResponseHead, Version},
    request::Terms,
};
use crate::text;

/// A response that can be passed on.
#[derive(Clone, Debug)]
pub(super) struct Response<'a> {
    pub(super) head: ResponseHead<'a>,
    pub(super) framing: Framing,
    /// The backend takes further requests on this connection.
    pub(super) keep_alive: bool,
    /// Of a response without a body that says how long one would be (HEAD, 304).
    length: Option<u64>,
    names_fields: bool,
}

impl<'a> Response<'a> {
    /// Judges a head (RFC 9112 §6.3). What a backend says that can be read in two ways, or was
    /// not asked for, is no response.
    pub(super) fn judge(head: ResponseHead<'a>, terms: &Terms) -> Result<Self, NotHttp> {
        let mut connection = ConnectionOptions::default();
        let mut length = None;
        let mut transfer = None;
        let mut upgrades = 0;
        let mut accepted = None;
        for field in head.fields {
            match Kind::of(field.name) {
                Kind::Connection => connection.add(field.value),
                Kind::ContentLength => {
                    let new = fields::length(field.value).ok_or(NotHttp)?;
                    if length.replace(new).is_some() {
                        return Err(NotHttp);
                    }
                }
                Kind::TransferEncoding if transfer.is_some() => return Err(NotHttp),
                Kind::TransferEncoding => transfer = Some(field.value),
                Kind::Upgrade => {
                    let websockets =
                        list(field.value).filter(|t| t.eq_ignore_ascii_case(b"websocket"));
                    upgrades += websockets.count();
                }
                _ if field.name.eq_ignore_ascii_case("sec-websocket-accept") => {
                    accepted = Some(field.value);
                }
                _ => {}
            }
        }
        if head.status < 100 || connection.is_bad || (length.is_some() && transfer.is_some()) {
            return Err(NotHttp);
        }
        if head.status == 101 {
            let wanted = terms
                .websocket
                .as_ref()
                .map(|handshake| handshake.accept.as_bytes());
            if wanted.is_none() || accepted != wanted || upgrades != 1 || !connection.upgrade {
                return Err(NotHttp);
            }
        }
        let framing = match (transfer, length) {
            _ if is_without_body(head.status, terms.is_head) => Framing::None,
            (Some(coding), _) => {
                let is_chunked = coding.eq_ignore_ascii_case(b"chunked");
                if !is_chunked || head.version == Version::Http10 {
                    return Err(NotHttp);
                }
                Framing::Chunked
            }
            (None, Some(length)) => Framing::Length(length),
            (None, None) => Framing::UntilClose,
        };
        let keep_alive = match head.version {
            Version::Http10 => connection.keep_alive && !connection.close,
            Version::Http11 | Version::Http2 => !connection.close,
        };
        Ok(Self {
            head,
            framing,
            keep_alive: keep_alive && framing != Framing::UntilClose,
            // RFC 9110 §8.6: of these there is none to tell.
            length: length.filter(|_| !matches!(head.status, 100..=199 | 204)),
            names_fields: connection.names_fields,
        })
    }

    /// Whether another response to the same request follows (RFC 9110 §15.2).
    pub(super) const fn is_interim(&self) -> bool {
        matches!(self.head.status, 100 | 102..=199)
    }

    /// How the body is framed for a client of this version.
    pub(super) fn framing_for(&self, version: Version) -> Framing {
        match (self.framing, version) {
            (Framing::Chunked, Version::Http10) => Framing::UntilClose,
            (Framing::UntilClose, Version::Http11) => Framing::Chunked,
            (framing, _) => framing,
        }
    }

    /// Writes the head for an HTTP/1 client, up to and without the fields that homescar adds.
    pub(super) fn write_head(&self, out: &mut Vec<u8>, framing: Framing) {
        let ResponseHead { status, reason, .. } = self.head;
        out.extend_from_slice(b"HTTP/1.1 ");
        text::decimal(out, status.into());
        for part in [" ", reason, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (name, value) in self.fields() {
            fields::write(out, name, value);
        }
        match (self.framing, self.length) {
            (Framing::None, Some(length)) => write_length(out, length),
            _ => framing.write(out),
        }
    }

    /// The fields that go on to the client.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let all = self.head.fields;
        let names_fields = self.names_fields;
        let passes = move |name: &str| {
            matches!(Kind::of(name), Kind::EndToEnd)
                && !(names_fields && is_named_by_connection(name, all))
        };
        all.iter()
            .filter(move |field| passes(field.name))
            .map(|field| (field.name, field.value))
    }

    /// The length that a response to HEAD, or one with a body, says.
    pub(super) const fn length(&self) -> Option<u64> {
        self.length
    }
}

const fn is_without_body(status: u16, is_head: bool) -> bool {
    is_head || matches!(status, 100..=199 | 204 | 304)
}
