//! What is promised of the hash: fixed results, fair shares, least disruption.

use std::num::NonZeroU32;

use super::{AffinityKey, Table};

mod fairness;
mod golden;
mod machine;
mod program;
mod properties;

/// A table of names with weights.
fn weighted(seed: u64, slots: &[(impl AsRef<str>, u32)]) -> Table {
    let slots = slots.iter().map(|(name, weight)| {
        let weight = NonZeroU32::new(*weight).unwrap();
        (name.as_ref(), weight)
    });
    Table::new(seed, slots)
}

/// `app/0` … of weight 1.
fn app(seed: u64, slots: usize) -> Table {
    let names: Vec<_> = (0..slots).map(|i| (format!("app/{i}"), 1)).collect();
    weighted(seed, &names)
}

fn order(table: &Table, key: u32) -> Vec<usize> {
    table.candidates(AffinityKey::from_bits(key)).collect()
}
