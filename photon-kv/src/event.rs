//! What happens to the blocks of the tree, for whoever keeps a picture of it elsewhere.
use crate::{BlockId, Namespace, TokenKey};

/// A change of what the tree holds. Only whole blocks are told of: nobody can share others without a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Blocks entered the tree, one after the other.
    Stored {
        /// Where they belong.
        namespace: Namespace,
        /// The block before them; `None` if they begin at the first position.
        parent: Option<BlockId>,
        /// What is in them, `block_size` keys each.
        keys: Vec<TokenKey>,
        /// The blocks.
        blocks: Vec<BlockId>,
    },
    /// A block left it.
    Removed(BlockId),
}
