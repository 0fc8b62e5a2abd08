//! The seeds of slots: where names become numbers.
//!
//! A seed has 32 bits, so two slots may draw the same one: once in 8,600 tables of a thousand
//! slots, once in 86 of ten thousand. Equal seeds mean equal scores for every client, and one of
//! the two slots would stay empty for ever. So the seeds of a table are made distinct: in the
//! order of (name, replica), each takes the seed of its first *attempt* (0, 1, 2 …) that none
//! before it has taken. That does not depend on the order of the slots in a file. The price is
//! paid by such a pair only: when the one leaves, the other gets its own seed back, and with it
//! other clients.

use std::num::NonZeroU32;

use siphasher::sip::SipHasher13;

/// The greatest weight of a slot (HAProxy's is the same): it is what a table of many slots can
/// hold, and beyond it no ratio of weights is worth its cost.
pub const MAX_WEIGHT: u32 = 256;

/// The second half of the SipHash key of slot seeds: `"homescar"` in ASCII, big-endian.
pub(super) const SLOT_DOMAIN: u64 = u64::from_be_bytes(*b"homescar");

/// The distinct seeds of a table, those of one slot next to each other, in the order given.
pub(super) fn distinct(cluster: u64, slots: &[(&str, NonZeroU32)]) -> Vec<u32> {
    let members: Vec<(&str, u32)> = slots
        .iter()
        .flat_map(|&(name, weight)| (0..weight.get()).map(move |replica| (name, replica)))
        .collect();
    let mut hasher = SlotHasher::new(cluster);
    let first: Vec<u32> = members
        .iter()
        .map(|&(name, replica)| hasher.seed(name, replica, 0))
        .collect();
    if all_distinct(&first) {
        return first;
    }
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&index| members[index]);
    let mut taken = ahash::HashSet::with_capacity_and_hasher(members.len(), <_>::default());
    let mut seeds = first;
    for index in order {
        let (name, replica) = members[index];
        seeds[index] = (0..=u32::MAX)
            .map(|attempt| hasher.seed(name, replica, attempt))
            .find(|&seed| taken.insert(seed))
            .expect("a table has fewer than 2^32 seeds");
    }
    seeds
}

fn all_distinct(seeds: &[u32]) -> bool {
    let mut sorted = seeds.to_vec();
    sorted.sort_unstable();
    sorted.is_sorted_by(|a, b| a < b)
}

/// Hashes names of slots; keeps its buffer.
struct SlotHasher {
    hasher: SipHasher13,
    message: Vec<u8>,
}

impl SlotHasher {
    fn new(cluster: u64) -> Self {
        Self {
            hasher: SipHasher13::new_with_keys(cluster, SLOT_DOMAIN),
            message: Vec::new(),
        }
    }

    fn seed(&mut self, name: &str, replica: u32, attempt: u32) -> u32 {
        self.message.clear();
        self.message.extend_from_slice(name.as_bytes());
        self.message.push(0xff);
        self.message.extend_from_slice(&replica.to_le_bytes());
        self.message.extend_from_slice(&attempt.to_le_bytes());
        self.hasher.hash(&self.message) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two of `app/0`, `app/1` … whose first seeds are equal.
    fn colliding_pair() -> (String, String) {
        let mut hasher = SlotHasher::new(0);
        let mut seen = ahash::HashMap::default();
        for index in 0_u32.. {
            let name = format!("app/{index}");
            let seed = hasher.seed(&name, 0, 0);
            if let Some(other) = seen.insert(seed, name.clone()) {
                return (other, name);
            }
        }
        unreachable!("there are more names than seeds")
    }

    fn weighted<'a>(names: &[&'a str], weight: u32) -> Vec<(&'a str, NonZeroU32)> {
        let weight = NonZeroU32::new(weight).unwrap();
        names.iter().map(|&name| (name, weight)).collect()
    }

    #[test]
    fn equal_seeds_are_told_apart_in_the_order_of_names() {
        let (a, b) = colliding_pair();
        let (first, second) = if a < b { (&*a, &*b) } else { (&*b, &*a) };
        let mut hasher = SlotHasher::new(0);
        let shared = hasher.seed(first, 0, 0);
        assert_eq!(shared, hasher.seed(second, 0, 0));

        let next = hasher.seed(second, 0, 1);
        let one_way = distinct(0, &weighted(&[first, "other", second], 1));
        assert_eq!(one_way, [shared, hasher.seed("other", 0, 0), next]);
        let other_way = distinct(0, &weighted(&[second, first], 1));
        assert_eq!(other_way, [next, shared]);
        assert_eq!(distinct(0, &weighted(&[second], 1)), [shared]);
    }

    #[test]
    fn even_equal_names_get_distinct_seeds() {
        let seeds = distinct(0, &weighted(&["twin"; 50], 3));
        assert_eq!(seeds.len(), 150);
        assert!(all_distinct(&seeds));
    }

    #[test]
    fn name_replica_and_cluster_all_count() {
        let mut hasher = SlotHasher::new(0);
        let base = hasher.seed("app/1", 0, 0);
        assert_ne!(base, hasher.seed("app/2", 0, 0));
        assert_ne!(base, hasher.seed("app/1", 1, 0));
        assert_ne!(base, SlotHasher::new(1).seed("app/1", 0, 0));
        assert_ne!(base, SlotHasher::new(1 << 63).seed("app/1", 0, 0));
    }
}
