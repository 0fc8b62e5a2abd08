//! What we write is what we would accept.

use super::*;

fn text(source: Option<&str>, destination: Option<&str>) -> String {
    let mut buf = [0; MAX_WRITTEN];
    let [source, destination] = [source, destination].map(|a| a.map(|a| a.parse().unwrap()));
    String::from_utf8(write_v1(&mut buf, source, destination).to_vec()).unwrap()
}

#[test]
fn lines() {
    for (source, destination, line) in [
        (
            Some("192.168.0.1:56324"),
            Some("192.168.0.11:443"),
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        ),
        (
            Some("[2001:db8::1]:1"),
            Some("[2001:db8::7]:65535"),
            "PROXY TCP6 2001:db8::1 2001:db8::7 1 65535\r\n",
        ),
        (
            Some("192.168.0.1:1"),
            Some("[2001:db8::7]:2"),
            "PROXY TCP6 ::ffff:192.168.0.1 2001:db8::7 1 2\r\n",
        ),
        (
            Some("[2001:db8::7]:2"),
            Some("192.168.0.1:1"),
            "PROXY TCP6 2001:db8::7 ::ffff:192.168.0.1 2 1\r\n",
        ),
        (
            Some("[::ffff:192.168.0.1]:1"),
            Some("[::ffff:192.168.0.2]:2"),
            "PROXY TCP4 192.168.0.1 192.168.0.2 1 2\r\n",
        ),
        (None, Some("192.168.0.1:1"), "PROXY UNKNOWN\r\n"),
        (Some("192.168.0.1:1"), None, "PROXY UNKNOWN\r\n"),
    ] {
        assert_eq!(text(source, destination), line);
    }
}

/// Written by hand after the specification; the CRC-32c by another implementation.
#[test]
fn a_binary_header_byte_by_byte() {
    let mut buf = [0xaa; MAX_WRITTEN];
    let [source, destination] = ["192.0.2.1:56324", "198.51.100.7:443"].map(|a| a.parse().ok());
    let expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13\
        \xc0\x00\x02\x01\xc6\x33\x64\x07\xdc\x04\x01\xbb\x03\x00\x04\xd4\x5a\x11\xb9";
    assert_eq!(write_v2(&mut buf, source, destination), expected);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    assert_eq!(write_v2(&mut buf, None, destination), local);
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        any::<u32>().prop_map(|bits| IpAddr::V6(std::net::Ipv4Addr::from(bits).to_ipv6_mapped())),
    ];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        source in endpoint(), destination in endpoint(), binary: bool,
    ) {
        let version = if binary { ProxyVersion::V2 } else { ProxyVersion::V1 };
        let mut buf = [0; MAX_WRITTEN];
        let bytes = write(version, &mut buf, Some(source), Some(destination));
        match parse(bytes) {
            Ok(Parse::Complete { header, len }) => {
                prop_assert_eq!(len, bytes.len());
                prop_assert_eq!(header.version, version);
                let both = [header.source.unwrap(), header.destination.unwrap()];
                prop_assert_eq!(both.map(|a| a.ip().to_canonical()),
                    [source, destination].map(|a| a.ip().to_canonical()));
                prop_assert_eq!(both.map(|a| a.port()), [source.port(), destination.port()]);
                let plain = both.iter().all(|a| a.ip().to_canonical().is_ipv4());
                prop_assert_eq!(header.transport == Transport::Tcp4, plain);
                complete(bytes);
            }
            Ok(Parse::Incomplete { .. }) => prop_assert!(false, "what was written has no end"),
            Err(ProxyError::ImpossibleAddress(ip)) => {
                prop_assert_eq!(ip.to_canonical(), source.ip().to_canonical());
            }
            Err(error) => prop_assert_eq!((error, source.port()), (ProxyError::ImpossiblePort, 0)),
        }
    }
}
