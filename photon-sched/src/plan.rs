//! What a step orders, and what comes back.

use photon_kv::{BlockCopy, TokenKey};

use crate::SeqId;

/// The orders of one step. Execute `copies` one after the other, then compute `rows`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// In this order, each finished before the next, and all before any write of `rows`. They must
    /// be executed even if there are no rows.
    pub copies: Vec<BlockCopy>,
    /// Positions to compute; no sequence twice.
    pub rows: Vec<PlanRow>,
    /// Sequences that ended without finishing; their ids are void.
    pub ended: Vec<(SeqId, EndReason)>,
    /// Sequences sent back to waiting. They resume by themselves.
    pub preempted: Vec<SeqId>,
}

impl StepPlan {
    /// Tokens computed by this step.
    pub fn num_tokens(&self) -> u32 {
        self.rows.iter().map(|row| row.len).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.copies.clear();
        self.rows.clear();
        self.ended.clear();
        self.preempted.clear();
    }
}

/// Positions `start..start + len` of one sequence. Each of its spans is among them or is not; those that
/// are need their picture's embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanRow {
    /// Whose.
    pub seq: SeqId,
    /// First position to compute.
    pub start: u32,
    /// How many positions.
    pub len: u32,
    /// The row reaches the last known token: it yields the next one.
    pub samples: bool,
}

/// The outcome of a row that samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// The row's sequence.
    pub seq: SeqId,
    /// The key of the token that is fed next; `None`: the sequence is finished.
    pub next: Option<TokenKey>,
}

/// Why a sequence ended without finishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Its deadline came.
    Deadline,
    /// [`cancel`](crate::Scheduler::cancel) was called.
    Cancelled,
}
