//! The language of the tests.
//!
//! A script is operations divided by `;`, its outcome what they said divided by `;`. A character of
//! a prompt is a token, `img=N` puts a picture of 6 positions before them; after the prompt comes
//! `A`, `B`, `C`, ... until there are `new` of them (8 unless told).
//!
//! - `add NAME PROMPT [img=N] [new=N] [pri=N] [by=TIME] [nocache]` says nothing unless refused;
//! - `step [N]` steps N times: `NAME 3..5` for positions 3 and 4, `*` if the row samples, `+N` for N
//!   drafted tokens after them, `hit N` if the sequence was just admitted for the first time with N
//!   cached tokens;
//! - `draft NAME N R` drafts N tokens of which the first R are right;
//! - `plan` and `apply` are the halves of a step, `cancel NAME`, `blocks NAME` their number.

use std::collections::BTreeMap;

use photon_kv::{BlockCopy, Namespace, TokenKey};

use super::LIMITS;
use crate::{AddError, EndReason, Limits, Output, Scheduler, SeqId, SeqSpec};

const ATOMIC: u32 = 6;

struct Tested {
    name: String,
    new: u32,
    sampled: u32,
    /// How many drafted tokens are right.
    right: u32,
    is_new: bool,
}

struct World {
    scheduler: Scheduler,
    seqs: BTreeMap<SeqId, Tested>,
    now: u64,
    /// Sequences that sample, and their drafted tokens.
    sampling: Vec<(SeqId, u32)>,
}

#[track_caller]
pub(super) fn check(script: &str, outcome: &str) {
    check_with(LIMITS, script, outcome);
}

#[track_caller]
pub(super) fn check_with(limits: Limits, script: &str, outcome: &str) {
    let scheduler = Scheduler::new(limits);
    let mut world = World { scheduler, seqs: BTreeMap::new(), now: 0, sampling: Vec::new() };
    let mut said = Vec::new();
    for op in script.split(';') {
        let words: Vec<&str> = op.split_whitespace().collect();
        world.execute(&words, &mut said);
        world.scheduler.check();
    }
    assert_eq!(said.join("; "), outcome);
}

impl World {
    fn execute(&mut self, words: &[&str], said: &mut Vec<String>) {
        match words {
            ["add", name, prompt, options @ ..] => said.extend(self.add(name, prompt, options)),
            ["step", times @ ..] => {
                let times = times.first().map_or(1, |n| n.parse().unwrap());
                for _ in 0..times {
                    let mut line = self.plan();
                    line.extend(self.apply());
                    said.push(if line.is_empty() { "-".into() } else { line.join(", ") });
                }
            }
            ["plan"] => said.push(self.plan().join(", ")),
            ["apply"] => said.extend(Some(self.apply().join(", ")).filter(|s| !s.is_empty())),
            ["cancel", name] => assert!(self.scheduler.cancel(self.id(name))),
            ["draft", name, num, right] => {
                let id = self.id(name);
                self.scheduler.draft(id, num.parse().unwrap());
                self.seqs.get_mut(&id).unwrap().right = right.parse().unwrap();
            }
            ["blocks", name] => {
                let blocks = self.scheduler.blocks(self.id(name)).len();
                said.push(format!("{name} has {blocks} blocks"));
            }
            _ => panic!("unknown operation {words:?}"),
        }
    }

    fn id(&self, name: &str) -> SeqId {
        *self.seqs.iter().find(|(_, seq)| seq.name == name).expect("a known name").0
    }

    fn name(&self, id: SeqId) -> &str {
        &self.seqs[&id].name
    }

    fn add(&mut self, name: &str, prompt: &str, options: &[&str]) -> Option<String> {
        let option = |key: &str| options.iter().find_map(|o| o.strip_prefix(key));
        let number = |key: &str| option(key).map(|n| n.parse::<i64>().unwrap());
        let image = number("img=").map(|n| [n as u8; 32]);
        let atomic = if image.is_some() { ATOMIC } else { 0 };
        let text = prompt.bytes().map(|b| TokenKey::text(b.into()));
        let keys: Vec<TokenKey> = (0..atomic).map(TokenKey::image).chain(text).collect();
        let new = number("new=").unwrap_or(8) as u32;
        let spec = SeqSpec {
            namespace: Namespace { model: 0, adapter: 0, image, preprocess: 0, tenant: 0 },
            max_len: keys.len() as u32 + new,
            keys,
            atomic,
            priority: number("pri=").unwrap_or(0) as i8,
            deadline: number("by=").map(|n| n as u64),
            cache: !options.contains(&"nocache"),
        };
        match self.scheduler.add(self.now, spec) {
            Ok(id) => {
                let seq = Tested { name: name.into(), new, sampled: 0, right: 0, is_new: true };
                self.seqs.insert(id, seq);
                None
            }
            Err(AddError::Full { waiting, max }) => {
                Some(format!("{name} refused: {waiting} of {max} wait"))
            }
            Err(AddError::NeverFits { needed_blocks, num_blocks }) => {
                Some(format!("{name} never fits: {needed_blocks} blocks of {num_blocks}"))
            }
        }
    }

    fn plan(&mut self) -> Vec<String> {
        let plan = self.scheduler.step(self.now).clone();
        self.now += 1;
        let mut line: Vec<String> = Vec::new();
        for row in &plan.rows {
            let (from, to) = (row.start, row.start + row.len);
            let mut mark = String::from(if row.samples { "*" } else { "" });
            if 0 < row.drafted {
                mark.push_str(&format!("+{}", row.drafted));
            }
            let hit = self.scheduler.hit_tokens(row.seq);
            let seq = self.seqs.get_mut(&row.seq).unwrap();
            let mut hit = if seq.is_new && 0 < hit { format!(" hit {hit}") } else { String::new() };
            let own = |copy: &&BlockCopy| self.scheduler.blocks(row.seq).contains(&copy.to);
            let copied = plan.copies.iter().filter(own);
            hit.extend(copied.map(|copy| format!(" of which {} copied", copy.slots)));
            seq.is_new = false;
            line.push(format!("{} {from}..{to}{mark}{hit}", seq.name));
        }
        for (id, reason) in &plan.ended {
            let reason = match reason {
                EndReason::Deadline => "expired",
                EndReason::Cancelled => "cancelled",
            };
            line.push(format!("{} {reason}", self.name(*id)));
        }
        line.extend(plan.preempted.iter().map(|id| format!("preempted {}", self.name(*id))));
        let sampling = plan.rows.iter().filter(|r| r.samples);
        self.sampling = sampling.map(|r| (r.seq, r.drafted)).collect();
        line
    }

    fn apply(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        let mut outputs = Vec::new();
        for (id, drafted) in self.sampling.drain(..) {
            let seq = self.seqs.get_mut(&id).unwrap();
            for _ in 0..=drafted.min(seq.right) {
                seq.sampled += 1;
                let next = TokenKey::text(u32::from(b'A') + seq.sampled - 1);
                let next = (seq.sampled < seq.new).then_some(next);
                outputs.push(Output { seq: id, next });
                if next.is_none() {
                    said.push(format!("{} finished", seq.name));
                    break;
                }
            }
        }
        self.scheduler.apply(&outputs);
        said
    }
}
