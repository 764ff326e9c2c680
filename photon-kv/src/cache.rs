//! Leases, and the tree behind them.
//!
//! Every operation that uses what is cached is a moment of its own, and what it uses is used until then;
//! giving a lease back is such a use. Counting is exact: [`PrefixCache::check`] finds every block in one
//! place and every lock with its holder, a lease that shares something or a pending copy.
//!
//! Deliberately absent: who runs, who waits, and whether a hit is worth taking.
use crate::{
    BlockCopy, BlockId, CacheEvent, Lease, Namespace, TokenKey,
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
    /// Leases that share something.
    num_paths: u32,
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
            num_paths: 0,
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

    /// Keeps what happens to whole blocks from now on for [`PrefixCache::take_events`].
    pub fn record_events(&mut self) {
        self.tree.record_events();
    }

    /// What happened to whole blocks since the last call, in order.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.tree.take_events()
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
            self.num_paths += 1;
        }
        let mut blocks = self.path_blocks(&found);
        let mut hit = Hit { tokens: whole as u32, copy: None };
        let mut last = found.node;
        if let Some((source, from, count)) = within {
            let source = self.tree.isolate(source);
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

    /// The blocks of a path that ends with its node.
    fn path_blocks(&self, found: &Found) -> Vec<BlockId> {
        let mut blocks = Vec::with_capacity(found.num_blocks + 1);
        blocks.resize(found.num_blocks, BlockId(0));
        let (mut at, mut end) = (found.node, found.num_blocks);
        while let Some(id) = at {
            let of_node = &self.tree.node(id).blocks;
            let start = end - of_node.len();
            blocks[start..end].copy_from_slice(of_node);
            (at, end) = (self.tree.parent(id), start);
        }
        blocks
    }

    /// Every copy ordered so far is part of a step whose orders are complete: what they read may be
    /// evicted from here on, because copies are executed before writes.
    pub fn copies_done(&mut self) {
        while let Some(source) = self.sources.pop() {
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

    /// Frees the blocks that a lease has for no position below `tokens`: what they hold is of no use.
    ///
    /// # Panics
    /// If it shares some of them.
    pub fn shrink(&mut self, lease: &mut Lease, tokens: u32) {
        let keep = (tokens as usize).div_ceil(self.block_size);
        assert!(lease.num_shared <= keep, "{} shared blocks, {keep} to keep", lease.num_shared);
        while keep < lease.blocks.len() {
            let block = lease.blocks.pop().expect("counted");
            self.pool.free(block, Place::Leased);
        }
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
    /// If the lease has fewer blocks than the keys need, or they are not the keys of what it shares.
    pub fn publish(
        &mut self,
        lease: &mut Lease,
        namespace: &Namespace,
        keys: &[TokenKey],
    ) -> Option<BlockCopy> {
        self.tree.tick();
        let tail = self.share(lease, namespace, keys);
        if !self.lacks(lease, namespace, tail) {
            return None;
        }
        let to = self.allocate()?;
        self.add(lease.node, namespace, tail, &[to]);
        Some(BlockCopy { from: lease.blocks[lease.num_shared], to, slots: tail.len() as u32 })
    }

    /// Puts the whole blocks of `keys` into the tree and makes the lease share them. Returns the keys
    /// past what it shares.
    fn share<'a>(
        &mut self,
        lease: &mut Lease,
        namespace: &Namespace,
        keys: &'a [TokenKey],
    ) -> &'a [TokenKey] {
        let (needed, whole) = (keys.len().div_ceil(self.block_size), keys.len() / self.block_size);
        assert!(needed <= lease.blocks.len(), "{needed} blocks of keys, {}", lease.blocks.len());
        let (whole_keys, tail) = keys.split_at(whole * self.block_size);
        if whole <= lease.num_shared {
            // Fewer keys than it shares: it adds nothing, and a tail would not belong to its end.
            return if whole == lease.num_shared { tail } else { &[] };
        }
        let mut found = self.tree.find(namespace, whole_keys);
        self.tree.settle(&mut found);
        let theirs = self.path_blocks(&found);
        let shared = &lease.blocks[..lease.num_shared];
        assert!(theirs.starts_with(shared), "the keys are not those of what the lease shares");
        // Others had the same: theirs stay, ours are spare.
        for (ours, theirs) in lease.blocks.iter_mut().zip(&theirs).skip(lease.num_shared) {
            self.free_spare(std::mem::replace(ours, *theirs));
        }
        let mut node = found.node;
        if theirs.len() < whole {
            let (new_keys, new) =
                (&whole_keys[theirs.len() * self.block_size..], theirs.len()..whole);
            node = Some(self.add(node, namespace, new_keys, &lease.blocks[new]));
        }
        let node = node.expect("more than nothing is shared");
        self.tree.lock(node);
        self.tree.touch(Some(node));
        lease.num_shared = whole;
        match lease.node.replace(node) {
            Some(old) => self.tree.unlock(old),
            None => self.num_paths += 1,
        }
        tail
    }

    /// Whether the tree lacks `tail` after what the lease shares. If it has it, that was used.
    fn lacks(&mut self, lease: &Lease, namespace: &Namespace, tail: &[TokenKey]) -> bool {
        if tail.is_empty() {
            return false;
        }
        let found = Found::at(lease.node, lease.num_shared, &self.tree);
        let within = self.tree.find_within_block(namespace, &found, tail);
        let Some((source, ..)) = within.filter(|(.., count)| *count == tail.len()) else {
            return true;
        };
        let source = self.tree.isolate(source);
        self.tree.touch(Some(source));
        false
    }

    /// Adds a leaf below a node, or the root. Blocks that were filled in part with a beginning of it are
    /// of no more use: every sequence would leave one, that of its published prompt.
    fn add(
        &mut self,
        parent: Option<NodeId>,
        namespace: &Namespace,
        keys: &[TokenKey],
        blocks: &[BlockId],
    ) -> NodeId {
        blocks.iter().for_each(|&block| self.pool.set(block, Place::Leased, Place::Cached));
        let parent = parent.unwrap_or_else(|| self.tree.root(namespace));
        let id = self.tree.add(parent, keys, blocks);
        while let Some(covered) = self.tree.take_covered(id) {
            self.pool.free(covered, Place::Cached);
        }
        id
    }

    #[cfg(not(feature = "sim"))]
    fn free_spare(&mut self, spare: BlockId) {
        self.pool.free(spare, Place::Leased);
    }

    /// Takes a lease back. `keys` are the computed positions: they stay in the tree until their blocks
    /// are needed.
    ///
    /// # Panics
    /// If the lease has fewer blocks than the keys need, or they are not the keys of what it shares.
    pub fn release(&mut self, mut lease: Lease, namespace: &Namespace, keys: &[TokenKey]) {
        self.tree.tick();
        let tail = self.share(&mut lease, namespace, keys);
        if self.lacks(&lease, namespace, tail) {
            let block = lease.blocks.remove(lease.num_shared);
            self.add(lease.node, namespace, tail, &[block]);
        }
        self.take_back(lease);
    }

    /// Takes a lease back and keeps nothing of what only it has.
    pub fn drop_lease(&mut self, lease: Lease) {
        self.tree.tick();
        self.take_back(lease);
    }

    fn take_back(&mut self, lease: Lease) {
        self.num_leases -= 1;
        let (node, num_shared, blocks) = lease.take();
        self.free_own(&blocks[num_shared..]);
        // What it shared was in use until now.
        self.tree.touch(node);
        self.num_paths -= u32::from(node.is_some());
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
        let num_leased = self.pool.check(&self.tree.check());
        assert!(self.num_leases > 0 || num_leased == 0, "{num_leased} blocks of no lease");
        assert!(self.num_paths <= self.num_leases, "more shared paths than leases");
        let locks = self.num_paths + self.sources.len() as u32;
        assert_eq!(self.tree.num_locks(), locks, "locks, and who holds them");
    }
}

#[cfg(feature = "sim")]
mod planted;
