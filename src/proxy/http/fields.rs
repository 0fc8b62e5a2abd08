//! What header fields mean to a proxy, by their names.

use super::head::Field;

/// What a proxy does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Passes it on as it is.
    EndToEnd,
    /// `Connection`.
    Connection,
    /// `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// `Host`.
    Host,
    /// `Upgrade`.
    Upgrade,
    /// `Expect`.
    Expect,
    /// Says where a request came from: believed and passed on from trusted peers only.
    Forwarding,
    /// Says it too, but homescar does not add to it.
    Origin,
    /// `X-Request-Id`.
    RequestId,
    /// For the next hop only, or what only homescar may say: goes no further.
    Stops,
}

impl Kind {
    /// The kind of a field. A name that differs from a known one by `_` for `-` goes no further:
    /// to programs that are given fields as variables (CGI, WSGI) the two are one.
    pub(super) fn of(name: &str) -> Self {
        // Most names are none of these, and differ in their length or at once.
        let likely: &[(&str, Self)] = match name.len() {
            2 => &[("te", Self::Stops)],
            4 => &[("host", Self::Host)],
            // `Proxy` becomes the variable HTTP_PROXY of a CGI program.
            5 => &[("proxy", Self::Stops)],
            6 => &[("expect", Self::Expect)],
            7 => &[("upgrade", Self::Upgrade)],
            9 => &[("forwarded", Self::Forwarding), ("x-real-ip", Self::Origin)],
            10 => &[
                ("connection", Self::Connection),
                ("keep-alive", Self::Stops),
            ],
            11 => &[("client-cert", Self::Stops)],
            12 => &[("x-request-id", Self::RequestId)],
            14 => &[
                ("content-length", Self::ContentLength),
                ("http2-settings", Self::Stops),
            ],
            15 => &[("x-forwarded-for", Self::Forwarding)],
            16 => &[
                ("x-forwarded-host", Self::Forwarding),
                ("x-forwarded-port", Self::Origin),
                ("proxy-connection", Self::Stops),
            ],
            17 => &[
                ("transfer-encoding", Self::TransferEncoding),
                ("x-forwarded-proto", Self::Forwarding),
                ("client-cert-chain", Self::Stops),
            ],
            18 => &[
                ("x-forwarded-prefix", Self::Origin),
                ("proxy-authenticate", Self::Stops),
            ],
            19 => &[("proxy-authorization", Self::Stops)],
            _ => &[],
        };
        let mut is_like_one = false;
        for (known, kind) in likely {
            let mut is_it = true;
            let mut pairs = name.bytes().zip(known.bytes());
            let is_like = pairs.all(|(byte, known)| {
                let is_same = byte.to_ascii_lowercase() == known;
                is_it &= is_same;
                is_same || (byte, known) == (b'_', b'-')
            });
            if is_like && is_it {
                return *kind;
            }
            is_like_one |= is_like;
        }
        match is_like_one {
            true => Self::Stops,
            false => Self::EndToEnd,
        }
    }
}

/// The elements of a comma-separated list, without space around them and without empty ones
/// (RFC 9110 §5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let elements = value.split(|byte| *byte == b',').map(trim);
    elements.filter(|element| !element.is_empty())
}

/// Without space and tabs around it.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Options of a connection that are looked at; each is compared with each field. More than a few
/// are nothing but work.
const MAX_OPTIONS: u8 = 16;

/// What `Connection` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnectionOptions {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// It names other fields, which go no further.
    pub(super) names_fields: bool,
    /// It names one without which the message cannot be read, or so many that it is no message
    /// that anybody wrote.
    pub(super) is_bad: bool,
    count: u8,
}

impl ConnectionOptions {
    /// Takes up one more `Connection` field.
    pub(super) fn add(&mut self, value: &[u8]) {
        for option in list(value) {
            if self.count == MAX_OPTIONS {
                self.is_bad = true;
                return;
            }
            self.count += 1;
            let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
            if is("close") {
                self.close = true;
            } else if is("keep-alive") {
                self.keep_alive = true;
            } else if is("upgrade") {
                self.upgrade = true;
            } else {
                self.names_fields = true;
                let name = std::str::from_utf8(option).unwrap_or_default();
                self.is_bad |= matches!(
                    Kind::of(name),
                    Kind::ContentLength | Kind::TransferEncoding | Kind::Host
                );
            }
        }
    }
}

/// Whether a `Connection` field names this one.
pub(super) fn is_named_by_connection(name: &str, fields: &[Field<'_>]) -> bool {
    let connections = fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("connection"));
    connections
        .flat_map(|field| list(field.value))
        .any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
}

/// The number of a `Content-Length` (RFC 9112 §6.2): digits and nothing else.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    // More digits than any body has bytes; with them all readers agree on what the number is.
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0, |length, byte| {
        let is_digit = byte.is_ascii_digit();
        is_digit.then(|| length * 10 + u64::from(byte - b'0'))
    })
}

/// Writes a field.
pub(super) fn write(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_their_likes_go_no_further() {
        assert_eq!(Kind::of("CONTENT-length"), Kind::ContentLength);
        assert_eq!(Kind::of("content_length"), Kind::Stops);
        assert_eq!(Kind::of("X_Forwarded_For"), Kind::Stops);
        assert_eq!(Kind::of("x_y"), Kind::EndToEnd);
        assert_eq!(Kind::of("a-name-that-is-longer-than-all"), Kind::EndToEnd);
    }

    #[test]
    fn a_length_is_digits() {
        assert_eq!(length(b"0"), Some(0));
        assert_eq!(length(b"007"), Some(7));
        for odd in [
            "",
            "+1",
            "-1",
            "1 ",
            "1,1",
            "0x1",
            "1.0",
            "9999999999999999999",
            "\u{661}",
        ] {
            assert_eq!(length(odd.as_bytes()), None, "{odd:?}");
        }
    }

    #[test]
    fn connection_names_fields() {
        let mut options = ConnectionOptions::default();
        options.add(b" Close ,, X-Foo\t, UPGRADE");
        assert!(options.close && options.upgrade && options.names_fields);
        assert!(!options.keep_alive && !options.is_bad);
        options.add(b"Transfer-Encoding");
        assert!(options.is_bad);
    }

    #[test]
    fn a_connection_has_few_options() {
        let mut options = ConnectionOptions::default();
        for _ in 0..MAX_OPTIONS / 2 {
            options.add(b"X-A, close");
        }
        assert!(!options.is_bad && options.close);
        options.add(b"keep-alive");
        assert!(options.is_bad);
    }
}
