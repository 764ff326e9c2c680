//! The engine's part in a simulation: it feeds, executes and asserts.

use std::{cell::Cell, cmp::Reverse, collections::BTreeSet};

use photon_kv::{BlockId, Namespace};

use super::{
    Report,
    model::{Alone, DeviceRow, Memory},
    workload::{Order, Rng, Token, Workload, key, sample},
};
use crate::{AddError, Bug, EndReason, Limits, Output, PlanRow, Scheduler, SeqId, StepPlan};

/// An accepted sequence that has not ended.
#[derive(Debug)]
struct Live {
    id: SeqId,
    order: Order,
    tokens: Vec<Token>,
    alone: Alone,
    /// Guessed to come after `tokens`.
    draft: Vec<Token>,
    cancelled: bool,
    /// The scheduler said that these are in the pool.
    computed: u32,
    /// It yielded a token since it was last admitted, so its prompt is published.
    decodes: bool,
    /// How many were admitted out of turn while it waited.
    passed: u32,
    was_preempted: bool,
}

impl Live {
    /// What it need not compute itself if another does.
    fn shared_picture(&self) -> Option<Namespace> {
        let namespace = self.order.namespace;
        (self.order.cache && namespace.image.is_some()).then_some(namespace)
    }

    /// Its place in the queue: smaller is sooner.
    fn turn(&self) -> (Reverse<i8>, Reverse<bool>, SeqId) {
        (Reverse(self.order.priority), Reverse(self.was_preempted), self.id)
    }

    fn num_new(&self) -> u32 {
        (self.tokens.len() - self.order.prompt.len()) as u32
    }
}

pub(super) struct World {
    limits: Limits,
    rng: Rng,
    max_draft: u32,
    scheduler: Scheduler,
    memory: Memory,
    /// Still to come, the next one last.
    orders: Vec<Order>,
    live: Vec<Live>,
    /// Steps within which all must have ended.
    max_steps: u64,
    bug: Option<Bug>,
    report: Report,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng(seed);
        let Workload { limits, mut orders, max_draft } = Workload::new(&mut rng);
        let mut scheduler = Scheduler::new(limits);
        if let Some(bug) = bug {
            scheduler.plant(bug);
        }
        // The highest in rank gets a token in at least every second step, so each sequence, were it
        // alone from its admission on, takes 2 * max_len. The head of the queue waits for at most
        // `max_passed` others; those are counted with their own lengths.
        let work: u64 = orders.iter().map(|order| 2 * u64::from(order.max_len())).sum();
        let last = orders.last().map_or(0, |order| order.arrival);
        orders.reverse();
        World {
            memory: Memory::new(limits.num_blocks, limits.block_size),
            max_steps: last + work + orders.len() as u64,
            limits,
            rng,
            max_draft,
            scheduler,
            orders,
            live: Vec::new(),
            bug,
            report: Report::default(),
        }
    }

    pub(super) fn run(mut self, step: &Cell<u64>) -> Report {
        let mut plan = StepPlan::default();
        for now in 0.. {
            step.set(now);
            self.arrive(now);
            self.cancel(now, false);
            if self.orders.is_empty() && self.live.is_empty() {
                break;
            }
            assert!(now <= self.max_steps, "{} sequences have not ended", self.live.len());
            plan.clone_from(self.scheduler.step(now));
            self.scheduler.check();
            self.check_ended(&plan, now);
            self.check_rows(&plan);
            self.check_adapters();
            self.check_writes(&plan);
            self.check_fairness(&plan);
            let hashes = self.execute(&plan, now);
            self.cancel(now, true);
            let outputs = self.outputs(&plan, &hashes);
            self.scheduler.apply(&outputs);
            self.scheduler.check();
            self.forget_finished(&outputs);
            self.draft(&outputs);
        }
        self.finish()
    }

    fn arrive(&mut self, now: u64) {
        while let Some(order) = self.orders.pop_if(|order| order.arrival <= now) {
            let needed = order.max_len().div_ceil(self.limits.block_size);
            match self.scheduler.add(now, order.spec()) {
                Ok(id) => {
                    assert!(needed < self.limits.num_blocks, "{id} can never fit");
                    let (tokens, alone) = (order.prompt.clone(), Alone::new(&order));
                    self.live.push(Live {
                        id,
                        order,
                        tokens,
                        alone,
                        draft: Vec::new(),
                        cancelled: false,
                        computed: 0,
                        decodes: false,
                        passed: 0,
                        was_preempted: false,
                    });
                }
                Err(AddError::Full { waiting, max }) => {
                    assert!(max <= waiting, "the queue is not full");
                    self.orders.push(order);
                    break;
                }
                Err(AddError::NeverFits { .. }) => {
                    assert!(self.limits.num_blocks <= needed, "it could fit");
                }
            }
        }
    }

    /// Every second cancellation comes while the device is at work.
    fn cancel(&mut self, now: u64, in_flight: bool) {
        for live in &mut self.live {
            let due = |at: u64| at <= now && (at % 2 == 1) == in_flight;
            let due = live.order.cancel_at.is_some_and(due);
            if due && !live.cancelled {
                assert!(self.scheduler.cancel(live.id), "{} is unknown", live.id);
                live.cancelled = true;
            }
        }
    }

    fn check_ended(&mut self, plan: &StepPlan, now: u64) {
        for &(id, reason) in &plan.ended {
            let at = self.live.iter().position(|live| live.id == id);
            let live = self.live.swap_remove(at.unwrap_or_else(|| panic!("{id} ended twice")));
            let due = live.order.deadline.is_some_and(|at| at <= now);
            match reason {
                EndReason::Cancelled => assert!(live.cancelled, "{id} was not cancelled"),
                EndReason::Deadline => assert!(due, "{id} had time left"),
            }
            self.report.ended += 1;
        }
        for live in &self.live {
            let due = live.order.deadline.is_some_and(|at| at <= now);
            assert!(!due, "{} lives past its deadline", live.id);
            assert!(!live.cancelled, "{} lives and was cancelled", live.id);
        }
        for id in &plan.preempted {
            let live = self.live_mut(*id);
            (live.computed, live.decodes, live.was_preempted) = (0, false, true);
            live.passed = 0;
        }
        assert!(!plan.rows.is_empty() || self.live.is_empty(), "nothing moves");
    }

    fn live(&self, id: SeqId) -> &Live {
        let found = self.live.iter().find(|live| live.id == id);
        found.unwrap_or_else(|| panic!("{id} is planned and gone"))
    }

    fn live_mut(&mut self, id: SeqId) -> &mut Live {
        let found = self.live.iter_mut().find(|live| live.id == id);
        found.unwrap_or_else(|| panic!("{id} is planned and gone"))
    }

    fn check_rows(&mut self, plan: &StepPlan) {
        let (budget, tokens) = (self.limits.token_budget, plan.num_tokens());
        let [first, ..] = plan.rows.as_slice() else { return };
        let atomic_alone = plan.rows.len() == 1
            && first.start == 0
            && first.len == self.live(first.seq).order.atomic;
        assert!(tokens <= budget || atomic_alone, "{tokens} tokens of {budget}");
        for (i, row) in plan.rows.iter().enumerate() {
            let id = row.seq;
            assert!(plan.rows[..i].iter().all(|other| other.seq != id), "{id} has two rows");
            let (live, end) = (self.live(id), row.start + row.len);
            let known = live.tokens.len() as u32;
            assert!(0 < row.len && end <= known, "{id}: {end} of {known} tokens");
            assert_eq!(row.samples, end == known, "{id} samples at {end} of {known} tokens");
            let (most, max_len) = (live.draft.len() as u32, live.order.max_len());
            assert!(row.drafted <= most, "{id}: {} tokens of a draft of {most}", row.drafted);
            assert!(row.drafted == 0 || row.samples, "{id}: a draft without what it follows");
            assert!(end + row.drafted <= max_len, "{id}: a draft past {max_len} tokens");
            assert!(
                live.computed == 0 || live.computed == row.start,
                "{id} goes on at {} after {} tokens",
                row.start,
                live.computed
            );
            if row.start < live.order.atomic {
                let whole = row.start == 0 && live.order.atomic <= row.len;
                assert!(whole, "{id} computes half an atomic part");
                self.check_encoded_once(plan, row);
                self.report.encodings += 1;
            }
        }
    }

    /// Nobody else computes this picture now, or runs with it in whole blocks of the cache.
    fn check_encoded_once(&self, plan: &StepPlan, row: &PlanRow) {
        let (live, order) = (self.live(row.seq), &self.live(row.seq).order);
        if live.shared_picture().is_none() {
            return;
        }
        // Without a free block there may have been none for a copy: a hit locks what it could evict.
        let dry = self.scheduler.cache().num_free() == 0;
        let whole = order.atomic.next_multiple_of(self.limits.block_size) as usize;
        for other in self.live.iter().filter(|other| other.id != row.seq) {
            let same = other.shared_picture() == live.shared_picture();
            let computes = plan.rows.iter().any(|r| r.seq == other.id && r.start == 0);
            let has = other.decodes && whole <= other.order.prompt.len();
            assert!(!(same && computes), "{} and {} compute a picture", row.seq, other.id);
            assert!(!(same && has) || dry, "{} computes a picture that {} has", row.seq, other.id);
        }
    }

    /// Nobody who waits is passed over more often than the limit says: by who is admitted though its
    /// turn comes later. Two do not count: one that was itself passed over that often goes first, and
    /// who waits for the picture that another, ahead of it, computes in this step would not go anyway.
    fn check_fairness(&mut self, plan: &StepPlan) {
        let max = self.limits.max_passed;
        let is_overdue = |live: &Live| 0 < live.passed && max <= live.passed;
        let admitted = plan.rows.iter().map(|row| (self.live(row.seq), row.start));
        let admitted = admitted.filter(|(live, _)| live.computed == 0);
        let admitted: Vec<_> = admitted
            .map(|(live, start)| {
                let encodes = live.shared_picture().filter(|_| start == 0);
                ((Reverse(is_overdue(live)), live.turn()), encodes)
            })
            .collect();
        for live in &mut self.live {
            if !self.scheduler.blocks(live.id).is_empty() {
                continue;
            }
            let turn = (Reverse(is_overdue(live)), live.turn());
            let own = live.shared_picture();
            let awaits =
                |(other, encodes): &(_, _)| own.is_some() && *other < turn && *encodes == own;
            if admitted.iter().any(awaits) {
                continue;
            }
            live.passed += admitted.iter().filter(|(other, _)| turn < *other).count() as u32;
            let Live { id, passed, .. } = live;
            assert!(*passed <= max, "{id} was passed over {passed} times of {max}");
        }
    }

    /// Adapters have slots on the device, and whoever runs may need its own in any step.
    fn check_adapters(&self) {
        let running = self.live.iter().filter(|live| !self.scheduler.blocks(live.id).is_empty());
        let adapters: BTreeSet<u32> =
            running.map(|live| live.order.namespace.adapter).filter(|&a| a != 0).collect();
        let max = self.limits.max_adapters as usize;
        assert!(adapters.len() <= max, "{} adapters run of {max}", adapters.len());
    }

    /// A block that is written is in one table only.
    fn check_writes(&self, plan: &StepPlan) {
        let mut writer: Vec<Option<SeqId>> = vec![None; self.limits.num_blocks as usize];
        for row in &plan.rows {
            let size = self.limits.block_size;
            let end = row.start + row.len + row.drafted;
            let (from, to) = (row.start / size, end.div_ceil(size));
            for block in &self.scheduler.blocks(row.seq)[from as usize..to as usize] {
                let before = writer[block.get() as usize].replace(row.seq);
                assert!(before.is_none(), "two sequences write block {block:?}");
            }
        }
        for live in &self.live {
            for block in self.scheduler.blocks(live.id) {
                let other = writer[block.get() as usize].filter(|id| *id != live.id);
                assert!(other.is_none(), "block {block:?} of {} is written", live.id);
            }
        }
    }

    /// Of each row, the hashes after its last position and after each drafted one.
    fn execute(&mut self, plan: &StepPlan, now: u64) -> Vec<Vec<u64>> {
        self.report.copies += plan.copies.len() as u64;
        let late = self.bug == Some(Bug::CopyLate);
        if self.bug == Some(Bug::CopyBackwards) {
            plan.copies.iter().rev().for_each(|copy| self.memory.copy(copy));
        } else if !late {
            plan.copies.iter().for_each(|copy| self.memory.copy(copy));
        }
        let mut hashes = vec![Vec::new(); plan.rows.len()];
        // Rows of a step run beside each other: none may depend on another.
        let rows: &mut dyn Iterator<Item = usize> = if now.is_multiple_of(2) {
            &mut (0..hashes.len())
        } else {
            &mut (0..hashes.len()).rev()
        };
        for i in rows {
            hashes[i] = self.compute(&plan.rows[i]);
        }
        if late {
            plan.copies.iter().for_each(|copy| self.memory.copy(copy));
        }
        hashes
    }

    fn compute(&mut self, row: &PlanRow) -> Vec<u64> {
        let live = self.live.iter_mut().find(|live| live.id == row.seq).expect("checked before");
        live.computed = row.start + row.len;
        let blocks: &[BlockId] = self.scheduler.blocks(row.seq);
        self.memory.compute(&DeviceRow {
            namespace: &live.order.namespace,
            tokens: &[&live.tokens[..], &live.draft].concat(),
            atomic: live.order.atomic,
            blocks,
            start: row.start,
            len: row.len,
            drafted: row.drafted,
        })
    }

    fn outputs(&mut self, plan: &StepPlan, hashes: &[Vec<u64>]) -> Vec<Output> {
        let mut outputs = Vec::new();
        let takes_all = self.bug == Some(Bug::TakeRejected);
        for (row, hashes) in plan.rows.iter().zip(hashes).filter(|(row, _)| row.samples) {
            let live = self.live_mut(row.seq);
            let (draft, before) = (std::mem::take(&mut live.draft), outputs.len());
            for (i, &hash) in hashes.iter().enumerate() {
                let wanted = live.alone.hash(&live.tokens, live.order.atomic);
                assert_eq!(hash, wanted, "{} read something else than it wrote", row.seq);
                let token = sample(hash);
                live.tokens.push(token);
                let is_over = live.num_new() == live.order.num_new;
                outputs.push(Output { seq: row.seq, next: (!is_over).then(|| key(token)) });
                if is_over || (draft.get(i) != Some(&token) && !takes_all) {
                    break;
                }
            }
            live.decodes = true;
            let accepted = (outputs.len() - before) as u32 - 1;
            live.computed += accepted;
            self.report.drafted += u64::from(row.drafted);
            self.report.accepted += u64::from(accepted);
        }
        outputs
    }

    /// Drafts for sequences that yielded something, but not always.
    fn draft(&mut self, outputs: &[Output]) {
        if self.max_draft == 0 {
            return;
        }
        for live in &mut self.live {
            if outputs.iter().all(|output| output.seq != live.id) || self.rng.one_in(4) {
                continue;
            }
            let num = self.rng.range(1, self.max_draft + 1);
            let right = live.alone.clone().go_on(&live.tokens, live.order.atomic, num);
            live.draft = self.rng.draft(right);
            self.scheduler.draft(live.id, num);
        }
    }

    fn forget_finished(&mut self, outputs: &[Output]) {
        for output in outputs.iter().filter(|output| output.next.is_none()) {
            if self.live(output.seq).cancelled {
                continue; // The next plan ends it.
            }
            let at = self.live.iter().position(|live| live.id == output.seq).expect("just seen");
            let live = self.live.swap_remove(at);
            let answer = &live.tokens[live.order.prompt.len()..];
            assert_eq!(answer, Alone::answer(&live.order), "{} answers otherwise", live.id);
            self.report.finished += 1;
        }
    }

    fn finish(mut self) -> Report {
        assert!(self.scheduler.is_idle(), "the scheduler knows of more sequences");
        let stats = self.scheduler.stats();
        assert_eq!(stats.finished, self.report.finished, "finished sequences");
        assert_eq!(stats.cancelled + stats.expired, self.report.ended, "ended sequences");
        let (free, size) = (self.scheduler.cache().num_free(), self.limits.num_blocks - 1);
        let cached = self.scheduler.cache().num_cached();
        assert_eq!(free + cached, size, "{free} free and {cached} cached blocks");
        self.scheduler.clear_cache();
        self.scheduler.check();
        assert_eq!(self.scheduler.cache().num_free(), size, "blocks that are not free at the end");
        self.report.steps = stats.steps;
        self.report.hits = stats.prefix_hits;
        self.report.preemptions = stats.preemptions;
        self.report
    }
}
