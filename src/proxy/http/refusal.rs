//! Requests that homescar answers by itself, because they cannot be passed on.

/// Why a request is not carried: the status it is answered with, and the name that shows in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) why: &'static str,
}

impl Refusal {
    /// It is no HTTP, or can be read in two ways.
    pub(super) const BAD_REQUEST: Self = Self::new(400, "bad_request");
    /// A line ends with LF alone.
    pub(super) const LINE_FEED: Self = Self::new(400, "bare_line_feed");
    /// The target has characters that some leave out, or is in no known form.
    pub(super) const TARGET: Self = Self::new(400, "bad_target");
    /// No `Host`, several of them, or one that is none.
    pub(super) const HOST: Self = Self::new(400, "bad_host");
    /// `Content-Length` is odd, comes twice, or beside `Transfer-Encoding`.
    pub(super) const LENGTH: Self = Self::new(400, "bad_length");
    /// `Transfer-Encoding` is odd, comes twice, or in HTTP/1.0.
    pub(super) const TRANSFER: Self = Self::new(400, "bad_transfer_encoding");
    /// A transfer coding other than chunked (RFC 9112 §6.1).
    pub(super) const CODING: Self = Self::new(501, "unknown_transfer_coding");
    /// The chunks of a body are not well-formed.
    pub(super) const CHUNK: Self = Self::new(400, "bad_chunk");
    /// `Connection` names a field that is needed beyond this connection, or far too many.
    pub(super) const CONNECTION: Self = Self::new(400, "bad_connection");
    /// A WebSocket handshake with something missing or wrong (RFC 6455 §4.2.1).
    pub(super) const HANDSHAKE: Self = Self::new(400, "bad_websocket_handshake");
    /// A WebSocket of another version than 13.
    pub(super) const WEBSOCKET_VERSION: Self = Self::new(426, "websocket_version");
    /// CONNECT: homescar is no forward proxy.
    pub(super) const METHOD: Self = Self::new(405, "method");
    /// Its head, or a piece of its body, did not come in time.
    pub(super) const TIMEOUT: Self = Self::new(408, "request_timeout");
    /// Its body is larger than `limits.body_bytes`.
    pub(super) const BODY: Self = Self::new(413, "body_too_large");
    /// Its target is longer than `limits.target_bytes`.
    pub(super) const TARGET_LENGTH: Self = Self::new(414, "target_too_long");
    /// It expects something else than `100-continue`.
    pub(super) const EXPECTATION: Self = Self::new(417, "expectation");
    /// Its head is larger than `limits.head_bytes`.
    pub(super) const HEAD: Self = Self::new(431, "head_too_large");
    /// It has more fields than `limits.headers`.
    pub(super) const FIELDS: Self = Self::new(431, "too_many_fields");
    /// HTTP of another version than 1.0 or 1.1.
    pub(super) const VERSION: Self = Self::new(505, "http_version");

    const fn new(status: u16, why: &'static str) -> Self {
        Self { status, why }
    }
}

/// The words beside a status that homescar sends.
pub(super) const fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
