//! Fixed results, computed by another program from the module's documentation.
//!
//! A change here moves every client of every user, and makes two versions of homescar that
//! stand side by side disagree. There is no good reason for one.

use super::{AffinityKey, app, order, weighted};
use crate::affinity::{Masks, mix::mix32, seeds};

const MASKS: Masks = Masks { v4: 32, v6: 64 };
const OTHER_SEED: u64 = 0x0123_4567_89ab_cdef;

/// Slots whose seeds and weights are not as even as `app/0` … are.
const MIXED: [(&str, u32); 5] = [
    ("big", 3),
    ("10.0.0.1:3000", 1),
    ("10.0.0.2:3000", 2),
    ("unix:/run/app/0.sock", 1),
    ("größer", 1),
];

#[test]
fn mix() {
    let inputs = [0, 1, u32::MAX, 0xc0a8_0001];
    assert_eq!(inputs.map(mix32), [0, 0x042741d6, 0x127f588f, 0xf20ad36a]);
}

#[test]
fn seeds_of_slots() {
    let mixed = MIXED.map(|(name, weight)| (name, weight.try_into().unwrap()));
    assert_eq!(
        seeds::distinct(0, &mixed),
        [
            0x46de32cc, 0xb93b0f5d, 0xe9cbc127, 0xa1c5d8a4, 0x44d53a56, 0x9fd82ddd, 0x0f74d3c6,
            0x7c4a46c4
        ]
    );
    assert_eq!(
        seeds::distinct(OTHER_SEED, &mixed),
        [
            0x5c9d1828, 0x2bef3779, 0x9d05777c, 0xe1261407, 0x4427779d, 0x7048d7a5, 0x5eabd4d9,
            0xa6cc69c9
        ]
    );
}

#[test]
fn masked_addresses() {
    const LONG: &str = "2001:db8:1234:5678:9abc:def0:1357:9bdf";
    for (seed, address, v4, v6, key) in [
        (0, "192.168.255.129", 24, 0, 0xc0a8ff00),
        (OTHER_SEED, "192.168.255.129", 24, 0, 0xc0a8ff00),
        (0, LONG, 32, 48, 0xb4af916c),
        (0, LONG, 32, 61, 0x10540ae7),
        (0, LONG, 32, 128, 0xd2684b98),
        (0, LONG, 32, 0, 0),
        (OTHER_SEED, LONG, 32, 48, 0x3cc14281),
        (OTHER_SEED, LONG, 32, 61, 0xcae29219),
        (OTHER_SEED, LONG, 32, 128, 0xc6054c97),
        (OTHER_SEED, LONG, 32, 0, 0x001b6989),
    ] {
        let masks = Masks { v4, v6 };
        let found = AffinityKey::from_address(address.parse().unwrap(), masks, seed);
        assert_eq!(
            found.bits(),
            key,
            "{address} under {masks:?}, seed {seed:#x}"
        );
    }
}

#[test]
fn bytes() {
    for (seed, bytes, key) in [
        (0, "", 0x2e57dadb),
        (0, "a", 0xfc53f4c6),
        (0, "sid=0123456789abcdef", 0x9e889c0c),
        (0, "größer", 0x630f9a5a),
        (OTHER_SEED, "", 0x97d0b832),
        (OTHER_SEED, "a", 0xfa297d2e),
        (OTHER_SEED, "sid=0123456789abcdef", 0xd41f9284),
        (OTHER_SEED, "größer", 0x4087aa44),
    ] {
        let found = AffinityKey::from_bytes(bytes.as_bytes(), seed);
        assert_eq!(found.bits(), key, "{bytes:?}, seed {seed:#x}");
    }
}

/// Address, key, order of `app/0` … `app/7`, order of the mixed slots.
type Row = (&'static str, u32, [usize; 8], [usize; 5]);

#[rustfmt::skip]
const SEED_0: [Row; 12] = [
    ("192.168.0.1", 0xc0a80001, [3, 5, 1, 0, 2, 7, 6, 4], [2, 0, 1, 3, 4]),
    ("192.168.0.2", 0xc0a80002, [1, 6, 5, 3, 2, 7, 4, 0], [0, 3, 4, 2, 1]),
    ("10.1.2.3", 0x0a010203, [2, 7, 5, 1, 4, 0, 3, 6], [4, 0, 3, 2, 1]),
    ("127.0.0.1", 0x7f000001, [5, 4, 1, 0, 7, 2, 3, 6], [0, 2, 1, 4, 3]),
    ("255.255.255.255", 0xffffffff, [0, 1, 3, 5, 2, 7, 6, 4], [2, 0, 4, 3, 1]),
    ("0.0.0.0", 0x00000000, [1, 3, 6, 4, 7, 0, 5, 2], [3, 2, 0, 4, 1]),
    ("203.0.113.77", 0xcb00714d, [4, 5, 7, 6, 0, 1, 3, 2], [2, 0, 3, 1, 4]),
    ("2001:db8::1", 0x86714393, [0, 1, 6, 5, 4, 2, 7, 3], [0, 1, 3, 4, 2]),
    ("2001:db8:0:1::1", 0x82fffb84, [6, 4, 0, 7, 3, 5, 2, 1], [2, 1, 4, 0, 3]),
    ("fe80::1234:5678:9abc:def0", 0x879704f3, [7, 2, 6, 0, 5, 3, 4, 1], [0, 4, 3, 1, 2]),
    ("::1", 0x00000000, [1, 3, 6, 4, 7, 0, 5, 2], [3, 2, 0, 4, 1]),
    ("::ffff:192.168.0.1", 0xc0a80001, [3, 5, 1, 0, 2, 7, 6, 4], [2, 0, 1, 3, 4]),
];

#[rustfmt::skip]
const SEED_OTHER: [Row; 12] = [
    ("192.168.0.1", 0xc0a80001, [3, 7, 4, 6, 0, 2, 5, 1], [4, 3, 0, 2, 1]),
    ("192.168.0.2", 0xc0a80002, [6, 0, 5, 2, 3, 7, 4, 1], [1, 3, 4, 0, 2]),
    ("10.1.2.3", 0x0a010203, [5, 7, 0, 6, 2, 4, 1, 3], [3, 0, 1, 4, 2]),
    ("127.0.0.1", 0x7f000001, [2, 4, 0, 3, 1, 6, 7, 5], [0, 2, 1, 3, 4]),
    ("255.255.255.255", 0xffffffff, [2, 1, 3, 5, 0, 6, 7, 4], [3, 1, 2, 0, 4]),
    ("0.0.0.0", 0x00000000, [6, 5, 1, 4, 2, 7, 0, 3], [3, 0, 1, 2, 4]),
    ("203.0.113.77", 0xcb00714d, [0, 1, 4, 7, 5, 2, 6, 3], [2, 0, 1, 3, 4]),
    ("2001:db8::1", 0xb9da9bc1, [1, 3, 6, 5, 0, 4, 7, 2], [4, 2, 0, 1, 3]),
    ("2001:db8:0:1::1", 0x06dadbcd, [1, 0, 5, 4, 6, 3, 7, 2], [1, 3, 0, 2, 4]),
    ("fe80::1234:5678:9abc:def0", 0x3a010311, [0, 3, 2, 6, 5, 7, 1, 4], [2, 0, 4, 1, 3]),
    ("::1", 0x451d2e69, [6, 7, 4, 0, 5, 3, 2, 1], [4, 0, 2, 1, 3]),
    ("::ffff:192.168.0.1", 0xc0a80001, [3, 7, 4, 6, 0, 2, 5, 1], [4, 3, 0, 2, 1]),
];

#[test]
fn orders_of_slots() {
    for (seed, rows) in [(0, SEED_0), (OTHER_SEED, SEED_OTHER)] {
        let (eight, mixed) = (app(seed, 8), weighted(seed, &MIXED));
        for (address, bits, of_eight, of_mixed) in rows {
            let key = AffinityKey::from_address(address.parse().unwrap(), MASKS, seed);
            assert_eq!(key.bits(), bits, "{address}, seed {seed:#x}");
            assert_eq!(order(&eight, bits), of_eight, "{address}, seed {seed:#x}");
            assert_eq!(order(&mixed, bits), of_mixed, "{address}, seed {seed:#x}");
            assert_eq!(eight.home(key), Some(of_eight[0]));
            assert_eq!(mixed.home(key), Some(of_mixed[0]));
        }
    }
}
