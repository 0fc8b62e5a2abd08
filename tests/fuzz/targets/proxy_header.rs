//! PROXY protocol headers: no input makes the parser panic, the answer does not depend on how
//! the bytes arrive, and what was understood can be written and understood again.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use homescar::{
    config::ProxyVersion,
    proxy::proxy_protocol::{
        Header, MAX_HEADER, MAX_WRITTEN, Parse, ProxyError, Transport, parse, write,
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    assert_eq!(arriving(bytes), whole, "it depends on how the bytes arrive");
    match whole {
        Ok(Parse::Complete { header, len }) => {
            assert!(len <= bytes.len().min(MAX_HEADER));
            assert_eq!(parse(&bytes[..len]), Ok(Parse::Complete { header, len }));
            let shorter = parse(&bytes[..len - 1]);
            assert_eq!(shorter, Ok(Parse::Incomplete { at_least: 1 }));
            again(header);
        }
        Ok(Parse::Incomplete { at_least }) => {
            assert!(at_least > 0 && bytes.len() + at_least <= MAX_HEADER);
        }
        Err(error) => {
            assert!(!error.as_label().is_empty());
            assert!(!error.to_string().contains(char::is_control), "{error}");
        }
    }
});

/// The answer to a reader that takes no more than surely belongs to the header.
fn arriving(bytes: &[u8]) -> Result<Parse, ProxyError> {
    let mut read = 0;
    loop {
        let answer = parse(&bytes[..read]);
        match answer {
            Ok(Parse::Incomplete { at_least }) if read < bytes.len() => {
                read = bytes.len().min(read + at_least);
            }
            Ok(Parse::Complete { len, .. }) => {
                assert_eq!(read, len, "more was read than belongs to the header");
                return answer;
            }
            _ => return answer,
        }
    }
}

/// Both versions carry what a header says.
fn again(header: Header) {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let mut buf = [0; MAX_WRITTEN];
        let bytes = write(version, &mut buf, header.source, header.destination);
        let Ok(Parse::Complete { header: read, len }) = parse(bytes) else {
            panic!("{header:?} was written as {}", bytes.escape_ascii());
        };
        assert_eq!(len, bytes.len());
        assert_eq!(read.version, version);
        assert_eq!(read.source.map(canonical), header.source.map(canonical));
        assert_eq!(
            read.destination.map(canonical),
            header.destination.map(canonical)
        );
        let has_addresses = matches!(header.transport, Transport::Tcp4 | Transport::Tcp6);
        assert_eq!(header.source.is_some(), has_addresses);
    }
}

fn canonical(addr: SocketAddr) -> (IpAddr, u16) {
    (addr.ip().to_canonical(), addr.port())
}
