//! Planted bugs: what the scheduler's simulator must be able to see. The right way stands beside each
//! wrong one.
use super::{BlockId, NodeId, Place, PrefixCache};
use crate::Bug;

impl PrefixCache {
    /// Makes this cache wrong.
    pub fn plant(&mut self, bug: Bug) {
        self.planted = Some(bug);
    }

    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let right = self.tree.evict();
        match (right, self.planted) {
            (None, Some(Bug::EvictLocked)) => self.tree.evict_locked(),
            _ => right,
        }
    }

    pub(super) fn free_spare(&mut self, spare: BlockId) {
        self.pool.free(spare, Place::Leased);
        if self.planted == Some(Bug::DoubleFree) {
            self.pool.free_unchecked(spare);
        }
    }

    pub(super) fn free_own(&mut self, blocks: &[BlockId]) {
        let leaked = usize::from(self.planted == Some(Bug::LeakTail) && !blocks.is_empty());
        blocks[leaked..].iter().for_each(|&block| self.pool.free(block, Place::Leased));
    }

    pub(super) fn unlock_path(&mut self, node: Option<NodeId>) {
        if let Some(node) = node
            && self.planted != Some(Bug::ForgetUnlock)
        {
            self.tree.unlock(node);
        }
    }
}
