//! The bytes that identify a client, folded to 32 bits.

use std::net::IpAddr;

/// How many leading bits of an address identify a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// Of an IPv4 (or IPv4-mapped IPv6) address.
    pub v4: u8,
    /// Of an IPv6 address.
    pub v6: u8,
}

/// What identifies a client, in 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey(u32);

impl AffinityKey {
    /// The key of a client's address.
    #[must_use]
    pub fn from_address(address: IpAddr, masks: Masks, seed: u64) -> Self {
        let _ = (masks, seed);
        match address {
            IpAddr::V4(a) => Self(a.into()),
            IpAddr::V6(a) => Self(u128::from(a) as u32),
        }
    }

    /// A key that was made elsewhere.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The 32 bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}
