//! The radix tree: nodes, locks, and the order of eviction.
//!
//! A node is a run of whole blocks and the keys in them, or a single block that is filled in part. Nodes
//! are split at block boundaries when sequences part. The children of a node are sorted by the keys of
//! their first block, so that the child with the longest common beginning is a neighbor of what is
//! looked for.
//!
//! A use touches the path from the root to the last block used and nothing beyond it, so nodes are split
//! before they are touched. Hence a parent is never older than its children, no two leaves are equally
//! old, and the order of eviction is exact to the block.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound::{Excluded, Included, Unbounded},
};

use crate::{BlockId, CacheEvent, Namespace, TokenKey};

mod check;

/// A node's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u32);

#[derive(Debug)]
pub(crate) struct Node {
    /// `None` for a root.
    parent: Option<NodeId>,
    namespace: Namespace,
    pub(crate) keys: Vec<TokenKey>,
    pub(crate) blocks: Vec<BlockId>,
    /// By the keys of the child's first block.
    children: BTreeMap<Vec<TokenKey>, NodeId>,
    /// Leases and pending copies that end here or below.
    locks: u32,
    /// The logical time of the last use.
    used: u64,
    /// Whether it is in the list of evictable leaves, under `used`.
    is_listed: bool,
}

/// All namespaces' trees.
#[derive(Debug)]
pub(crate) struct Tree {
    block_size: usize,
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    roots: HashMap<Namespace, NodeId>,
    /// Unlocked leaves, the least recently used first.
    evictable: BTreeSet<(u64, NodeId)>,
    clock: u64,
    num_blocks: u32,
    num_locked: u32,
    /// What happened to whole blocks, if anybody wants to know.
    events: Option<Vec<CacheEvent>>,
}

/// How far keys were found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The last node of the path, if any block was found.
    pub(crate) node: Option<NodeId>,
    /// Blocks of that node that belong to the path; the others begin something else.
    pub(crate) blocks_of_node: usize,
    /// Whole blocks found.
    pub(crate) num_blocks: usize,
}

impl Found {
    /// A path of `num_blocks` blocks that ends with the node.
    pub(crate) fn at(node: Option<NodeId>, num_blocks: usize, tree: &Tree) -> Found {
        Found { node, blocks_of_node: node.map_or(0, |id| tree.node(id).blocks.len()), num_blocks }
    }
}

impl Tree {
    pub(crate) fn new(block_size: usize) -> Self {
        Tree {
            block_size,
            nodes: Vec::new(),
            vacant: Vec::new(),
            roots: HashMap::new(),
            evictable: BTreeSet::new(),
            clock: 0,
            num_blocks: 0,
            num_locked: 0,
            events: None,
        }
    }

    /// Keeps what happens from now on for [`Tree::take_events`].
    pub(crate) fn record_events(&mut self) {
        self.events.get_or_insert_default();
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Blocks in the tree.
    pub(crate) fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    /// Those that no lock holds.
    pub(crate) fn num_evictable(&self) -> u32 {
        self.num_blocks - self.num_locked
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("a live node")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("a live node")
    }

    pub(crate) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.node(id).parent
    }

    /// A new moment.
    pub(crate) fn tick(&mut self) {
        self.clock += 1;
    }

    /// The longest path of whole blocks that `keys` begin with.
    pub(crate) fn find(&self, namespace: &Namespace, keys: &[TokenKey]) -> Found {
        let mut found = Found::default();
        let Some(&root) = self.roots.get(namespace) else { return found };
        let mut at = root;
        let mut rest = keys;
        while rest.len() >= self.block_size {
            let Some(&child) = self.node(at).children.get(&rest[..self.block_size]) else { break };
            let node = self.node(child);
            // The first block is equal, or it would not have been found.
            let whole = self.common_blocks(&node.keys, rest);
            found.node = Some(child);
            found.blocks_of_node = whole;
            found.num_blocks += whole;
            rest = &rest[whole * self.block_size..];
            if whole < node.blocks.len() {
                break;
            }
            at = child;
        }
        found
    }

    fn common_blocks(&self, a: &[TokenKey], b: &[TokenKey]) -> usize {
        if b.len() >= a.len() && a == &b[..a.len()] {
            return a.len() / self.block_size;
        }
        let blocks = a.chunks_exact(self.block_size).zip(b.chunks_exact(self.block_size));
        blocks.take_while(|(a, b)| a == b).count()
    }

    /// After `found`, the block whose keys go on longest like `rest`: where it is, and for how many.
    pub(crate) fn find_within_block(
        &self,
        namespace: &Namespace,
        found: &Found,
        rest: &[TokenKey],
    ) -> Option<(NodeId, BlockId, usize)> {
        let rest = &rest[..rest.len().min(self.block_size)];
        let at = match found.node {
            Some(id) => {
                let node = self.node(id);
                if let Some(&block) = node.blocks.get(found.blocks_of_node) {
                    let keys = &node.keys[found.blocks_of_node * self.block_size..];
                    let count = common(keys, rest);
                    return (count > 0).then_some((id, block, count));
                }
                id
            }
            None => *self.roots.get(namespace)?,
        };
        let children = &self.node(at).children;
        let before = children.range::<[TokenKey], _>((Unbounded, Included(rest))).next_back();
        let after = children.range::<[TokenKey], _>((Included(rest), Unbounded)).next();
        let best = before.into_iter().chain(after).max_by_key(|(keys, _)| common(keys, rest));
        let (keys, &id) = best?;
        let count = common(keys, rest);
        (count > 0).then(|| (id, self.node(id).blocks[0], count))
    }

    /// Makes `found` end at the end of a node, splitting one if need be.
    pub(crate) fn settle(&mut self, found: &mut Found) {
        let Some(id) = found.node else { return };
        let count = found.blocks_of_node;
        if count == self.node(id).blocks.len() {
            return;
        }
        found.node = Some(self.split(id, count));
    }

    /// The node that is the first block of a node and nothing else, splitting it if need be.
    pub(crate) fn isolate(&mut self, id: NodeId) -> NodeId {
        if self.node(id).blocks.len() == 1 { id } else { self.split(id, 1) }
    }

    /// Puts the first `count` blocks of a node into a new one above it, which is returned. What names the
    /// node goes on naming the lower part, so leases that end there stay right.
    fn split(&mut self, id: NodeId, count: usize) -> NodeId {
        let block_size = self.block_size;
        let node = self.node_mut(id);
        let lower_keys = node.keys.split_off(count * block_size);
        let lower_blocks = node.blocks.split_off(count);
        let upper = Node {
            parent: node.parent,
            namespace: node.namespace,
            keys: std::mem::replace(&mut node.keys, lower_keys),
            blocks: std::mem::replace(&mut node.blocks, lower_blocks),
            children: BTreeMap::new(),
            locks: node.locks,
            used: node.used,
            is_listed: false,
        };
        let (parent, first) =
            (node.parent.expect("roots are empty"), upper.keys[..block_size].to_vec());
        let lower_first = self.first_block(id);
        let upper = self.insert_node(upper);
        self.node_mut(upper).children.insert(lower_first, id);
        self.node_mut(id).parent = Some(upper);
        let old = self.node_mut(parent).children.insert(first, upper);
        assert_eq!(old, Some(id), "a node stands among its parent's children");
        upper
    }

    fn first_block(&self, id: NodeId) -> Vec<TokenKey> {
        let keys = &self.node(id).keys;
        keys[..keys.len().min(self.block_size)].to_vec()
    }

    fn insert_node(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.vacant.pop() {
            self.nodes[id.0 as usize] = Some(node);
            return id;
        }
        self.nodes.push(Some(node));
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// The root of a namespace, made if there is none.
    pub(crate) fn root(&mut self, namespace: &Namespace) -> NodeId {
        if let Some(&root) = self.roots.get(namespace) {
            return root;
        }
        let root = self.insert_node(Node {
            parent: None,
            namespace: *namespace,
            keys: Vec::new(),
            blocks: Vec::new(),
            children: BTreeMap::new(),
            locks: 0,
            used: self.clock,
            is_listed: false,
        });
        self.roots.insert(*namespace, root);
        root
    }

    /// Adds a leaf: whole blocks, or one in part. Nothing among the children may begin with its first
    /// block.
    pub(crate) fn add(&mut self, parent: NodeId, keys: &[TokenKey], blocks: &[BlockId]) -> NodeId {
        assert_eq!(keys.len().div_ceil(self.block_size), blocks.len(), "blocks for the keys");
        let namespace = self.node(parent).namespace;
        let id = self.insert_node(Node {
            parent: Some(parent),
            namespace,
            keys: keys.to_vec(),
            blocks: blocks.to_vec(),
            children: BTreeMap::new(),
            locks: 0,
            used: self.clock,
            is_listed: false,
        });
        self.num_blocks += blocks.len() as u32;
        let before = self.node(parent).blocks.last().copied();
        if let Some(events) = &mut self.events
            && keys.len() == blocks.len() * self.block_size
        {
            let (keys, blocks) = (keys.to_vec(), blocks.to_vec());
            events.push(CacheEvent::Stored { namespace, parent: before, keys, blocks });
        }
        let first = self.first_block(id);
        let old = self.node_mut(parent).children.insert(first, id);
        assert_eq!(old, None, "two children with the same first block");
        self.relist(parent);
        self.relist(id);
        self.touch(Some(id));
        id
    }

    /// Takes a block filled in part, of which the new leaf `id` has all and more, out of the tree.
    pub(crate) fn take_covered(&mut self, id: NodeId) -> Option<BlockId> {
        let first = self.first_block(id);
        let children = &self.node(self.node(id).parent.expect("a leaf has a parent")).children;
        // What stands between a beginning of `first` and `first` has that beginning, so none is longer
        // than what the neighbor has in common with it.
        let before = (Unbounded, Excluded(&first[..]));
        let (neighbor, _) = children.range::<[TokenKey], _>(before).next_back()?;
        let shorter = (1..=common(neighbor, &first)).filter_map(|len| children.get(&first[..len]));
        let covered = shorter.copied().find(|&id| self.node(id).locks == 0)?;
        Some(self.evict_from(covered))
    }

    /// Notes that a path was used.
    pub(crate) fn touch(&mut self, mut at: Option<NodeId>) {
        while let Some(id) = at {
            let clock = self.clock;
            let node = self.node_mut(id);
            let (was, listed) = (node.used, node.is_listed);
            node.used = clock;
            at = node.parent;
            if listed {
                self.evictable.remove(&(was, id));
                self.evictable.insert((clock, id));
            }
        }
    }

    /// Keeps a node and what leads to it from being evicted.
    pub(crate) fn lock(&mut self, id: NodeId) {
        let mut at = Some(id);
        while let Some(id) = at {
            let node = self.node_mut(id);
            node.locks += 1;
            at = node.parent;
            if node.locks == 1 {
                self.num_locked += self.node(id).blocks.len() as u32;
            }
        }
        self.relist(id);
    }

    /// Undoes one [`Tree::lock`].
    pub(crate) fn unlock(&mut self, id: NodeId) {
        let mut at = Some(id);
        while let Some(id) = at {
            let node = self.node_mut(id);
            node.locks = node.locks.checked_sub(1).expect("as many unlocks as locks");
            at = node.parent;
            if node.locks == 0 {
                self.num_locked -= self.node(id).blocks.len() as u32;
            }
        }
        self.relist(id);
    }

    /// Brings the list of evictable leaves up to date for a node.
    fn relist(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let is_evictable = node.locks == 0 && node.children.is_empty() && node.parent.is_some();
        if node.is_listed == is_evictable {
            return;
        }
        node.is_listed = is_evictable;
        let entry = (node.used, id);
        match is_evictable {
            true => self.evictable.insert(entry),
            false => self.evictable.remove(&entry),
        };
    }

    /// Takes the last block of the least recently used leaf out of the tree.
    pub(crate) fn evict(&mut self) -> Option<BlockId> {
        let &(_, id) = self.evictable.first()?;
        Some(self.evict_from(id))
    }

    /// A planted bug: evicts a leaf although it is locked.
    #[cfg(feature = "sim")]
    pub(crate) fn evict_locked(&mut self) -> Option<BlockId> {
        let is_leaf = |n: &Node| n.children.is_empty() && n.locks > 0 && n.blocks.len() > 1;
        let leaf = self.nodes.iter().position(|node| node.as_ref().is_some_and(is_leaf))?;
        self.num_locked -= 1;
        Some(self.evict_from(NodeId(leaf as u32)))
    }

    /// Takes the last block of a leaf out of the tree.
    fn evict_from(&mut self, id: NodeId) -> BlockId {
        let block_size = self.block_size;
        self.num_blocks -= 1;
        let node = self.node_mut(id);
        let is_whole = node.keys.len() == node.blocks.len() * block_size;
        let block = node.blocks.pop().expect("a leaf has blocks");
        if let Some(events) = self.events.as_mut().filter(|_| is_whole) {
            events.push(CacheEvent::Removed(block));
        }
        let node = self.node_mut(id);
        if !node.blocks.is_empty() {
            node.keys.truncate(node.blocks.len() * block_size);
            return block;
        }
        // What is left are the keys of its first block, under which its parent knows it.
        let node = self.remove(id);
        let parent = node.parent.expect("roots are not evicted");
        let child = self.node_mut(parent).children.remove(node.keys.as_slice());
        assert_eq!(child, Some(id), "a node stands among its parent's children");
        self.relist(parent);
        self.prune_root(parent);
        block
    }

    fn remove(&mut self, id: NodeId) -> Node {
        let node = self.nodes[id.0 as usize].take().expect("a live node");
        if node.is_listed {
            self.evictable.remove(&(node.used, id));
        }
        self.vacant.push(id);
        node
    }

    /// Forgets a root without children.
    fn prune_root(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.parent.is_none() && node.children.is_empty() && node.locks == 0 {
            let namespace = node.namespace;
            self.roots.remove(&namespace);
            self.remove(id);
        }
    }
}

/// How many first keys are equal.
fn common(a: &[TokenKey], b: &[TokenKey]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
