//! The head of an HTTP message as it came in: borrowed, the same for HTTP/1 and HTTP/2.

use std::mem::MaybeUninit;

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// A header field: its name in whatever case it came, and its value without space around it.
pub(super) type Field<'a> = httparse::Header<'a>;

/// Room for the fields of a head.
pub(super) type Room<'a> = [MaybeUninit<Field<'a>>; MAX_FIELDS];

/// Fields that can be held in one head at all; a listener's limit is at most this.
pub(super) const MAX_FIELDS: usize = crate::config::MAX_HEADERS;

/// The version that a message speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Version {
    /// HTTP/1.0: one request a connection, unless agreed otherwise.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2: no hop-by-hop fields, and bodies end by themselves.
    Http2,
}

/// The head of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHead<'a> {
    pub(super) version: Version,
    pub(super) method: &'a str,
    /// The target as it was sent, in whichever form; of HTTP/2 the `:path`.
    pub(super) target: &'a str,
    /// The `:authority` of HTTP/2.
    pub(super) authority: Option<&'a str>,
    /// The `:protocol` of HTTP/2 (RFC 8441).
    pub(super) protocol: Option<&'a str>,
    /// Of HTTP/2: a body follows, whether or not its length is told.
    pub(super) has_body: bool,
    pub(super) fields: &'a [Field<'a>],
}

/// The head of a backend's response.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseHead<'a> {
    pub(super) version: Version,
    pub(super) status: u16,
    pub(super) reason: &'a str,
    pub(super) fields: &'a [Field<'a>],
}

/// A backend said something that is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotHttp;

impl<'a> RequestHead<'a> {
    /// Reads a whole HTTP/1 head (RFC 9112 §3 and §5) of at most `limit` fields.
    pub(super) fn parse(
        bytes: &'a [u8],
        room: &'a mut Room<'a>,
        limit: usize,
    ) -> Result<Self, Refusal> {
        let mut request = httparse::Request::new(&mut []);
        let room = &mut room[..limit.min(MAX_FIELDS)];
        match request.parse_with_uninit_headers(bytes, room) {
            Ok(httparse::Status::Complete(len)) if len == bytes.len() => {}
            // Its end was found before: what ends elsewhere has two readings.
            Ok(_) => return Err(Refusal::BAD_REQUEST),
            Err(httparse::Error::TooManyHeaders) => return Err(Refusal::FIELDS),
            Err(httparse::Error::Version) => return Err(Refusal::VERSION),
            Err(_) => return Err(Refusal::BAD_REQUEST),
        }
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(Refusal::BAD_REQUEST);
        };
        Ok(Self {
            version: version(minor),
            method,
            target,
            authority: None,
            protocol: None,
            has_body: false,
            fields: request.headers,
        })
    }
}

impl<'a> ResponseHead<'a> {
    /// Reads a whole HTTP/1 head (RFC 9112 §4 and §5).
    pub(super) fn parse(bytes: &'a [u8], room: &'a mut Room<'a>) -> Result<Self, NotHttp> {
        let mut response = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let parsed = parser.parse_response_with_uninit_headers(&mut response, bytes, room);
        if parsed != Ok(httparse::Status::Complete(bytes.len())) {
            return Err(NotHttp);
        }
        let (Some(status), Some(minor)) = (response.code, response.version) else {
            return Err(NotHttp);
        };
        Ok(Self {
            version: version(minor),
            status,
            reason: response.reason.unwrap_or_default(),
            fields: response.headers,
        })
    }
}

const fn version(minor: u8) -> Version {
    match minor {
        0 => Version::Http10,
        _ => Version::Http11,
    }
}
