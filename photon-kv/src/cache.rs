//! Leases, and the tree behind them.
use crate::{
    BlockCopy, BlockId, Lease, Namespace, TokenKey,
    block::{Place, Pool},
    tree::{Found, NodeId, Tree},
};

/// What [`PrefixCache::acquire`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Positions that need not be computed.
    pub tokens: u32,
    /// To be executed before they can be read.
    pub copy: Option<BlockCopy>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Calls of [`PrefixCache::acquire`].
    pub queries: u64,
    /// Tokens they asked for.
    pub query_tokens: u64,
    /// Tokens they got.
    pub hit_tokens: u64,
    /// Blocks that were evicted.
    pub evicted_blocks: u64,
}

/// The pool and the prefixes kept in it.
#[derive(Debug)]
pub struct PrefixCache {
    pool: Pool,
    tree: Tree,
    block_size: usize,
    /// What pending copies read, locked until [`PrefixCache::copies_done`].
    sources: Vec<NodeId>,
    stats: CacheStats,
    num_leases: u32,
    #[cfg(feature = "sim")]
    planted: Option<crate::Bug>,
}

impl PrefixCache {
    /// All blocks free.
    ///
    /// # Panics
    /// If there is no block but the null block, or blocks have no slots.
    pub fn new(num_blocks: u32, block_size: u32) -> Self {
        assert!(0 < block_size, "blocks of 0 slots");
        let block_size = block_size as usize;
        PrefixCache {
            pool: Pool::new(num_blocks),
            tree: Tree::new(block_size),
            block_size,
            sources: Vec::new(),
            stats: CacheStats::default(),
            num_leases: 0,
            #[cfg(feature = "sim")]
            planted: None,
        }
    }

    /// Slots per block.
    pub fn block_size(&self) -> u32 {
        self.block_size as u32
    }

    /// Blocks, the null block included.
    pub fn num_blocks(&self) -> u32 {
        self.pool.num_blocks()
    }

    /// Blocks that hold nothing.
    pub fn num_free(&self) -> u32 {
        self.pool.num_free()
    }

    /// Blocks in the tree, shared ones included.
    pub fn num_cached(&self) -> u32 {
        self.tree.num_blocks()
    }

    /// Blocks in the tree that nobody uses.
    pub fn num_evictable(&self) -> u32 {
        self.tree.num_evictable()
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    /// How many tokens [`PrefixCache::acquire`] would find. Changes nothing, not even what was used last.
    pub fn peek(&self, namespace: &Namespace, keys: &[TokenKey]) -> u32 {
        let found = self.tree.find(namespace, keys);
        let whole = found.num_blocks * self.block_size;
        let within = self.tree.find_within_block(namespace, &found, &keys[whole..]);
        (whole + within.map_or(0, |(.., count)| count)) as u32
    }

    /// A lease on the longest cached prefix of `keys`. If it ends within a block and a block can be had,
    /// that part is to be copied; if none can, the hit ends with the last whole block.
    pub fn acquire(&mut self, namespace: &Namespace, keys: &[TokenKey]) -> (Lease, Hit) {
        self.tree.tick();
        self.num_leases += 1;
        let mut found = self.tree.find(namespace, keys);
        let whole = found.num_blocks * self.block_size;
        let within = self.tree.find_within_block(namespace, &found, &keys[whole..]);
        self.tree.settle(&mut found);
        if let Some(node) = found.node {
            self.tree.lock(node);
        }
        let mut blocks = Vec::with_capacity(found.num_blocks + 1);
        self.path_blocks(found.node, &mut blocks);
        let mut hit = Hit { tokens: whole as u32, copy: None };
        let mut last = found.node;
        if let Some((source, from, count)) = within {
            self.tree.lock(source);
            if let Some(to) = self.allocate() {
                self.sources.push(source);
                blocks.push(to);
                hit.copy = Some(BlockCopy { from, to, slots: count as u32 });
                hit.tokens += count as u32;
                last = Some(source);
            } else {
                self.tree.unlock(source);
            }
        }
        self.tree.touch(last);
        self.stats.queries += 1;
        self.stats.query_tokens += keys.len() as u64;
        self.stats.hit_tokens += u64::from(hit.tokens);
        (Lease { node: found.node, num_shared: found.num_blocks, blocks }, hit)
    }

    /// Blocks from the root to the end of a node.
    fn path_blocks(&self, node: Option<NodeId>, out: &mut Vec<BlockId>) {
        let mut path = Vec::new();
        let mut at = node;
        while let Some(id) = at {
            path.push(id);
            at = self.tree.parent(id);
        }
        out.extend(path.into_iter().rev().flat_map(|id| &self.tree.node(id).blocks));
    }

    /// Every copy ordered so far is part of a step whose orders are complete: what they read may be
    /// evicted from here on, because copies are executed before writes.
    pub fn copies_done(&mut self) {
        for source in std::mem::take(&mut self.sources) {
            self.tree.unlock(source);
        }
    }

    /// Makes a lease cover the positions below `tokens`, evicting what nobody uses if need be. False, and
    /// nothing changed, if there are not enough blocks.
    pub fn grow(&mut self, lease: &mut Lease, tokens: u32) -> bool {
        let need = (tokens as usize).div_ceil(self.block_size).saturating_sub(lease.blocks.len());
        if need > (self.num_free() + self.num_evictable()) as usize {
            return false;
        }
        for _ in 0..need {
            let block = self.allocate().expect("counted above");
            lease.blocks.push(block);
        }
        true
    }

    /// A free block, if need be an evicted one.
    fn allocate(&mut self) -> Option<BlockId> {
        if self.pool.num_free() == 0 {
            let block = self.evict()?;
            self.stats.evicted_blocks += 1;
            self.pool.free(block, Place::Cached);
        }
        self.pool.take()
    }

    #[cfg(not(feature = "sim"))]
    fn evict(&mut self) -> Option<BlockId> {
        self.tree.evict()
    }

    /// Lets others share what a running sequence has computed: `keys`, from its first position on. Whole
    /// blocks go to the tree; where it has them already the lease takes the tree's. The lease goes on
    /// writing its last block, so a part of a block is to be copied, if a block can be had for it.
    ///
    /// # Panics
    /// If the lease has fewer blocks than the keys need.
    pub fn publish(
        &mut self,
        lease: &mut Lease,
        namespace: &Namespace,
        keys: &[TokenKey],
    ) -> Option<BlockCopy> {
        self.tree.tick();
        let whole = keys.len() / self.block_size;
        self.share(lease, namespace, &keys[..whole * self.block_size]);
        let tail = &keys[whole * self.block_size..];
        let found = Found::at(lease.node, whole, &self.tree);
        if tail.is_empty() || self.is_covered(namespace, &found, tail) {
            return None;
        }
        let to = self.allocate()?;
        self.pool.set(to, Place::Leased, Place::Cached);
        let parent = lease.node.unwrap_or_else(|| self.tree.root(namespace));
        self.tree.add(parent, tail, &[to]);
        Some(BlockCopy { from: lease.blocks[whole], to, slots: tail.len() as u32 })
    }

    fn is_covered(&self, namespace: &Namespace, found: &Found, tail: &[TokenKey]) -> bool {
        let within = self.tree.find_within_block(namespace, found, tail);
        within.is_some_and(|(.., count)| count == tail.len())
    }

    /// Puts the whole blocks of `keys` into the tree and makes the lease share them.
    fn share(&mut self, lease: &mut Lease, namespace: &Namespace, keys: &[TokenKey]) {
        let whole = keys.len() / self.block_size;
        assert!(whole <= lease.blocks.len(), "{whole} whole blocks, {} leased", lease.blocks.len());
        if whole <= lease.num_shared {
            return;
        }
        let mut found = self.tree.find(namespace, keys);
        self.tree.settle(&mut found);
        // Others had the same: theirs stay, ours are spare.
        let mut theirs = Vec::new();
        self.path_blocks(found.node, &mut theirs);
        let spare = lease.blocks.iter_mut().zip(theirs).skip(lease.num_shared);
        let spare: Vec<_> = spare.map(|(ours, theirs)| std::mem::replace(ours, theirs)).collect();
        spare.into_iter().for_each(|block| self.free_spare(block));
        let mut node = found.node;
        if found.num_blocks < whole {
            let new = &lease.blocks[found.num_blocks..whole];
            new.iter().for_each(|&block| self.pool.set(block, Place::Leased, Place::Cached));
            let parent = node.unwrap_or_else(|| self.tree.root(namespace));
            node = Some(self.tree.add(parent, &keys[found.num_blocks * self.block_size..], new));
        }
        let node = node.expect("more than nothing is shared");
        self.tree.lock(node);
        self.tree.touch(Some(node));
        if let Some(old) = lease.node.replace(node) {
            self.tree.unlock(old);
        }
        lease.num_shared = whole;
    }

    #[cfg(not(feature = "sim"))]
    fn free_spare(&mut self, spare: BlockId) {
        self.pool.free(spare, Place::Leased);
    }

    /// Takes a lease back. `keys` are the computed positions: they stay in the tree until their blocks
    /// are needed.
    ///
    /// # Panics
    /// If the lease has fewer blocks than the keys need.
    pub fn release(&mut self, mut lease: Lease, namespace: &Namespace, keys: &[TokenKey]) {
        self.tree.tick();
        let whole = keys.len() / self.block_size;
        self.share(&mut lease, namespace, &keys[..whole * self.block_size]);
        let tail = &keys[whole * self.block_size..];
        // A lease that shares more than it has computed has nothing to add.
        if !tail.is_empty() && lease.num_shared == whole {
            let found = Found::at(lease.node, whole, &self.tree);
            if !self.is_covered(namespace, &found, tail) {
                let block = lease.blocks.remove(whole);
                self.pool.set(block, Place::Leased, Place::Cached);
                let parent = lease.node.unwrap_or_else(|| self.tree.root(namespace));
                self.tree.add(parent, tail, &[block]);
            }
        }
        self.drop_lease(lease);
    }

    /// Takes a lease back and keeps nothing of what only it has.
    pub fn drop_lease(&mut self, lease: Lease) {
        self.num_leases -= 1;
        let (node, num_shared, blocks) = lease.take();
        self.free_own(&blocks[num_shared..]);
        self.unlock_path(node);
    }

    #[cfg(not(feature = "sim"))]
    fn free_own(&mut self, blocks: &[BlockId]) {
        blocks.iter().for_each(|&block| self.pool.free(block, Place::Leased));
    }

    #[cfg(not(feature = "sim"))]
    fn unlock_path(&mut self, node: Option<NodeId>) {
        if let Some(node) = node {
            self.tree.unlock(node);
        }
    }

    /// Evicts everything that nobody uses.
    pub fn clear(&mut self) {
        while let Some(block) = self.tree.evict() {
            self.pool.free(block, Place::Cached);
        }
    }

    /// Verifies everything that can be verified without the leases.
    ///
    /// # Panics
    /// If something is wrong, with a sentence that says what.
    pub fn check(&self) {
        let mut cached = 0;
        self.tree.check(|block| {
            assert_eq!(
                self.pool.place(block),
                Place::Cached,
                "block {} is in the tree",
                block.get()
            );
            cached += 1;
        });
        let [_, leased, marked] = self.pool.check();
        assert_eq!(cached, marked, "blocks in the tree and blocks marked so");
        assert!(self.num_leases > 0 || leased == 0, "{leased} blocks leased without a lease");
        let most = self.num_leases as usize + self.sources.len();
        assert!(self.tree.num_locks() as usize <= most, "more locks than leases");
    }
}

#[cfg(feature = "sim")]
mod planted;
