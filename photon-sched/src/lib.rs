//! Which sequences compute which positions in the next step.
//!
//! A sequence has *known* tokens (its prompt and what was generated) and *computed* ones (their keys
//! and values are in the pool); the scheduler lets the second catch up with the first under a budget
//! of tokens. There are no phases: a prefill catches up by many, a decode by one, a preempted
//! sequence is one that has nothing computed. Decisions are functions of integers and a logical
//! clock; there is no device, no thread, no time and no randomness here.
//!
//! # Rules of a step
//!
//! [`Scheduler::step`] plans, the device executes, [`Scheduler::apply`] takes the results; at most
//! one step is in flight. A step
//!
//! 1. ends what was cancelled or is past its deadline (never while the device may write its blocks);
//! 2. gives one token to every running sequence that lacks one. If the pool is dry the lowest in rank
//!    is preempted: its blocks stay cached as long as they can, and it waits at the head of its
//!    priority. Rank is (priority, arrival);
//! 3. gives what is left of the budget to running prefills, by rank;
//! 4. admits from the queue, which is in the order of priority and arrival. All blocks of the known
//!    tokens are taken at once, so only decodes can run dry. The first `atomic` positions are computed
//!    in the step of the admission: a running sequence has them;
//! 5. adds drafted tokens to the rows that reach their last known token, from what is left of budget and
//!    free blocks, unless somebody was preempted.
//!
//! Who does not fit (the rest of the budget is less than its atomic part, or blocks are missing) may
//! be passed over by hits, [`Limits::max_passed`] times. Then it goes first and blocks all behind it.
//! Who has another adapter than the [`Limits::max_adapters`] that run may be passed over by anyone, as
//! often.
//! Who would compute a picture that another computes in the same step waits for it, and finds it
//! published in the next.
//!
//! If what runs leaves too little budget for the atomic part of the head of the queue, that part goes
//! first, if need be alone and beyond the budget, but never in two steps one after the other.
//!
//! # Drafts
//!
//! Whoever guesses how a sequence goes on says so by [`Scheduler::draft`]. Guessed tokens are computed with
//! the last known one, and each position yields a token as if the guess were right. The yielded tokens
//! count up to the first that differs from the guess, that one included: they are what the sequence would
//! have yielded one at a time. Positions that were computed for a wrong guess are not computed, nobody
//! ever shares them, and blocks taken for them are free again before anybody else asks for one. So a
//! draft changes how many steps a sequence takes, and nothing else about it or others.
//!
//! # Why everything finishes
//!
//! *A step with sequences has rows.* If something runs, the highest in rank gets a token: at least in
//! every second step it is planned before all others, decodes before it take at most one token each
//! (`max_seqs <= token_budget`), and if it needs a block all others can be preempted, after which
//! only its own blocks are locked and it has no more than [`Scheduler::add`] found to fit. If nothing
//! runs, nothing is locked, the watermark is waived, an atomic part may exceed the budget, and the
//! head of the queue is admitted.
//!
//! *The highest in rank finishes.* It is never preempted, gets a token in at least every second step,
//! and has at most `max_len` positions. With it gone the next one is the highest, so everything that
//! runs finishes unless ever more of higher priority arrive.
//!
//! *The head of the queue is admitted.* It is passed over `max_passed` times at most. Then nothing
//! else is admitted, what runs finishes, and at the latest when nothing runs it fits.
//!
//! The simulator (feature `sim`) asserts all three.
#![forbid(unsafe_code)]

mod bug;
mod limits;
mod plan;
mod scheduler;
mod seq;
#[cfg(feature = "sim")]
pub mod sim;
mod stats;
#[cfg(test)]
mod tests;

#[cfg(feature = "sim")]
pub use bug::Bug;
pub use limits::Limits;
pub use plan::{EndReason, Output, PlanRow, StepPlan};
pub use scheduler::Scheduler;
pub use seq::{AddError, SeqId, SeqSpec};
pub use stats::SchedStats;
