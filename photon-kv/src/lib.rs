//! The key-value cache as integers: which block holds what, who may write it, what can be shared.
//!
//! [`PrefixCache`] owns every block of the pool. A sequence holds a [`Lease`]: blocks it shares with
//! others, which nobody writes any more, and then blocks of its own. What sequences have computed stays
//! in a radix tree until the pool needs the blocks, so that a later sequence that begins alike has that
//! part already.
//!
//! # Rules
//! - Every block is in exactly one place: free, own block of one lease, or in the tree. A change of
//!   place names the place it leaves, so a block freed twice is caught at once;
//!   [`PrefixCache::check`] verifies the rest.
//! - Only whole blocks are shared. If two sequences part within a block, the second copies what they
//!   have in common to a block of its own ([`BlockCopy`]); an image's 730 positions never fill whole
//!   blocks of any power of two, so this is the usual case.
//! - A key says all that its position holds beyond what the keys before it say. Positions that see what
//!   comes after them, those of a picture, have keys of the picture ([`TokenKey::image`]); whoever asks
//!   takes no hit that ends among them.
//! - What a lease shares is locked: it and what leads to it cannot be evicted.
//! - The rest is evicted from the ends of the tree, least recently used first by a logical clock.
//! - Namespaces never share: model, adapter, way of preprocessing, tenant.
//!
//! Nothing here knows what a block contains, where its bytes live, or what time it is. Keys come from
//! prompts, which strangers write: no operation takes more than logarithmic time in the number of
//! cached prefixes, whatever they choose.
#![forbid(unsafe_code)]

mod block;
mod cache;
mod event;
mod key;
mod lease;
mod tree;

#[cfg(feature = "sim")]
mod bug;
#[cfg(feature = "sim")]
pub use bug::Bug;

pub use block::{BlockCopy, BlockId};
pub use cache::{CacheStats, Hit, PrefixCache};
pub use event::CacheEvent;
pub use key::{Namespace, TokenKey};
pub use lease::Lease;
