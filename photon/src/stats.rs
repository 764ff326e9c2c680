//! What an engine has done and is doing.
use std::{collections::BTreeSet, sync::Arc};

use serde::Serialize;

/// Counters of an engine since it was built, and its state after its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EngineStats {
    /// Requests being computed.
    pub running: usize,
    /// Requests waiting, prepared or not.
    pub waiting: usize,
    /// Requests answered.
    pub finished: u64,
    /// Steps.
    pub steps: u64,
    /// Decode steps that were replayed from a captured graph.
    pub graph_replays: u64,
    /// Times a running request had to give its blocks to others and start again.
    pub preemptions: u64,
    /// Positions computed.
    pub tokens_computed: u64,
    /// Those of them that were guessed, see [`EngineOptions::speculate`](crate::EngineOptions::speculate).
    pub drafted: u64,
    /// Guessed ones that were right.
    pub accepted: u64,
    /// Tokens drawn.
    pub tokens_out: u64,
    /// Pictures encoded.
    pub images_encoded: u64,
    /// Times an adapter was brought to a slot.
    pub adapters_loaded: u64,
    /// Requests that looked for a cached prefix.
    pub prefix_queries: u64,
    /// Positions that these asked for.
    pub prefix_query_tokens: u64,
    /// Those that found one.
    pub prefix_hits: u64,
    /// Positions they found.
    pub prefix_hit_tokens: u64,
    /// Blocks of the key-value cache.
    pub blocks: usize,
    /// Positions a block has room for.
    pub block_size: usize,
    /// Those that hold nothing.
    pub blocks_free: usize,
    /// Those that hold what finished requests left.
    pub blocks_cached: usize,
    /// Microseconds spent deciding what to run.
    pub scheduler_us: u64,
    /// Tokens drawn under a grammar.
    pub grammar_tokens: u64,
    /// Microseconds spent finding out which tokens grammars allow.
    pub grammar_us: u64,
    /// Microseconds spent encoding pictures.
    pub vision_us: u64,
    /// Microseconds from recording a step to having its results.
    pub device_us: u64,
}

/// The adapters that requests use now, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdaptersInUse {
    /// How many there is room for at the same time.
    pub slots: usize,
    /// Those of requests being computed.
    pub running: BTreeSet<Arc<str>>,
    /// Those of requests waiting.
    pub waiting: BTreeSet<Arc<str>>,
}
