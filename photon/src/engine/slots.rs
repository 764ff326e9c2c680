//! What is where among the few places for large things on the device.
//!
//! Two tensors are divided so: the embeddings of pictures whose prompts are about to be computed,
//! `[slots * patches, dim]`, and the matrices of adapters. What has a slot need not be brought again; the
//! least recently used gives way.
use std::{collections::HashMap, fmt::Debug, hash::Hash};

/// Which of the things is where.
#[derive(Debug)]
pub(crate) struct Slots<K> {
    slots: Vec<Option<(K, u64)>>,
    index: HashMap<K, usize>,
    clock: u64,
}

/// A thing's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is there.
    Filled(usize),
    /// It must be brought there first.
    Empty(usize),
}

impl<K: Copy + Eq + Hash + Debug> Slots<K> {
    pub(crate) fn new(num_slots: usize) -> Self {
        Slots { slots: vec![None; num_slots], index: HashMap::new(), clock: 0 }
    }

    /// Starts a step: slots asked for from here on stay until the next one starts.
    pub(crate) fn start_step(&mut self) {
        self.clock += 1;
    }

    /// Finds or makes room.
    ///
    /// # Panics
    /// If one step asks for more than there are slots.
    pub(crate) fn place(&mut self, key: K) -> Place {
        if let Some(&slot) = self.index.get(&key) {
            self.slots[slot] = Some((key, self.clock));
            return Place::Filled(slot);
        }
        let age = |slot: &Option<(K, u64)>| slot.map_or(0, |(_, used)| used);
        let oldest = (0..self.slots.len()).min_by_key(|&i| age(&self.slots[i]));
        let slot = oldest.expect("what is asked for has slots");
        assert!(age(&self.slots[slot]) < self.clock, "more in a step than slots");
        if let Some((old, _)) = self.slots[slot].replace((key, self.clock)) {
            self.index.remove(&old);
        }
        self.index.insert(key, slot);
        Place::Empty(slot)
    }

    /// Where something is.
    ///
    /// # Panics
    /// If it has no place.
    pub(crate) fn find(&self, key: K) -> usize {
        self.index[&key]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_gives_way() {
        let mut slots = Slots::new(2);
        for (n, want) in [
            (1, Place::Empty(0)),
            (2, Place::Empty(1)),
            (1, Place::Filled(0)),
            (3, Place::Empty(1)),
            (1, Place::Filled(0)),
            (2, Place::Empty(1)),
        ] {
            slots.start_step();
            assert_eq!(slots.place(n), want, "{n}");
        }
    }

    #[test]
    #[should_panic(expected = "more in a step than slots")]
    fn a_step_never_takes_its_own_slots_away() {
        let mut slots = Slots::new(1);
        slots.start_step();
        slots.place(1);
        slots.place(2);
    }
}
