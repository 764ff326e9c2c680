//! Limits: data, checked once.

/// What a scheduler may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences running at once: rows of a step.
    pub max_seqs: u32,
    /// Tokens computed in a step. Only a span that is longer, alone in its step, exceeds it.
    pub token_budget: u32,
    /// Blocks of the pool, the null block included.
    pub num_blocks: u32,
    /// Slots of a block.
    pub block_size: u32,
    /// Sequences that may wait; [`add`](crate::Scheduler::add) refuses more.
    pub max_waiting: u32,
    /// Blocks that admission leaves free or evictable for the growth of what runs.
    pub watermark_blocks: u32,
    /// Spans (pictures) computed in one step.
    pub max_spans_per_step: u32,
    /// Different adapters (those of [`Namespace`](photon_kv::Namespace) that are not 0) that run at once:
    /// the slots they have on the device.
    pub max_adapters: u32,
    /// How often others may pass over a waiting sequence that does not fit, before it blocks them. For
    /// want of room only hits do, for want of an adapter's slot whoever needs none.
    pub max_passed: u32,
}

impl Limits {
    /// # Panics
    /// If the limits contradict each other.
    pub fn check(&self) {
        let Limits { max_seqs, token_budget, num_blocks, block_size, .. } = *self;
        assert!(0 < max_seqs, "max_seqs is 0: nothing could run");
        assert!(
            max_seqs <= token_budget,
            "{max_seqs} sequences need a token each in a step, the budget is {token_budget}"
        );
        assert!(1 < num_blocks, "{num_blocks} blocks: block 0 is the null block");
        assert!(0 < block_size, "blocks of 0 slots");
        assert!(0 < self.max_waiting, "max_waiting is 0: nothing could be added");
        assert!(0 < self.max_spans_per_step, "max_spans_per_step is 0: no picture could be read");
        assert!(0 < self.max_adapters, "max_adapters is 0: no adapter could run");
        assert!(
            self.watermark_blocks < num_blocks,
            "a watermark of {} blocks in a pool of {num_blocks}",
            self.watermark_blocks
        );
    }

    pub(crate) fn blocks(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    /// Blocks that one sequence can have: all but the null block.
    pub(crate) fn usable_blocks(&self) -> u32 {
        self.num_blocks - 1
    }
}
