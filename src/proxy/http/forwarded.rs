//! Where a request comes from, and what the backend is told of that.
//!
//! `X-Forwarded-For` goes before `Forwarded` (RFC 7239): most proxies write the first, and one
//! that writes both writes the same. Lists are read from the right, the end that the nearest proxy
//! wrote, for as long as their writers are trusted.

use std::net::{IpAddr, SocketAddr};

use super::{
    fields::{self, list, trim},
    head::{Field, Version},
    request::Request,
};
use crate::{config::Network, text};

/// Elements of a list that are looked at.
const MAX_HOPS: usize = 32;

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The client, as far as it is believed.
    pub(super) client: IpAddr,
    /// The peer is believed when it says where the request comes from.
    pub(super) from_trusted: bool,
    /// The client came over TLS, to us or to a trusted proxy.
    pub(super) is_encrypted: bool,
}

impl Origin {
    /// Of a request that came from `peer`.
    pub(super) fn of(
        peer: IpAddr,
        is_encrypted: bool,
        all: &[Field<'_>],
        trusted: &[Network],
    ) -> Self {
        let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
        let from_trusted = is_trusted(peer);
        if !from_trusted {
            return Self {
                client: peer,
                from_trusted,
                is_encrypted,
            };
        }
        let mut client = peer;
        for hop in hops(all) {
            // Beyond what cannot be read nothing is believed.
            let Some(address) = hop else { break };
            client = address;
            if !is_trusted(address) {
                break;
            }
        }
        let proto = values(all, "x-forwarded-proto").next();
        Self {
            client,
            from_trusted,
            is_encrypted: proto.map_or(is_encrypted, |proto| proto.eq_ignore_ascii_case(b"https")),
        }
    }
}

/// Writes the fields that tell the backend where a request comes from.
pub(super) fn write(out: &mut Vec<u8>, request: &Request<'_>, peer: SocketAddr, origin: Origin) {
    let all: &[Field<'_>] = match origin.from_trusted {
        true => request.head.fields,
        false => &[],
    };
    let proto = if origin.is_encrypted { "https" } else { "http" };
    let host = request.host;
    let address = peer.ip().to_canonical();

    begin_list(out, "X-Forwarded-For", all);
    text::address(out, address);
    out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
    out.extend_from_slice(proto.as_bytes());
    out.extend_from_slice(b"\r\n");
    let said = values(all, "x-forwarded-host").next();
    let said = said.unwrap_or(host.as_bytes());
    if !said.is_empty() {
        fields::write(out, "X-Forwarded-Host", said);
    }
    begin_list(out, "Forwarded", all);
    let (before, after): (&[u8], &[u8]) = match address {
        IpAddr::V4(_) => (b"for=", b";proto="),
        IpAddr::V6(_) => (b"for=\"[", b"]\";proto="),
    };
    out.extend_from_slice(before);
    text::address(out, address);
    out.extend_from_slice(after);
    out.extend_from_slice(proto.as_bytes());
    if !host.is_empty() && !host.bytes().any(|byte| matches!(byte, b'"' | b'\\')) {
        for part in [";host=\"", host, "\""] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    let via: &[u8] = match request.head.version {
        Version::Http10 => b"\r\nVia: 1.0 homescar\r\n",
        Version::Http11 => b"\r\nVia: 1.1 homescar\r\n",
        Version::Http2 => b"\r\nVia: 2 homescar\r\n",
    };
    out.extend_from_slice(via);
}

/// Writes a field up to its new last element.
fn begin_list(out: &mut Vec<u8>, name: &str, all: &[Field<'_>]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    for value in values(all, name).filter(|value| !value.is_empty()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

fn values<'a>(all: &'a [Field<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    let named = all
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name));
    named.map(|field| field.value)
}

/// The addresses that a request passed on its way, the last one first; `None` for one that cannot
/// be read.
fn hops(all: &[Field<'_>]) -> Vec<Option<IpAddr>> {
    let mut hops: Vec<_> = values(all, "x-forwarded-for")
        .flat_map(list)
        .map(address)
        .collect();
    if hops.is_empty() {
        hops = values(all, "forwarded").flat_map(forwarded).collect();
    }
    hops.reverse();
    hops.truncate(MAX_HOPS);
    hops
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let parsed: Option<IpAddr> = match bare {
        Some(bare) => bare.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6),
        None => text
            .parse()
            .or_else(|_| text.parse().map(|address: SocketAddr| address.ip()))
            .ok(),
    };
    parsed.map(|address| address.to_canonical())
}

/// The `for` of each element of a `Forwarded` field (RFC 7239 §4).
fn forwarded(value: &[u8]) -> Vec<Option<IpAddr>> {
    let elements = split_unquoted(value, b',').into_iter();
    let elements = elements.filter(|element| !trim(element).is_empty());
    let for_of = |element: &[u8]| {
        split_unquoted(element, b';').into_iter().find_map(|pair| {
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (trim(&pair[..equals]), trim(&pair[equals + 1..]));
            let value = value
                .strip_prefix(b"\"")
                .and_then(|rest| rest.strip_suffix(b"\""))
                .unwrap_or(value);
            name.eq_ignore_ascii_case(b"for").then(|| address(value))
        })
    };
    elements.map(|element| for_of(element).flatten()).collect()
}

/// Splits where the byte does not stand in quotes.
fn split_unquoted(value: &[u8], at: u8) -> Vec<&[u8]> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    let split = value.split(|byte| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match byte {
            b'\\' if is_quoted && !was_escaped => is_escaped = true,
            b'"' if !was_escaped => is_quoted = !is_quoted,
            _ => {}
        }
        *byte == at && !is_quoted
    });
    split.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<'a>(name: &'a str, value: &'a str) -> Field<'a> {
        Field {
            name,
            value: value.as_bytes(),
        }
    }

    fn client(peer: &str, all: &[Field<'_>]) -> String {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|text| {
            let (address, prefix) = text.split_once('/').unwrap();
            Network::of(address.parse().unwrap(), prefix.parse().unwrap())
        });
        let origin = Origin::of(peer.parse().unwrap(), false, all, &trusted);
        origin.client.to_string()
    }

    #[test]
    fn who_is_not_trusted_says_nothing() {
        let all = [field("X-Forwarded-For", "1.2.3.4")];
        assert_eq!(client("192.0.2.1", &all), "192.0.2.1");
    }

    #[test]
    fn the_last_address_that_is_not_trusted_is_the_client() {
        for (lists, expected) in [
            (&["1.2.3.4"][..], "1.2.3.4"),
            (&["6.6.6.6, 1.2.3.4, 10.0.0.7"], "1.2.3.4"),
            (&["6.6.6.6", "1.2.3.4 , 10.0.0.7"], "1.2.3.4"),
            (&["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
            (&["6.6.6.6, junk, 10.0.0.7"], "10.0.0.7"),
            (&["6.6.6.6, junk"], "10.0.0.1"),
            (&["[2001:db9::1]:443, 10.0.0.7:80"], "2001:db9::1"),
            (&["::ffff:1.2.3.4,"], "1.2.3.4"),
            (&[""], "10.0.0.1"),
        ] {
            let all: Vec<_> = lists
                .iter()
                .map(|list| field("x-forwarded-for", list))
                .collect();
            assert_eq!(client("10.0.0.1", &all), expected, "{lists:?}");
        }
    }

    #[test]
    fn forwarded_is_read_where_the_other_is_not_there() {
        for (list, expected) in [
            ("for=1.2.3.4", "1.2.3.4"),
            ("for=6.6.6.6;by=x, For=\"1.2.3.4:80\";proto=http", "1.2.3.4"),
            (
                "for=\"[2001:db9::1]:47011\";host=\"a,for=5.5.5.5\"",
                "2001:db9::1",
            ),
            ("for=unknown, for=10.0.0.4", "10.0.0.4"),
            ("for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
            ("for=\"1.2.3.4", "10.0.0.1"),
        ] {
            let all = [field("forwarded", list)];
            assert_eq!(client("10.0.0.1", &all), expected, "{list}");
            let both = [
                field("forwarded", list),
                field("x-forwarded-for", "7.7.7.7"),
            ];
            assert_eq!(client("10.0.0.1", &both), "7.7.7.7");
        }
    }
}
