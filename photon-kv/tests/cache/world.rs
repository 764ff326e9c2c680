//! A fake device: memory whose slots hold keys. Whatever a lease covers must read back as the keys of its
//! sequence, through its block table and after the copies that were ordered. Beside it the naive model,
//! which says in advance what every call returns.
use photon_kv::{BlockCopy, Hit, Lease, Namespace, PrefixCache, TokenKey};

use crate::model::Model;

pub(crate) struct Sequence {
    pub(crate) namespace: Namespace,
    pub(crate) keys: Vec<TokenKey>,
    /// How many of them the device has, or will have after the copies.
    pub(crate) computed: usize,
    pub(crate) lease: Lease,
}

pub(crate) struct World {
    pub(crate) cache: PrefixCache,
    model: Model,
    /// What was computed in each slot; what was never written reads as nothing.
    memory: Vec<Option<(Namespace, TokenKey)>>,
    /// Ordered and not executed.
    copies: Vec<BlockCopy>,
    /// Everything that was ever put into the tree, in order.
    pub(crate) kept: Vec<(Namespace, Vec<TokenKey>)>,
    pub(crate) live: Vec<Sequence>,
}

pub(crate) fn namespace(tenant: u64) -> Namespace {
    Namespace { tenant, ..Namespace::default() }
}

/// One key per letter.
pub(crate) fn keys(text: &str) -> Vec<TokenKey> {
    text.bytes().map(|byte| TokenKey::text(u32::from(byte))).collect()
}

impl World {
    pub(crate) fn new(num_blocks: u32, block_size: u32) -> Self {
        World {
            cache: PrefixCache::new(num_blocks, block_size),
            model: Model::new(num_blocks, block_size),
            memory: vec![None; (num_blocks * block_size) as usize],
            copies: Vec::new(),
            kept: Vec::new(),
            live: Vec::new(),
        }
    }

    fn block_size(&self) -> usize {
        self.cache.block_size() as usize
    }

    fn slot(&self, sequence: &Sequence, position: usize) -> usize {
        let size = self.block_size();
        sequence.lease.blocks()[position / size].get() as usize * size + position % size
    }

    /// Plans a sequence: takes what is cached and blocks for the rest. `None` if there is no room.
    pub(crate) fn plan(&mut self, namespace: Namespace, keys: &[TokenKey]) -> Option<Hit> {
        let peeked = self.cache.peek(&namespace, keys);
        assert_eq!(peeked as usize, self.model.peek(&namespace, keys), "peek");
        let (mut lease, hit) = self.cache.acquire(&namespace, keys);
        let copied = hit.copy.map_or(0, |copy| copy.slots as usize);
        let want = self.model.acquire(&namespace, keys);
        assert_eq!((hit.tokens as usize, copied), want, "hit");
        self.copies.extend(hit.copy);
        let grew = self.cache.grow(&mut lease, keys.len() as u32);
        assert_eq!(grew, self.model.grow(self.live.len(), keys.len()), "grow");
        let (keys, computed) = (keys.to_vec(), hit.tokens as usize);
        self.live.push(Sequence { namespace, keys, computed, lease });
        self.check();
        if !grew {
            self.drop_lease(self.live.len() - 1);
            return None;
        }
        Some(hit)
    }

    /// From here on pending copies lock nothing.
    pub(crate) fn copies_done(&mut self) {
        self.cache.copies_done();
        self.model.copies_done();
        self.check();
    }

    /// The step: copies in order, then everything that is not computed.
    pub(crate) fn step(&mut self) {
        self.copies_done();
        let size = self.block_size();
        for copy in std::mem::take(&mut self.copies) {
            let [from, to] = [copy.from, copy.to].map(|block| block.get() as usize * size);
            self.memory.copy_within(from..from + copy.slots as usize, to);
        }
        for index in 0..self.live.len() {
            for position in self.live[index].computed..self.live[index].keys.len() {
                let sequence = &self.live[index];
                assert!(position / size >= sequence.lease.num_shared(), "writes a shared block");
                let slot = self.slot(sequence, position);
                self.memory[slot] = Some((sequence.namespace, sequence.keys[position]));
            }
            self.live[index].computed = self.live[index].keys.len();
        }
        self.check();
    }

    /// Begins a sequence and computes all of it; `None` if there is no room.
    pub(crate) fn begin(&mut self, namespace: Namespace, keys: &[TokenKey]) -> Option<Hit> {
        let hit = self.plan(namespace, keys);
        self.step();
        hit
    }

    /// One more token, not yet computed; false if there is no room.
    pub(crate) fn extend(&mut self, index: usize, key: TokenKey) -> bool {
        let sequence = &mut self.live[index];
        let len = sequence.keys.len() + 1;
        let grew = self.cache.grow(&mut sequence.lease, len as u32);
        assert_eq!(grew, self.model.grow(index, len), "grow");
        if grew {
            sequence.keys.push(key);
        }
        self.check();
        grew
    }

    /// Computes `num` tokens past the known ones, which turn out to be wrong; nothing if there is no room.
    pub(crate) fn guess(&mut self, index: usize, num: usize) {
        let known = self.live[index].keys.len();
        let grew = self.cache.grow(&mut self.live[index].lease, (known + num) as u32);
        assert_eq!(grew, self.model.grow(index, known + num), "grow");
        if grew {
            // Copies come before any write.
            self.step();
            for position in known..known + num {
                let slot = self.slot(&self.live[index], position);
                self.memory[slot] = Some((namespace(0), TokenKey::text(u32::MAX)));
            }
        }
        self.cache.shrink(&mut self.live[index].lease, known as u32);
        self.model.shrink(index, known);
        self.check();
    }

    pub(crate) fn publish(&mut self, index: usize, len: usize) {
        let Sequence { namespace, keys, lease, computed } = &mut self.live[index];
        assert!(len <= *computed, "only what is computed is published");
        let copy = self.cache.publish(lease, namespace, &keys[..len]);
        let copied = copy.map_or(0, |copy| copy.slots as usize);
        assert_eq!(copied, self.model.publish(index, &keys[..len]), "published by copy");
        // Without a copy the tail may be missing: if no block could be had.
        let size = self.cache.block_size() as usize;
        let kept = if copy.is_some() { len } else { len / size * size };
        self.kept.push((*namespace, keys[..kept].to_vec()));
        self.copies.extend(copy);
        self.check();
    }

    pub(crate) fn release(&mut self, index: usize, len: usize) {
        let Sequence { namespace, keys, lease, computed } = self.live.swap_remove(index);
        assert!(len <= computed, "only what is computed is kept");
        self.cache.release(lease, &namespace, &keys[..len]);
        self.model.release(index, &keys[..len]);
        self.kept.push((namespace, keys[..len].to_vec()));
        self.check();
    }

    pub(crate) fn drop_lease(&mut self, index: usize) {
        self.cache.drop_lease(self.live.swap_remove(index).lease);
        self.model.drop_lease(index);
        self.check();
    }

    pub(crate) fn clear(&mut self) {
        self.cache.clear();
        self.model.clear();
        self.check();
    }

    /// What the tree would know if nothing was ever evicted.
    pub(crate) fn longest_kept(&self, namespace: &Namespace, keys: &[TokenKey]) -> usize {
        let same = self.kept.iter().filter(|(n, _)| n == namespace);
        let common = |k: &[TokenKey]| k.iter().zip(keys).take_while(|(a, b)| a == b).count();
        same.map(|(_, k)| common(k)).max().unwrap_or(0)
    }

    pub(crate) fn check(&self) {
        self.cache.check();
        let cache = &self.cache;
        let counts = [cache.num_free(), cache.num_cached(), cache.num_evictable()].map(u64::from);
        let [free, cached, evictable] = counts;
        let got = [free, cached, evictable, cache.stats().evicted_blocks];
        assert_eq!(got, self.model.counts(), "free, cached, evictable and evicted blocks");
        let mut own = std::collections::HashSet::new();
        for sequence in &self.live {
            for &block in &sequence.lease.blocks()[sequence.lease.num_shared()..] {
                assert!(own.insert(block), "two leases own block {}", block.get());
            }
        }
        let all = self.cache.num_free() + self.cache.num_cached() + own.len() as u32;
        assert_eq!(all + 1, self.cache.num_blocks(), "free, cached, owned and the null block");
        if !self.copies.is_empty() {
            return; // What they bring cannot be read yet.
        }
        for sequence in &self.live {
            for (position, &key) in sequence.keys.iter().enumerate().take(sequence.computed) {
                let got = self.memory[self.slot(sequence, position)];
                assert_eq!(got, Some((sequence.namespace, key)), "position {position}");
            }
        }
    }
}

impl Drop for World {
    /// Gives back what a test left, and finds everything in its place.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.step();
        while !self.live.is_empty() {
            self.drop_lease(0);
        }
        assert_eq!(self.cache.num_evictable(), self.cache.num_cached(), "nothing is locked");
        self.clear();
        assert_eq!(self.cache.num_free() + 1, self.cache.num_blocks(), "everything is free");
    }
}
