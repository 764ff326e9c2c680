//! The simulator: one seed, one small world.
//!
//! A seed gives the pool, the limits, and sequences with their arrivals, prompts, pictures, lengths,
//! priorities, deadlines and cancellations. The device is a table of slots: a position's cell is a
//! hash of all cells before it *as found through the block table*, so a stale, lost or aliased block
//! changes the answer. Asserted are
//!
//! - every answer equals that of the sequence alone, which knows no blocks;
//! - after every step what [`Scheduler::check`](crate::Scheduler::check) asserts;
//! - the budget is exceeded by an atomic part alone, and atomic parts are in one piece;
//! - drafts, right, partly right or wrong, change no answer, and none is computed past its sequence's end;
//! - no written block is in another sequence's table;
//! - a picture is not computed while another sequence computes it or has it;
//! - nobody who waits is passed over more often than the limits say, and every step does something;
//! - deadlines and cancellations end sequences in the next step, and nothing else does;
//! - everything that was accepted ends, in a number of steps that is bounded by the work;
//! - at the end every block is free.

mod model;
mod workload;
mod world;

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

use crate::Bug;
use world::World;

/// What happened in one or many simulations.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Steps planned.
    pub steps: u64,
    /// Sequences that finished.
    pub finished: u64,
    /// Sequences that were cancelled or missed their deadline.
    pub ended: u64,
    /// Admissions that found a cached prefix.
    pub hits: u64,
    /// Running sequences sent back to waiting.
    pub preemptions: u64,
    /// Blocks copied in part.
    pub copies: u64,
    /// Atomic parts computed.
    pub encodings: u64,
    /// Drafted tokens computed.
    pub drafted: u64,
    /// Drafted tokens that were right.
    pub accepted: u64,
}

impl Report {
    /// Adds another report.
    pub fn add(&mut self, other: &Report) {
        let Report {
            steps,
            finished,
            ended,
            hits,
            preemptions,
            copies,
            encodings,
            drafted,
            accepted,
        } = other;
        self.steps += steps;
        self.finished += finished;
        self.ended += ended;
        self.hits += hits;
        self.preemptions += preemptions;
        self.copies += copies;
        self.encodings += encodings;
        self.drafted += drafted;
        self.accepted += accepted;
    }
}

/// Where a simulation went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which simulation.
    pub seed: u64,
    /// In which step.
    pub step: u64,
    /// What was wrong.
    pub reason: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}, step {}: {}", self.seed, self.step, self.reason)
    }
}

thread_local! {
    static SIMULATING: Cell<bool> = const { Cell::new(false) };
}

/// Panics inside of a simulation are its result, not something to print.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SIMULATING.get() {
                usual(info);
            }
        }));
    });
}

/// Runs the world of a seed to its end.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Report, Failure> {
    hush();
    let step = Cell::new(0);
    SIMULATING.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| World::new(seed, bug).run(&step)));
    SIMULATING.set(false);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let reason = text.unwrap_or_else(|| "a panic without words".to_owned());
        Failure { seed, step: step.get(), reason }
    })
}
