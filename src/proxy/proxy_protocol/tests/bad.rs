//! What is refused, and as what.

use std::collections::BTreeSet;

use super::*;

const LINES: &[(&str, &[u8])] = &[
    ("not_proxy", b"GET / HTTP/1.1\r\n\r\n"),
    ("not_proxy", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("not_proxy", b"\0"),
    ("not_proxy", b"\nPROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("not_proxy", b" PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("not_proxy", b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("not_proxy", b"Proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("not_proxy", b"PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("not_proxy", b"PROXY\r\n"),
    ("not_proxy", b"PROXYTCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("not_proxy", b"POST / HTTP/1.1\r\n\r\n"),
    ("v1_protocol", b"PROXY \r\n"),
    ("v1_protocol", b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_protocol", b"PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_protocol", b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_protocol", b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_protocol", b"PROXY TCP4\r\n"),
    ("v1_protocol", b"PROXY TCP46 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_protocol", b"PROXY unknown\r\n"),
    ("v1_protocol", b"PROXY UNKNOWNS\r\n"),
    ("v1_protocol", b"PROXY UNKNOWN\n"),
    ("v1_line_end", b"PROXY UNKNOWN \n"),
    ("v1_line_end", b"PROXY UNKNOWN\rX"),
    ("v1_line_end", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n"),
    ("v1_line_end", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n"),
    ("v1_line_end", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r "),
    ("v1_line_end", b"PROXY TCP4 1.1.1.1\n2.2.2.2 1 2\r\n"),
    ("v1_fields", b"PROXY TCP4 \r\n"),
    ("v1_fields", b"PROXY TCP4 1.1.1.1\r\n"),
    ("v1_fields", b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n"),
    ("v1_fields", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n"),
    ("v1_fields", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n"),
    ("v1_fields", b"PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_fields", b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n"),
    ("v1_fields", b"PROXY TCP4 1.1.1.1\t2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 1.1.1.1 2.2.2.02 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 0x1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 16843009 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 +1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 1.1.1.1 ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 ::1 ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 localhost 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 1.1.1.1\0 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP4 \xff 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 ::1 2.2.2.2 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 [::1] ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 1::2::3 ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 1:2:3:4:5:6:7 ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 00001::1 ::1 1 2\r\n"),
    ("v1_address", b"PROXY TCP6 g::1 ::1 1 2\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 99999999999\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 00\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 0x1 2\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 http 2\r\n"),
    ("v1_port", b"PROXY TCP4 1.1.1.1 2.2.2.2  2\r\n"),
    ("impossible_port", b"PROXY TCP4 1.1.1.1 2.2.2.2 0 2\r\n"),
    ("impossible_port", b"PROXY TCP6 2001:db8::1 ::1 0 2\r\n"),
    ("impossible_address", b"PROXY TCP4 0.0.0.0 2.2.2.2 1 2\r\n"),
    (
        "impossible_address",
        b"PROXY TCP4 255.255.255.255 2.2.2.2 1 2\r\n",
    ),
    (
        "impossible_address",
        b"PROXY TCP4 224.0.0.1 2.2.2.2 1 2\r\n",
    ),
    (
        "impossible_address",
        b"PROXY TCP4 239.255.255.255 2.2.2.2 1 2\r\n",
    ),
    ("impossible_address", b"PROXY TCP6 :: ::1 1 2\r\n"),
    ("impossible_address", b"PROXY TCP6 ff02::1 ::1 1 2\r\n"),
    (
        "impossible_address",
        b"PROXY TCP6 ::ffff:0.0.0.0 ::1 1 2\r\n",
    ),
    (
        "impossible_address",
        b"PROXY TCP6 ::ffff:224.0.0.1 ::1 1 2\r\n",
    ),
    (
        "impossible_address",
        b"PROXY TCP6 ::ffff:255.255.255.255 ::1 1 2\r\n",
    ),
];

/// Headers of version 2 that are refused, made from parts.
fn binaries() -> Vec<(&'static str, Vec<u8>)> {
    let source = |ip: [u8; 4]| {
        let mut block = V4;
        block[..4].copy_from_slice(&ip);
        binary(0x21, 0x11, &block)
    };
    let mut port_0 = V6;
    port_0[32..34].fill(0);
    let mut to_nowhere = V6;
    to_nowhere[..16].fill(0);
    let mut flipped = with_crc(&[tlv(0x01, b"h2")]);
    flipped[20] ^= 1;
    let crc = || tlv(v2::TYPE_CRC32C, &[0; 4]);
    let overrun = |tlvs: &[u8]| binary(0x21, 0x11, &[&V4[..], tlvs].concat());
    vec![
        ("not_proxy", b"\r\n\r\n\0\r\nQUIT\r".to_vec()),
        ("not_proxy", b"\r\n\r\n\r\n\r\n\r\n\r\n".to_vec()),
        ("v2_version", binary(0x11, 0x11, &V4)),
        ("v2_version", binary(0x31, 0x11, &V4)),
        ("v2_version", binary(0x01, 0x11, &V4)),
        ("v2_command", binary(0x22, 0x11, &V4)),
        ("v2_command", binary(0x2f, 0x11, &V4)),
        ("v2_family", binary(0x21, 0x13, &V4)),
        ("v2_family", binary(0x21, 0x41, &V4)),
        ("v2_family", binary(0x21, 0xf0, &V4)),
        ("v2_family", binary(0x21, 0x0f, &V4)),
        ("v2_datagram", binary(0x21, 0x12, &V4)),
        ("v2_datagram", binary(0x21, 0x22, &V6)),
        ("v2_datagram", binary(0x21, 0x32, &[0; 216])),
        ("v2_datagram", binary(0x21, 0x02, &[])),
        ("v2_too_long", binary(0x21, 0x11, &[0; MAX_HEADER - 15])),
        ("v2_too_long", binary(0x21, 0x00, &[0; u16::MAX as usize])),
        ("v2_too_long", binary(0x20, 0x00, &[0; u16::MAX as usize])),
        ("v2_too_short", binary(0x21, 0x11, &V4[..11])),
        ("v2_too_short", binary(0x21, 0x11, &[])),
        ("v2_too_short", binary(0x21, 0x21, &V6[..35])),
        ("v2_too_short", binary(0x21, 0x21, &V4)),
        ("v2_too_short", binary(0x21, 0x31, &[b'x'; 215])),
        ("v2_tlv", overrun(&[4])),
        ("v2_tlv", overrun(&[4, 0])),
        ("v2_tlv", overrun(&[4, 0, 1])),
        ("v2_tlv", overrun(&[4, 0, 0, 4, 0xff, 0xff, 0])),
        ("v2_tlv", overrun(&[3, 0, 4, 0, 0, 0])),
        ("v2_crc_length", with_tlvs(&[tlv(v2::TYPE_CRC32C, &[0; 3])])),
        ("v2_crc_length", with_tlvs(&[tlv(v2::TYPE_CRC32C, &[0; 5])])),
        ("v2_crc_length", with_tlvs(&[tlv(v2::TYPE_CRC32C, &[])])),
        ("v2_crc_twice", with_tlvs(&[crc(), crc()])),
        ("v2_crc_twice", with_tlvs(&[crc(), tlv(4, b"pad"), crc()])),
        ("v2_crc", with_tlvs(&[crc()])),
        ("v2_crc", flipped),
        ("impossible_address", source([0; 4])),
        ("impossible_address", source([255; 4])),
        ("impossible_address", source([230, 1, 2, 3])),
        ("impossible_address", binary(0x21, 0x21, &to_nowhere)),
        ("impossible_port", binary(0x21, 0x21, &port_0)),
    ]
}

/// Valid, but twice it is more than a line may have.
const LONG_MAPPED: &str = "0000:0000:0000:0000:0000:ffff:255.255.255.254";

#[test]
fn every_fault_has_its_name() {
    let mut seen = BTreeSet::new();
    let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 96]].concat();
    let unknown = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 92], b"\r\n".to_vec()].concat();
    let two_long_mapped = format!("PROXY TCP6 {LONG_MAPPED} {LONG_MAPPED} 65535 65535\r\n");
    let long = [endless, unknown, two_long_mapped.into_bytes()];
    let lines = LINES.iter().map(|(label, bytes)| (*label, bytes.to_vec()));
    let cases = lines
        .chain(long.map(|bytes| ("v1_too_long", bytes)))
        .chain(binaries());
    for (label, bytes) in cases {
        let error = refused(&bytes);
        assert_eq!(error.as_label(), label, "{}: {error}", bytes.escape_ascii());
        seen.insert(label);
    }
    let all = "impossible_address impossible_port not_proxy v1_address v1_fields v1_line_end \
        v1_port v1_protocol v1_too_long v2_command v2_crc v2_crc_length v2_crc_twice v2_datagram \
        v2_family v2_tlv v2_too_long v2_too_short v2_version";
    assert!(
        seen.into_iter().eq(all.split_whitespace()),
        "a fault has no case"
    );
}

#[test]
fn messages_say_what_and_where() {
    for (bytes, message) in [
        (
            &b"PROXY TCP4 1.1.1.1 2.2.2.2 \x1b[2J 2\r\n"[..],
            r#""\u{1b}[2J" in the PROXY line is not a port"#,
        ),
        (
            b"PROXY TCP4 ::1 2.2.2.2 1 2\r\n",
            r#""::1" in the PROXY line is not an address of the family that it names"#,
        ),
        (
            b"PROXY TCP4 224.0.0.1 2.2.2.2 1 2\r\n",
            "the PROXY header says that the client is 224.0.0.1, which no client can be",
        ),
        (
            &binary(0x21, 0x00, &[0; 5000]),
            "the PROXY header announces 5016 bytes, and at most 4096 are accepted",
        ),
        (
            &binary(0x21, 0x11, &[&V4[..], &[4, 0, 0, 1, 1]].concat()),
            "the TLV at byte 31 of the PROXY header reaches beyond its end",
        ),
        (
            &binary(0x21, 0x12, &V4),
            "the PROXY header speaks of datagrams (0x12), but this is a stream",
        ),
    ] {
        assert_eq!(refused(bytes).to_string(), message);
    }
}

const BEGINNINGS: &[&[u8]] = &[
    b"",
    b"PROXY ",
    b"PROXY TCP4 1.1.1.1 ",
    b"PROXY TCP6 ::1 ",
    b"PROXY UNKNOWN ",
    &v2::SIGNATURE,
    b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00",
];

proptest! {
    #[test]
    fn nothing_panics_and_no_length_exceeds_the_buffer(
        start in prop::sample::select(BEGINNINGS),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, &rest].concat();
        let mut last = parse(&[]);
        for cut in 0..=bytes.len() {
            let now = parse(&bytes[..cut]);
            match &now {
                Ok(Parse::Complete { len, .. }) => prop_assert!(*len <= cut),
                Ok(Parse::Incomplete { at_least }) => prop_assert!(*at_least > 0 && cut < MAX_HEADER),
                Err(_) => {}
            }
            // An answer, once given, stays.
            if !matches!(last, Ok(Parse::Incomplete { .. })) {
                prop_assert_eq!(&now, &last);
            }
            last = now;
        }
    }

    /// A CRC-32c finds every error of one bit, wherever it is.
    #[test]
    fn a_flipped_bit_is_never_believed(at in 0..43_usize, bit in 0..8_u8) {
        let mut header = with_crc(&[tlv(0x04, b"12345")]);
        assert_eq!(header.len(), 43);
        header[at] ^= 1 << bit;
        let believed = matches!(
            parse(&header),
            Ok(Parse::Complete { header: Header { source: Some(_), .. }, .. })
        );
        // A TLV whose type is no longer CRC-32c is another TLV.
        prop_assert_eq!(believed, at == 36);
    }
}
