//! Counters for metrics. They decide nothing.

use photon_kv::CacheStats;

/// A scheduler's counters since it was made, and how many sequences it has now.
#[derive(Debug, Default, Clone, Copy)]
pub struct SchedStats {
    /// Sequences waiting now.
    pub waiting: u32,
    /// Sequences running now.
    pub running: u32,
    /// Steps planned.
    pub steps: u64,
    /// Tokens computed, those of preempted sequences each time they were.
    pub computed_tokens: u64,
    /// Those of them that were drafted.
    pub drafted_tokens: u64,
    /// Drafted tokens that turned out to be right.
    pub accepted_tokens: u64,
    /// Sequences accepted by `add`.
    pub added: u64,
    /// Sequences that finished.
    pub finished: u64,
    /// Sequences cancelled.
    pub cancelled: u64,
    /// Sequences whose deadline came.
    pub expired: u64,
    /// Times a running sequence was sent back to waiting.
    pub preemptions: u64,
    /// Admissions that looked for a cached prefix.
    pub prefix_queries: u64,
    /// Tokens that these asked for.
    pub prefix_query_tokens: u64,
    /// Those that found one.
    pub prefix_hits: u64,
    /// Tokens that these found.
    pub prefix_hit_tokens: u64,
    /// The cache's own counters. It also counts the attempts that led to no admission.
    pub cache: CacheStats,
}
