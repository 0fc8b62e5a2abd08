//! What must hold for every set of slots and every client.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
};

use proptest::{prelude::*, sample::Index};

use super::{AffinityKey, Table, app, order, weighted};
use crate::affinity::{MAX_WEIGHT, Masks, seeds};

/// Distinct names with weights: `map` makes them distinct, `shuffle` unsorted.
pub(super) fn slots() -> impl Strategy<Value = Vec<(String, u32)>> {
    let name = "[a-z0-9./:-]{1,12}";
    let weight = prop_oneof![4 => Just(1_u32), 1 => 2..6_u32];
    prop::collection::btree_map(name, weight, 1..24)
        .prop_map(|map: BTreeMap<_, _>| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

/// Names in the order of preference of a key.
fn names(table: &Table, slots: &[(String, u32)], key: u32) -> Vec<String> {
    let order = order(table, key).into_iter();
    order.map(|slot| slots[slot].0.clone()).collect()
}

proptest! {
    #[test]
    fn candidates_are_all_slots_once_and_begin_at_home(
        seed: u64, slots in slots(), key: u32,
    ) {
        let table = weighted(seed, &slots);
        let order = order(&table, key);
        prop_assert_eq!(table.home(AffinityKey::from_bits(key)), Some(order[0]));
        let mut sorted = order;
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..slots.len()).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_in_the_file_does_not_matter(
        seed: u64,
        (one, other) in slots().prop_flat_map(|s| (Just(s.clone()), Just(s).prop_shuffle())),
        keys: [u32; 8],
    ) {
        let (table, shuffled) = (weighted(seed, &one), weighted(seed, &other));
        for key in keys {
            prop_assert_eq!(names(&table, &one, key), names(&shuffled, &other, key));
        }
    }

    /// So only the clients of the slot that leaves move, each to its own next choice, and they
    /// are back when it is back.
    #[test]
    fn a_slot_that_leaves_is_gone_from_every_order_and_nothing_else_changes(
        seed: u64, slots in slots(), leaves: Index, keys: [u32; 32],
    ) {
        let table = weighted(seed, &slots);
        let leaves = leaves.index(slots.len());
        let mut rest = slots.clone();
        let (gone, _) = rest.remove(leaves);
        let without = weighted(seed, &rest);
        for key in keys {
            let mut expected = names(&table, &slots, key);
            expected.retain(|name| *name != gone);
            prop_assert_eq!(names(&without, &rest, key), expected);
        }
    }

    #[test]
    fn more_weight_attracts_clients_and_moves_no_others(
        seed: u64, slots in slots(), grows: Index, keys: [u32; 32],
    ) {
        let grows = grows.index(slots.len());
        let mut after = slots.clone();
        after[grows].1 += 1;
        let (table, after) = (weighted(seed, &slots), weighted(seed, &after));
        for key in keys.map(AffinityKey::from_bits) {
            let (was, is) = (table.home(key), after.home(key));
            prop_assert!(is == was || is == Some(grows), "{:?} -> {:?}", was, is);
        }
    }

    #[test]
    fn a_key_changes_with_every_bit_of_the_prefix_and_no_other(
        address: u128, flip in 0..128_u32, v6 in 0..=128_u8, v4 in 0..=32_u8, seed: u64,
    ) {
        let masks = Masks { v4, v6 };
        let key = |address: IpAddr| AffinityKey::from_address(address, masks, seed);
        let both = [address, address ^ (1 << flip)];
        let [a, b] = both.map(|bits| IpAddr::V6(bits.into()));
        prop_assert_eq!(key(a) == key(b), flip < 128 - u32::from(v6));
        let both = [address as u32, address as u32 ^ (1 << (flip % 32))];
        let [a, b] = both.map(Ipv4Addr::from_bits);
        prop_assert_eq!(key(a.into()) == key(b.into()), flip % 32 < 32 - u32::from(v4));
        prop_assert_eq!(key(a.into()), key(a.to_ipv6_mapped().into()));
    }
}

/// The same, counted: of 60 slots one leaves, and 10⁵ clients are asked.
#[test]
fn one_of_many_leaving_moves_its_own_clients_only() {
    let (all, gone) = (60, 17);
    let table = app(0, all);
    let rest: Vec<_> = (0..all)
        .filter(|slot| *slot != gone)
        .map(|slot| (format!("app/{slot}"), 1))
        .collect();
    let without = weighted(0, &rest);
    let mut moved = 0;
    for key in (0..100_000_u32).map(|i| AffinityKey::from_bits(0x0a00_0000 + i)) {
        let home = table.home(key).unwrap();
        let then = without.home(key).unwrap();
        let then = then + usize::from(then >= gone);
        if home == gone {
            moved += 1;
            assert_eq!(table.candidates(key).nth(1), Some(then));
        } else {
            assert_eq!(home, then);
        }
    }
    assert!(
        (1_400..1_950).contains(&moved),
        "a sixtieth of them: {moved}"
    );
}

#[test]
fn an_empty_table_has_no_home() {
    let table = app(0, 0);
    assert_eq!(table.home(AffinityKey::from_bits(1)), None);
    assert!(order(&table, 1).is_empty());
}

/// The lowest possible score must not be mistaken for "none left".
#[test]
fn a_score_of_zero_is_a_score() {
    for weight in [1, 2] {
        let own = seeds::distinct(0, &[("only", weight.try_into().unwrap())]);
        let table = weighted(0, &[("only", weight)]);
        for seed in own {
            assert_eq!(order(&table, seed), [0]);
        }
    }
    let table = app(0, 3);
    let zero = seeds::distinct(0, &[("app/1", NonZeroU32::MIN)])[0];
    assert_eq!(order(&table, zero).last(), Some(&1));
    assert_eq!(order(&table, zero).len(), 3);
}

#[test]
fn an_absurd_weight_is_cut_to_the_greatest() {
    let names = |weight| [("a", weight), ("b", 1)];
    let absurd = weighted(0, &names(u32::MAX));
    let greatest = weighted(0, &names(MAX_WEIGHT));
    assert_eq!(format!("{absurd:?}"), format!("{greatest:?}"));
}
