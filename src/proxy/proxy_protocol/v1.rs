//! Version 1, the line of text (section 2.1).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use super::{Command, Header, Parse, ProxyError, Transport};
use crate::config::ProxyVersion;

/// The longest line, CRLF included.
pub(super) const LONGEST: usize = 107;
/// The shortest line, `"PROXY UNKNOWN\r\n"`.
pub(super) const SHORTEST: usize = 15;

const BEGINNING: &[u8] = b"PROXY ";

pub(super) fn parse(buf: &[u8]) -> Result<Parse, ProxyError> {
    let window = &buf[..buf.len().min(LONGEST)];
    let Some(rest) = window.strip_prefix(BEGINNING) else {
        return if BEGINNING.starts_with(window) {
            Ok(incomplete(window))
        } else {
            Err(ProxyError::NotProxy)
        };
    };
    check_keyword(rest)?;
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let Some(end) = rest.iter().position(is_end) else {
        return more(window);
    };
    match &rest[end..] {
        [b'\r'] => more(window),
        [b'\r', b'\n', ..] => Ok(Parse::Complete {
            header: decode(&rest[..end])?,
            len: BEGINNING.len() + end + 2,
        }),
        _ => Err(ProxyError::V1LineEnd),
    }
}

/// Fails as soon as the protocol can be none of those that exist.
fn check_keyword(rest: &[u8]) -> Result<(), ProxyError> {
    let keywords: [&[u8]; 4] = [b"TCP4 ", b"TCP6 ", b"UNKNOWN ", b"UNKNOWN\r"];
    let fits = |keyword: &&[u8]| rest.starts_with(keyword) || keyword.starts_with(rest);
    if keywords.iter().any(fits) {
        Ok(())
    } else {
        Err(ProxyError::V1Protocol)
    }
}

fn more(window: &[u8]) -> Result<Parse, ProxyError> {
    if window.len() < LONGEST {
        Ok(incomplete(window))
    } else {
        Err(ProxyError::V1TooLong)
    }
}

fn incomplete(window: &[u8]) -> Parse {
    let end = if window.ends_with(b"\r") { 1 } else { 2 };
    Parse::Incomplete {
        at_least: SHORTEST.saturating_sub(window.len()).max(end),
    }
}

/// Decodes what stands between `"PROXY "` and the CRLF.
fn decode(line: &[u8]) -> Result<Header, ProxyError> {
    if line.starts_with(b"UNKNOWN") {
        let version = ProxyVersion::V1;
        return Ok(Header::unknown(version, Command::Proxy, Transport::Unknown));
    }
    let mut fields = line.split(|byte| *byte == b' ');
    let mut field = || fields.next().ok_or(ProxyError::V1Fields);
    let [protocol, source, destination, source_port, destination_port] =
        [field()?, field()?, field()?, field()?, field()?];
    if fields.next().is_some() {
        return Err(ProxyError::V1Fields);
    }
    let ip = match protocol {
        b"TCP4" => |field| address::<Ipv4Addr>(field),
        _ => |field| address::<Ipv6Addr>(field),
    };
    let source = SocketAddr::new(ip(source)?, port(source_port)?);
    let destination = SocketAddr::new(ip(destination)?, port(destination_port)?);
    Header::tcp(ProxyVersion::V1, source, destination)
}

/// The standard library's grammar is the specification's: no leading zeros in IPv4, up to four
/// hexadecimal digits between the colons of IPv6, no zone.
fn address<A: FromStr + Into<IpAddr>>(field: &[u8]) -> Result<IpAddr, ProxyError> {
    let parsed = str::from_utf8(field)
        .ok()
        .and_then(|text| text.parse().ok());
    let address: Option<A> = parsed;
    address
        .map(Into::into)
        .ok_or_else(|| ProxyError::V1Address(String::from_utf8_lossy(field).into_owned()))
}

fn port(field: &[u8]) -> Result<u16, ProxyError> {
    let canonical = match field {
        [b'0'] => true,
        [first, rest @ ..] => matches!(first, b'1'..=b'9') && rest.iter().all(u8::is_ascii_digit),
        [] => false,
    };
    let digits = str::from_utf8(field).ok().filter(|_| canonical);
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| ProxyError::V1Port(String::from_utf8_lossy(field).into_owned()))
}
