//! Image embeddings on the device, for prompts about to be computed.
//!
//! One tensor holds the embeddings of several pictures, `[slots * patches, dim]`. A picture that has a
//! slot need not be encoded again: when its keys and values were evicted, or were computed for another
//! tenant. The least recently used slot gives way.
use std::collections::HashMap;

use photon_models::image::ImageDigest;

/// Which picture is where.
#[derive(Debug)]
pub(crate) struct ImageSlots {
    slots: Vec<Option<(ImageDigest, u64)>>,
    index: HashMap<ImageDigest, usize>,
    clock: u64,
}

/// A picture's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its embeddings are there.
    Filled(usize),
    /// They must be computed first.
    Empty(usize),
}

impl ImageSlots {
    pub(crate) fn new(num_slots: usize) -> Self {
        assert!(num_slots > 0, "a picture needs a slot");
        ImageSlots { slots: vec![None; num_slots], index: HashMap::new(), clock: 0 }
    }

    /// Starts a step: slots asked for from here on stay until the next one starts.
    pub(crate) fn start_step(&mut self) {
        self.clock += 1;
    }

    /// Finds or makes room for a picture.
    ///
    /// # Panics
    /// If one step asks for more pictures than there are slots.
    pub(crate) fn place(&mut self, digest: ImageDigest) -> Place {
        if let Some(&slot) = self.index.get(&digest) {
            self.slots[slot] = Some((digest, self.clock));
            return Place::Filled(slot);
        }
        let age = |slot: &Option<(ImageDigest, u64)>| slot.map_or(0, |(_, used)| used);
        let oldest = (0..self.slots.len()).min_by_key(|&i| age(&self.slots[i]));
        let slot = oldest.expect("there is a slot");
        assert!(age(&self.slots[slot]) < self.clock, "more pictures in a step than slots");
        if let Some((old, _)) = self.slots[slot].replace((digest, self.clock)) {
            self.index.remove(&old);
        }
        self.index.insert(digest, slot);
        Place::Empty(slot)
    }

    /// Where a picture is.
    ///
    /// # Panics
    /// If it has no place.
    pub(crate) fn find(&self, digest: ImageDigest) -> usize {
        self.index[&digest]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_gives_way() {
        let digest = |n: u8| ImageDigest([n; 32]);
        let mut slots = ImageSlots::new(2);
        for (n, want) in [
            (1, Place::Empty(0)),
            (2, Place::Empty(1)),
            (1, Place::Filled(0)),
            (3, Place::Empty(1)),
            (1, Place::Filled(0)),
            (2, Place::Empty(1)),
        ] {
            slots.start_step();
            assert_eq!(slots.place(digest(n)), want, "picture {n}");
        }
    }

    #[test]
    #[should_panic(expected = "more pictures in a step than slots")]
    fn a_step_never_takes_its_own_slots_away() {
        let mut slots = ImageSlots::new(1);
        slots.start_step();
        slots.place(ImageDigest([1; 32]));
        slots.place(ImageDigest([2; 32]));
    }
}
