//! What is accepted.

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn lines() {
    for (line, transport, source, destination) in [
        (
            // The example of the specification.
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            Transport::Tcp4,
            "192.168.0.1:56324",
            "192.168.0.11:443",
        ),
        (
            "PROXY TCP4 255.255.255.254 255.255.255.255 65535 65535\r\n",
            Transport::Tcp4,
            "255.255.255.254:65535",
            "255.255.255.255:65535",
        ),
        (
            "PROXY TCP4 1.1.1.1 0.0.0.0 1 0\r\n",
            Transport::Tcp4,
            "1.1.1.1:1",
            "0.0.0.0:0",
        ),
        (
            "PROXY TCP6 2001:db8::1 ::1 56324 443\r\n",
            Transport::Tcp6,
            "[2001:db8::1]:56324",
            "[::1]:443",
        ),
        (
            "PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0001 2001:DB8::7 1 2\r\n",
            Transport::Tcp6,
            "[2001:db8::1]:1",
            "[2001:db8::7]:2",
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n",
            Transport::Tcp6,
            "[::ffff:192.0.2.1]:1",
            "[::ffff:192.0.2.2]:2",
        ),
        (
            // The longest line there can be.
            "PROXY TCP6 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            Transport::Tcp6,
            "[fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
        ),
    ] {
        let expected = Header {
            version: ProxyVersion::V1,
            command: Command::Proxy,
            transport,
            source: Some(addr(source)),
            destination: Some(addr(destination)),
        };
        assert_eq!(complete(line.as_bytes()), expected, "{line:?}");
    }
}

#[test]
fn lines_of_the_unknown() {
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(107 - 16));
    for line in [
        "PROXY UNKNOWN\r\n",
        "PROXY UNKNOWN \r\n",
        "PROXY UNKNOWN 192.168.0.1 192.168.0.11 56324 443\r\n",
        "PROXY UNKNOWN ffff:f:ffff  nonsense ä \0\r\n",
        &longest,
    ] {
        let expected = Header::unknown(ProxyVersion::V1, Command::Proxy, Transport::Unknown);
        assert_eq!(complete(line.as_bytes()), expected, "{line:?}");
    }
}

#[test]
fn binary_addresses() {
    let ipv4 = complete(&binary(0x21, 0x11, &V4));
    assert_eq!(ipv4.transport, Transport::Tcp4);
    assert_eq!(ipv4.source, Some(addr("192.0.2.1:56324")));
    assert_eq!(ipv4.destination, Some(addr("198.51.100.7:443")));

    let ipv6 = complete(&binary(0x21, 0x21, &V6));
    assert_eq!(ipv6.transport, Transport::Tcp6);
    assert_eq!(ipv6.source, Some(addr("[2001:db8::1]:56324")));
    assert_eq!(ipv6.destination, Some(addr("[2001:db8::7]:443")));

    let mut mapped = V6;
    mapped[..16].copy_from_slice(
        &"::ffff:192.0.2.1"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
    );
    let mapped = complete(&binary(0x21, 0x21, &mapped));
    assert_eq!(mapped.source, Some(addr("[::ffff:192.0.2.1]:56324")));

    let unix = complete(&binary(0x21, 0x31, &[b'x'; 216]));
    assert_eq!(
        unix,
        Header::unknown(ProxyVersion::V2, Command::Proxy, Transport::Unix)
    );
}

/// The check value of CRC-32c over "123456789" is e3069283 (RFC 3720, RFC 9260 appendix A).
#[test]
fn the_checksum_is_crc_32c() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(
        v2::checksum(b"\xff\xff\xff\xff", 0),
        crc32c::crc32c(&[0; 4])
    );
}

#[test]
fn tlvs_that_are_well_formed() {
    let alpn = tlv(0x01, b"h2");
    let noop = tlv(0x04, &[0; 9]);
    let custom = tlv(0xe0, b"");
    let plain = complete(&binary(0x21, 0x11, &V4));
    for header in [
        with_tlvs(&[tlv(0x04, b"")]),
        with_tlvs(&[
            alpn.clone(),
            noop.clone(),
            custom.clone(),
            tlv(0x20, &[0; 200]),
        ]),
        with_crc(&[]),
        with_crc(&[alpn, noop.clone(), custom, noop]),
        with_tlvs(&[tlv(0x04, &[0; MAX_HEADER - 16 - 12 - 3])]),
    ] {
        assert_eq!(complete(&header), plain);
    }
    let crc_between = {
        let mut header = with_tlvs(&[tlv(v2::TYPE_CRC32C, &[0; 4]), tlv(0x04, b"pad")]);
        let crc = crc32c::crc32c(&header).to_be_bytes();
        header[16 + 12 + 3..16 + 12 + 7].copy_from_slice(&crc);
        header
    };
    assert_eq!(complete(&crc_between), plain);
    let unix = [&[0; 216][..], &tlv(0x04, b"pad")].concat();
    assert_eq!(
        complete(&binary(0x21, 0x31, &unix)).transport,
        Transport::Unix
    );
}

/// Whatever they carry is skipped.
#[test]
fn local_and_unspecified() {
    let payloads = [&[][..], &V4, &V6, &[0xff; 300], &[3, 0, 1, 0]];
    for payload in payloads {
        for family in [0x00, 0x11, 0x21, 0x31, 0x12, 0xff] {
            let local = complete(&binary(0x20, family, payload));
            assert_eq!(
                local,
                Header::unknown(ProxyVersion::V2, Command::Local, Transport::Unknown)
            );
        }
        for family in [0x00, 0x01, 0x10, 0x20, 0x30] {
            let unknown = complete(&binary(0x21, family, payload));
            assert_eq!(
                unknown,
                Header::unknown(ProxyVersion::V2, Command::Proxy, Transport::Unknown)
            );
        }
    }
}
