//! The microkernel: a tile of `R` rows by `V` vectors of columns, summed in registers.
//!
//! Every output element is one chain of additions over k, in order, whichever tile it falls in: the
//! shapes differ only in how many chains run side by side. So a row's result does not depend on the
//! rows it is computed with, nor on the number of threads.
#![allow(unsafe_code, reason = "loads and stores through pointers, after one check of the bounds")]

use std::marker::PhantomData;

use half::bf16;

use super::layout::{self, PANEL, ROWS};
use crate::simd::{
    BLOCKS, BYTES, Convert, Element, MAX_LANES, Op, PAIRS, PLAIN, QUAD_BIAS, Readable, Simd, load,
    magnitude, store, sum_of_lanes,
};

/// How weights and activations are stored and multiplied. The unit of k is a step.
pub(super) trait Format: Copy + Send + Sync + 'static {
    /// What weights are stored as.
    type Weight: bytemuck::Pod + Send + Sync;
    /// What activations are packed as.
    type Activation: bytemuck::Pod + Send + Sync;
    /// Elements of k in a step.
    const PER_STEP: usize;
    /// Whether tiles of many rows multiply f32 copies of the weights, made once for all rows.
    const WIDEN: bool;
    /// Whether tiles of few rows do as well.
    const ALWAYS_WIDEN: bool = false;
    /// Elements of a step of a panel.
    const STEP_LEN: usize = PANEL * Self::PER_STEP;
    /// Steps whose products are added up as integers, before the sum is multiplied with the row's scale for
    /// them; 0 where all sums are floats.
    const GROUP: usize = 0;
    /// Steps that a row has in front of each group's, for what [`Quads`] keeps there.
    const HEAD: usize = 0;
    /// Whether columns have scales and offsets of their own for each group.
    const SCALES: bool = false;
    /// Lanes of the vectors it is laid out for; 0 for any.
    const LANES: usize = 0;
    /// Bits of each byte of a weight that packing flips.
    const FLIP: u8 = 0;
    /// Rows whose sums an accumulator holds: those of one row and as many columns as it has lanes, or of two rows
    /// and half as many columns, two columns after the other.
    const BLOCK: usize = 1;
    /// The least and the most [`Simd::DOTS`] that it is used with.
    const DOTS: (u8, u8) = (PLAIN, BLOCKS);

    /// Where a step holds `column`, counted in columns.
    fn place(column: usize) -> usize {
        column
    }
    /// Packs a block of a row, or the beginning of one. `out` is [`super::layout::stride`] of its steps long;
    /// where it is longer than `x`, it counts as zero.
    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [Self::Activation]);
    /// Writes steps of a panel as f32, from `first` on, `slab.0` columns beside each other and such
    /// slabs `slab.1` apart. `scales` are the panel's, where there are some for each group of steps.
    #[inline(always)]
    fn widen<S: Simd>(
        s: S,
        packed: &[Self::Weight],
        _scales: Scales<'_>,
        _first: usize,
        slab: (usize, usize),
        wide: &mut [f32],
    ) {
        assert!(Self::PER_STEP == 1, "pairs are never widened");
        for (step, packed) in packed.chunks_exact(Self::STEP_LEN).enumerate() {
            for (pair, packed) in packed.chunks_exact(2 * S::LANES).enumerate() {
                let wide = &mut wide[place_in_slabs(2 * S::LANES * pair, step, slab)..];
                // SAFETY: the chunk has `2 * LANES` elements, and one element per step.
                let [first, second] = unsafe { Self::columns(s, packed.as_ptr()) };
                store(s, wide, first);
                store(s, &mut wide[S::LANES..], second);
            }
        }
    }
    /// Two vectors of columns of one step.
    ///
    /// # Safety
    /// As many elements as they are made of can be read at `p`.
    #[inline(always)]
    unsafe fn columns<S: Simd>(s: S, p: *const Self::Weight) -> [S::V; 2] {
        let p = p.cast::<f32>();
        // SAFETY: vectors of elements as they lie are as large as those of f32, and loads need not be aligned: the first
        // of the two that the caller vouches for.
        let first = unsafe { s.read_f32(p) };
        // SAFETY: as above, the second.
        let second = unsafe { s.read_f32(p.wrapping_add(S::LANES)) };
        [first, second]
    }
    /// One row of one step, in all lanes; for [`Format::BLOCK`]s of two rows both, half a vector each.
    ///
    /// # Safety
    /// `PER_STEP` elements can be read at both pointers.
    #[inline(always)]
    unsafe fn rows<S: Simd>(s: S, [first, last]: [*const Self::Activation; 2]) -> S::V {
        const {
            let bytes = Self::PER_STEP * size_of::<Self::Activation>();
            assert!(bytes == Self::BLOCK * size_of::<f32>());
        };
        if Self::BLOCK == 1 {
            // SAFETY: the caller vouches for elements that are as large as an f32.
            return s.splat(unsafe { first.cast::<f32>().read_unaligned() });
        }
        // SAFETY: the caller vouches for elements that are as large as two f32, half of the vectors that have such blocks.
        unsafe { s.read_halves(first.cast(), last.cast()) }
    }
    /// Adds a step's product.
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V;
}

/// Whether matrices are stored so for `S`: nothing else need be compiled.
pub(super) const fn suits<S: Simd, F: Format>() -> bool {
    let (least, most) = F::DOTS;
    (F::LANES == 0 || F::LANES == S::LANES) && least <= S::DOTS && S::DOTS <= most
}

/// Where column `column` of step `step` is.
#[inline(always)]
fn place_in_slabs(column: usize, step: usize, (width, len): (usize, usize)) -> usize {
    column / width * len + step * width + column % width
}

/// A row that is packed as it is but for its type.
fn convert_row<S: Simd, T: Element + bytemuck::Zeroable, X: Readable>(
    s: S,
    x: &[X],
    out: &mut [T],
) {
    let (out, pad) = out.split_at_mut(x.len());
    s.run(Convert { out, x });
    pad.fill(T::zeroed());
}

/// One element of k per step, columns in order, multiplied as f32.
#[derive(Clone, Copy)]
pub(super) struct Single<T>(PhantomData<T>);

impl<T: Readable + bytemuck::Pod> Format for Single<T> {
    type Weight = T;
    type Activation = f32;
    const PER_STEP: usize = 1;
    const WIDEN: bool = size_of::<T>() < size_of::<f32>();

    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [f32]) {
        convert_row(s, x, out);
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(s: S, p: *const T) -> [S::V; 2] {
        // SAFETY: the first half of what the caller vouches for.
        let first = unsafe { T::read(s, p) };
        // SAFETY: the second half.
        let second = unsafe { T::read(s, p.wrapping_add(S::LANES)) };
        [first, second]
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V {
        s.fma(row, columns, sum)
    }
}

/// One bf16 of k per step, multiplied as f32: of each `2 * LANES` columns the first half lies in the
/// lower halves of 32-bit words and the second in the upper ones, so that a load, a shift and a mask
/// make two vectors. (In order, each vector takes a load, a shuffle and a shift: Zen 3 then widens
/// 34 GB/s, not much more than memory delivers.)
#[derive(Clone, Copy)]
pub(super) struct Halves<const LANES: usize>;

impl<const LANES: usize> Format for Halves<LANES> {
    type Weight = bf16;
    type Activation = f32;
    const PER_STEP: usize = 1;
    const WIDEN: bool = true;
    const LANES: usize = LANES;
    const DOTS: (u8, u8) = (PLAIN, BYTES);

    fn place(column: usize) -> usize {
        let within = column % (2 * LANES);
        column - within + within % LANES * 2 + within / LANES
    }
    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [f32]) {
        convert_row(s, x, out);
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(s: S, p: *const bf16) -> [S::V; 2] {
        assert!(LANES == S::LANES, "packed for another instruction set");
        // SAFETY: `2 * LANES` bf16 are as large as `LANES` f32, and the load need not be aligned.
        let both = unsafe { s.read_f32(p.cast()) };
        [s.lower(both), s.upper(both)]
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V {
        s.fma(row, columns, sum)
    }
}

/// Four bits of k per step, always multiplied as f32 copies: of each `2 * LANES` columns the first half
/// lies in the lower halves of bytes. Behind the elements of all panels come, for each panel and each
/// `GROUP` steps, its columns' [`Scales`].
#[derive(Clone, Copy)]
pub(super) struct Nibbles<const LANES: usize, const GROUP: usize>;

impl<const LANES: usize, const GROUP: usize> Format for Nibbles<LANES, GROUP> {
    type Weight = u8;
    type Activation = f32;
    const PER_STEP: usize = 1;
    const WIDEN: bool = true;
    const ALWAYS_WIDEN: bool = true;
    const STEP_LEN: usize = PANEL / 2;
    const LANES: usize = LANES;
    const DOTS: (u8, u8) = (PLAIN, PLAIN);

    #[inline(always)]
    fn widen<S: Simd>(
        s: S,
        packed: &[u8],
        scales: Scales<'_>,
        first: usize,
        slab: (usize, usize),
        wide: &mut [f32],
    ) {
        assert!(LANES == S::LANES, "packed for another instruction set");
        let steps = packed.len() / Self::STEP_LEN;
        let mut step = 0;
        while step < steps {
            let group = (first + step) / GROUP;
            let end = steps.min((group + 1) * GROUP - first);
            let scales = scales.from(group, 0);
            for pair in 0..PANEL / (2 * LANES) {
                let column = 2 * LANES * pair;
                let first = scales.load(s, column);
                let second = scales.load(s, column + LANES);
                for step in step..end {
                    let bytes = &packed[step * Self::STEP_LEN + pair * LANES..][..LANES];
                    // SAFETY: the slice has `LANES` bytes.
                    let [low, high] = unsafe { s.read_nibbles(bytes.as_ptr()) };
                    let wide = &mut wide[place_in_slabs(column, step, slab)..];
                    store(s, wide, s.fma(low, first[0], first[1]));
                    store(s, &mut wide[LANES..], s.fma(high, second[0], second[1]));
                }
            }
            step = end;
        }
    }
    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [f32]) {
        convert_row(s, x, out);
    }
    unsafe fn columns<S: Simd>(_: S, _: *const u8) -> [S::V; 2] {
        unreachable!("always widened")
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V {
        s.fma(row, columns, sum)
    }
}

/// Two elements of k per step, both factors bf16: for processors with an instruction for it.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Format for Pairs {
    type Weight = bf16;
    type Activation = bf16;
    const PER_STEP: usize = 2;
    const WIDEN: bool = false;
    const DOTS: (u8, u8) = (PAIRS, PAIRS);

    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [bf16]) {
        convert_row(s, x, out);
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V {
        s.dot_pairs(sum, row, columns)
    }
}

/// Four elements of k per step, both factors bytes: for processors with an instruction for it, which adds
/// four products to an integer.
///
/// Weights are codes plus [`QUAD_BIAS`], since one factor may have to be unsigned. Activations are rounded to `scale q`, `q` from
/// -127 to 127, with a scale for each group of steps of each row, so that a large element costs only
/// those around it precision. In front of a group are its scale and, in the next step, what its sum begins with:
/// what the bias adds to it, negated.
#[derive(Clone, Copy)]
pub(super) struct Quads;

impl Format for Quads {
    type Weight = u8;
    type Activation = u8;
    const PER_STEP: usize = 4;
    const WIDEN: bool = false;
    const GROUP: usize = 128;
    const HEAD: usize = 2;
    const FLIP: u8 = QUAD_BIAS;
    const DOTS: (u8, u8) = (BYTES, PAIRS);

    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [u8]) {
        write_quads::<S, Self, X>(s, x, out, |sum| (-i32::from(QUAD_BIAS) * sum) as u32);
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V {
        s.dot_quads(sum, row, columns)
    }
}

/// As [`Quads`], the weights being halves of bytes: of each `2 * LANES` columns the first half lies in the lower
/// ones. `GROUP` elements of k share a scale and an offset, and a row's scale; what is in front
/// of a group is its scale and the sum of its `q`, a float, which the offset counts times.
#[derive(Clone, Copy)]
pub(super) struct NibbleQuads<const LANES: usize, const GROUP: usize>;

impl<const LANES: usize, const GROUP: usize> Format for NibbleQuads<LANES, GROUP> {
    type Weight = u8;
    type Activation = u8;
    const PER_STEP: usize = 4;
    const WIDEN: bool = false;
    const STEP_LEN: usize = PANEL * 2;
    const GROUP: usize = GROUP / 4;
    const HEAD: usize = 2;
    const SCALES: bool = true;
    const LANES: usize = LANES;
    const DOTS: (u8, u8) = (BYTES, PAIRS);

    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [u8]) {
        write_quads::<S, Self, X>(s, x, out, |sum| (sum as f32).to_bits());
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(s: S, p: *const u8) -> [S::V; 2] {
        assert!(LANES == S::LANES, "packed for another instruction set");
        // SAFETY: eight halves of bytes are as large as an f32, and the load need not be aligned.
        s.nibbles(unsafe { s.read_f32(p.cast()) })
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V {
        s.dot_quads(sum, row, columns)
    }
}

/// As [`Pairs`], four elements of k per step: for processors that multiply two rows with two columns at a time.
#[derive(Clone, Copy)]
pub(super) struct PairBlocks;

impl Format for PairBlocks {
    type Weight = bf16;
    type Activation = bf16;
    const PER_STEP: usize = 4;
    const WIDEN: bool = false;
    const BLOCK: usize = 2;
    const DOTS: (u8, u8) = (BLOCKS, BLOCKS);

    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [bf16]) {
        convert_row(s, x, out);
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, rows: S::V, columns: S::V, sum: S::V) -> S::V {
        s.multiply_blocks(sum, rows, columns)
    }
}

/// As [`Quads`], eight elements of k per step: for processors that multiply two rows with two columns at a time.
#[derive(Clone, Copy)]
pub(super) struct QuadBlocks;

impl Format for QuadBlocks {
    type Weight = u8;
    type Activation = u8;
    const PER_STEP: usize = 8;
    const WIDEN: bool = false;
    const GROUP: usize = 64;
    const HEAD: usize = 1;
    const FLIP: u8 = QUAD_BIAS;
    const BLOCK: usize = 2;
    const DOTS: (u8, u8) = (BLOCKS, BLOCKS);

    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [u8]) {
        Quads::write_row(s, x, out);
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, rows: S::V, columns: S::V, sum: S::V) -> S::V {
        s.multiply_byte_blocks(sum, rows, columns)
    }
}

/// As [`QuadBlocks`], the weights being halves of bytes: of each four columns the first two lie in the lower ones. Groups
/// as [`NibbleQuads`] has them.
#[derive(Clone, Copy)]
pub(super) struct NibbleBlocks<const GROUP: usize>;

impl<const GROUP: usize> Format for NibbleBlocks<GROUP> {
    type Weight = u8;
    type Activation = u8;
    const PER_STEP: usize = 8;
    const WIDEN: bool = false;
    const STEP_LEN: usize = PANEL * 4;
    const GROUP: usize = GROUP / 8;
    const HEAD: usize = 1;
    const SCALES: bool = true;
    const BLOCK: usize = 2;
    const DOTS: (u8, u8) = (BLOCKS, BLOCKS);

    fn write_row<S: Simd, X: Readable>(s: S, x: &[X], out: &mut [u8]) {
        NibbleQuads::<4, GROUP>::write_row(s, x, out);
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(s: S, p: *const u8) -> [S::V; 2] {
        // SAFETY: the caller vouches for four columns' eight halves of bytes, which are a vector.
        s.nibbles(unsafe { s.read_f32(p.cast()) })
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, rows: S::V, columns: S::V, sum: S::V) -> S::V {
        s.multiply_byte_blocks(sum, rows, columns)
    }
}

/// See [`Quads`]; `second` makes what is in front of a group beside its scale from the sum of its `q`.
#[inline(always)]
fn write_quads<S: Simd, F: Format, X: Readable>(
    s: S,
    x: &[X],
    out: &mut [u8],
    second: impl Fn(i32) -> u32,
) {
    let head = F::HEAD * F::PER_STEP;
    let mut left = x.chunks(F::GROUP * F::PER_STEP);
    for out in out.chunks_mut(head + F::GROUP * F::PER_STEP) {
        let (head, out) = out.split_at_mut(head);
        let (scale, sum) = s.run(Quantize { x: left.next().unwrap_or_default(), out });
        head[..4].copy_from_slice(&scale.to_le_bytes());
        head[4..].copy_from_slice(&second(sum).to_le_bytes());
    }
}

/// Rounds `x` to `scale q`, `q` from -127 to 127, filling up with zeros; gives the scale and the sum of all `q`.
/// The scale is NaN if not all of `x` is finite.
struct Quantize<'a, X> {
    x: &'a [X],
    out: &'a mut [u8],
}

impl<X: Readable> Op for Quantize<'_, X> {
    type Output = (f32, i32);

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> (f32, i32) {
        // Adding this leaves the nearest integer in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        let Quantize { x, out } = self;
        let whole = x.len() / S::LANES * S::LANES;
        let (out, pad) = out.split_at_mut(x.len());
        pad.fill(0);
        let mut last = [X::default(); MAX_LANES];
        last[..x.len() - whole].copy_from_slice(&x[whole..]);
        let last = (whole < x.len()).then_some(&last[..S::LANES]);
        let largest = magnitude(s, x[..whole].chunks_exact(S::LANES).chain(last));
        let factor = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        let mut sums = s.splat(0.0);
        let mut bytes = [0; MAX_LANES];
        let (out, rest) = out.split_at_mut(whole);
        let vectors = x[..whole].chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES));
        for (x, out) in vectors.chain(last.map(|last| (last, &mut bytes[..S::LANES]))) {
            let rounded = s.fma(load(s, x), factor, s.splat(ROUND));
            sums = s.add(sums, s.sub(rounded, s.splat(ROUND)));
            // SAFETY: the slice has so many bytes.
            unsafe { s.write_low_bytes(out.as_mut_ptr(), rounded) };
        }
        rest.copy_from_slice(&bytes[..rest.len()]);
        // Both sums are of few integers, so they are exact.
        (largest / 127.0, sum_of_lanes(s, sums) as i32)
    }
}

/// Scales and offsets of a panel's groups, from one of its columns on.
///
/// Where the weights were quantized here, a group's ends are bf16 ([`quant::ends_of`](photon_core::quant::ends_of)): it has
/// a word for each column, the lower end in its lower half. Others have a word of scale for each column and
/// then one of offset.
#[derive(Clone, Copy)]
pub(super) struct Scales<'a> {
    pub(super) words: &'a [f32],
    pub(super) ends: bool,
}

impl Scales<'_> {
    /// Of a format without.
    pub(super) const NONE: Self = Scales { words: &[], ends: false };

    /// From a group and a column on.
    #[inline(always)]
    pub(super) fn from(self, group: usize, column: usize) -> Self {
        Scales { words: &self.words[group * self.group_len() + column..], ..self }
    }

    /// Words of a group.
    #[inline(always)]
    fn group_len(self) -> usize {
        if self.ends { PANEL } else { 2 * PANEL }
    }

    /// Asks for so many vectors of a group, which lie apart from its columns.
    #[inline(always)]
    fn prefetch<S: Simd>(self, s: S, group: usize, vectors: usize) {
        let group = self.words.as_ptr().wrapping_add(group * self.group_len());
        for v in 0..vectors {
            s.prefetch(group.wrapping_add(v * S::LANES));
            if !self.ends {
                s.prefetch(group.wrapping_add(PANEL + v * S::LANES));
            }
        }
    }

    /// A vector of the first group's scales and one of its offsets.
    #[inline(always)]
    fn load<S: Simd>(self, s: S, column: usize) -> [S::V; 2] {
        let first = load(s, &self.words[column..]);
        if self.ends {
            let (low, high) = (s.lower(first), s.upper(first));
            [s.mul(s.sub(high, low), s.splat(1.0 / 15.0)), low]
        } else {
            [first, load(s, &self.words[PANEL + column..])]
        }
    }
}

/// Operands of [`run`].
pub(super) struct Tile<'a, F: Format> {
    /// Packed rows from the first step on.
    pub(super) rows: &'a [F::Activation],
    /// Steps from one row to the next.
    pub(super) row_stride: usize,
    /// Packed columns from the first step and column on.
    pub(super) columns: &'a [F::Weight],
    /// Columns from one step to the next.
    pub(super) stride: usize,
    /// Where a format has such: from the first group and column on.
    pub(super) scales: Scales<'a>,
    /// How many steps to add.
    pub(super) steps: usize,
    /// Sums, `sums_stride` apart from row to row.
    pub(super) sums: &'a mut [f32],
    pub(super) sums_stride: usize,
    /// Whether the sums start at zero rather than at what `sums` holds.
    pub(super) fresh: bool,
    /// Bytes ahead of the loads to ask memory for; 0 for columns that are in cache already.
    pub(super) prefetch: usize,
}

/// A tile of so many rows, which are `R` blocks' ([`Format::BLOCK`]), and the columns of `V` accumulators of each.
struct Shaped<'a, F: Format, const R: usize, const V: usize>(Tile<'a, F>, usize);

impl<F: Format, const R: usize, const V: usize> Shaped<'_, F, R, V> {
    /// Adds the products of `steps` steps.
    ///
    /// # Safety
    /// From `row` and `column` on, the tile's rows of so many steps and so many steps of its columns can be read, as
    /// far apart as in the tile.
    #[inline(always)]
    unsafe fn add<S: Simd>(
        &self,
        s: S,
        (mut row, mut column): (*const F::Activation, *const F::Weight),
        steps: usize,
        acc: &mut [[S::V; V]; R],
    ) {
        let stored = F::STEP_LEN / PANEL;
        let (row_stride, stride) = (self.0.row_stride * F::PER_STEP, self.0.stride * stored);
        let prefetch = self.0.prefetch;
        for _ in 0..steps {
            let a = |r: usize| {
                let [first, second] = self.block(r).map(|r| row.wrapping_add(r * row_stride));
                // SAFETY: the caller vouches for `steps` steps of these rows.
                unsafe { F::rows(s, [first, second]) }
            };
            let b = |v: usize| {
                let column = column.wrapping_add(v * S::LANES / F::BLOCK * stored);
                // SAFETY: the caller vouches for the columns of `V` accumulators: two of them, for even `v < V`.
                unsafe { F::columns(s, column) }
            };
            if prefetch > 0 {
                let columns = V * S::LANES / F::BLOCK;
                for line in 0..(columns * stored * size_of::<F::Weight>()).div_ceil(64) {
                    s.prefetch(column.cast::<u8>().wrapping_add(prefetch + 64 * line));
                }
            }
            // The shorter side stays in registers while the longer passes by.
            if R < V {
                let mut held = [s.splat(0.0); R];
                for (r, held) in held.iter_mut().enumerate() {
                    *held = a(r);
                }
                for v in (0..V).step_by(2) {
                    let b = b(v);
                    for (r, held) in held.into_iter().enumerate() {
                        acc[r][v] = F::multiply(s, held, b[0], acc[r][v]);
                    }
                    for (r, held) in held.into_iter().enumerate() {
                        acc[r][v + 1] = F::multiply(s, held, b[1], acc[r][v + 1]);
                    }
                }
            } else {
                let mut held = [s.splat(0.0); V];
                for v in (0..V).step_by(2) {
                    [held[v], held[v + 1]] = b(v);
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = a(r);
                    for (acc, b) in acc.iter_mut().zip(held) {
                        *acc = F::multiply(s, a, b, *acc);
                    }
                }
            }
            row = row.wrapping_add(F::PER_STEP);
            column = column.wrapping_add(stride);
        }
    }

    /// The first and the last row of a block. Where the tile ends within one, its other half is not stored.
    #[inline(always)]
    fn block(&self, r: usize) -> [usize; 2] {
        if F::BLOCK == 1 { [r; 2] } else { [2 * r, (2 * r + 1).min(self.1 - 1)] }
    }

    /// Of accumulators beside each other of the rows `r`, the row of sums that the first or the second is once they are rows
    /// ([`rows_of`]); none past the end.
    #[inline(always)]
    fn row(&self, r: usize, second: usize) -> Option<usize> {
        if F::BLOCK == 1 { Some(r) } else { Some(2 * r + second).filter(|&row| row < self.1) }
    }

    /// Of accumulators `v` and `v + 1`, the vector of sums that the first or the second is once they are rows.
    #[inline(always)]
    const fn vector(v: usize, second: usize) -> usize {
        if F::BLOCK == 1 { v + second } else { v / 2 }
    }

    /// Where sums of a row and a vector are.
    #[inline(always)]
    fn sums<S: Simd>(&mut self, r: usize, v: usize) -> *mut f32 {
        self.0.sums.as_mut_ptr().wrapping_add(r * self.0.sums_stride + v * S::LANES)
    }

    /// A group's sums are integers. Both ends of a group are the same steps whatever the tile.
    #[inline(always)]
    fn groups<S: Simd>(mut self, s: S) {
        let (steps, row_stride) = (self.0.steps, self.0.row_stride * F::PER_STEP);
        for start in (0..steps).step_by(F::GROUP) {
            let at = layout::stride::<F>(start) * F::PER_STEP;
            let head = self.0.rows.as_ptr().wrapping_add(at);
            let heads = |r: usize, word: usize| {
                let word = head.wrapping_add(r * row_stride).cast::<f32>().wrapping_add(word);
                // SAFETY: with the assertion on `rows`: `HEAD` steps, which are two words, are in front of every group.
                s.splat(unsafe { word.read_unaligned() })
            };
            if F::SCALES && self.0.prefetch > 0 {
                self.0.scales.prefetch(s, start / F::GROUP + 1, V / F::BLOCK);
            }
            let mut acc = [[s.splat(0.0); V]; R];
            if QUAD_BIAS > 0 && !F::SCALES {
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = [heads(r, 1); V];
                }
            }
            let row = head.wrapping_add(F::HEAD * F::PER_STEP);
            let column =
                self.0.columns.as_ptr().wrapping_add(start * self.0.stride * (F::STEP_LEN / PANEL));
            // SAFETY: with the assertions on `rows` and `columns`.
            unsafe { self.add(s, (row, column), F::GROUP.min(steps - start), &mut acc) };
            let scales =
                if F::SCALES { self.0.scales.from(start / F::GROUP, 0) } else { Scales::NONE };
            for v in (0..V).step_by(2) {
                let mut columns = [[s.splat(0.0); 2]; 2];
                if F::SCALES {
                    for (second, columns) in columns.iter_mut().enumerate() {
                        *columns = scales.load(s, Self::vector(v, second) * S::LANES);
                    }
                }
                for (r, acc) in acc.iter().enumerate() {
                    let rows = rows_of::<S, F>(s, [acc[v], acc[v + 1]]);
                    for (second, acc) in rows.into_iter().enumerate() {
                        let Some(row) = self.row(r, second) else { continue };
                        let mut sum = s.to_float(acc);
                        if F::SCALES {
                            let [scale, offset] = columns[second];
                            sum = s.fma(offset, heads(row, 1), s.mul(sum, scale));
                        }
                        let sums = self.sums::<S>(row, Self::vector(v, second));
                        let mut old = s.splat(0.0);
                        if !self.0.fresh || start > 0 {
                            // SAFETY: with the assertion on `sums`: a row and a vector of the tile.
                            old = unsafe { s.read_f32(sums) };
                        }
                        // SAFETY: as above.
                        unsafe { s.write_f32(sums, s.fma(sum, heads(row, 0), old)) };
                    }
                }
            }
        }
    }
}

/// What two accumulators beside each other are as rows, or the other way around.
#[inline(always)]
fn rows_of<S: Simd, F: Format>(s: S, [x, y]: [S::V; 2]) -> [S::V; 2] {
    if F::BLOCK == 1 { [x, y] } else { s.halves(x, y) }
}

impl<F: Format, const R: usize, const V: usize> Op for Shaped<'_, F, R, V> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(mut self, s: S) {
        let Tile { rows, columns, steps, sums, sums_stride, fresh, .. } = &self.0;
        let (steps, fresh, last) = (*steps, *fresh, self.block(R - 1)[1]);
        let row_stride = self.0.row_stride * F::PER_STEP;
        let stored = F::STEP_LEN / PANEL;
        let (stride, width) = (self.0.stride * stored, V * S::LANES / F::BLOCK);
        assert!(0 < steps);
        assert!(rows.len() >= last * row_stride + layout::stride::<F>(steps) * F::PER_STEP);
        assert!(columns.len() >= (steps - 1) * stride + width * stored);
        assert!(sums.len() >= last * sums_stride + width);
        if F::GROUP > 0 {
            return self.groups(s);
        }
        let (row, column) = (rows.as_ptr(), columns.as_ptr());
        let mut acc = [[s.splat(0.0); V]; R];
        if !fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for v in (0..V).step_by(2) {
                    let mut old = [s.splat(0.0); 2];
                    for (second, old) in old.iter_mut().enumerate() {
                        let Some(row) = self.row(r, second) else { continue };
                        let sums = self.sums::<S>(row, Self::vector(v, second));
                        // SAFETY: with the assertion on `sums`: a row and a vector of the tile.
                        *old = unsafe { s.read_f32(sums) };
                    }
                    [acc[v], acc[v + 1]] = rows_of::<S, F>(s, old);
                }
            }
        }
        // SAFETY: with the assertions on `rows` and `columns`.
        unsafe { self.add(s, (row, column), steps, &mut acc) };
        for (r, acc) in acc.into_iter().enumerate() {
            for v in (0..V).step_by(2) {
                let rows = rows_of::<S, F>(s, [acc[v], acc[v + 1]]);
                for (second, acc) in rows.into_iter().enumerate() {
                    let Some(row) = self.row(r, second) else { continue };
                    let sums = self.sums::<S>(row, Self::vector(v, second));
                    // SAFETY: with the assertion on `sums`: a row and a vector of the tile.
                    unsafe { s.write_f32(sums, acc) };
                }
            }
        }
    }
}

/// Accumulators of a tile: those of blocks of rows, and beside each other in one.
const fn accumulators<F: Format>(rows: usize, vectors: usize) -> (usize, usize) {
    (rows.div_ceil(F::BLOCK), vectors * F::BLOCK)
}

/// Whether registers hold the sums, the shorter side and what passes by: two vectors of columns or
/// one row.
const fn fits<S: Simd, F: Format>(rows: usize, vectors: usize) -> bool {
    let (rows, vectors) = accumulators::<F>(rows, vectors);
    let factors = if rows < vectors { rows + 2 } else { vectors + 1 };
    rows * vectors + factors <= S::REGISTERS
}

/// The widest tile, in vectors of sums, that fits in registers with `rows` rows; at least two.
pub(super) const fn widest<S: Simd, F: Format>(rows: usize) -> usize {
    // More rows and eight vectors would fit where vectors are short, and be one more shape for little.
    let mut vectors = if rows == 1 && F::BLOCK == 1 { 8 } else { 4 };
    while vectors > 2 && !(fits::<S, F>(rows, vectors) && vectors * S::LANES <= PANEL) {
        vectors /= 2;
    }
    vectors
}

/// The most rows that fit in registers with `vectors` vectors.
const fn tallest<S: Simd, F: Format>(vectors: usize) -> usize {
    let mut rows = ROWS;
    while rows > 1 && !fits::<S, F>(rows, vectors) {
        rows -= 1;
    }
    rows
}

/// Sums a tile of `rows` rows and `vectors` vectors of columns, in parts if registers are few.
pub(super) fn run<S: Simd, F: Format>(s: S, rows: usize, vectors: usize, tile: Tile<'_, F>) {
    let tallest = tallest::<S, F>(vectors);
    for top in (0..rows).step_by(tallest) {
        let part = Tile {
            rows: &tile.rows[top * tile.row_stride * F::PER_STEP..],
            sums: &mut tile.sums[top * tile.sums_stride..],
            ..tile
        };
        run_part(s, tallest.min(rows - top), vectors, part);
    }
}

/// Whether tiles ever have so many accumulators: the others need not be compiled.
const fn occurs<S: Simd, F: Format>(blocks: usize, vectors: usize) -> bool {
    let (rows, vectors) = (blocks * F::BLOCK, vectors / F::BLOCK);
    let one_row = rows - F::BLOCK + 1;
    rows <= tallest::<S, F>(vectors)
        && (vectors == widest::<S, F>(one_row) || vectors == widest::<S, F>(ROWS))
}

fn run_part<S: Simd, F: Format>(s: S, rows: usize, vectors: usize, tile: Tile<'_, F>) {
    const { assert!(ROWS == 6) };
    macro_rules! shapes {
        ($($blocks:literal x $vectors:literal),*) => {
            match accumulators::<F>(rows, vectors) {
                $(($blocks, $vectors) if const { occurs::<S, F>($blocks, $vectors) } => {
                    s.run(Shaped::<F, $blocks, $vectors>(tile, rows));
                })*
                _ => unreachable!("no tile of {rows} rows by {vectors} vectors"),
            }
        };
    }
    shapes!(
        1 x 2, 2 x 2, 3 x 2, 4 x 2, 5 x 2, 6 x 2, 1 x 4, 2 x 4, 3 x 4, 4 x 4, 5 x 4, 6 x 4, 1 x 8,
        2 x 8, 3 x 8
    );
}
