//! What can be wrong with a header.

use std::net::IpAddr;

use thiserror::Error;

use super::MAX_HEADER;

/// Why bytes are not a PROXY protocol header.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProxyError {
    /// Neither version begins like this.
    #[error(
        "the connection does not begin with a PROXY protocol header: its sender must send one \
         (HAProxy: send-proxy), or accept_proxy be off for this listener"
    )]
    NotProxy,
    /// Version 1: the line does not end within the 107 bytes that it may have.
    #[error("the PROXY line does not end within {} bytes", super::v1::LONGEST)]
    V1TooLong,
    /// Version 1: CR without LF, or LF without CR.
    #[error("the PROXY line contains a CR or LF that is not part of a CRLF")]
    V1LineEnd,
    /// Version 1: neither `TCP4` nor `TCP6` nor `UNKNOWN`.
    #[error("the PROXY line names a protocol other than TCP4, TCP6 and UNKNOWN")]
    V1Protocol,
    /// Version 1: not two addresses and two ports, each after exactly one space.
    #[error("the PROXY line is not two addresses and two ports, each after exactly one space")]
    V1Fields,
    /// Version 1: not an address of the family that the line names.
    #[error("{0:?} in the PROXY line is not an address of the family that it names")]
    V1Address(String),
    /// Version 1: not a decimal number from 0 to 65535 without leading zeros.
    #[error("{0:?} in the PROXY line is not a port")]
    V1Port(String),
    /// Version 2: the signature of version 2 is followed by another version.
    #[error("version {0} of the PROXY protocol is not known, only 1 and 2 are")]
    V2Version(u8),
    /// Version 2: neither LOCAL nor PROXY.
    #[error("PROXY command {0:#x} is not known, only LOCAL (0x0) and PROXY (0x1) are")]
    V2Command(u8),
    /// Version 2: a family or transport that the specification does not have.
    #[error("PROXY family and transport {0:#04x} are not specified")]
    V2Family(u8),
    /// Version 2: UDP or a Unix datagram socket.
    #[error("the PROXY header speaks of datagrams ({0:#04x}), but this is a stream")]
    V2Datagram(u8),
    /// Version 2: more than [`MAX_HEADER`] bytes are announced.
    #[error("the PROXY header announces {len} bytes, and at most {MAX_HEADER} are accepted")]
    V2TooLong {
        /// The length of the whole header.
        len: usize,
    },
    /// Version 2: fewer bytes are announced than the addresses of the family take.
    #[error("the PROXY header announces {len} bytes for addresses that take {need}")]
    V2TooShort {
        /// Announced after the first 16.
        len: usize,
        /// What the family takes.
        need: usize,
    },
    /// Version 2: a TLV reaches beyond the end of the header.
    #[error("the TLV at byte {at} of the PROXY header reaches beyond its end")]
    V2Tlv {
        /// Its place, counted from the beginning of the header.
        at: usize,
    },
    /// Version 2: a CRC-32c that is not 4 bytes long.
    #[error("the CRC-32c of the PROXY header has {len} bytes instead of 4")]
    V2CrcLength {
        /// Its length.
        len: usize,
    },
    /// Version 2: more than one CRC-32c.
    #[error("the PROXY header has more than one CRC-32c")]
    V2CrcTwice,
    /// Version 2: the header was changed on its way.
    #[error("the CRC-32c of the PROXY header is {computed:#010x}, but it says {said:#010x}")]
    V2Crc {
        /// What the header says.
        said: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The source is an address that no client can have.
    #[error("the PROXY header says that the client is {0}, which no client can be")]
    ImpossibleAddress(IpAddr),
    /// The source port is 0.
    #[error("the PROXY header says that the client's port is 0, which no client can have")]
    ImpossiblePort,
}

impl ProxyError {
    /// A short name that stays the same, for logs and metrics.
    #[must_use]
    pub const fn as_label(&self) -> &'static str {
        match self {
            Self::NotProxy => "not_proxy",
            Self::V1TooLong => "v1_too_long",
            Self::V1LineEnd => "v1_line_end",
            Self::V1Protocol => "v1_protocol",
            Self::V1Fields => "v1_fields",
            Self::V1Address(_) => "v1_address",
            Self::V1Port(_) => "v1_port",
            Self::V2Version(_) => "v2_version",
            Self::V2Command(_) => "v2_command",
            Self::V2Family(_) => "v2_family",
            Self::V2Datagram(_) => "v2_datagram",
            Self::V2TooLong { .. } => "v2_too_long",
            Self::V2TooShort { .. } => "v2_too_short",
            Self::V2Tlv { .. } => "v2_tlv",
            Self::V2CrcLength { .. } => "v2_crc_length",
            Self::V2CrcTwice => "v2_crc_twice",
            Self::V2Crc { .. } => "v2_crc",
            Self::ImpossibleAddress(_) => "impossible_address",
            Self::ImpossiblePort => "impossible_port",
        }
    }
}
