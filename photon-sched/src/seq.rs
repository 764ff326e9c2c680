//! Sequences: what is asked of the scheduler, and what it remembers of each.

use std::{cmp::Reverse, ops::Range};

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
    /// Runs of the prompt's positions that see each other both ways, in order: one for each picture.
    /// Each is computed in one piece.
    pub spans: Vec<Range<u32>>,
    /// The most positions it can ever reach: the prompt and what may be generated.
    pub max_len: u32,
    /// Higher goes first, and is preempted last.
    pub priority: i8,
    /// The logical time at which it ends if it is not finished.
    pub deadline: Option<u64>,
    /// Whether it reads from the prefix cache and leaves its blocks there.
    pub cache: bool,
}

impl SeqSpec {
    /// The last place up to `position` that is not inside of a span: so far a hit is of use.
    pub(crate) fn floor(&self, position: u32) -> u32 {
        let inside = self.spans.iter().find(|span| span.start < position && position < span.end);
        inside.map_or(position, |span| span.start)
    }

    /// The length of the span that begins at `position`.
    pub(crate) fn span_at(&self, position: u32) -> Option<u32> {
        let span = self.spans.iter().find(|span| span.start == position);
        span.map(|span| span.end - span.start)
    }

    /// The ends of the spans among `positions`.
    pub(crate) fn span_ends(&self, positions: Range<u32>) -> impl Iterator<Item = u32> {
        let within =
            move |span: &&Range<u32>| positions.start <= span.start && span.end <= positions.end;
        self.spans.iter().filter(within).map(|span| span.end)
    }

    /// # Panics
    /// If the spans are empty, overlap, are out of order or reach past the prompt.
    pub(crate) fn check_spans(&self) {
        let mut end = 0;
        for span in &self.spans {
            assert!(end <= span.start && span.start < span.end, "spans {:?}", self.spans);
            end = span.end;
        }
        assert!(end as usize <= self.keys.len(), "a span to {end} of {} tokens", self.keys.len());
    }
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

    /// Its only unknown position is that of a token like any other.
    pub(crate) fn decodes(&self) -> bool {
        self.remaining() == 1 && self.spec.span_at(self.computed()).is_none()
    }

    /// Where a row from `start` on ends that may take so many tokens and spans: never inside of a span.
    /// `start` if it cannot take the span that begins there; `alone` says that this one may be longer.
    pub(crate) fn row_end(&self, start: u32, tokens: u32, mut spans: u32, alone: bool) -> u32 {
        let end = self.known().min(start.saturating_add(tokens));
        for span in self.spec.spans.iter().filter(|span| start <= span.start) {
            if end <= span.start {
                break;
            }
            if spans == 0 || end < span.end {
                let exceeds = alone && 0 < spans && span.start == start;
                return if exceeds { span.end } else { span.start };
            }
            spans -= 1;
        }
        end
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
