//! The cache said naively: a list of blocks, each with the keys of its sequence up to its end, and scans.
//! It knows no tree, no node, no identity of a block, and predicts everything that can be observed: hits,
//! copies, counts, and so the order of eviction.
use photon_kv::{Namespace, TokenKey};

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    namespace: Namespace,
    /// From the sequence's first position to the last one in this block.
    keys: Vec<TokenKey>,
    used: u64,
}

/// What the cache lent.
#[derive(Clone, Debug)]
pub(crate) struct Loan {
    namespace: Namespace,
    /// The keys in shared blocks.
    shared: Vec<TokenKey>,
    num_own: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    block_size: usize,
    /// The null block is not among them.
    num_blocks: usize,
    entries: Vec<Entry>,
    pub(crate) loans: Vec<Loan>,
    /// What pending copies read.
    sources: Vec<Entry>,
    clock: u64,
    evicted: u64,
}

impl Model {
    pub(crate) fn new(num_blocks: u32, block_size: u32) -> Self {
        Model {
            block_size: block_size as usize,
            num_blocks: num_blocks as usize - 1,
            entries: Vec::new(),
            loans: Vec::new(),
            sources: Vec::new(),
            clock: 0,
            evicted: 0,
        }
    }

    /// Free, cached and evictable blocks, and how many were evicted.
    pub(crate) fn counts(&self) -> [u64; 4] {
        let evictable = self.entries.iter().filter(|entry| !self.is_locked(entry)).count();
        [self.num_free() as u64, self.entries.len() as u64, evictable as u64, self.evicted]
    }

    fn num_free(&self) -> usize {
        let own: usize = self.loans.iter().map(|loan| loan.num_own).sum();
        self.num_blocks - self.entries.len() - own
    }

    fn is_locked(&self, entry: &Entry) -> bool {
        let leads_to = |namespace: &Namespace, keys: &[TokenKey]| {
            *namespace == entry.namespace && self.is_on_path(entry, keys)
        };
        self.loans.iter().any(|loan| leads_to(&loan.namespace, &loan.shared))
            || self.sources.iter().any(|source| leads_to(&source.namespace, &source.keys))
    }

    /// Whether the blocks of `keys` include this one. A block in part is only ever the last.
    fn is_on_path(&self, entry: &Entry, keys: &[TokenKey]) -> bool {
        keys.starts_with(&entry.keys)
            && (entry.keys.len().is_multiple_of(self.block_size) || entry.keys.len() == keys.len())
    }

    fn is_end(&self, entry: &Entry) -> bool {
        !self.entries.iter().any(|other| {
            other.namespace == entry.namespace
                && other.keys.len() > entry.keys.len()
                && self.is_on_path(entry, &other.keys)
        })
    }

    fn evict(&mut self) -> bool {
        let can = |entry: &&Entry| !self.is_locked(entry) && self.is_end(entry);
        let oldest = self.entries.iter().filter(can).min_by_key(|entry| entry.used).cloned();
        let Some(oldest) = oldest else { return false };
        self.entries.retain(|entry| *entry != oldest);
        true
    }

    fn allocate(&mut self) -> bool {
        if self.num_free() > 0 {
            return true;
        }
        let evicted = self.evict();
        self.evicted += u64::from(evicted);
        evicted
    }

    fn touch(&mut self, namespace: &Namespace, keys: &[TokenKey]) {
        for i in 0..self.entries.len() {
            let entry = &self.entries[i];
            if entry.namespace == *namespace && self.is_on_path(entry, keys) {
                self.entries[i].used = self.clock;
            }
        }
    }

    fn has(&self, namespace: &Namespace, keys: &[TokenKey]) -> bool {
        self.entries.iter().any(|entry| entry.namespace == *namespace && entry.keys == keys)
    }

    fn whole(&self, namespace: &Namespace, keys: &[TokenKey]) -> usize {
        let mut len = 0;
        while len + self.block_size <= keys.len()
            && self.has(namespace, &keys[..len + self.block_size])
        {
            len += self.block_size;
        }
        len
    }

    /// The block after the first `whole` positions that goes on longest like `keys`, and for how many.
    /// Of equals the next in order from `keys` on, or else the last before them.
    fn within(
        &self,
        namespace: &Namespace,
        whole: usize,
        keys: &[TokenKey],
    ) -> Option<(Entry, usize)> {
        let end = keys.len().min(whole + self.block_size);
        let rest = &keys[whole..end];
        let common = |entry: &Entry| {
            let tail = &entry.keys[whole..];
            tail.iter().zip(rest).take_while(|(a, b)| a == b).count()
        };
        let is_next = |entry: &&Entry| {
            entry.namespace == *namespace
                && entry.keys.starts_with(&keys[..whole])
                && (whole + 1..=whole + self.block_size).contains(&entry.keys.len())
        };
        let next: Vec<_> = self.entries.iter().filter(is_next).collect();
        let most = next.iter().map(|entry| common(entry)).max().filter(|most| *most > 0)?;
        let best = || next.iter().filter(|entry| common(entry) == most);
        let after = best().filter(|entry| entry.keys[whole..] >= *rest);
        let before = best().filter(|entry| entry.keys[whole..] < *rest);
        let best = after.min_by(|a, b| a.keys.cmp(&b.keys));
        let best = best.or_else(|| before.max_by(|a, b| a.keys.cmp(&b.keys)));
        Some(((**best.expect("there is a best")).clone(), most))
    }

    pub(crate) fn peek(&self, namespace: &Namespace, keys: &[TokenKey]) -> usize {
        let whole = self.whole(namespace, keys);
        whole + self.within(namespace, whole, keys).map_or(0, |(_, count)| count)
    }

    /// Tokens found, and how many of them are copied.
    pub(crate) fn acquire(&mut self, namespace: &Namespace, keys: &[TokenKey]) -> (usize, usize) {
        self.clock += 1;
        let whole = self.whole(namespace, keys);
        let within = self.within(namespace, whole, keys);
        let shared = keys[..whole].to_vec();
        self.loans.push(Loan { namespace: *namespace, shared, num_own: 0 });
        let mut copied = 0;
        let mut used = keys[..whole].to_vec();
        if let Some((source, count)) = within {
            self.sources.push(source.clone());
            if self.allocate() {
                self.loans.last_mut().unwrap().num_own = 1;
                (copied, used) = (count, source.keys);
            } else {
                self.sources.pop();
            }
        }
        self.touch(namespace, &used);
        (whole + copied, copied)
    }

    pub(crate) fn copies_done(&mut self) {
        self.sources.clear();
    }

    pub(crate) fn grow(&mut self, index: usize, tokens: usize) -> bool {
        let has = self.loans[index].shared.len() / self.block_size + self.loans[index].num_own;
        let need = tokens.div_ceil(self.block_size).saturating_sub(has);
        let [free, _, evictable, _] = self.counts();
        if (free + evictable) < need as u64 {
            return false;
        }
        for _ in 0..need {
            assert!(self.allocate());
            self.loans[index].num_own += 1;
        }
        true
    }

    pub(crate) fn shrink(&mut self, index: usize, tokens: usize) {
        let loan = &mut self.loans[index];
        let keep = tokens.div_ceil(self.block_size) - loan.shared.len() / self.block_size;
        loan.num_own = loan.num_own.min(keep);
    }

    fn add(&mut self, namespace: &Namespace, keys: &[TokenKey]) {
        if self.has(namespace, keys) {
            return;
        }
        let start = (keys.len() - 1) / self.block_size * self.block_size;
        let is_covered = |entry: &Entry| {
            entry.namespace == *namespace
                && start < entry.keys.len()
                && keys.starts_with(&entry.keys)
                && !self.is_locked(entry)
        };
        let covered: Vec<_> = self.entries.iter().map(is_covered).collect();
        let mut covered = covered.into_iter();
        self.entries.retain(|_| !covered.next().unwrap());
        let entry = Entry { namespace: *namespace, keys: keys.to_vec(), used: self.clock };
        self.entries.push(entry);
        self.touch(namespace, keys);
    }

    fn share(&mut self, index: usize, keys: &[TokenKey]) {
        let namespace = self.loans[index].namespace;
        let had = self.loans[index].shared.len();
        let whole = keys.len() / self.block_size * self.block_size;
        if whole <= had {
            return;
        }
        // What becomes shared is no longer its own: it goes to the list, or to the pool if it is there.
        self.loans[index].num_own -= (whole - had) / self.block_size;
        for end in (had..=whole).step_by(self.block_size).skip(1) {
            self.add(&namespace, &keys[..end]);
        }
        self.loans[index].shared = keys[..whole].to_vec();
        self.touch(&namespace, &keys[..whole]);
    }

    /// Whether the keys past the last whole block are to be added. If not, they are as good as used.
    fn lacks(&mut self, index: usize, keys: &[TokenKey]) -> bool {
        let Loan { namespace, shared, .. } = self.loans[index].clone();
        let whole = keys.len() / self.block_size * self.block_size;
        if keys.len() == whole || whole < shared.len() {
            return false;
        }
        match self.within(&namespace, whole, keys) {
            Some((source, count)) if count == keys.len() - whole => {
                self.touch(&namespace, &source.keys);
                false
            }
            _ => true,
        }
    }

    /// How many slots are copied.
    pub(crate) fn publish(&mut self, index: usize, keys: &[TokenKey]) -> usize {
        self.clock += 1;
        self.share(index, keys);
        if !self.lacks(index, keys) || !self.allocate() {
            return 0;
        }
        let namespace = self.loans[index].namespace;
        self.add(&namespace, keys);
        keys.len() % self.block_size
    }

    pub(crate) fn release(&mut self, index: usize, keys: &[TokenKey]) {
        self.clock += 1;
        self.share(index, keys);
        if self.lacks(index, keys) {
            self.loans[index].num_own -= 1;
            let namespace = self.loans[index].namespace;
            self.add(&namespace, keys);
        }
        self.take_back(index);
    }

    pub(crate) fn drop_lease(&mut self, index: usize) {
        self.clock += 1;
        self.take_back(index);
    }

    fn take_back(&mut self, index: usize) {
        let loan = self.loans.swap_remove(index);
        self.touch(&loan.namespace, &loan.shared);
    }

    pub(crate) fn clear(&mut self) {
        while self.evict() {}
    }
}
