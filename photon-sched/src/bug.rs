//! Planted bugs: what the simulator must be able to see.
//!
//! Without the feature `sim` none can be planted, [`Planted::is`] is always false and the branches
//! that ask are compiled away.
#![cfg_attr(
    not(feature = "sim"),
    allow(dead_code, unreachable_pub, reason = "only the simulator plants bugs")
)]

/// A mistake that the simulator can plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A block that a lease locks is evicted.
    EvictLocked,
    /// The duplicates that publishing finds are freed twice.
    DoubleFree,
    /// Blocks past the cached ones are not freed with their sequence.
    LeakTail,
    /// The path of a finished sequence stays locked.
    ForgetUnlock,
    /// A sequence that ends leaves blocks in the cache that it never filled.
    ShareUnfilled,
    /// A hit inside of a block does not copy what it found.
    ForgetCopy,
    /// The prompt is published when its first piece is computed.
    PublishEarly,
    /// A hit counts one token more than it found.
    HitTooLong,
    /// A preempted sequence goes on where it was, as if its blocks had stayed.
    ResumeTooFar,
    /// Sequences do not wait for a picture that another computes.
    EncodeTwice,
    /// A sequence is passed over for ever.
    PassForever,
    /// As many adapters run as there are sequences.
    IgnoreAdapters,
    /// A running sequence outlives its deadline.
    IgnoreDeadline,
    /// The last row of a step may exceed the budget.
    ExceedBudget,
    /// Drafted tokens are not counted against the budget.
    DraftUncounted,
    /// The blocks of drafted tokens that were wrong are kept.
    KeepDraftBlocks,
    /// The first drafted token that was wrong is taken for computed.
    CountRejected,
    /// The place of a drafted token that was wrong is shared as that of the right one.
    ShareRejected,
    /// What follows a drafted token that was wrong is taken.
    TakeRejected,
    /// The device executes the copies of a step in reverse.
    CopyBackwards,
    /// The device executes the copies of a step after its writes.
    CopyLate,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 21] = [
        Bug::EvictLocked,
        Bug::DoubleFree,
        Bug::LeakTail,
        Bug::ForgetUnlock,
        Bug::ShareUnfilled,
        Bug::ForgetCopy,
        Bug::PublishEarly,
        Bug::HitTooLong,
        Bug::ResumeTooFar,
        Bug::EncodeTwice,
        Bug::PassForever,
        Bug::IgnoreAdapters,
        Bug::IgnoreDeadline,
        Bug::ExceedBudget,
        Bug::DraftUncounted,
        Bug::KeepDraftBlocks,
        Bug::CountRejected,
        Bug::ShareRejected,
        Bug::TakeRejected,
        Bug::CopyBackwards,
        Bug::CopyLate,
    ];

    /// The cache's name for a bug that is in the cache.
    #[cfg(feature = "sim")]
    pub(crate) fn of_cache(self) -> Option<photon_kv::Bug> {
        match self {
            Bug::EvictLocked => Some(photon_kv::Bug::EvictLocked),
            Bug::DoubleFree => Some(photon_kv::Bug::DoubleFree),
            Bug::LeakTail => Some(photon_kv::Bug::LeakTail),
            Bug::ForgetUnlock => Some(photon_kv::Bug::ForgetUnlock),
            _ => None,
        }
    }
}

/// The bug that a scheduler has, if any.
#[derive(Debug, Default)]
pub(crate) struct Planted {
    #[cfg(feature = "sim")]
    pub(crate) bug: Option<Bug>,
}

impl Planted {
    #[cfg(feature = "sim")]
    pub(crate) fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(feature = "sim"))]
    pub(crate) fn is(&self, _: Bug) -> bool {
        false
    }
}
