//! Version 2, the binary header (section 2.2).

use std::net::{IpAddr, SocketAddr};

use super::{Command, Header, MAX_HEADER, Parse, ProxyError, Transport};
use crate::config::ProxyVersion;

/// What every header of version 2 begins with.
pub(super) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length of the rest.
pub(super) const FIXED: usize = 16;
/// The type of the TLV that holds the CRC-32c (section 2.2.3).
pub(super) const TYPE_CRC32C: u8 = 0x03;
/// The bytes of a TLV before its value.
pub(super) const TLV_FIXED: usize = 3;

pub(super) fn parse(buf: &[u8]) -> Result<Parse, ProxyError> {
    let Some((signature, rest)) = buf.split_first_chunk() else {
        return if SIGNATURE.starts_with(buf) {
            Ok(incomplete(buf, FIXED))
        } else {
            Err(ProxyError::NotProxy)
        };
    };
    if *signature != SIGNATURE {
        return Err(ProxyError::NotProxy);
    }
    let command = rest.first().map(|byte| command(*byte)).transpose()?;
    let transport = match (command, rest.get(1)) {
        (Some(Command::Proxy), Some(byte)) => transport(*byte)?,
        _ => Transport::Unknown,
    };
    let (Some(command), [_, _, high, low, ..]) = (command, rest) else {
        return Ok(incomplete(buf, FIXED));
    };
    let len = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    check_length(len, transport)?;
    let Some(whole) = buf.get(..len) else {
        return Ok(incomplete(buf, len));
    };
    let header = decode(whole, command, transport)?;
    Ok(Parse::Complete { header, len })
}

const fn incomplete(buf: &[u8], len: usize) -> Parse {
    Parse::Incomplete {
        at_least: len - buf.len(),
    }
}

const fn command(byte: u8) -> Result<Command, ProxyError> {
    match (byte >> 4, byte & 0xf) {
        (2, 0) => Ok(Command::Local),
        (2, 1) => Ok(Command::Proxy),
        (2, other) => Err(ProxyError::V2Command(other)),
        (other, _) => Err(ProxyError::V2Version(other)),
    }
}

const fn transport(byte: u8) -> Result<Transport, ProxyError> {
    match (byte >> 4, byte & 0xf) {
        (1, 1) => Ok(Transport::Tcp4),
        (2, 1) => Ok(Transport::Tcp6),
        (3, 1) => Ok(Transport::Unix),
        (0..=3, 2) => Err(ProxyError::V2Datagram(byte)),
        (0, 0 | 1) | (1..=3, 0) => Ok(Transport::Unknown),
        _ => Err(ProxyError::V2Family(byte)),
    }
}

/// The bytes that the addresses of a transport take.
const fn addresses(transport: Transport) -> usize {
    match transport {
        Transport::Tcp4 => 2 * 4 + 2 * 2,
        Transport::Tcp6 => 2 * 16 + 2 * 2,
        Transport::Unix => 2 * 108,
        Transport::Unknown => 0,
    }
}

const fn check_length(len: usize, transport: Transport) -> Result<(), ProxyError> {
    if len > MAX_HEADER {
        return Err(ProxyError::V2TooLong { len });
    }
    let (len, need) = (len - FIXED, addresses(transport));
    if len < need {
        return Err(ProxyError::V2TooShort { len, need });
    }
    Ok(())
}

/// Decodes a whole header. What a local or unknown one carries is skipped unread, as the
/// specification has it: where its TLVs would begin is not defined.
fn decode(whole: &[u8], command: Command, transport: Transport) -> Result<Header, ProxyError> {
    let version = ProxyVersion::V2;
    if transport == Transport::Unknown {
        return Ok(Header::unknown(version, command, transport));
    }
    check_tlvs(whole, FIXED + addresses(transport))?;
    let block = &whole[FIXED..];
    let (source, destination) = match transport {
        Transport::Tcp4 => endpoints::<4>(block),
        Transport::Tcp6 => endpoints::<16>(block),
        Transport::Unix | Transport::Unknown => {
            return Ok(Header::unknown(version, command, transport));
        }
    };
    Header::tcp(version, source, destination)
}

/// Two addresses of `N` bytes and two ports; the length has been checked.
fn endpoints<const N: usize>(mut block: &[u8]) -> (SocketAddr, SocketAddr)
where
    IpAddr: From<[u8; N]>,
{
    let [source, destination] = [take::<N>(&mut block), take::<N>(&mut block)].map(IpAddr::from);
    let ports = [take(&mut block), take(&mut block)].map(u16::from_be_bytes);
    let [source_port, destination_port] = ports;
    (
        SocketAddr::new(source, source_port),
        SocketAddr::new(destination, destination_port),
    )
}

fn take<const N: usize>(block: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = block
        .split_first_chunk()
        .expect("the length of the address block has been checked");
    *block = rest;
    *taken
}

/// Walks the TLVs, which fill a header from `at` to its end, and checks the CRC-32c if there is
/// one. The others mean nothing to us.
fn check_tlvs(whole: &[u8], mut at: usize) -> Result<(), ProxyError> {
    let mut crc = None;
    while at < whole.len() {
        let overrun = ProxyError::V2Tlv { at };
        let [kind, high, low, rest @ ..] = &whole[at..] else {
            return Err(overrun);
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..len).ok_or(overrun)?;
        at += TLV_FIXED + len;
        if *kind == TYPE_CRC32C {
            let value: [u8; 4] = value
                .try_into()
                .map_err(|_| ProxyError::V2CrcLength { len })?;
            if crc.replace((at - len, value)).is_some() {
                return Err(ProxyError::V2CrcTwice);
            }
        }
    }
    let Some((place, value)) = crc else {
        return Ok(());
    };
    let said = u32::from_be_bytes(value);
    let computed = checksum(whole, place);
    if said != computed {
        return Err(ProxyError::V2Crc { said, computed });
    }
    Ok(())
}

/// The CRC-32c of a header with the four bytes at `place` taken for zeros.
pub(super) fn checksum(whole: &[u8], place: usize) -> u32 {
    let before = crc32c::crc32c(&whole[..place]);
    let zeros = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(zeros, &whole[place + 4..])
}
