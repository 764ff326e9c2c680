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
    /// Tokens computed by this step, drafted ones included.
    pub fn num_tokens(&self) -> u32 {
        self.rows.iter().map(|row| row.len + row.drafted).sum()
    }

    /// Drafted tokens computed by this step.
    pub fn num_drafted(&self) -> u32 {
        self.rows.iter().map(|row| row.drafted).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.copies.clear();
        self.rows.clear();
        self.ended.clear();
        self.preempted.clear();
    }
}

/// Positions `start..start + len` of one sequence, and `drafted` more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanRow {
    /// Whose.
    pub seq: SeqId,
    /// First position to compute. Below the sequence's `atomic` only if it is 0, and then `len` is
    /// at least `atomic`: the only rows that need the picture's embeddings.
    pub start: u32,
    /// How many positions.
    pub len: u32,
    /// How many drafted tokens are computed after them, the first ones of the draft. Each yields the
    /// token after it, which counts if the draft was right so far. 0 if the row does not sample.
    pub drafted: u32,
    /// The row reaches the last known token: it yields the next one.
    pub samples: bool,
}

/// A token that a row yielded. A row that samples has one, and one more for each drafted token that
/// turned out to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// The row's sequence.
    pub seq: SeqId,
    /// The key of the token that is fed next; `None`: the sequence is finished, and this is its last.
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
