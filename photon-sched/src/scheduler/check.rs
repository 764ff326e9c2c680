//! What always holds between two calls.

use super::Scheduler;
use crate::{SeqId, bug::Bug, seq::State};

impl Scheduler {
    /// Verifies the scheduler and its cache. For tests: it looks at everything.
    ///
    /// # Panics
    /// With a sentence that says what does not hold.
    pub fn check(&self) {
        self.cache.check();
        assert!(self.running.is_sorted(), "running sequences are out of order");
        assert!(self.waiting.is_sorted(), "waiting sequences are out of order");
        let (running, max_seqs) = (self.running.len(), self.limits.max_seqs);
        assert!(running <= max_seqs as usize, "{running} sequences run, at most {max_seqs} may");
        let (waiting, seqs) = (self.waiting.len(), self.seqs.len());
        assert!(running + waiting == seqs, "{running} run and {waiting} wait of {seqs}");
        for rank in &self.running {
            assert_eq!(self.seqs[rank.id].rank(), *rank, "{} has another rank", rank.id);
            self.check_running(rank.id);
        }
        for place in &self.waiting {
            let seq = &self.seqs[place.id];
            assert!(matches!(seq.state, State::Waiting), "{} waits and runs", seq.id);
            assert_eq!(place.priority.0, seq.spec.priority, "{} has another priority", seq.id);
            let (passed, max) = (place.passed, self.limits.max_passed);
            let endless = self.planted.is(Bug::PassForever);
            assert!(passed <= max || endless, "{} was passed over {passed} times of {max}", seq.id);
        }
        let earlier = |at: u64| at < self.earliest_deadline;
        let missed = self.seqs.iter().find(|seq| seq.spec.deadline.is_some_and(earlier));
        let missed = missed.filter(|_| !self.planted.is(Bug::IgnoreDeadline));
        assert!(missed.is_none(), "a deadline is earlier than the earliest");
    }

    fn check_running(&self, id: SeqId) {
        let seq = &self.seqs[id];
        let State::Running { lease, computed, .. } = &seq.state else {
            panic!("{id} has a rank and does not run")
        };
        let (known, atomic) = (seq.known(), seq.spec.atomic);
        // The output of a cancelled one was ignored.
        assert!(
            *computed < known || seq.cancelled,
            "{id} has computed {computed} of {known} tokens"
        );
        let begins = self.in_flight && *computed == 0;
        assert!(atomic <= *computed || begins, "{id} runs with half an atomic part");
        let (blocks, needed) = (lease.blocks().len() as u32, self.limits.blocks(*computed));
        assert!(needed <= blocks, "{id} has computed {computed} tokens in {blocks} blocks");
        // Those of drafted tokens are there while they are computed.
        let most = self.limits.blocks(known);
        assert!(self.in_flight || blocks <= most, "{id} has {blocks} blocks of {known} tokens");
        assert!(lease.blocks().iter().all(|b| b.get() != 0), "{id} has the null block");
    }
}
