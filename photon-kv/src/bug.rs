//! The mistakes that can be planted.

/// A mistake of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A block that a lease locks is evicted.
    EvictLocked,
    /// The duplicates that publishing finds are freed twice.
    DoubleFree,
    /// A block past the cached ones is not freed with its lease.
    LeakTail,
    /// The path of a lease stays locked.
    ForgetUnlock,
}
