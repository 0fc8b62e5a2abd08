//! A request that was judged: what it means, without a second reading, and how it goes on.

use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::{self, handshake::derive_accept_key};

use super::{
    body::Framing,
    fields::{self, ConnectionOptions, Kind, is_named_by_connection, list},
    head::{Field, RequestHead, Version},
    refusal::Refusal,
};

/// A request that can be passed on.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub(super) head: RequestHead<'a>,
    /// Host and port, from wherever the request has them; empty when it has none (HTTP/1.0).
    pub(super) host: &'a str,
    /// Path and query, or `*`.
    pub(super) target: &'a str,
    pub(super) terms: Terms,
    /// The only `X-Request-Id`.
    pub(super) id: Option<&'a [u8]>,
    names_fields: bool,
}

/// What has to be known of a request while it is carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Terms {
    pub(super) version: Version,
    pub(super) framing: Framing,
    pub(super) is_head: bool,
    /// It can be sent again when nobody knows whether it was processed (RFC 9110 §9.2.2).
    pub(super) is_idempotent: bool,
    /// The client wants to send further requests on this connection.
    pub(super) keep_alive: bool,
    /// It waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// It asks for a WebSocket.
    pub(super) websocket: Option<Handshake>,
}

/// The handshake of a WebSocket (RFC 6455 §4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Handshake {
    /// What the backend must accept it with.
    pub(super) accept: String,
    /// The key, when it is ours: an HTTP/2 client sends none (RFC 8441 §5).
    key: Option<String>,
}

impl<'a> Request<'a> {
    /// Judges a head.
    pub(super) fn judge(head: RequestHead<'a>) -> Result<Self, Refusal> {
        let is_http2 = head.version == Version::Http2;
        let Gathered {
            host,
            length,
            transfer,
            upgrade,
            connection,
            expects_continue,
            ids,
        } = Gathered::of(&head)?;
        let framing = match (transfer, length) {
            (Some(_), Some(_)) => return Err(Refusal::LENGTH),
            (Some(_), None) if head.version != Version::Http11 => return Err(Refusal::TRANSFER),
            (Some(coding), None) => chunked(coding)?,
            (None, Some(length)) => Framing::Length(length),
            (None, None) if is_http2 && head.has_body => Framing::Chunked,
            (None, None) => Framing::None,
        };
        let asks_by_connect = head.protocol == Some("websocket");
        if head.method == "CONNECT" && !asks_by_connect {
            return Err(Refusal::METHOD);
        }
        let (authority, target) = split_target(&head)?;
        let host = match (authority, head.authority, host) {
            (Some(authority), ..) => authority,
            (None, Some(authority), Some(host)) if authority != host => return Err(Refusal::HOST),
            (None, Some(authority), _) => authority,
            (None, None, Some(host)) => host,
            (None, None, None) if head.version == Version::Http10 => "",
            (None, None, None) => return Err(Refusal::HOST),
        };
        if !is_host(host) {
            return Err(Refusal::HOST);
        }
        let asks = connection.upgrade && upgrade && head.version == Version::Http11;
        let websocket = match () {
            () if asks_by_connect => Some(Handshake::new()),
            () if asks && framing.is_empty() => Some(Handshake::of(&head)?),
            () => None,
        };
        let framing = match asks_by_connect {
            true => Framing::None,
            false => framing,
        };
        let keep_alive = match head.version {
            Version::Http10 => connection.keep_alive && !connection.close,
            Version::Http11 | Version::Http2 => !connection.close,
        };
        let terms = Terms {
            version: head.version,
            framing,
            is_head: head.method == "HEAD",
            is_idempotent: matches!(
                head.method,
                "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
            ),
            // What follows an upgrade that was refused may have been meant for the new protocol.
            keep_alive: keep_alive && websocket.is_none(),
            expects_continue: expects_continue && !is_http2,
            websocket,
        };
        Ok(Self {
            head,
            host,
            target,
            terms,
            id: ids.0.filter(|_| ids.1 == 1),
            names_fields: connection.names_fields,
        })
    }

    /// Writes what the backend gets, up to and without the fields that homescar adds.
    ///
    /// `from_trusted` says whether it is believed where the request comes from.
    pub(super) fn write_head(&self, out: &mut Vec<u8>, from_trusted: bool) {
        let host = self.host;
        let method = match self.head.protocol {
            Some(_) => "GET",
            None => self.head.method,
        };
        for part in [
            method,
            " ",
            self.target,
            " HTTP/1.1\r\nHost: ",
            host,
            "\r\n",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
        for field in self.head.fields {
            let is_crumb = self.head.version == Version::Http2 && field.name == "cookie";
            let passes = match Kind::of(field.name) {
                Kind::EndToEnd => !is_crumb,
                Kind::Origin => from_trusted,
                Kind::Expect => self.terms.expects_continue,
                _ => false,
            };
            if passes
                && !(self.names_fields && is_named_by_connection(field.name, self.head.fields))
            {
                fields::write(out, field.name, field.value);
            }
        }
        self.write_cookies(out);
        self.terms.framing.write(out);
        if let Some(handshake) = &self.terms.websocket {
            out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
            if let Some(key) = &handshake.key {
                fields::write(out, "Sec-WebSocket-Key", key.as_bytes());
            }
        }
    }

    /// HTTP/2 may send each cookie by itself; HTTP/1 has one field for all (RFC 9113 §8.2.3).
    fn write_cookies(&self, out: &mut Vec<u8>) {
        if self.head.version != Version::Http2 {
            return;
        }
        let fields = self.head.fields.iter();
        let cookies = fields.filter(|field| field.name.eq_ignore_ascii_case("cookie"));
        for (index, field) in cookies.clone().enumerate() {
            let before: &[u8] = if index == 0 { b"Cookie: " } else { b"; " };
            out.extend_from_slice(before);
            out.extend_from_slice(field.value);
        }
        if cookies.count() > 0 {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// What the fields of a request say about the request itself.
#[derive(Debug, Default)]
struct Gathered<'a> {
    host: Option<&'a str>,
    length: Option<u64>,
    transfer: Option<&'a [u8]>,
    /// `Upgrade` names `websocket`.
    upgrade: bool,
    connection: ConnectionOptions,
    expects_continue: bool,
    /// The last `X-Request-Id`, and how many there are.
    ids: (Option<&'a [u8]>, usize),
}

impl<'a> Gathered<'a> {
    fn of(head: &RequestHead<'a>) -> Result<Self, Refusal> {
        let mut new = Self::default();
        for Field { name, value } in head.fields {
            match Kind::of(name) {
                Kind::Host => {
                    let host = std::str::from_utf8(value).map_err(|_| Refusal::HOST)?;
                    if new.host.replace(host).is_some() {
                        return Err(Refusal::HOST);
                    }
                }
                Kind::ContentLength => {
                    let length = fields::length(value).ok_or(Refusal::LENGTH)?;
                    if new.length.replace(length).is_some() {
                        return Err(Refusal::LENGTH);
                    }
                }
                Kind::TransferEncoding => {
                    if new.transfer.replace(value).is_some() {
                        return Err(Refusal::TRANSFER);
                    }
                }
                Kind::Upgrade => {
                    new.upgrade |=
                        list(value).any(|token| token.eq_ignore_ascii_case(b"websocket"));
                }
                Kind::Connection => new.connection.add(value),
                Kind::Expect if value.eq_ignore_ascii_case(b"100-continue") => {
                    new.expects_continue = head.version == Version::Http11;
                }
                Kind::Expect => return Err(Refusal::EXPECTATION),
                Kind::RequestId => new.ids = (Some(value), new.ids.1 + 1),
                Kind::EndToEnd | Kind::Forwarding | Kind::Origin | Kind::Stops => {}
            }
        }
        if new.connection.is_bad {
            return Err(Refusal::CONNECTION);
        }
        Ok(new)
    }
}

/// The framing of a `Transfer-Encoding`: chunked, written once and alone.
fn chunked(coding: &[u8]) -> Result<Framing, Refusal> {
    if coding.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let codings: Vec<_> = list(coding).collect();
    let known = |coding: &&[u8]| {
        let names: [&[u8]; 5] = [b"gzip", b"deflate", b"compress", b"x-gzip", b"x-compress"];
        coding.iter().all(is_token) && names.iter().any(|name| coding.eq_ignore_ascii_case(name))
    };
    match codings.split_last() {
        Some((last, others))
            if last.eq_ignore_ascii_case(b"chunked")
                && !others.is_empty()
                && others.iter().all(known) =>
        {
            Err(Refusal::CODING)
        }
        _ => Err(Refusal::TRANSFER),
    }
}

/// The authority of a target in absolute form (RFC 9112 §3.2.2), and path with query.
fn split_target<'a>(head: &RequestHead<'a>) -> Result<(Option<&'a str>, &'a str), Refusal> {
    let target = head.target;
    if !are_all(target, &OF_TARGETS) {
        return Err(Refusal::TARGET);
    }
    if target.starts_with('/') {
        return Ok((None, target));
    }
    if target == "*" && head.method == "OPTIONS" {
        return Ok((None, target));
    }
    let (scheme, rest) = target.split_once("://").ok_or(Refusal::TARGET)?;
    let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    if !is_http || head.version == Version::Http2 {
        return Err(Refusal::TARGET);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() {
        return Err(Refusal::HOST);
    }
    match path {
        "" if head.method == "OPTIONS" => Ok((Some(authority), "*")),
        "" => Ok((Some(authority), "/")),
        // What follows the host is a path or nothing; a query needs the path that it lacks.
        path if path.starts_with('?') => Err(Refusal::TARGET),
        path => Ok((Some(authority), path)),
    }
}

/// A set of characters, looked up: these are asked of every byte of every request.
type Characters = [bool; 256];

const OF_TARGETS: Characters = characters(b"!\"$%&'()*+,-./:;<=>?@[\\]^_`{|}~");
const OF_NAMES: Characters = characters(b"-._~%!$&'()*+;=");

/// Letters, digits, and these.
const fn characters(others: &[u8]) -> Characters {
    let mut set = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        set[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        set[others[at] as usize] = true;
        at += 1;
    }
    set
}

/// Looks at all of them: to stop at the first that is not would take longer for those who are.
fn are_all(text: &str, set: &Characters) -> bool {
    text.bytes()
        .fold(true, |all, byte| all & set[usize::from(byte)])
}

/// Whether it is a host with or without a port (RFC 3986 §3.2.2), or empty. No user, no space.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("", port)
        }
        None => {
            let colon = host.bytes().position(|byte| byte == b':');
            host.split_at(colon.unwrap_or(host.len()))
        }
    };
    are_all(name, &OF_NAMES)
        && match port.strip_prefix(':') {
            Some(digits) => digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()),
            None => port.is_empty(),
        }
}

impl Handshake {
    /// One that homescar makes for a client that cannot.
    fn new() -> Self {
        let key = tungstenite::handshake::client::generate_key();
        Self {
            accept: derive_accept_key(key.as_bytes()),
            key: Some(key),
        }
    }

    /// The one that a client makes (RFC 6455 §4.2.1).
    fn of(head: &RequestHead<'_>) -> Result<Self, Refusal> {
        let mut key = None;
        let mut version = None;
        for Field { name, value } in head.fields {
            let slot = match () {
                () if name.eq_ignore_ascii_case("sec-websocket-key") => &mut key,
                () if name.eq_ignore_ascii_case("sec-websocket-version") => &mut version,
                () => continue,
            };
            if slot.replace(*value).is_some() {
                return Err(Refusal::HANDSHAKE);
            }
        }
        let key = key.ok_or(Refusal::HANDSHAKE)?;
        let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
        if head.method != "GET" || key.len() != 24 || !key.iter().all(is_base64) {
            return Err(Refusal::HANDSHAKE);
        }
        match version {
            Some(b"13") => Ok(Self {
                accept: derive_accept_key(key),
                key: None,
            }),
            Some(_) => Err(Refusal::WEBSOCKET_VERSION),
            None => Err(Refusal::HANDSHAKE),
        }
    }
}
