//! Headers good and bad, whole and in pieces.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::{
    Command, Header, MAX_HEADER, MAX_WRITTEN, Parse, ProxyError, Transport, parse, v2, write,
    write_v1, write_v2,
};
use crate::config::ProxyVersion;

mod bad;
mod good;
mod written;

/// A header of version 2 with the right length.
fn binary(version_command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = v2::SIGNATURE.to_vec();
    header.extend([version_command, family]);
    header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    header.extend(payload);
    header
}

/// The addresses of a TCP over IPv4 header: 192.0.2.1:56324 to 198.51.100.7:443.
const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];

/// The addresses of a TCP over IPv6 header: [2001:db8::1]:56324 to [2001:db8::7]:443.
const V6: [u8; 36] = [
    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, //
    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, //
    0xdc, 0x04, 0x01, 0xbb,
];

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &len[..], value].concat()
}

/// TCP over IPv4 with TLVs.
fn with_tlvs(tlvs: &[Vec<u8>]) -> Vec<u8> {
    binary(0x21, 0x11, &[&V4[..], &tlvs.concat()].concat())
}

/// The same with a right CRC-32c as the last TLV.
fn with_crc(tlvs: &[Vec<u8>]) -> Vec<u8> {
    let tlvs = [tlvs, &[tlv(v2::TYPE_CRC32C, &[0; 4])]].concat();
    let mut header = with_tlvs(&tlvs);
    let place = header.len() - 4;
    let crc = crc32c::crc32c(&header).to_be_bytes();
    header[place..].copy_from_slice(&crc);
    header
}

/// A whole header, whatever follows it and however it is cut.
#[track_caller]
fn complete(bytes: &[u8]) -> Header {
    let Ok(Parse::Complete { header, len }) = parse(bytes) else {
        panic!("{}: {:?}", bytes.escape_ascii(), parse(bytes));
    };
    assert_eq!(len, bytes.len());
    for cut in 0..len {
        let Ok(Parse::Incomplete { at_least }) = parse(&bytes[..cut]) else {
            panic!(
                "{}: {:?}",
                bytes[..cut].escape_ascii(),
                parse(&bytes[..cut])
            );
        };
        assert!(
            (1..=len - cut).contains(&at_least),
            "{at_least} after {cut} of {len}"
        );
    }
    for more in [&b"\r\n"[..], b"PROXY", &[0xff; MAX_HEADER]] {
        let longer = [bytes, more].concat();
        assert_eq!(parse(&longer), Ok(Parse::Complete { header, len }));
    }
    header
}

/// Bytes that are not a header: with this error, at whatever cut it shows.
#[track_caller]
fn refused(bytes: &[u8]) -> ProxyError {
    let Err(error) = parse(bytes) else {
        panic!("{}: {:?}", bytes.escape_ascii(), parse(bytes));
    };
    let first = (0..bytes.len()).find_map(|cut| parse(&bytes[..cut]).err());
    assert_eq!(
        first.as_ref().unwrap_or(&error),
        &error,
        "it depends on the cut"
    );
    error
}
