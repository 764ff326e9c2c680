//! Admission: who comes from the queue into the step being planned.
//!
//! A sequence is admitted with blocks for all its known tokens and a row, which is at least the span it
//! stands at. What is taken for an attempt that fails is given back at once.

use photon_kv::{BlockCopy, Lease};

use super::Scheduler;
use crate::{SeqId, bug::Bug, seq::State};

/// How many that do not fit are tried in a step: bounds the work when the queue is long.
const MAX_STUCK: usize = 8;

enum Admission {
    Admitted,
    /// Another row of this step computes its picture.
    AwaitsImage,
    /// Others have all slots of adapters.
    AwaitsAdapter,
    DoesNotFit,
}

/// Blocks for an admission, and the tokens found in them.
struct Taken {
    lease: Lease,
    hit: u32,
    copy: Option<BlockCopy>,
}

impl Scheduler {
    /// Admits the head of the queue before anything else is planned, if the span it stands at would not
    /// fit beside what runs.
    pub(super) fn admit_first(&mut self, left: &mut u32) {
        let Some(place) = self.waiting.first().copied() else { return };
        if self.running.len() == self.limits.max_seqs as usize {
            return;
        }
        let demand: u32 =
            self.running.iter().fold(0, |sum, r| self.seqs[r.id].remaining().saturating_add(sum));
        let room = left.saturating_sub(demand);
        let spec = &self.seqs[place.id].spec;
        if spec.spans.iter().all(|span| span.end - span.start <= room) {
            return;
        }
        let hit = self.expected_hit(place.id);
        let Some(span) = spec.span_at(hit).filter(|span| room < *span) else { return };
        // One that runs computes the same in this step or soon.
        if self
            .running
            .iter()
            .any(|r| self.stands_at(r.id, hit) && self.serves(r.id, place.id, hit + span))
        {
            return;
        }
        // No more than the span: the rest of the budget belongs to what runs.
        let mut room = span;
        if let Admission::Admitted = self.try_admit(place.id, &mut room, false) {
            self.waiting.remove(0);
            self.first = Some(place.id);
            *left = left.saturating_sub(self.plan.num_tokens());
        }
    }

    fn stands_at(&self, id: SeqId, position: u32) -> bool {
        self.seqs[id].computed() == position
    }

    /// Whether what `other` computes up to `end` can be a hit of `id`.
    fn serves(&self, other: SeqId, id: SeqId, end: u32) -> bool {
        let (other, spec, end) = (&self.seqs[other].spec, &self.seqs[id].spec, end as usize);
        let share = spec.cache && other.cache && other.namespace == spec.namespace;
        share && end < spec.keys.len() && other.keys.starts_with(&spec.keys[..end])
    }

    /// Admits from the queue, in its order, until budget, rows or blocks end.
    pub(super) fn admit(&mut self, left: &mut u32) {
        self.stuck.clear();
        let mut hits_only = false;
        let mut at = 0;
        while at < self.waiting.len() && self.stuck.len() < MAX_STUCK && self.has_room(*left) {
            let place = self.waiting[at];
            match self.try_admit(place.id, left, hits_only) {
                Admission::Admitted => {
                    self.waiting.remove(at);
                    for &i in &self.stuck {
                        self.waiting[i].passed += 1;
                    }
                }
                Admission::AwaitsImage => at += 1,
                refused @ (Admission::AwaitsAdapter | Admission::DoesNotFit) => {
                    hits_only |= matches!(refused, Admission::DoesNotFit);
                    self.stuck.push(at);
                    at += 1;
                }
            }
            if self.stuck.iter().any(|&i| self.must_not_be_passed(i)) {
                break;
            }
        }
        self.promote_overdue();
    }

    fn must_not_be_passed(&self, at: usize) -> bool {
        self.limits.max_passed <= self.waiting[at].passed && !self.planted.is(Bug::PassForever)
    }

    fn promote_overdue(&mut self) {
        let mut promoted = false;
        for &i in &self.stuck {
            // One that was never passed over is not overdue, even if it must not be passed.
            let overdue = 0 < self.waiting[i].passed && self.must_not_be_passed(i);
            if overdue && !self.waiting[i].overdue.0 {
                self.waiting[i].overdue.0 = true;
                promoted = true;
            }
        }
        if promoted {
            self.waiting.sort_unstable();
        }
    }

    /// Whether anyone at all could be admitted.
    fn has_room(&self, left: u32) -> bool {
        let blocks = self.running.is_empty() || self.limits.watermark_blocks < self.available();
        0 < left && self.running.len() < self.limits.max_seqs as usize && blocks
    }

    fn available(&self) -> u32 {
        self.cache.num_free() + self.cache.num_evictable()
    }

    /// The tokens a hit would find, for what is worth taking. At least one is left to compute.
    fn expected_hit(&self, id: SeqId) -> u32 {
        let spec = &self.seqs[id].spec;
        if !spec.cache {
            return 0;
        }
        self.usable(id, self.cache.peek(&spec.namespace, &spec.keys[..spec.keys.len() - 1]))
    }

    /// How much of a hit is of use.
    fn usable(&self, id: SeqId, hit: u32) -> u32 {
        if self.planted.is(Bug::HitInsideSpan) { hit } else { self.seqs[id].spec.floor(hit) }
    }

    fn try_admit(&mut self, id: SeqId, left: &mut u32, hits_only: bool) -> Admission {
        let expected = self.expected_hit(id);
        if self.awaits_image(id, expected) {
            return Admission::AwaitsImage;
        }
        if self.awaits_adapter(id) {
            return Admission::AwaitsAdapter;
        }
        if (hits_only && expected == 0) || !self.has_budget(id, expected, *left) {
            return Admission::DoesNotFit;
        }
        // At least these blocks it needs anew; a pool that lacks them is not worth an attempt.
        let new_blocks =
            self.limits.blocks(self.seqs[id].known()) - expected / self.limits.block_size;
        let alone = self.running.is_empty();
        if !alone && self.available() < new_blocks + self.limits.watermark_blocks {
            return Admission::DoesNotFit;
        }
        let Some(taken) = self.take(id, *left) else { return Admission::DoesNotFit };
        self.run(id, taken, left);
        Admission::Admitted
    }

    /// Whether someone computes in this step a picture that it would have to. It will be published then.
    fn awaits_image(&self, id: SeqId, hit: u32) -> bool {
        let spec = &self.seqs[id].spec;
        let own = |end: u32| spec.spans.iter().any(|span| hit <= span.start && span.end == end);
        let mut computed = self.encoding.iter();
        computed.any(|&(other, end)| own(end) && self.serves(other, id, end))
            && !self.planted.is(Bug::EncodeTwice)
    }

    /// Whether it has an adapter, and as many others run as there may be.
    fn awaits_adapter(&self, id: SeqId) -> bool {
        let adapter = |id: SeqId| self.seqs[id].spec.namespace.adapter;
        let own = adapter(id);
        if own == 0 || self.planted.is(Bug::IgnoreAdapters) {
            return false;
        }
        let running = |i: usize| adapter(self.running[i].id);
        let is_new = |i: &usize| running(*i) != 0 && (0..*i).all(|j| running(j) != running(*i));
        let has_slot = (0..self.running.len()).any(|i| running(i) == own);
        !has_slot
            && (0..self.running.len()).filter(is_new).count() >= self.limits.max_adapters as usize
    }

    /// Whether this step has room for a row after the hit: for one token, or for the span it stands at.
    fn has_budget(&self, id: SeqId, hit: u32, left: u32) -> bool {
        hit < self.row_end(id, hit, left)
    }

    /// Takes what is cached and blocks for the rest of the known tokens, or nothing.
    fn take(&mut self, id: SeqId, left: u32) -> Option<Taken> {
        let known = self.seqs[id].known();
        let Taken { mut lease, hit, copy } = self.take_cached(id);
        let alone = self.running.is_empty();
        let missing = self.limits.blocks(known) - lease.blocks().len() as u32;
        let reserve = if alone { 0 } else { self.limits.watermark_blocks };
        // The hit may be shorter than expected: its last block is a copy, if one can be had.
        let fits = missing + reserve <= self.available()
            && self.has_budget(id, hit, left)
            && self.cache.grow(&mut lease, known);
        if !fits {
            assert!(!alone, "{id} is alone, needs {missing} blocks and cannot be admitted");
            self.cache.drop_lease(lease);
            return None;
        }
        Some(Taken { lease, hit, copy })
    }

    fn take_cached(&mut self, id: SeqId) -> Taken {
        let spec = &self.seqs[id].spec;
        let mut worth = if spec.cache { spec.keys.len() - 1 } else { 0 };
        loop {
            let spec = &self.seqs[id].spec;
            let (lease, hit) = self.cache.acquire(&spec.namespace, &spec.keys[..worth]);
            // Copies are executed in order and before all writes, so whatever comes to write the source
            // of this one comes later. Unlocked, it cannot be what an admission lacks.
            self.cache.copies_done();
            let usable = self.usable(id, hit.tokens);
            if usable == hit.tokens {
                return Taken { lease, hit: usable, copy: hit.copy };
            }
            self.cache.drop_lease(lease);
            worth = usable as usize;
        }
    }

    fn run(&mut self, id: SeqId, taken: Taken, left: &mut u32) {
        let Taken { lease, mut hit, copy } = taken;
        let seq = &mut self.seqs[id];
        let known = seq.known();
        self.stats.prefix_queries += u64::from(seq.spec.cache);
        self.stats.prefix_query_tokens += if seq.spec.cache { u64::from(known) } else { 0 };
        self.stats.prefix_hits += u64::from(0 < hit);
        self.stats.prefix_hit_tokens += u64::from(hit);
        self.plan.copies.extend(copy.filter(|_| !self.planted.is(Bug::ForgetCopy)));
        if self.planted.is(Bug::HitTooLong) && 0 < hit && hit + 1 < known {
            hit += 1;
        }
        if self.planted.is(Bug::ResumeTooFar) && seq.hit_tokens.is_some() {
            hit = known - 1;
        }
        seq.hit_tokens.get_or_insert(hit);
        seq.state = State::Running { lease, computed: hit, prefill: known };
        let end = self.row_end(id, hit, *left);
        self.push_row(id, hit..end, left);
        let rank = self.seqs[id].rank();
        let at = self.running.partition_point(|other| other < &rank);
        self.running.insert(at, rank);
    }
}
