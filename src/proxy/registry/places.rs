//! Places for many things, each with a number that is its own for as long as it is there. They stand in
//! blocks: when there come to be more of them, none moves, and no memory is left over from where they
//! were.

use slab::Slab;

/// Things in a block.
const BLOCK: usize = 256;

/// Things in their places.
#[derive(Debug)]
pub(super) struct Places<T> {
    blocks: Vec<Slab<T>>,
    /// All blocks before this one are full.
    roomy: usize,
}

impl<T> Places<T> {
    pub(super) const fn new() -> Self {
        Self {
            blocks: Vec::new(),
            roomy: 0,
        }
    }

    /// Gives it a place; its number.
    pub(super) fn insert(&mut self, thing: T) -> usize {
        let rest = self.blocks[self.roomy..].iter();
        self.roomy += rest.take_while(|block| block.len() == BLOCK).count();
        if self.roomy == self.blocks.len() {
            self.blocks.push(Slab::with_capacity(BLOCK));
        }
        self.roomy * BLOCK + self.blocks[self.roomy].insert(thing)
    }

    pub(super) fn get(&self, place: usize) -> Option<&T> {
        self.blocks.get(place / BLOCK)?.get(place % BLOCK)
    }

    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.blocks.get_mut(place / BLOCK)?.get_mut(place % BLOCK)
    }

    pub(super) fn remove(&mut self, place: usize) -> Option<T> {
        let block = self.blocks.get_mut(place / BLOCK)?;
        let thing = block.try_remove(place % BLOCK)?;
        self.roomy = self.roomy.min(place / BLOCK);
        Some(thing)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let all = self.blocks.iter().flat_map(|block| block.iter());
        all.map(|(_, thing)| thing)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let all = self.blocks.iter_mut().flat_map(|block| block.iter_mut());
        all.map(|(_, thing)| thing)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.blocks.iter().map(Slab::len).sum()
    }

    /// More than the number of any place.
    pub(super) const fn end(&self) -> usize {
        self.blocks.len() * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_leaves_its_place_to_the_next() {
        let mut places = Places::new();
        let numbers: Vec<_> = (0..3 * BLOCK).map(|thing| places.insert(thing)).collect();
        assert_eq!((numbers[0], places.end()), (0, 3 * BLOCK));
        assert_eq!(places.len(), 3 * BLOCK);
        for (thing, place) in numbers.iter().enumerate() {
            assert_eq!(places.get(*place), Some(&thing));
        }
        let gone = [5, BLOCK, 3 * BLOCK - 1].map(|thing| numbers[thing]);
        for place in gone {
            assert!(places.remove(place).is_some() && places.get(place).is_none());
            assert!(places.remove(place).is_none(), "once");
        }
        assert_eq!(places.iter().count(), 3 * BLOCK - 3);
        let mut again = gone.map(|_| places.insert(0));
        again.sort_unstable();
        assert_eq!(again, gone);
        assert_eq!(places.insert(0), 3 * BLOCK, "all others are taken");
        places.iter_mut().for_each(|thing| *thing = 7);
        assert_eq!(
            places.iter().filter(|thing| **thing == 7).count(),
            3 * BLOCK + 1
        );
        assert!(places.get(usize::MAX).is_none());
    }
}
