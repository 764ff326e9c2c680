//! The fake model: hashes instead of attention.
//!
//! A cell is what a position leaves in the pool: a hash of its token and of all cells before it; in
//! the atomic part, which sees itself both ways, of all its tokens. The next token is a hash of all
//! cells.

use photon_kv::{BlockCopy, BlockId, Namespace};

use super::workload::{Order, Token, sample};

fn mix(hash: u64, x: u64) -> u64 {
    (hash ^ x.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .wrapping_mul(0x0000_0100_0000_01B3)
        .rotate_left(23)
}

/// Attention over a context that comes cell by cell.
#[derive(Debug, Clone, Copy)]
struct Context {
    /// Of the picture and the whole atomic part.
    atomic: u64,
    /// Of all cells so far.
    cells: u64,
}

impl Context {
    fn new(namespace: &Namespace, atomic: &[Token]) -> Self {
        let image = namespace.image.map_or(0, |digest| 1 + u64::from(digest[0]));
        let salt = u64::from(namespace.adapter) << 32 | namespace.tenant;
        let seed = mix(mix(1, image), salt);
        let atomic = atomic.iter().fold(seed, |hash, &token| mix(hash, u64::from(token)));
        Context { atomic, cells: seed }
    }

    fn see(&mut self, cell: u64) {
        self.cells = mix(self.cells, cell);
    }

    fn cell(&self, token: Token, pos: usize, in_atomic: bool) -> u64 {
        let context = if in_atomic { self.atomic } else { self.cells };
        mix(mix(context, u64::from(token)), pos as u64)
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
        let atomic = &order.prompt[..order.atomic as usize];
        Alone { context: Context::new(&order.namespace, atomic), len: 0 }
    }

    /// The hash after all of `tokens`, of which it has seen the first ones.
    pub(super) fn hash(&mut self, tokens: &[Token], atomic: u32) -> u64 {
        for (pos, &token) in tokens.iter().enumerate().skip(self.len) {
            self.context.see(self.context.cell(token, pos, pos < atomic as usize));
        }
        self.len = tokens.len();
        self.context.cells
    }

    /// The whole answer, from the beginning.
    pub(super) fn answer(order: &Order) -> Vec<Token> {
        Alone::new(order).go_on(&order.prompt, order.atomic, order.num_new)
    }

    /// The next `num` tokens after all of `tokens`, of which it has seen the first ones.
    pub(super) fn go_on(mut self, tokens: &[Token], atomic: u32, num: u32) -> Vec<Token> {
        let mut all = tokens.to_vec();
        for _ in 0..num {
            all.push(sample(self.hash(&all, atomic)));
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
    pub(super) atomic: u32,
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
        let slot = |pos: usize| {
            row.blocks[pos / self.block_size].get() as usize * self.block_size
                + pos % self.block_size
        };
        let mut context = Context::new(row.namespace, &row.tokens[..row.atomic as usize]);
        let (start, end) = (row.start as usize, (row.start + row.len) as usize);
        for pos in 0..start {
            context.see(self.cells[slot(pos)]);
        }
        let mut hashes = Vec::new();
        for pos in start..end + row.drafted as usize {
            let cell = context.cell(row.tokens[pos], pos, pos < row.atomic as usize);
            self.cells[slot(pos)] = cell;
            context.see(cell);
            if end <= pos + 1 {
                hashes.push(context.cells);
            }
        }
        hashes
    }
}
