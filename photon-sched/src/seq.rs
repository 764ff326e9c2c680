//! Sequences: what is asked of the scheduler, and what it remembers of each.

use std::cmp::Reverse;

use photon_kv::{Lease, Namespace, TokenKey};

/// Names a sequence. Never used again, and in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub(crate) u64);

impl SeqId {
    /// For logs.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for SeqId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A sequence to run.
#[derive(Debug, Clone)]
pub struct SeqSpec {
    /// With whom it may share blocks.
    pub namespace: Namespace,
    /// The prompt: the tokens known at first.
    pub keys: Vec<TokenKey>,
    /// The first positions, which see each other both ways and are computed in one piece: 730 with
    /// a picture, 0 without. They need not be the whole prompt, but cannot be more.
    pub atomic: u32,
    /// The most positions it can ever reach: the prompt and what may be generated.
    pub max_len: u32,
    /// Higher goes first, and is preempted last.
    pub priority: i8,
    /// The logical time at which it ends if it is not finished.
    pub deadline: Option<u64>,
    /// Whether it reads from the prefix cache and leaves its blocks there.
    pub cache: bool,
}

/// Why a sequence was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddError {
    /// The queue is full; later there may be room.
    Full {
        /// Sequences waiting.
        waiting: u32,
        /// And how many may.
        max: u32,
    },
    /// Not even an empty pool could hold it.
    NeverFits {
        /// Blocks for `max_len` positions.
        needed_blocks: u32,
        /// Blocks of the pool, the null block included.
        num_blocks: u32,
    },
}

impl std::fmt::Display for AddError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AddError::Full { waiting, max } => {
                write!(f, "{waiting} sequences are waiting, at most {max} may")
            }
            AddError::NeverFits { needed_blocks, num_blocks } => {
                let usable = num_blocks - 1;
                write!(f, "the sequence may need {needed_blocks} blocks, the pool has {usable}")
            }
        }
    }
}

impl std::error::Error for AddError {}

/// A sequence the scheduler knows.
#[derive(Debug)]
pub(crate) struct Seq {
    pub(crate) id: SeqId,
    /// Its `keys` are the known tokens; they grow by each output.
    pub(crate) spec: SeqSpec,
    pub(crate) state: State,
    /// Tokens found cached when it was first admitted.
    pub(crate) hit_tokens: Option<u32>,
    /// Tokens drafted after the known ones.
    pub(crate) drafted: u32,
    /// It yielded its last token: it ends with the step.
    pub(crate) finished: bool,
    /// It ends at the next step; until then the device may write its blocks.
    pub(crate) cancelled: bool,
}

#[derive(Debug)]
pub(crate) enum State {
    /// It has a [`Place`] in the queue.
    Waiting,
    Running {
        lease: Lease,
        computed: u32,
        /// The tokens known when it was admitted: its prefill is over when all are computed.
        prefill: u32,
    },
}

/// Where a sequence stands in the waiting queue: smaller is sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Passed over as often as may be: goes first and blocks what is behind.
    pub(crate) overdue: Reverse<bool>,
    pub(crate) priority: Reverse<i8>,
    /// It ran before: at the head of its priority.
    pub(crate) preempted: Reverse<bool>,
    pub(crate) id: SeqId,
    pub(crate) passed: u32,
}

/// The order among running sequences: smaller is served sooner and preempted later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: Reverse<i8>,
    pub(crate) id: SeqId,
}

impl Seq {
    pub(crate) fn known(&self) -> u32 {
        self.spec.keys.len() as u32
    }

    pub(crate) fn computed(&self) -> u32 {
        match self.state {
            State::Waiting => 0,
            State::Running { computed, .. } => computed,
        }
    }

    pub(crate) fn remaining(&self) -> u32 {
        self.known() - self.computed()
    }

    pub(crate) fn rank(&self) -> Rank {
        Rank { priority: Reverse(self.spec.priority), id: self.id }
    }

    pub(crate) fn place(&self, preempted: bool) -> Place {
        Place {
            overdue: Reverse(false),
            priority: Reverse(self.spec.priority),
            preempted: Reverse(preempted),
            id: self.id,
            passed: 0,
        }
    }
}
