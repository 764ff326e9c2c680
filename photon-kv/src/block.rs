//! The pool of blocks.
//!
//! Every block is in exactly one [`Place`], and moves by naming the one it leaves.

/// A block: `block_size` consecutive slots in every layer. Block 0 is the null block, which is padding
/// in block tables and never handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub(crate) u32);

impl BlockId {
    /// The index.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// An order to the device: copy the first `slots` slots of `from` to `to`, in every layer.
///
/// The copies of a step are executed in order, before any of its writes: `from` may already have been
/// given to somebody else who writes it in the same step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Where they are.
    pub from: BlockId,
    /// Where they go.
    pub to: BlockId,
    /// How many.
    pub slots: u32,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Free,
    /// Own block of a lease.
    Leased,
    /// In the tree.
    Cached,
}

/// All blocks but the null block.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Vec<BlockId>,
    places: Vec<Place>,
}

impl Pool {
    pub(crate) fn new(num_blocks: u32) -> Self {
        assert!(1 < num_blocks, "{num_blocks} blocks: block 0 is the null block");
        // Popped from the end: low numbers first, so that a pool that is never full touches little memory.
        let free = (1..num_blocks).rev().map(BlockId).collect();
        Pool { free, places: vec![Place::Free; num_blocks as usize] }
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        self.places.len() as u32
    }

    pub(crate) fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// A free block, now of a lease.
    pub(crate) fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.set(block, Place::Free, Place::Leased);
        Some(block)
    }

    /// # Panics
    /// If the block is not in `from`: it was freed twice, or somebody else has it.
    pub(crate) fn set(&mut self, block: BlockId, from: Place, to: Place) {
        let place = &mut self.places[block.0 as usize];
        assert_eq!(*place, from, "block {} is to become {to:?}", block.0);
        *place = to;
    }

    /// Takes a block back.
    pub(crate) fn free(&mut self, block: BlockId, from: Place) {
        self.set(block, from, Place::Free);
        self.free.push(block);
    }

    /// A planted bug: frees a block that is free already.
    #[cfg(feature = "sim")]
    pub(crate) fn free_unchecked(&mut self, block: BlockId) {
        self.free.push(block);
    }

    /// How many blocks are leased, if the blocks of the tree are `cached`.
    ///
    /// # Panics
    /// If a block is not in exactly one place, the one it is marked with.
    pub(crate) fn check(&self, cached: &[BlockId]) -> u32 {
        let mut places = vec![Place::Leased; self.places.len()];
        let free = self.free.iter().map(|block| (block, Place::Free));
        for (block, place) in free.chain(cached.iter().map(|block| (block, Place::Cached))) {
            assert_ne!(block.0, 0, "the null block is {place:?}");
            let known = std::mem::replace(&mut places[block.0 as usize], place);
            assert_eq!(known, Place::Leased, "block {} is {place:?} as well", block.0);
        }
        for (block, (place, marked)) in places.iter().zip(&self.places).enumerate().skip(1) {
            assert_eq!(place, marked, "block {block} is not where its mark says");
        }
        places[1..].iter().filter(|place| **place == Place::Leased).count() as u32
    }
}
