//! The bytes that identify a client, folded to 32 bits.

use std::net::{IpAddr, Ipv6Addr};

use siphasher::sip::SipHasher13;

use super::mix::mix32;

/// The second half of the SipHash key of long affinity keys: `"affinity"` in ASCII, big-endian.
pub(super) const KEY_DOMAIN: u64 = u64::from_be_bytes(*b"affinity");

/// The seed of a slot that no cluster has: `"rank"` in ASCII.
const RANK: u32 = u32::from_be_bytes(*b"rank");

/// How many leading bits of an address identify a client. More than an address has counts as
/// all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// Of an IPv4 (or IPv4-mapped IPv6) address.
    pub v4: u8,
    /// Of an IPv6 address.
    pub v6: u8,
}

/// What identifies a client, in 32 bits.
///
/// Two IPv4 networks never share a key; two IPv6 networks, or two strings of bytes, do so once
/// in 2³² pairs. Clients that share a key share their home, and nothing else need follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey(u32);

impl AffinityKey {
    /// The key of a client's address, by the steps in the [module](super)'s documentation.
    /// `seed` is the cluster's; it plays a part in IPv6 keys only.
    #[must_use]
    pub fn from_address(address: IpAddr, masks: Masks, seed: u64) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u32::from(address) & leading_ones(masks.v4.into())),
            IpAddr::V6(address) => Self(fold(address, masks.v6.into(), seed)),
        }
    }

    /// The key of a cookie's, header's or other value. Equal bytes under equal seeds give equal
    /// keys on every machine; without the seed nobody can choose bytes that meet in one slot.
    #[must_use]
    pub fn from_bytes(bytes: &[u8], seed: u64) -> Self {
        let hash = SipHasher13::new_with_keys(seed, KEY_DOMAIN).hash(bytes);
        Self(hash as u32)
    }

    /// A key that was made elsewhere.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Where the key stands among all keys, from 0 to 1: evenly spread whatever they have in
    /// common, also among those of one home.
    #[must_use]
    pub fn rank(self) -> f64 {
        f64::from(mix32(self.0 ^ RANK)) / (f64::from(u32::MAX) + 1.0)
    }

    /// The 32 bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// The first `prefix` bits of an address in a chain of [`mix32`].
fn fold(address: Ipv6Addr, prefix: u32, seed: u64) -> u32 {
    let address = u128::from(address);
    let words = [96, 64, 32, 0].map(|shift| (address >> shift) as u32);
    let mut hash = basis(seed);
    let mut left = prefix;
    for word in words {
        if left == 0 {
            break;
        }
        hash = mix32(hash ^ (word & leading_ones(left)));
        left = left.saturating_sub(32);
    }
    hash
}

/// What the folding of IPv6 addresses begins with.
pub(super) fn basis(seed: u64) -> u32 {
    mix32(mix32(seed as u32) ^ (seed >> 32) as u32)
}

/// A word whose first `count` bits are ones; all of them when `count` is 32 or more.
pub(super) fn leading_ones(count: u32) -> u32 {
    !u32::MAX.checked_shr(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Masks = Masks { v4: 32, v6: 128 };

    fn key(address: &str, masks: Masks) -> AffinityKey {
        AffinityKey::from_address(address.parse().unwrap(), masks, 7)
    }

    #[test]
    fn an_ipv4_key_is_the_masked_address() {
        for (prefix, bits) in [
            (32, 0xc0a8_ff81),
            (31, 0xc0a8_ff80),
            (24, 0xc0a8_ff00),
            (19, 0xc0a8_e000),
            (1, 0x8000_0000),
            (0, 0),
            (200, 0xc0a8_ff81),
        ] {
            let masks = Masks { v4: prefix, v6: 0 };
            assert_eq!(key("192.168.255.129", masks).bits(), bits, "/{prefix}");
        }
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        for v4 in [32, 24, 13, 0] {
            let masks = Masks { v4, v6: 64 };
            assert_eq!(key("::ffff:10.1.2.3", masks), key("10.1.2.3", masks));
        }
        assert_ne!(key("::10.1.2.3", FULL), key("10.1.2.3", FULL), "compatible");
    }

    #[test]
    fn an_ipv6_prefix_counts_to_the_bit() {
        let address: Ipv6Addr = "2001:db8:1234:5678:9abc:def0:1357:9bdf".parse().unwrap();
        let bits = u128::from(address);
        let keyed = |bits: u128, prefix: u8| {
            let masks = Masks { v4: 32, v6: prefix };
            AffinityKey::from_address(Ipv6Addr::from(bits).into(), masks, 7)
        };
        for prefix in [1, 31, 32, 33, 48, 56, 63, 64, 65, 96, 97, 127, 128_u8] {
            let last_inside = 1 << (128 - prefix);
            assert_ne!(keyed(bits, prefix), keyed(bits ^ last_inside, prefix));
            if prefix < 128 {
                let first_outside = last_inside >> 1;
                assert_eq!(keyed(bits, prefix), keyed(bits ^ first_outside, prefix));
                assert_eq!(keyed(bits, prefix), keyed(bits | (last_inside - 1), prefix));
            }
        }
        assert_eq!(keyed(bits, 0), keyed(1, 0), "nobody is told apart by /0");
        assert_eq!(keyed(bits, 128), keyed(bits, 255));
    }

    #[test]
    fn every_word_of_an_ipv6_address_counts_at_its_place() {
        let swapped = [
            "1:1:2:2:3:3:4:4",
            "2:2:1:1:3:3:4:4",
            "1:1:3:3:2:2:4:4",
            "1:1:2:2:4:4:3:3",
        ];
        let keys: ahash::HashSet<_> = swapped.map(|a| key(a, FULL)).into_iter().collect();
        assert_eq!(keys.len(), swapped.len());
    }

    #[test]
    fn both_halves_of_the_seed_count_in_ipv6_and_bytes() {
        let address = "2001:db8::1".parse().unwrap();
        let seeds = [0, 1, 1 << 32, 1 << 63, u64::MAX];
        let keys: ahash::HashSet<_> = seeds
            .iter()
            .flat_map(|&seed| {
                [
                    AffinityKey::from_address(address, FULL, seed),
                    AffinityKey::from_bytes(b"2001:db8::1", seed),
                ]
            })
            .collect();
        assert_eq!(keys.len(), 2 * seeds.len());
    }
}
