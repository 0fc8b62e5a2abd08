//! Shares: what a fair hash gives, judged by Pearson's chi-square.
//!
//! Everything is fixed, so these tests pass always or never. A fair hash would exceed the bound
//! of one judgement, the 0.99999 quantile, once in 100,000; some 200 judgements are made here.

use std::net::{IpAddr, Ipv6Addr};

use super::{AffinityKey, Table, app, weighted};
use crate::affinity::Masks;

const KEYS: u32 = 100_000;

/// The address of the i-th client.
type Client = fn(u32) -> IpAddr;

/// Clients as they come.
const POPULATIONS: [(&str, Client); 8] = [
    ("consecutive", |i| v4(0xc0a8_0000 + i)),
    ("everywhere", |i| v4(scattered(i))),
    ("private networks", |i| {
        v4(0x0a00_0000 | (i / 2_500) << 16 | (i / 50 % 50) << 8 | (1 + i % 50))
    }),
    ("one of each /24", |i| v4(0x5000_0001 + (i << 8))),
    ("every 65,536th", |i| v4(i.rotate_left(16))),
    ("reversed bits", |i| v4(i.reverse_bits())),
    ("consecutive /64", |i| {
        v6(0x2001_0db8_0000_0000 + u64::from(i), 1)
    }),
    ("one of each /48", |i| {
        v6(0x2a00_0000_0000_0000 + (u64::from(i) << 16), 7)
    }),
];

#[test]
fn homes_are_shared_evenly() {
    for (population, client) in POPULATIONS {
        for (slots, seed) in [(2, 0), (3, 1), (7, 2), (8, 0), (8, 3), (40, 0)] {
            let counts = homes(&app(seed, slots), seed, client);
            assert_fair(
                &counts,
                &vec![1; slots],
                &format!("{population}, {slots} slots"),
            );
        }
    }
}

#[test]
fn a_thousand_slots_share_evenly() {
    let counts = homes(&app(0, 1_000), 0, POPULATIONS[0].1);
    assert_fair(&counts, &[1; 1_000], "consecutive, 1,000 slots");
}

/// The clients of a slot that leaves spread over all others, and so do those of its successor.
#[test]
fn failover_is_shared_evenly() {
    const SLOTS: usize = 8;
    for (population, client) in POPULATIONS {
        let table = app(0, SLOTS);
        let mut second = vec![vec![0; SLOTS]; SLOTS];
        let mut third = vec![vec![0; SLOTS]; SLOTS];
        for key in keys(0, client) {
            let mut order = table.candidates(key);
            let [a, b, c] = std::array::from_fn(|_| order.next().unwrap());
            second[a][b] += 1;
            third[b][c] += 1;
        }
        for (choice, counts) in [("second", second), ("third", third)] {
            for (from, counts) in counts.into_iter().enumerate() {
                assert_eq!(counts[from], 0);
                let others: Vec<u32> = (0..SLOTS).map(|to| u32::from(to != from)).collect();
                assert_fair(
                    &counts,
                    &others,
                    &format!("{population}, {choice} after {from}"),
                );
            }
        }
    }
}

#[test]
fn weights_hold() {
    let slots = [("a", 1), ("b", 2), ("c", 3), ("d", 10), ("e", 1), ("f", 5)];
    let weights = slots.map(|(_, weight)| weight);
    for (population, client) in POPULATIONS {
        for seed in 0..4 {
            let counts = homes(&weighted(seed, &slots), seed, client);
            assert_fair(&counts, &weights, population);
        }
    }
}

/// One judgement says little; 400 independent tables must exceed the quantiles of chi-square
/// as often as chance does. This sees a hash that is a little too rough, or far too regular.
#[test]
fn chi_square_is_distributed_as_by_chance() {
    const TABLES: u64 = 400;
    const SLOTS: usize = 12;
    for (population, client) in POPULATIONS {
        let (mut above_median, mut above_99) = (0, 0);
        for seed in 0..TABLES {
            let table = app(seed, SLOTS);
            let mut counts = [0; SLOTS];
            for i in 0..2_000 {
                let key = AffinityKey::from_address(client(i), MASKS, seed);
                counts[table.home(key).unwrap()] += 1;
            }
            let found = chi_square(&counts, &[1; SLOTS]);
            above_median += u32::from(found > quantile(SLOTS - 1, 0.0));
            above_99 += u32::from(found > quantile(SLOTS - 1, 2.3263));
        }
        // 200 ± 10 and 4 ± 2 by chance; four and six deviations are allowed.
        assert!(
            (160..=240).contains(&above_median),
            "{population}: {above_median}"
        );
        assert!(above_99 <= 16, "{population}: {above_99}");
    }
}

const MASKS: Masks = Masks { v4: 32, v6: 64 };

fn v4(bits: u32) -> IpAddr {
    IpAddr::V4(bits.into())
}

fn v6(network: u64, host: u64) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(network) << 64 | u128::from(host)).into()
}

/// The i-th of a sequence without pattern (`SplitMix64`, unrelated to the hash under test).
fn scattered(i: u32) -> u32 {
    let mut x = u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}

fn keys(seed: u64, client: Client) -> impl Iterator<Item = AffinityKey> {
    (0..KEYS).map(move |i| AffinityKey::from_address(client(i), MASKS, seed))
}

fn homes(table: &Table, seed: u64, client: Client) -> Vec<u32> {
    let mut counts = Vec::new();
    for key in keys(seed, client) {
        let home = table.home(key).unwrap();
        counts.resize(counts.len().max(home + 1), 0);
        counts[home] += 1;
    }
    counts
}

/// The counts are as a fair draw by these weights would give them.
#[track_caller]
fn assert_fair(counts: &[u32], weights: &[u32], what: &str) {
    assert_eq!(counts.len(), weights.len(), "{what}: a slot has no clients");
    let found = chi_square(counts, weights);
    let freedom = weights.iter().filter(|weight| **weight > 0).count() - 1;
    // 4.2649 is the 0.99999 quantile of the normal distribution.
    let bound = quantile(freedom, 4.2649);
    assert!(found < bound, "{what}: {found} of {bound}: {counts:?}");
}

fn chi_square(counts: &[u32], weights: &[u32]) -> f64 {
    let share = f64::from(counts.iter().sum::<u32>()) / f64::from(weights.iter().sum::<u32>());
    let cells = counts
        .iter()
        .zip(weights)
        .filter(|(_, weight)| **weight > 0);
    cells
        .map(|(&count, &weight)| {
            let expected = share * f64::from(weight);
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum()
}

/// A quantile of the chi-square distribution from that of the normal one (Wilson and Hilferty,
/// 1931); within 2 % here, and too low by more for one degree of freedom, which is the strict side.
fn quantile(freedom: usize, normal: f64) -> f64 {
    let k = freedom as f64;
    let third = 2.0 / (9.0 * k);
    k * (1.0 - third + normal * third.sqrt()).powi(3)
}
