//! Admission: who comes from the queue into the step being planned.
//!
//! A sequence is admitted with blocks for all its known tokens, and its atomic part, if no hit covers
//! it, is computed in the same step. What is taken for an attempt that fails is given back at once.

use photon_kv::{BlockCopy, Lease};

use super::Scheduler;
use crate::{PlanRow, SeqId, bug::Bug, seq::State};

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
    /// Admits the head of the queue before anything else is planned, if its atomic part would not
    /// fit beside what runs. Not in two steps one after the other, so that what runs goes on.
    pub(super) fn admit_first(&mut self, left: &mut u32) {
        let went_before = self.first.take().is_some();
        let Some(place) = self.waiting.first().copied() else { return };
        if went_before || self.running.len() == self.limits.max_seqs as usize {
            return;
        }
        let demand: u32 =
            self.running.iter().fold(0, |sum, r| self.seqs[r.id].remaining().saturating_add(sum));
        let atomic = self.seqs[place.id].spec.atomic;
        if atomic <= left.saturating_sub(demand) || 0 < self.expected_hit(place.id) {
            return;
        }
        // No more than the atomic part: the rest of the budget belongs to what runs.
        let mut room = atomic;
        if let Admission::Admitted = self.try_admit(place.id, &mut room, false) {
            self.waiting.remove(0);
            self.first = Some(place.id);
            *left = left.saturating_sub(atomic);
        }
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
        let hit = self.cache.peek(&spec.namespace, &spec.keys[..spec.keys.len() - 1]);
        if hit < spec.atomic { 0 } else { hit }
    }

    fn try_admit(&mut self, id: SeqId, left: &mut u32, hits_only: bool) -> Admission {
        if self.awaits_image(id) {
            return Admission::AwaitsImage;
        }
        if self.awaits_adapter(id) {
            return Admission::AwaitsAdapter;
        }
        let expected = self.expected_hit(id);
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

    /// Whether someone computes its picture in this step. It will be published then.
    fn awaits_image(&self, id: SeqId) -> bool {
        let spec = &self.seqs[id].spec;
        let same = |other: &SeqId| {
            let other = &self.seqs[*other].spec;
            other.cache && other.namespace == spec.namespace
        };
        let shares = spec.cache && spec.namespace.image.is_some() && 0 < spec.atomic;
        shares && self.encoding.iter().any(same) && !self.planted.is(Bug::EncodeTwice)
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

    /// Whether this step has the tokens for its atomic part, which only an empty step may exceed.
    fn has_budget(&self, id: SeqId, hit: u32, left: u32) -> bool {
        let atomic = self.seqs[id].spec.atomic;
        if atomic <= hit {
            return true;
        }
        let fits = atomic <= left || self.plan.rows.is_empty();
        fits && self.encoding.len() < self.limits.max_atomic_per_step as usize
    }

    /// Takes what is cached and blocks for the rest of the known tokens, or nothing.
    fn take(&mut self, id: SeqId, left: u32) -> Option<Taken> {
        let seq = &self.seqs[id];
        let (known, atomic) = (seq.known(), seq.spec.atomic);
        let Taken { mut lease, hit, copy } = self.take_cached(id);
        let alone = self.running.is_empty();
        let missing = self.limits.blocks(known) - lease.blocks().len() as u32;
        let reserve = if alone { 0 } else { self.limits.watermark_blocks };
        // The hit may be shorter than expected: its last block is a copy, if one can be had.
        let fits = missing + reserve <= self.available()
            && (atomic <= hit || self.has_budget(id, hit, left))
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
        let worth = if spec.cache { &spec.keys[..spec.keys.len() - 1] } else { &[] };
        let (lease, hit) = self.cache.acquire(&spec.namespace, worth);
        // Copies are executed in order and before all writes, so whatever comes to write the source
        // of this one comes later. Unlocked, it cannot be what an admission lacks.
        self.cache.copies_done();
        if spec.atomic <= hit.tokens {
            return Taken { lease, hit: hit.tokens, copy: hit.copy };
        }
        self.cache.drop_lease(lease);
        let (lease, _) = self.cache.acquire(&spec.namespace, &[]);
        Taken { lease, hit: 0, copy: None }
    }

    fn run(&mut self, id: SeqId, taken: Taken, left: &mut u32) {
        let Taken { lease, mut hit, copy } = taken;
        let seq = &mut self.seqs[id];
        let known = seq.known();
        self.stats.prefix_queries += u64::from(seq.spec.cache);
        self.stats.prefix_hits += u64::from(0 < hit);
        self.stats.prefix_hit_tokens += u64::from(hit);
        self.plan.copies.extend(copy.filter(|_| !self.planted.is(Bug::ForgetCopy)));
        if self.planted.is(Bug::HitTooLong) && 0 < hit && hit + 1 < known {
            hit += 1;
        }
        if self.planted.is(Bug::ResumeTooFar) && seq.hit_tokens.is_some() {
            hit = known - 1;
        }
        let mut len = known - hit;
        if hit < seq.spec.atomic {
            len = len.min(seq.spec.atomic.max(*left));
            self.encoding.push(id);
        } else {
            len = len.min(*left);
        }
        seq.hit_tokens.get_or_insert(hit);
        seq.state = State::Running { lease, computed: hit, prefill: known };
        let samples = hit + len == known;
        self.plan.rows.push(PlanRow { seq: id, start: hit, len, drafted: 0, samples });
        *left = left.saturating_sub(len);
        let rank = self.seqs[id].rank();
        let at = self.running.partition_point(|other| other < &rank);
        self.running.insert(at, rank);
    }
}
