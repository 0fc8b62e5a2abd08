//! Weighted rendezvous hashing.

use std::{iter::FusedIterator, num::NonZeroU32};

use super::{
    AffinityKey,
    mix::{mix32_first, mix32_rest, unmix32_rest},
    seeds::{self, MAX_WEIGHT},
};

/// Seeds that are scored together: two vectors of baseline x86-64.
const LANES: usize = 8;

/// The slots of a cluster as the hash sees them.
///
/// Built once for each change of the set of slots, read by everybody. Takes 4 bytes for each
/// seed (the sum of all weights) and 4 for each slot.
#[derive(Clone, Debug)]
pub struct Table {
    /// The seeds of slot 0, of slot 1 …, each with the first step of the mix already done; the
    /// last block is filled up with its own last seed.
    blocks: Vec<[u32; LANES]>,
    /// Where the seeds of each slot end. Empty when every slot has one seed.
    ends: Vec<u32>,
    /// The number of slots.
    slots: usize,
}

impl Table {
    /// A table over named, weighted slots. Slot indices are positions in `slots`.
    ///
    /// Names are expected to be distinct: slots of the same name are told apart by their order.
    /// A weight above [`MAX_WEIGHT`] counts as that.
    #[must_use]
    pub fn new<'a>(seed: u64, slots: impl IntoIterator<Item = (&'a str, NonZeroU32)>) -> Self {
        let most = NonZeroU32::MIN.saturating_add(MAX_WEIGHT - 1);
        let slots: Vec<_> = slots
            .into_iter()
            .map(|(name, weight)| (name, weight.min(most)))
            .collect();
        let seeds = seeds::distinct(seed, &slots);
        let ends = if seeds.len() == slots.len() {
            Vec::new()
        } else {
            let ends = slots.iter().scan(0, |end, (_, weight)| {
                *end += weight.get();
                Some(*end)
            });
            ends.collect()
        };
        Self {
            blocks: into_blocks(&seeds),
            ends,
            slots: slots.len(),
        }
    }

    /// The home of a client: the index of its first choice; `None` in an empty table.
    #[must_use]
    pub fn home(&self, key: AffinityKey) -> Option<usize> {
        if self.slots == 0 {
            return None;
        }
        let (position, _) = self.best_seed(mix32_first(key.bits()), 0);
        Some(self.slot_of(position))
    }

    /// What a slot scores for a client: the best of its seeds. It is what orders
    /// [`candidates`](Self::candidates), greatest first.
    ///
    /// # Panics
    ///
    /// When the table has no such slot.
    #[must_use]
    pub fn score(&self, key: AffinityKey, slot: usize) -> u32 {
        let seeds = match slot.checked_sub(1) {
            _ if self.ends.is_empty() => slot..slot + 1,
            None => 0..self.ends[0] as usize,
            Some(before) => self.ends[before] as usize..self.ends[slot] as usize,
        };
        let key = mix32_first(key.bits());
        let seeds = &self.blocks.as_flattened()[seeds];
        let scores = seeds.iter().map(|seed| mix32_rest(key ^ seed));
        scores.fold(0, u32::max)
    }

    /// All slots, each once, best first. Each step looks at every seed once, allocates nothing,
    /// and is taken only when asked for.
    #[must_use]
    pub const fn candidates(&self, key: AffinityKey) -> Candidates<'_> {
        Candidates {
            table: self,
            key,
            last: 0,
            left: self.slots,
        }
    }

    /// The seeds of each slot in turn, the first step of the mix already done.
    pub(super) fn seeds(&self) -> impl Iterator<Item = &[u32]> {
        let seeds = self.blocks.as_flattened();
        (0..self.slots).map(move |slot| {
            let end = |slot: usize| self.ends.get(slot).map_or(slot + 1, |end| *end as usize);
            let start = slot.checked_sub(1).map_or(0, end);
            &seeds[start..end(slot)]
        })
    }

    /// The position and the score of the best seed below the score `last`; 0 stands for no
    /// bound. There must be one. `key` has the first step of the mix behind it.
    ///
    /// Subtracting `last` turns the circle of scores so that those below it come out on top, in
    /// their own order; so one loop without branches serves first and later choices. It finds
    /// only the score, which leads back to its seed. Half a turn more makes the comparison a
    /// signed one, the only one that baseline x86-64 has for vectors.
    fn best_seed(&self, key: u32, last: u32) -> (usize, u32) {
        let turn = last ^ 1 << 31;
        let mut best = [i32::MIN; LANES];
        for block in &self.blocks {
            for (best, seed) in best.iter_mut().zip(block) {
                let score = mix32_rest(key ^ seed);
                *best = (*best).max(score.wrapping_sub(turn).cast_signed());
            }
        }
        let best = best.into_iter().fold(i32::MIN, i32::max);
        let score = best.cast_unsigned().wrapping_add(turn);
        (self.position(unmix32_rest(score) ^ key), score)
    }

    /// Where a seed, its first step done, stands.
    fn position(&self, seed: u32) -> usize {
        let holds = |block: &[u32; LANES]| block.iter().fold(false, |any, s| any | (*s == seed));
        let block = self.blocks.iter().position(holds);
        let block = block.expect("the inverse of a score is one of the seeds");
        let lane = self.blocks[block].iter().take_while(|s| **s != seed);
        block * LANES + lane.count()
    }

    /// The slot that a seed belongs to.
    fn slot_of(&self, position: usize) -> usize {
        if self.ends.is_empty() {
            return position;
        }
        self.ends.partition_point(|&end| end as usize <= position)
    }

    /// The best slot below the score `last`, and its score, in a table with weights: the other
    /// seeds of a slot that scored higher do not count again.
    fn best_slot(&self, key: u32, last: u32) -> (usize, u32) {
        let seeds = self.blocks.as_flattened();
        let mut start = 0;
        let mut best = (0, last);
        for (slot, &end) in self.ends.iter().enumerate() {
            let end = end as usize;
            let scores = seeds[start..end].iter().map(|seed| mix32_rest(key ^ seed));
            let score = scores.fold(0, u32::max);
            if score.wrapping_sub(last) > best.1.wrapping_sub(last) {
                best = (slot, score);
            }
            start = end;
        }
        best
    }
}

/// Whole blocks of seeds, their first step done. Equal seeds at the end of the last one change
/// neither the best score nor where it is found.
fn into_blocks(seeds: &[u32]) -> Vec<[u32; LANES]> {
    let filled = |chunk: &[u32]| {
        let last = chunk.len() - 1;
        std::array::from_fn(|lane| mix32_first(chunk[lane.min(last)]))
    };
    seeds.chunks(LANES).map(filled).collect()
}

/// Slots in order of preference for one client.
#[derive(Clone, Debug)]
pub struct Candidates<'a> {
    table: &'a Table,
    key: AffinityKey,
    /// The score of the slot that was given last; 0 before the first (and after the very worst).
    last: u32,
    /// Slots still to come.
    left: usize,
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let key = mix32_first(self.key.bits());
        let is_first = self.last == 0;
        let (slot, score) = if is_first || self.table.ends.is_empty() {
            let (position, score) = self.table.best_seed(key, self.last);
            (self.table.slot_of(position), score)
        } else {
            self.table.best_slot(key, self.last)
        };
        self.last = score;
        Some(slot)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Candidates<'_> {}

impl FusedIterator for Candidates<'_> {}
