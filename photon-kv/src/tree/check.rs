//! What always holds in the tree.
use super::{Node, NodeId, Tree};
use crate::BlockId;

impl Tree {
    /// All blocks in the tree.
    ///
    /// # Panics
    /// If anything contradicts anything else.
    pub(crate) fn check(&self) -> Vec<BlockId> {
        let (mut blocks, mut num_locked, mut num_listed) = (Vec::new(), 0, 0);
        for (i, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let id = NodeId(i as u32);
            match node.parent {
                None => self.check_root(id, node),
                Some(parent) => self.check_below(parent, id, node),
            }
            blocks.extend(&node.blocks);
            num_locked += if node.locks > 0 { node.blocks.len() as u32 } else { 0 };
            let below: u32 = node.children.values().map(|&child| self.node(child).locks).sum();
            assert!(below <= node.locks, "node {i} has fewer locks than what hangs on it");
            let is_evictable = node.locks == 0 && node.children.is_empty() && node.parent.is_some();
            assert_eq!(node.is_listed, is_evictable, "node {i} among the evictable");
            let is_listed = self.evictable.contains(&(node.used, id));
            assert_eq!(is_listed, is_evictable, "node {i} in the list");
            num_listed += usize::from(is_evictable);
        }
        assert_eq!(blocks.len() as u32, self.num_blocks, "blocks in the tree");
        assert_eq!(num_locked, self.num_locked, "locked blocks in the tree");
        assert_eq!(num_listed, self.evictable.len(), "evictable leaves");
        let in_age = self.evictable.iter().zip(self.evictable.iter().skip(1));
        assert!(in_age.into_iter().all(|(a, b)| a.0 < b.0), "two leaves are equally old");
        blocks
    }

    fn check_root(&self, id: NodeId, node: &Node) {
        assert_eq!(self.roots.get(&node.namespace), Some(&id), "{id:?} is its namespace's root");
        assert!(node.blocks.is_empty() && node.keys.is_empty(), "root {id:?} holds nothing");
        assert!(!node.children.is_empty(), "root {id:?} has children");
    }

    fn check_below(&self, parent: NodeId, id: NodeId, node: &Node) {
        let parent = self.node(parent);
        assert_eq!(
            parent.children.get(&self.first_block(id)),
            Some(&id),
            "{id:?}'s parent knows it"
        );
        assert_eq!(parent.namespace, node.namespace, "namespaces of {id:?} and its parent");
        assert!(node.used <= parent.used, "{id:?} was used, but not its parent");
        let is_whole = node.keys.len() == node.blocks.len() * self.block_size;
        let is_part = node.blocks.len() == 1 && node.keys.len() < self.block_size;
        assert!(!node.keys.is_empty() && (is_whole || is_part), "keys and blocks of {id:?}");
        assert!(is_whole || node.children.is_empty(), "{id:?}: a block in part is an end");
    }

    /// Locks of all roots: leases with a shared path, and pending copies.
    pub(crate) fn num_locks(&self) -> u32 {
        self.roots.values().map(|&root| self.node(root).locks).sum()
    }
}
