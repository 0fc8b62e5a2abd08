//! Ways to choose a slot by a client's address.

use std::{hash::Hasher as _, net::Ipv4Addr, num::NonZeroU32};

use homescar::affinity::{AffinityKey, Masks, Table};
use siphasher::sip::SipHasher13;

/// From names to a choice by address, of positions in the list of names.
#[derive(Debug)]
pub(crate) struct Hash {
    pub(crate) name: &'static str,
    pub(crate) build: fn(&[String]) -> Choice,
}

pub(crate) type Choice = Box<dyn Fn(Ipv4Addr) -> usize>;

pub(crate) const ALL: &[Hash] = &[
    Hash {
        name: "homescar (rendezvous)",
        build: rendezvous,
    },
    Hash {
        name: "ketama (nginx `hash … consistent`)",
        build: ketama,
    },
    Hash {
        name: "Maglev (Envoy)",
        build: maglev,
    },
    Hash {
        name: "modulo (`hash-type map-based`)",
        build: modulo,
    },
    Hash {
        name: "nginx `ip_hash`",
        build: ip_hash,
    },
];

fn rendezvous(names: &[String]) -> Choice {
    let table = Table::new(0, names.iter().map(|name| (&**name, NonZeroU32::MIN)));
    let masks = Masks { v4: 32, v6: 64 };
    Box::new(move |client| {
        let key = AffinityKey::from_address(client.into(), masks, 0);
        table.home(key).unwrap_or_default()
    })
}

/// 160 points of each slot on a ring, as nginx has; a good hash in place of its CRC-32, which its MD5
/// relatives have.
fn ketama(names: &[String]) -> Choice {
    let mut ring: Vec<(u32, usize)> = Vec::new();
    for (slot, name) in names.iter().enumerate() {
        for point in 0..160 {
            ring.push((sip(format!("{name}-{point}").as_bytes(), 0) as u32, slot));
        }
    }
    ring.sort_unstable();
    Box::new(move |client| {
        let key = sip(&client.octets(), 1) as u32;
        let next = ring.partition_point(|(point, _)| *point < key);
        ring[next % ring.len()].1
    })
}

/// Eisenbud et al., "Maglev", 3.4, with Envoy's table of 65,537.
fn maglev(names: &[String]) -> Choice {
    const SIZE: usize = 65_537;
    let permutation = |name: &String| {
        let offset = sip(name.as_bytes(), 2) as usize % SIZE;
        let skip = sip(name.as_bytes(), 3) as usize % (SIZE - 1) + 1;
        (offset, skip)
    };
    let mut at: Vec<(usize, usize)> = names.iter().map(permutation).collect();
    let mut table = vec![usize::MAX; SIZE];
    let mut filled = 0;
    while filled < SIZE {
        for (slot, (next, skip)) in at.iter_mut().enumerate() {
            while table[*next] != usize::MAX {
                *next = (*next + *skip) % SIZE;
            }
            table[*next] = slot;
            filled += 1;
            if filled == SIZE {
                break;
            }
        }
    }
    Box::new(move |client| table[sip(&client.octets(), 1) as usize % SIZE])
}

/// A hash of the address, modulo the number of slots.
fn modulo(names: &[String]) -> Choice {
    let slots = names.len() as u64;
    Box::new(move |client| (sip(&client.octets(), 1) % slots) as usize)
}

/// nginx's own arithmetic: of an IPv4 address its first three bytes.
fn ip_hash(names: &[String]) -> Choice {
    let slots = names.len();
    Box::new(move |client| {
        let hash = client.octets()[..3]
            .iter()
            .fold(89, |hash, byte| (hash * 113 + usize::from(*byte)) % 6271);
        hash % slots
    })
}

fn sip(bytes: &[u8], key: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(key, 0);
    hasher.write(bytes);
    hasher.finish()
}
