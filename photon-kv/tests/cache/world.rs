//! A fake device: memory whose slots hold keys. Whatever a lease covers must read back as the keys of its
//! sequence, through its block table and after the copies that were ordered.
use photon_kv::{BlockCopy, Hit, Lease, Namespace, PrefixCache, TokenKey};

pub(crate) struct Sequence {
    pub(crate) namespace: Namespace,
    pub(crate) keys: Vec<TokenKey>,
    pub(crate) lease: Lease,
}

pub(crate) struct World {
    pub(crate) cache: PrefixCache,
    memory: Vec<Option<(Namespace, TokenKey)>>,
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
        let slots = (num_blocks * block_size) as usize;
        let cache = PrefixCache::new(num_blocks, block_size);
        World { cache, memory: vec![None; slots], kept: Vec::new(), live: Vec::new() }
    }

    fn execute(&mut self, copy: BlockCopy) {
        let size = self.cache.block_size() as usize;
        let [from, to] = [copy.from, copy.to].map(|block| block.get() as usize * size);
        self.memory.copy_within(from..from + copy.slots as usize, to);
    }

    fn slot(&self, sequence: &Sequence, position: usize) -> usize {
        let size = self.cache.block_size() as usize;
        sequence.lease.blocks()[position / size].get() as usize * size + position % size
    }

    /// Computes the positions from `start` on.
    fn write(&mut self, index: usize, start: usize) {
        for position in start..self.live[index].keys.len() {
            let sequence = &self.live[index];
            let size = self.cache.block_size() as usize;
            assert!(position / size >= sequence.lease.num_shared(), "writes a shared block");
            let slot = self.slot(sequence, position);
            self.memory[slot] = Some((sequence.namespace, sequence.keys[position]));
        }
    }

    /// Begins a sequence and computes all of it; `None` if there is no room.
    pub(crate) fn begin(&mut self, namespace: Namespace, keys: &[TokenKey]) -> Option<Hit> {
        let peeked = self.cache.peek(&namespace, keys);
        let (mut lease, hit) = self.cache.acquire(&namespace, keys);
        assert!(hit.tokens <= peeked, "peek saw {peeked}, acquire got {}", hit.tokens);
        if let Some(copy) = hit.copy {
            self.execute(copy);
        }
        self.cache.copies_done();
        if !self.cache.grow(&mut lease, keys.len() as u32) {
            self.cache.drop_lease(lease);
            self.check();
            return None;
        }
        self.live.push(Sequence { namespace, keys: keys.to_vec(), lease });
        self.write(self.live.len() - 1, hit.tokens as usize);
        self.check();
        Some(hit)
    }

    /// One more token; false if there is no room.
    pub(crate) fn extend(&mut self, index: usize, key: TokenKey) -> bool {
        let sequence = &mut self.live[index];
        let len = sequence.keys.len();
        if !self.cache.grow(&mut sequence.lease, len as u32 + 1) {
            return false;
        }
        sequence.keys.push(key);
        self.write(index, len);
        self.check();
        true
    }

    pub(crate) fn publish(&mut self, index: usize, len: usize) {
        let Sequence { namespace, keys, lease } = &mut self.live[index];
        let copy = self.cache.publish(lease, namespace, &keys[..len]);
        // Without a copy the tail may be missing: if no block could be had.
        let size = self.cache.block_size() as usize;
        let kept = if copy.is_some() { len } else { len / size * size };
        self.kept.push((*namespace, keys[..kept].to_vec()));
        if let Some(copy) = copy {
            self.execute(copy);
        }
        self.check();
    }

    pub(crate) fn release(&mut self, index: usize, len: usize) {
        let Sequence { namespace, keys, lease } = self.live.swap_remove(index);
        self.cache.release(lease, &namespace, &keys[..len]);
        self.kept.push((namespace, keys[..len].to_vec()));
        self.check();
    }

    pub(crate) fn drop_lease(&mut self, index: usize) {
        self.cache.drop_lease(self.live.swap_remove(index).lease);
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
        let mut own = std::collections::HashSet::new();
        for sequence in &self.live {
            for &block in &sequence.lease.blocks()[sequence.lease.num_shared()..] {
                assert!(own.insert(block), "two leases own block {}", block.get());
            }
            for (position, &key) in sequence.keys.iter().enumerate() {
                let got = self.memory[self.slot(sequence, position)];
                assert_eq!(got, Some((sequence.namespace, key)), "position {position}");
            }
        }
        let all = self.cache.num_free() + self.cache.num_cached() + own.len() as u32;
        assert_eq!(all + 1, self.cache.num_blocks(), "free, cached, owned and the null block");
    }
}

impl Drop for World {
    /// Gives back what a test left, and finds everything in its place.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        while !self.live.is_empty() {
            self.drop_lease(0);
        }
        assert_eq!(self.cache.num_evictable(), self.cache.num_cached(), "nothing is locked");
        self.cache.clear();
        assert_eq!(self.cache.num_free() + 1, self.cache.num_blocks(), "everything is free");
        self.check();
    }
}
