//! The scheduler: its queues, and the round of `step` and `apply`.
//!
//! A sequence is waiting, with a place in `waiting` and no blocks, or running, with a rank in
//! `running` and a lease. Both lists are sorted. Buffers keep their capacity: a step in which nobody
//! comes or goes allocates nothing.

mod admit;
mod check;
mod slab;

use std::ops::Range;

use photon_kv::{BlockCopy, BlockId, CacheEvent, Namespace, PrefixCache, TokenKey};

use crate::{
    AddError, EndReason, Limits, Output, PlanRow, SchedStats, SeqId, SeqSpec, StepPlan,
    bug::{Bug, Planted},
    seq::{Place, Rank, Seq, State},
};
use slab::Slab;

/// Plans steps over the sequences it was given; see the [crate's rules](crate).
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// The latest logical time.
    now: u64,
    cache: PrefixCache,
    seqs: Slab,
    waiting: Vec<Place>,
    running: Vec<Rank>,
    plan: StepPlan,
    /// The plan's rows were handed out and not yet applied.
    in_flight: bool,
    /// Copies that `apply` asked for: the first ones of the next step.
    copies: Vec<BlockCopy>,
    cancelled: Vec<SeqId>,
    /// No deadline is earlier. It may be that of a sequence that is gone.
    earliest_deadline: u64,
    /// Whose span went before the decodes in this step.
    first: Option<SeqId>,
    /// The spans that are computed in this step: whose, and where they end.
    encoding: Vec<(SeqId, u32)>,
    /// Indices in `waiting` of those that did not fit in this step.
    stuck: Vec<usize>,
    stats: SchedStats,
    planted: Planted,
}

impl Scheduler {
    /// A scheduler with an empty pool.
    ///
    /// # Panics
    /// If the limits contradict each other.
    pub fn new(limits: Limits) -> Self {
        limits.check();
        let (max_seqs, max_waiting) = (limits.max_seqs as usize, limits.max_waiting as usize);
        Scheduler {
            limits,
            now: 0,
            cache: PrefixCache::new(limits.num_blocks, limits.block_size),
            // `add` refuses when `max_waiting` wait, so preempted ones included there are no more.
            seqs: Slab::new(limits.max_seqs + limits.max_waiting),
            waiting: Vec::with_capacity(max_seqs + max_waiting),
            running: Vec::with_capacity(max_seqs),
            plan: StepPlan::default(),
            in_flight: false,
            copies: Vec::new(),
            cancelled: Vec::new(),
            earliest_deadline: u64::MAX,
            first: None,
            encoding: Vec::new(),
            stuck: Vec::new(),
            stats: SchedStats::default(),
            planted: Planted::default(),
        }
    }

    /// Queues a sequence.
    ///
    /// # Panics
    /// If the prompt is empty or longer than `max_len`, its spans are none, or the logical time goes back.
    pub fn add(&mut self, now: u64, mut spec: SeqSpec) -> Result<SeqId, AddError> {
        self.tick(now);
        let known = spec.keys.len();
        assert!(0 < known, "a prompt of no tokens");
        spec.check_spans();
        assert!(known <= spec.max_len as usize, "{known} tokens of at most {}", spec.max_len);
        let needed_blocks = self.limits.blocks(spec.max_len);
        if needed_blocks > self.limits.usable_blocks() {
            return Err(AddError::NeverFits { needed_blocks, num_blocks: self.limits.num_blocks });
        }
        let (waiting, max) = (self.waiting.len() as u32, self.limits.max_waiting);
        if waiting >= max {
            return Err(AddError::Full { waiting, max });
        }
        // So that no output reallocates.
        spec.keys.reserve_exact(spec.max_len as usize - known);
        // One that is due already still ends by a plan: nobody ends in two ways.
        self.earliest_deadline = self.earliest_deadline.min(spec.deadline.unwrap_or(u64::MAX));
        let id = self.seqs.insert(|id| Seq {
            id,
            spec,
            state: State::Waiting,
            hit_tokens: None,
            drafted: 0,
            finished: false,
            cancelled: false,
        });
        self.enqueue(id, false);
        self.stats.added += 1;
        Ok(id)
    }

    /// Ends a sequence: the next plan lists it as ended. False if there is no such sequence or it
    /// was cancelled before. An output for it that is still to come is ignored.
    pub fn cancel(&mut self, id: SeqId) -> bool {
        let Some(seq) = self.seqs.get_mut(id).filter(|seq| !seq.cancelled) else { return false };
        seq.cancelled = true;
        self.cancelled.push(id);
        true
    }

    /// Says how many tokens are drafted after the known ones of a running sequence, until it yields the
    /// next one. As many of them are computed with it as there is room for.
    pub fn draft(&mut self, id: SeqId, num: u32) {
        if let Some(seq) = self.seqs.get_mut(id) {
            seq.drafted = num;
        }
    }

    /// Plans the next step at logical time `now`. If the plan has rows, [`apply`](Self::apply) must
    /// follow, whether or not any of them samples.
    ///
    /// # Panics
    /// If the step before has not been applied, or the logical time goes back.
    pub fn step(&mut self, now: u64) -> &StepPlan {
        assert!(!self.in_flight, "the step before has not been applied");
        self.tick(now);
        self.plan.clear();
        self.plan.copies.append(&mut self.copies);
        self.encoding.clear();
        self.end_due(now);
        let mut left = self.limits.token_budget;
        self.plan_first(&mut left);
        self.plan_decodes(&mut left);
        self.plan_prefills(&mut left);
        // Blocks were just taken from someone: they are not for newcomers.
        if self.plan.preempted.is_empty() {
            self.admit(&mut left);
            self.plan_drafts(left);
        }
        assert!(
            !self.plan.rows.is_empty() || self.seqs.len() == 0,
            "{} waiting and {} running, and no row planned",
            self.waiting.len(),
            self.running.len()
        );
        self.in_flight = !self.plan.rows.is_empty();
        self.stats.steps += 1;
        self.stats.computed_tokens += u64::from(self.plan.num_tokens());
        self.stats.drafted_tokens += u64::from(self.plan.num_drafted());
        &self.plan
    }

    /// Takes the results of the step in flight: for each row that samples, in the order of the rows, one
    /// output and one more for each drafted token that was right.
    ///
    /// # Panics
    /// If the outputs are not those of the rows, or one exceeds its sequence's `max_len`.
    pub fn apply(&mut self, outputs: &[Output]) {
        let mut rest = outputs;
        assert!(self.in_flight || rest.is_empty(), "outputs, and no step is in flight");
        let rows = std::mem::take(&mut self.plan.rows);
        for row in &rows {
            let count = rest.iter().take_while(|output| output.seq == row.seq).count();
            let most = if row.samples { 1 + row.drafted as usize } else { 0 };
            assert!(
                count <= most && row.samples == (0 < count),
                "{}: {count} outputs of {most}; they are in the order of the plan's rows",
                row.seq
            );
            let (outputs, others) = rest.split_at(count);
            self.take_outputs(row, outputs);
            rest = others;
        }
        assert!(rest.is_empty(), "outputs of no row");
        // When the blocks of wrong drafts are free again: what is shared here may need some.
        rows.iter().for_each(|row| self.settle(row));
        // Empty, so that a second call finds nothing to apply; the buffer stays.
        self.plan.rows = rows;
        self.plan.rows.clear();
        self.in_flight = false;
    }

    /// What a row computed and yielded is computed and known. All outputs but the last are drafted tokens
    /// that were right, computed in advance. Drafted tokens after them leave nothing: their places are
    /// written anew, and blocks that only they have are free.
    fn take_outputs(&mut self, row: &PlanRow, outputs: &[Output]) {
        let seq = &mut self.seqs[row.seq];
        let State::Running { lease, computed, .. } = &mut seq.state else {
            panic!("{} is in the plan and does not run", row.seq)
        };
        // A cancelled one ends at the next step.
        let outputs = if seq.cancelled { &[] } else { outputs };
        let accepted = outputs.len().saturating_sub(1) as u32;
        *computed += row.len + accepted;
        self.stats.accepted_tokens += u64::from(accepted);
        if accepted < row.drafted && self.planted.is(Bug::CountRejected) {
            *computed += 1;
        }
        if 0 < row.drafted && !self.planted.is(Bug::KeepDraftBlocks) {
            self.cache.shrink(lease, *computed);
        }
        for output in outputs {
            seq.drafted = 0;
            assert!(!seq.finished, "{}: outputs after its end", row.seq);
            match output.next {
                Some(key) => {
                    let (known, max_len) = (seq.known(), seq.spec.max_len);
                    assert!(known < max_len, "{} is past its max_len", row.seq);
                    seq.spec.keys.push(key);
                }
                None => seq.finished = true,
            }
        }
    }

    /// A row's sequence shares what others may use, or ends.
    fn settle(&mut self, row: &PlanRow) {
        let seq = &self.seqs[row.seq];
        if !seq.finished {
            return self.publish(row);
        }
        let (rank, seq) = (seq.rank(), self.seqs.remove(row.seq));
        self.leave_running(rank);
        Self::give_back(&mut self.cache, &seq.spec, seq.state, &self.planted);
        self.stats.finished += 1;
    }

    /// Shares what is computed if the row completed a span or the prefill.
    fn publish(&mut self, row: &PlanRow) {
        let seq = &mut self.seqs[row.seq];
        let SeqSpec { namespace, keys, cache, .. } = &seq.spec;
        let State::Running { lease, computed, prefill } = &mut seq.state else { return };
        let mut end = *computed;
        if self.planted.is(Bug::PublishEarly) {
            end = end.max(*prefill);
        }
        let mut has_all = row.start < *prefill && *prefill <= end;
        if 0 < row.drafted && self.planted.is(Bug::ShareRejected) {
            let slots = lease.blocks().len() as u32 * self.limits.block_size;
            (has_all, end) = (true, slots.min(keys.len() as u32));
        }
        let has_span = || seq.spec.span_ends(row.start..row.start + row.len).next().is_some();
        if *cache && !seq.cancelled && (has_all || has_span()) {
            let keys = &keys[..end as usize];
            self.copies.extend(self.cache.publish(lease, namespace, keys));
        }
    }

    /// Blocks of a running sequence in order, those of this step's positions included; none if it
    /// waits or is gone.
    pub fn blocks(&self, id: SeqId) -> &[BlockId] {
        match self.seqs.get(id).map(|seq| &seq.state) {
            Some(State::Running { lease, .. }) => lease.blocks(),
            _ => &[],
        }
    }

    /// Tokens that were found cached when the sequence was first admitted; 0 before.
    pub fn hit_tokens(&self, id: SeqId) -> u32 {
        self.seqs.get(id).and_then(|seq| seq.hit_tokens).unwrap_or(0)
    }

    /// Tokens in the pool, of a running sequence; 0 if it waits or is gone.
    pub fn computed_tokens(&self, id: SeqId) -> u32 {
        self.seqs.get(id).map_or(0, Seq::computed)
    }

    /// No sequence is left: there is nothing to step for.
    pub fn is_idle(&self) -> bool {
        self.seqs.len() == 0
    }

    /// Counters.
    pub fn stats(&self) -> SchedStats {
        SchedStats {
            waiting: self.waiting.len() as u32,
            running: self.running.len() as u32,
            cache: self.cache.stats(),
            ..self.stats
        }
    }

    /// What it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The pool and what is cached in it.
    pub fn cache(&self) -> &PrefixCache {
        &self.cache
    }

    /// Forgets all cached blocks that nobody uses.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
    }

    /// Keeps what happens to cached blocks from now on for [`Scheduler::take_cache_events`].
    pub fn record_cache_events(&mut self) {
        self.cache.record_events();
    }

    /// What happened to cached blocks since the last call, in order.
    pub fn take_cache_events(&mut self) -> Vec<CacheEvent> {
        self.cache.take_events()
    }

    /// Tokens of a prompt that are cached now.
    pub fn peek(&self, namespace: &Namespace, keys: &[TokenKey]) -> u32 {
        self.cache.peek(namespace, keys)
    }

    /// Plants a bug, for the simulator to find.
    #[cfg(feature = "sim")]
    pub fn plant(&mut self, bug: Bug) {
        match bug.of_cache() {
            Some(bug) => self.cache.plant(bug),
            None => self.planted.bug = Some(bug),
        }
    }

    fn tick(&mut self, now: u64) {
        assert!(self.now <= now, "logical time went back from {} to {now}", self.now);
        self.now = now;
    }

    fn enqueue(&mut self, id: SeqId, preempted: bool) {
        let place = self.seqs[id].place(preempted);
        let at = self.waiting.partition_point(|other| other < &place);
        self.waiting.insert(at, place);
    }

    fn leave_running(&mut self, rank: Rank) {
        let at = self.running.binary_search(&rank).expect("a running sequence has its rank");
        self.running.remove(at);
    }

    /// Takes the blocks of a sequence that stops running. Nothing if it waited.
    fn give_back(cache: &mut PrefixCache, spec: &SeqSpec, state: State, planted: &Planted) {
        let State::Running { lease, computed, .. } = state else { return };
        let mut end = computed as usize;
        if planted.is(Bug::ShareUnfilled) {
            end = spec.keys.len().min(lease.blocks().len() * cache.block_size() as usize);
        }
        if spec.cache {
            cache.release(lease, &spec.namespace, &spec.keys[..end]);
        } else {
            cache.drop_lease(lease);
        }
    }

    fn end_due(&mut self, now: u64) {
        let mut ending = std::mem::take(&mut self.cancelled);
        for id in ending.drain(..) {
            self.end(id, EndReason::Cancelled);
        }
        if self.earliest_deadline <= now {
            let spared = self.planted.is(Bug::IgnoreDeadline);
            let spared = |seq: &Seq| spared && matches!(seq.state, State::Running { .. });
            let due = |seq: &&Seq| seq.spec.deadline.is_some_and(|at| at <= now) && !spared(seq);
            ending.extend(self.seqs.iter().filter(due).map(|seq| seq.id));
            for id in ending.drain(..) {
                self.end(id, EndReason::Deadline);
            }
            let deadlines = self.seqs.iter().filter_map(|seq| seq.spec.deadline);
            self.earliest_deadline = deadlines.min().unwrap_or(u64::MAX);
        }
        self.cancelled = ending;
    }

    fn end(&mut self, id: SeqId, reason: EndReason) {
        let seq = self.seqs.remove(id);
        match seq.state {
            State::Waiting => self.waiting.retain(|place| place.id != id),
            State::Running { .. } => self.leave_running(seq.rank()),
        }
        Self::give_back(&mut self.cache, &seq.spec, seq.state, &self.planted);
        self.plan.ended.push((id, reason));
        match reason {
            EndReason::Deadline => self.stats.expired += 1,
            EndReason::Cancelled => self.stats.cancelled += 1,
        }
    }

    fn plan_decodes(&mut self, left: &mut u32) {
        let mut at = 0;
        // Victims are taken from the end, so who is planned stays.
        while at < self.running.len() && 0 < *left {
            let id = self.running[at].id;
            at += 1;
            if self.first != Some(id) && self.seqs[id].decodes() && self.grow(id) {
                let start = self.seqs[id].computed();
                self.push_row(id, start..start + 1, left);
            }
        }
    }

    fn plan_prefills(&mut self, left: &mut u32) {
        for at in 0..self.running.len() {
            let id = self.running[at].id;
            let seq = &self.seqs[id];
            if self.first == Some(id) || seq.decodes() || *left == 0 {
                continue;
            }
            let start = seq.computed();
            let end = match self.planted.is(Bug::ExceedBudget) {
                true => seq.known(),
                false => self.row_end(id, start, *left),
            };
            if start < end {
                self.push_row(id, start..end, left);
            }
        }
    }

    /// Plans a span before everything else, if it would not fit beside what goes before it: that of a
    /// running sequence, or else of the head of the queue. Not in two steps one after the other, so that
    /// what runs goes on.
    fn plan_first(&mut self, left: &mut u32) {
        if self.first.take().is_some() {
            return;
        }
        let Some(id) = self.crowded_out() else { return self.admit_first(left) };
        let start = self.seqs[id].computed();
        let len = self.seqs[id].spec.span_at(start).expect("it stands at a span");
        self.push_row(id, start..start + len, left);
        self.first = Some(id);
    }

    /// The highest in rank whose next position begins a span that the rows before its own leave no room
    /// for.
    fn crowded_out(&self) -> Option<SeqId> {
        let prefills = || self.running.iter().map(|r| &self.seqs[r.id]).filter(|s| !s.decodes());
        let num_decodes = (self.running.len() - prefills().count()) as u32;
        let mut tokens = self.limits.token_budget - num_decodes;
        let (mut spans, mut alone) = (self.limits.max_spans_per_step, num_decodes == 0);
        for seq in prefills() {
            let start = seq.computed();
            let end = seq.row_end(start, tokens, spans, alone);
            if start == end && 0 < spans && seq.spec.span_at(start).is_some() {
                return Some(seq.id);
            }
            tokens = tokens.saturating_sub(end - start);
            spans -= seq.spec.span_ends(start..end).count() as u32;
            alone = false;
        }
        None
    }

    /// Where a row of `id` from `start` on ends, with what this step has left; `start` if there is none.
    fn row_end(&self, id: SeqId, start: u32, left: u32) -> u32 {
        let seq = &self.seqs[id];
        if self.planted.is(Bug::SplitSpan) {
            return seq.known().min(start + left);
        }
        let spans = self.limits.max_spans_per_step - self.encoding.len() as u32;
        seq.row_end(start, left, spans, self.plan.rows.is_empty())
    }

    fn push_row(&mut self, id: SeqId, positions: Range<u32>, left: &mut u32) {
        let Range { start, end } = positions;
        let seq = &self.seqs[id];
        self.encoding.extend(seq.spec.span_ends(positions).map(|end| (id, end)));
        let samples = end == seq.known();
        self.plan.rows.push(PlanRow { seq: id, start, len: end - start, drafted: 0, samples });
        *left = left.saturating_sub(end - start);
    }

    /// Adds drafted tokens to the rows that sample, as far as the budget and the free blocks go: for a draft
    /// nobody is preempted, nothing is evicted, and nobody gets a token less.
    fn plan_drafts(&mut self, mut left: u32) {
        for row in self.plan.rows.iter_mut().filter(|row| row.samples) {
            let seq = &mut self.seqs[row.seq];
            let (known, max_len) = (seq.known(), seq.spec.max_len);
            let State::Running { lease, .. } = &mut seq.state else { continue };
            let blocks = lease.blocks().len() as u32 + self.cache.num_free();
            let room = (blocks * self.limits.block_size).min(max_len) - known;
            row.drafted = seq.drafted.min(left).min(room);
            let has_blocks = self.cache.grow(lease, known + row.drafted);
            assert!(has_blocks, "{}: counted blocks for {} drafted tokens", row.seq, row.drafted);
            if !self.planted.is(Bug::DraftUncounted) {
                left -= row.drafted;
            }
        }
    }

    /// Blocks for all known tokens of a running sequence, if need be those of others. False if it
    /// must go without this step; it may have been preempted itself.
    fn grow(&mut self, id: SeqId) -> bool {
        loop {
            let seq = &mut self.seqs[id];
            let known = seq.known();
            let State::Running { lease, .. } = &mut seq.state else { return false };
            if self.cache.grow(lease, known) {
                return true;
            }
            // The lowest in rank may be the one that went first, whose row is planned.
            if self.first.is_some() {
                return false;
            }
            self.preempt_lowest();
        }
    }

    fn preempt_lowest(&mut self) {
        assert!(1 < self.running.len(), "a sequence that runs alone lacks blocks");
        let Some(Rank { id, .. }) = self.running.pop() else { return };
        let state = std::mem::replace(&mut self.seqs[id].state, State::Waiting);
        Self::give_back(&mut self.cache, &self.seqs[id].spec, state, &self.planted);
        self.enqueue(id, true);
        self.plan.preempted.push(id);
        self.stats.preemptions += 1;
    }
}

impl Drop for Scheduler {
    /// Leases complain if they are forgotten; those of a scheduler that is dropped are not.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        while let Some(Rank { id, .. }) = self.running.pop() {
            if let State::Running { lease, .. } = self.seqs.remove(id).state {
                self.cache.drop_lease(lease);
            }
        }
    }
}
