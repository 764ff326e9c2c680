//! Sequences by id, in a table that never grows.

use crate::{SeqId, seq::Seq};

/// An id is `serial * slots + slot`: in the order of arrival, never used twice, found by a division.
#[derive(Debug)]
pub(super) struct Slab {
    slots: Vec<Option<Seq>>,
    vacant: Vec<u32>,
    serial: u64,
}

impl Slab {
    pub(super) fn new(slots: u32) -> Self {
        let vacant = (0..slots).rev().collect();
        Slab { slots: (0..slots).map(|_| None).collect(), vacant, serial: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    pub(super) fn insert(&mut self, seq: impl FnOnce(SeqId) -> Seq) -> SeqId {
        let slot = self.vacant.pop().expect("one slot for each that may wait or run");
        let id = SeqId(self.serial * self.slots.len() as u64 + u64::from(slot));
        self.serial += 1;
        self.slots[slot as usize] = Some(seq(id));
        id
    }

    pub(super) fn get(&self, id: SeqId) -> Option<&Seq> {
        self.slots[self.slot(id)].as_ref().filter(|seq| seq.id == id)
    }

    pub(super) fn get_mut(&mut self, id: SeqId) -> Option<&mut Seq> {
        let slot = self.slot(id);
        self.slots[slot].as_mut().filter(|seq| seq.id == id)
    }

    pub(super) fn remove(&mut self, id: SeqId) -> Seq {
        let slot = self.slot(id);
        assert!(self.get(id).is_some(), "there is no sequence {id}");
        self.vacant.push(slot as u32);
        self.slots[slot].take().expect("it was found above")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Seq> {
        self.slots.iter().flatten()
    }

    fn slot(&self, id: SeqId) -> usize {
        (id.0 % self.slots.len() as u64) as usize
    }
}

impl std::ops::Index<SeqId> for Slab {
    type Output = Seq;

    fn index(&self, id: SeqId) -> &Seq {
        self.get(id).unwrap_or_else(|| panic!("there is no sequence {id}"))
    }
}

impl std::ops::IndexMut<SeqId> for Slab {
    fn index_mut(&mut self, id: SeqId) -> &mut Seq {
        self.get_mut(id).unwrap_or_else(|| panic!("there is no sequence {id}"))
    }
}
