//! What a seed asks for: limits and sequences.
//!
//! Pools and vocabularies are tiny on purpose: sequences collide in everything.

use std::ops::Range;

use photon_kv::{Namespace, TokenKey};

use super::model::Alone;
use crate::{Limits, SeqSpec};

/// SplitMix64.
#[derive(Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// `from..to`.
    pub(super) fn range(&mut self, from: u32, to: u32) -> u32 {
        assert!(from < to);
        from + (self.next() % u64::from(to - from)) as u32
    }

    pub(super) fn one_in(&mut self, n: u32) -> bool {
        self.range(0, n) == 0
    }
}

/// A token of the simulation. Text is below `IMAGE`; from there on they are pictures, whose positions
/// are alike.
pub(super) type Token = u32;
const IMAGE: Token = 1 << 16;
const VOCAB: u32 = 3;

pub(super) fn key(token: Token) -> TokenKey {
    match token.checked_sub(IMAGE) {
        Some(picture) => TokenKey::image(&[picture as u8; 32], 0),
        None => TokenKey::text(token),
    }
}

/// The token that a hash of the whole context yields.
pub(super) fn sample(hash: u64) -> Token {
    (hash >> 20) as u32 % VOCAB
}

/// A sequence to come.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) arrival: u64,
    pub(super) namespace: Namespace,
    pub(super) prompt: Vec<Token>,
    pub(super) spans: Vec<Range<u32>>,
    /// Tokens it generates, and may generate.
    pub(super) num_new: u32,
    pub(super) max_new: u32,
    pub(super) priority: i8,
    pub(super) deadline: Option<u64>,
    pub(super) cancel_at: Option<u64>,
    pub(super) cache: bool,
}

impl Order {
    pub(super) fn max_len(&self) -> u32 {
        self.prompt.len() as u32 + self.max_new
    }

    pub(super) fn spec(&self) -> SeqSpec {
        SeqSpec {
            namespace: self.namespace,
            keys: self.prompt.iter().copied().map(key).collect(),
            spans: self.spans.clone(),
            max_len: self.max_len(),
            priority: self.priority,
            deadline: self.deadline,
            cache: self.cache,
        }
    }
}

/// All that a seed decides beforehand.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) limits: Limits,
    /// By arrival.
    pub(super) orders: Vec<Order>,
    /// Most tokens drafted for a sequence and step; 0 in every second world.
    pub(super) max_draft: u32,
}

impl Rng {
    /// A draft for a sequence that goes on with `right`: right up to some point, wrong from there on.
    pub(super) fn draft(&mut self, mut right: Vec<Token>) -> Vec<Token> {
        let wrong_from = self.range(0, right.len() as u32 + 1) as usize;
        right[wrong_from..].iter_mut().for_each(|token| *token = (*token + 1) % VOCAB);
        right
    }
}

impl Workload {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let max_seqs = rng.range(1, 8);
        let num_blocks = rng.range(3, 24);
        let limits = Limits {
            max_seqs,
            token_budget: max_seqs + rng.range(0, 24),
            num_blocks,
            block_size: [1, 2, 3, 4, 4, 4, 5, 8][rng.range(0, 8) as usize],
            max_waiting: [2, 8, 32][rng.range(0, 3) as usize],
            watermark_blocks: rng.range(0, 3).min(num_blocks - 1),
            max_spans_per_step: rng.range(1, 4),
            max_passed: rng.range(0, 5),
            max_adapters: rng.range(1, 4),
        };
        let num_adapters = [1, 1, 2, 5][rng.range(0, 4) as usize];
        let mut maker = Maker {
            slots: (num_blocks - 1) * limits.block_size,
            // The last arrivals come when the first are done, or all come at once.
            span: [1, 20, 60][rng.range(0, 3) as usize],
            span_len: rng.range(1, 14),
            num_images: rng.range(1, 4),
            num_adapters,
            texts: Vec::new(),
            orders: Vec::new(),
        };
        for _ in 0..rng.range(2, 24) {
            let order = maker.order(rng);
            maker.orders.push(order);
        }
        maker.orders.sort_by_key(|order| order.arrival);
        let max_draft = rng.range(0, 2) * rng.range(1, 9);
        Workload { limits, orders: maker.orders, max_draft }
    }
}

struct Maker {
    slots: u32,
    span: u32,
    span_len: u32,
    num_images: u32,
    num_adapters: u32,
    /// Texts so far, for common prefixes.
    texts: Vec<Vec<Token>>,
    orders: Vec<Order>,
}

impl Maker {
    fn order(&mut self, rng: &mut Rng) -> Order {
        let (namespace, mut prompt, mut spans) = self.beginning(rng);
        for _ in 0..[0, 0, 1, 1, 1, 1, 2, 3][rng.range(0, 8) as usize] {
            if self.slots <= prompt.len() as u32 + self.span_len + 2 {
                break;
            }
            if rng.one_in(3) {
                prompt.extend(self.text(rng, 4));
            }
            let start = prompt.len() as u32;
            let picture = IMAGE + rng.range(0, self.num_images);
            spans.push(start..start + self.span_len);
            prompt.extend((0..self.span_len).map(|_| picture));
        }
        // Rarely more than the pool holds: such a sequence must fail alone.
        let room = self.slots.saturating_sub(prompt.len() as u32).max(3);
        let room = room + if rng.one_in(20) { 8 } else { 0 };
        prompt.extend(self.text(rng, 1 + room / 2));
        let max_new = rng.range(0, (room * 3 / 4).clamp(1, 40)) + 1;
        let arrival = u64::from(rng.range(0, self.span));
        let later = |rng: &mut Rng| arrival + u64::from(rng.range(0, 40));
        Order {
            arrival,
            namespace,
            prompt,
            spans,
            num_new: rng.range(1, max_new + 1),
            max_new,
            priority: [0, 0, 0, 1, -1][rng.range(0, 5) as usize],
            deadline: rng.one_in(8).then(|| later(rng)),
            cancel_at: rng.one_in(8).then(|| later(rng)),
            cache: !rng.one_in(12),
        }
    }

    /// Nothing, or an earlier conversation and its answer.
    fn beginning(&self, rng: &mut Rng) -> (Namespace, Vec<Token>, Vec<Range<u32>>) {
        if rng.one_in(4) && !self.orders.is_empty() {
            let earlier = &self.orders[rng.range(0, self.orders.len() as u32) as usize];
            if (earlier.prompt.len() as u32 + earlier.num_new) * 3 < self.slots * 2 {
                let prompt = [&earlier.prompt[..], &Alone::answer(earlier)].concat();
                return (earlier.namespace, prompt, earlier.spans.clone());
            }
        }
        let adapter = match rng.one_in(if self.num_adapters == 1 { 10 } else { 2 }) {
            true => rng.range(1, self.num_adapters + 1),
            false => 0,
        };
        let tenant = u64::from(rng.one_in(12));
        (Namespace { adapter, tenant, ..Namespace::default() }, Vec::new(), Vec::new())
    }

    /// At least one token: after a picture something is left to compute.
    fn text(&mut self, rng: &mut Rng, max: u32) -> Vec<Token> {
        let len = rng.range(1, max.max(2)) as usize;
        let mut text: Vec<Token> = match (rng.range(0, 3), self.texts.last()) {
            (0, _) => (0..len as u32).map(|i| i / 7 % VOCAB).collect(),
            (1, Some(_)) => {
                let old = &self.texts[rng.range(0, self.texts.len() as u32) as usize];
                old[..rng.range(0, old.len() as u32 + 1) as usize].to_vec()
            }
            _ => Vec::new(),
        };
        text.truncate(len);
        text.extend((text.len()..len).map(|_| rng.range(0, VOCAB)));
        self.texts.push(text.clone());
        text
    }
}
