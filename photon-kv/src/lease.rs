//! What one sequence holds.
use crate::{BlockId, tree::NodeId};

/// Blocks on loan to one sequence, in the order of its positions: first those it shares, then its own.
/// Goes back by [`PrefixCache::release`](crate::PrefixCache::release) or
/// [`PrefixCache::drop_lease`](crate::PrefixCache::drop_lease).
#[must_use]
#[derive(Debug)]
pub struct Lease {
    /// The end of the shared path, locked; `None` if nothing is shared.
    pub(crate) node: Option<NodeId>,
    /// How many blocks are shared.
    pub(crate) num_shared: usize,
    pub(crate) blocks: Vec<BlockId>,
}

impl Lease {
    /// The block table.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// How many of them are shared, and must not be written.
    pub fn num_shared(&self) -> usize {
        self.num_shared
    }

    /// Empties it, so that it can be dropped.
    pub(crate) fn take(mut self) -> (Option<NodeId>, usize, Vec<BlockId>) {
        (self.node.take(), std::mem::take(&mut self.num_shared), std::mem::take(&mut self.blocks))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let is_empty = self.node.is_none() && self.blocks.is_empty();
        assert!(is_empty || std::thread::panicking(), "a lease was dropped, not given back");
    }
}
