//! What is cached, told to whoever sends requests to the engine that has their beginning already.
//!
//! A block is named by a chain of hashes: BLAKE3 over the name of the block before it, or the namespace, and
//! its own keys; the first eight bytes. Without an adapter, which has a number in its engine only, the same
//! beginning has the same name in every engine. Names, and not numbers of blocks, leave the engine.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use photon_kv::{BlockId, CacheEvent as Change, Namespace, TokenKey};
use photon_models::image::ImageDigest;
use tokio::sync::mpsc::UnboundedSender;

use super::sequence::Sequence;

/// A change of what an engine has cached, in whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Blocks, one after the other, are there from now on.
    Stored(StoredBlocks),
    /// These are there no longer.
    Removed(Vec<u64>),
}

/// Blocks that came into the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlocks {
    /// The block before them; `None` if they begin at the first position.
    pub parent: Option<u64>,
    /// Their names.
    pub hashes: Vec<u64>,
    /// What is in them: ids, and stand-ins beyond the vocabulary. `vocab_size` is a place in a picture,
    /// `vocab_size + 1` a coordinate or a size.
    pub tokens: Vec<u32>,
    /// Positions per block.
    pub block_size: usize,
    /// The adapter they were computed with: its number in this engine, and its name.
    pub adapter: Option<(u32, Arc<str>)>,
    /// The pictures in each block, by their digests.
    pub pictures: Vec<Vec<[u8; 32]>>,
}

/// Follows the cache's own numbers of blocks, and tells their names.
#[derive(Debug)]
pub(crate) struct CacheLog {
    sender: UnboundedSender<Vec<CacheEvent>>,
    vocab_size: u32,
    block_size: usize,
    hashes: HashMap<BlockId, u64>,
    /// Pictures by the keys of their places.
    pictures: HashMap<TokenKey, ImageDigest>,
    adapters: HashMap<u32, Arc<str>>,
}

/// A picture's places have so many different keys.
const KEYS_PER_PICTURE: u32 = 4;
/// Pictures of requests that are gone are forgotten when so many more are known than live.
const PICTURES_TOO_MANY: usize = 64;

impl CacheLog {
    pub(crate) fn new(
        sender: UnboundedSender<Vec<CacheEvent>>,
        vocab_size: usize,
        block_size: usize,
    ) -> Self {
        CacheLog {
            sender,
            vocab_size: vocab_size as u32,
            block_size,
            hashes: HashMap::new(),
            pictures: HashMap::new(),
            adapters: HashMap::new(),
        }
    }

    /// Learns what the keys of a sequence stand for; `others` are those that live beside it.
    pub(crate) fn meet<'a>(
        &mut self,
        sequence: &'a Sequence,
        others: impl Iterator<Item = &'a Sequence>,
    ) {
        if let Some(adapter) = &sequence.adapter {
            self.adapters.insert(adapter.id, Arc::clone(&adapter.name));
        }
        let digests =
            |sequence: &'a Sequence| sequence.pictures.iter().map(|shown| shown.picture.digest);
        let known = self.pictures.len() / KEYS_PER_PICTURE as usize;
        if known > PICTURES_TOO_MANY {
            let live: HashSet<_> = others.flat_map(digests).collect();
            if known > 2 * live.len() + PICTURES_TOO_MANY {
                self.pictures.retain(|_, digest| live.contains(digest));
            }
        }
        for digest in digests(sequence) {
            let keys = (0..KEYS_PER_PICTURE).map(|place| TokenKey::image(&digest.0, place));
            self.pictures.extend(keys.map(|key| (key, digest)));
        }
    }

    /// Tells what changed, if anything, to whoever listens.
    pub(crate) fn tell(&mut self, changes: Vec<Change>) {
        let mut events = Vec::new();
        for change in changes {
            match change {
                Change::Stored { namespace, parent, keys, blocks } => {
                    let stored = self.stored(&namespace, parent, &keys, &blocks);
                    events.push(CacheEvent::Stored(stored));
                }
                Change::Removed(block) => {
                    let hash = self.hashes.remove(&block).expect("it was stored");
                    match events.last_mut() {
                        Some(CacheEvent::Removed(hashes)) => hashes.push(hash),
                        _ => events.push(CacheEvent::Removed(vec![hash])),
                    }
                }
            }
        }
        if !events.is_empty() {
            // Nobody may listen any more; nobody will again.
            let _ = self.sender.send(events);
        }
    }

    fn stored(
        &mut self,
        namespace: &Namespace,
        parent: Option<BlockId>,
        keys: &[TokenKey],
        blocks: &[BlockId],
    ) -> StoredBlocks {
        let parent = parent.map(|block| self.hashes[&block]);
        let mut last = parent.map_or_else(|| root(namespace), u64::to_le_bytes);
        let (mut hashes, mut pictures) = (Vec::new(), Vec::new());
        for (&block, keys) in blocks.iter().zip(keys.chunks(self.block_size)) {
            last = link(last, keys.iter().map(|key| key.bits()));
            let hash = u64::from_le_bytes(last);
            self.hashes.insert(block, hash);
            hashes.push(hash);
            pictures.push(self.pictures_in(keys));
        }
        let token = |key: &TokenKey| match key.id() {
            Some(id) => id,
            None => self.vocab_size + u32::from(!key.is_image()),
        };
        let name = self.adapters.get(&namespace.adapter);
        StoredBlocks {
            parent,
            hashes,
            tokens: keys.iter().map(token).collect(),
            block_size: self.block_size,
            adapter: name.map(|name| (namespace.adapter, Arc::clone(name))),
            pictures,
        }
    }

    fn pictures_in(&self, keys: &[TokenKey]) -> Vec<[u8; 32]> {
        let mut digests = Vec::new();
        for key in keys.iter().filter(|key| key.is_image()) {
            if let Some(digest) = self.pictures.get(key).filter(|own| !digests.contains(&own.0)) {
                digests.push(digest.0);
            }
        }
        digests
    }
}

/// What a chain of a namespace begins with.
fn root(namespace: &Namespace) -> [u8; 8] {
    let Namespace { model, adapter, preprocess, tenant } = *namespace;
    link([0; 8], [model.into(), adapter.into(), preprocess.into(), tenant])
}

/// The next name of a chain.
fn link(before: [u8; 8], words: impl IntoIterator<Item = u64>) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&before);
    for word in words {
        hasher.update(&word.to_le_bytes());
    }
    *hasher.finalize().as_bytes().first_chunk().expect("a digest has 32 bytes")
}

#[cfg(test)]
mod tests {
    use photon_kv::PrefixCache;

    use super::*;

    /// Stores `text` with 2 positions per block; gives the names of all its whole blocks.
    fn store(cache: &mut PrefixCache, log: &mut CacheLog, text: &[u8]) {
        let keys: Vec<_> = text.iter().map(|&c| TokenKey::text(c.into())).collect();
        let (mut lease, _) = cache.acquire(&Namespace::default(), &keys);
        cache.copies_done();
        assert!(cache.grow(&mut lease, keys.len() as u32));
        cache.release(lease, &Namespace::default(), &keys);
        log.tell(cache.take_events());
    }

    #[test]
    fn names_are_chains_and_whoever_follows_them_knows_what_is_cached() {
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        let mut log = CacheLog::new(sender, 1000, 2);
        let mut cache = PrefixCache::new(6, 2);
        cache.record_events();
        // "g" fills no block. The third text takes the blocks of what was used longest ago.
        for text in ["abcd", "abefg", "klmnopqr"] {
            store(&mut cache, &mut log, text.as_bytes());
        }
        let mut known = HashMap::new();
        while let Ok(events) = told.try_recv() {
            for event in events {
                match event {
                    CacheEvent::Stored(stored) => {
                        let mut text = stored.parent.map_or(String::new(), |hash| {
                            known.get(&hash).cloned().expect("a parent is known")
                        });
                        for (hash, tokens) in stored.hashes.iter().zip(stored.tokens.chunks(2)) {
                            text.extend(tokens.iter().map(|&id| char::from(id as u8)));
                            assert_eq!(known.insert(*hash, text.clone()), None);
                        }
                    }
                    CacheEvent::Removed(hashes) => {
                        hashes.iter().for_each(|hash| assert!(known.remove(hash).is_some()));
                    }
                }
            }
        }
        let mut texts: Vec<_> = known.into_values().collect();
        texts.sort();
        for text in &texts {
            let keys: Vec<_> = text.bytes().map(|c| TokenKey::text(c.into())).collect();
            assert_eq!(cache.peek(&Namespace::default(), &keys) as usize, text.len(), "{text}");
        }
        assert!(texts.contains(&"klmnopqr".to_owned()), "{texts:?}");
        assert_eq!(texts.len() as u32, cache.num_cached());
    }
}
