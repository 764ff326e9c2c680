//! The fake model: hashes instead of attention.
//!
//! A cell is what a position leaves in the pool: a hash of its token and of all cells before it; in a
//! span, which sees itself both ways, also of all tokens of the span. The next token is a hash of all
//! cells.

use std::ops::Range;

use photon_kv::{BlockCopy, BlockId, Namespace};

use super::workload::{Order, Token, sample};

fn mix(hash: u64, x: u64) -> u64 {
    (hash ^ x.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .wrapping_mul(0x0000_0100_0000_01B3)
        .rotate_left(23)
}

/// Attention over a context that comes cell by cell: a hash of all cells so far.
#[derive(Debug, Clone, Copy)]
struct Context(u64);

impl Context {
    fn new(namespace: &Namespace) -> Self {
        Context(mix(1, u64::from(namespace.adapter) << 32 | namespace.tenant))
    }

    fn see(&mut self, cell: u64) {
        self.0 = mix(self.0, cell);
    }

    /// Computes positions, whose cells are given away. All before them were seen, and now they are.
    fn compute(
        &mut self,
        tokens: &[Token],
        spans: &[Range<u32>],
        positions: Range<usize>,
        mut leave: impl FnMut(usize, u64),
    ) {
        let mut pos = positions.start;
        while pos < positions.end {
            // Of a span that is cut a piece sees itself and what is before it, as on a real device.
            let span = spans.iter().find(|span| span.contains(&(pos as u32)));
            let end = span.map_or(pos + 1, |span| positions.end.min(span.end as usize));
            let seen = match span {
                Some(_) => tokens[pos..end].iter().fold(self.0, |h, &token| mix(h, token.into())),
                None => self.0,
            };
            for &token in &tokens[pos..end] {
                let cell = mix(mix(seen, u64::from(token)), pos as u64);
                leave(pos, cell);
                self.see(cell);
                pos += 1;
            }
        }
    }
}

/// A sequence as it runs alone, without a pool: what its answer must be.
#[derive(Debug, Clone)]
pub(super) struct Alone {
    context: Context,
    len: usize,
}

impl Alone {
    pub(super) fn new(order: &Order) -> Self {
        Alone { context: Context::new(&order.namespace), len: 0 }
    }

    /// The hash after all of `tokens`, of which it has seen the first ones.
    pub(super) fn hash(&mut self, tokens: &[Token], spans: &[Range<u32>]) -> u64 {
        self.context.compute(tokens, spans, self.len..tokens.len(), |_, _| ());
        self.len = tokens.len();
        self.context.0
    }

    /// The whole answer, from the beginning.
    pub(super) fn answer(order: &Order) -> Vec<Token> {
        Alone::new(order).go_on(&order.prompt, &order.spans, order.num_new)
    }

    /// The next `num` tokens after all of `tokens`, of which it has seen the first ones.
    pub(super) fn go_on(mut self, tokens: &[Token], spans: &[Range<u32>], num: u32) -> Vec<Token> {
        let mut all = tokens.to_vec();
        for _ in 0..num {
            all.push(sample(self.hash(&all, spans)));
        }
        all.split_off(tokens.len())
    }
}

/// A row as the device gets it.
#[derive(Debug)]
pub(super) struct DeviceRow<'a> {
    pub(super) namespace: &'a Namespace,
    /// The known ones, then the draft.
    pub(super) tokens: &'a [Token],
    pub(super) spans: &'a [Range<u32>],
    pub(super) blocks: &'a [BlockId],
    pub(super) start: u32,
    pub(super) len: u32,
    pub(super) drafted: u32,
}

/// The pool's memory.
#[derive(Debug)]
pub(super) struct Memory {
    cells: Vec<u64>,
    block_size: usize,
}

impl Memory {
    pub(super) fn new(num_blocks: u32, block_size: u32) -> Self {
        // Nobody ever computes this.
        let cells = vec![0xDEAD; (num_blocks * block_size) as usize];
        Memory { cells, block_size: block_size as usize }
    }

    pub(super) fn copy(&mut self, copy: &BlockCopy) {
        let slots = copy.slots as usize;
        assert!(0 < slots && slots <= self.block_size, "a copy of {slots} slots");
        let from = copy.from.get() as usize * self.block_size;
        self.cells.copy_within(from..from + slots, copy.to.get() as usize * self.block_size);
    }

    /// Computes a row; the hashes after its last position and after each drafted one are of use if the
    /// row samples.
    pub(super) fn compute(&mut self, row: &DeviceRow<'_>) -> Vec<u64> {
        let size = self.block_size;
        let slot = |pos: usize| row.blocks[pos / size].get() as usize * size + pos % size;
        let mut context = Context::new(row.namespace);
        let (start, end) = (row.start as usize, (row.start + row.len) as usize);
        for pos in 0..start {
            context.see(self.cells[slot(pos)]);
        }
        let cells = &mut self.cells;
        let mut compute = |positions: Range<usize>| {
            context.compute(row.tokens, row.spans, positions, |pos, cell| cells[slot(pos)] = cell);
            context.0
        };
        let mut hashes = vec![compute(start..end)];
        hashes.extend((end..end + row.drafted as usize).map(|pos| compute(pos..pos + 1)));
        hashes
    }
}
