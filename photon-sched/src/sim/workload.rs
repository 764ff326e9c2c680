//! What a seed asks for: limits and sequences.
//!
//! Pools and vocabularies are tiny on purpose: sequences collide in everything.

use photon_kv::{Namespace, TokenKey};

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

/// A token of the simulation. Text is below `IMAGE`.
pub(super) type Token = u32;
const IMAGE: Token = 1 << 16;
const VOCAB: u32 = 3;

pub(super) fn key(token: Token) -> TokenKey {
    match token.checked_sub(IMAGE) {
        Some(index) => TokenKey::image(index),
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
    pub(super) atomic: u32,
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
            atomic: self.atomic,
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
            max_atomic_per_step: rng.range(1, 4),
            max_passed: rng.range(0, 5),
            max_adapters: rng.range(1, 4),
        };
        let num_adapters = [1, 1, 2, 5][rng.range(0, 4) as usize];
        let mut maker = Maker {
            slots: (num_blocks - 1) * limits.block_size,
            // The last arrivals come when the first are done, or all come at once.
            span: [1, 20, 60][rng.range(0, 3) as usize],
            atomic: rng.range(1, 14),
            num_images: rng.range(1, 4) as u8,
            num_adapters,
            prompts: Vec::new(),
        };
        let mut orders: Vec<Order> = (0..rng.range(2, 24)).map(|_| maker.order(rng)).collect();
        orders.sort_by_key(|order| order.arrival);
        let max_draft = rng.range(0, 2) * rng.range(1, 9);
        Workload { limits, orders, max_draft }
    }
}

struct Maker {
    slots: u32,
    span: u32,
    atomic: u32,
    num_images: u8,
    num_adapters: u32,
    /// Texts so far, for common prefixes.
    prompts: Vec<Vec<Token>>,
}

impl Maker {
    fn order(&mut self, rng: &mut Rng) -> Order {
        let has_image = self.atomic + 2 < self.slots && !rng.one_in(3);
        let atomic = if has_image { self.atomic } else { 0 };
        let image = has_image.then(|| [rng.range(0, u32::from(self.num_images)) as u8; 32]);
        // Rarely more than the pool holds: such a sequence must fail alone.
        let room = (self.slots - atomic).max(3) + if rng.one_in(20) { 8 } else { 0 };
        let text = self.text(rng, 1 + room / 2);
        // BOS, then patches.
        let patches = (1..atomic).map(|i| IMAGE + i);
        let bos = (0 < atomic).then_some(0);
        let prompt: Vec<Token> = bos.into_iter().chain(patches).chain(text).collect();
        let max_new = rng.range(0, (room * 3 / 4).clamp(1, 40)) + 1;
        let arrival = u64::from(rng.range(0, self.span));
        let later = |rng: &mut Rng| arrival + u64::from(rng.range(0, 40));
        Order {
            arrival,
            namespace: Namespace {
                model: 0,
                adapter: match rng.one_in(if self.num_adapters == 1 { 10 } else { 2 }) {
                    true => rng.range(1, self.num_adapters + 1),
                    false => 0,
                },
                image,
                preprocess: 0,
                tenant: u64::from(rng.one_in(12)),
            },
            prompt,
            atomic,
            num_new: rng.range(1, max_new + 1),
            max_new,
            priority: [0, 0, 0, 1, -1][rng.range(0, 5) as usize],
            deadline: rng.one_in(8).then(|| later(rng)),
            cancel_at: rng.one_in(8).then(|| later(rng)),
            cache: !rng.one_in(12),
        }
    }

    /// At least one token: after a picture something is left to compute.
    fn text(&mut self, rng: &mut Rng, max: u32) -> Vec<Token> {
        let len = rng.range(1, max.max(2)) as usize;
        let mut text: Vec<Token> = match (rng.range(0, 3), self.prompts.last()) {
            (0, _) => (0..len as u32).map(|i| i / 7 % VOCAB).collect(),
            (1, Some(_)) => {
                let old = &self.prompts[rng.range(0, self.prompts.len() as u32) as usize];
                old[..rng.range(0, old.len() as u32 + 1) as usize].to_vec()
            }
            _ => Vec::new(),
        };
        text.truncate(len);
        text.extend((text.len()..len).map(|_| rng.range(0, VOCAB)));
        self.prompts.push(text.clone());
        text
    }
}
