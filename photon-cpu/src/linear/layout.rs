//! How weights and activations are laid out for the microkernel.
//!
//! Weights: panels of [`PANEL`] output columns, one after the other; in a panel, step after step of k;
//! in a step, the elements of the 64 columns, in the order [`Format::place`] says (pairs of k side by
//! side where steps are pairs). A panel is read from front to back, once, by whoever computes its columns. Columns and steps past the end
//! are zero.
//!
//! Activations: strips of [`ROWS`] rows; in a strip, blocks of [`depth`] steps; in a block, row after
//! row. A strip's block is one contiguous stretch that stays in L1 while columns pass by.
#![allow(unsafe_code, reason = "tasks write disjoint parts of one buffer")]

use bytemuck::Pod;
use half::{bf16, f16};
use photon_core::{DType, WeightFormat};

use super::tile::{
    Format, Halves, NibbleBlocks, NibbleQuads, Nibbles, PairBlocks, Pairs, QuadBlocks, Quads,
    Single,
};
use crate::{
    elements::{Float, Rows},
    isa::Isa,
    pool::{Parts, Pool},
    simd::{Fp8, Simd},
};

/// Columns of a panel.
pub(super) const PANEL: usize = 64;
/// Rows of a strip: the tallest tile.
pub(super) const ROWS: usize = 6;
/// Most bytes of a row in a block. Twice what lets 16 columns of f32 share L1 with a strip: they stream from L2
/// without loss, and the sums go through memory half as often. Zen 3, 2025-11: 729 x 1152 x 4304 gains
/// 3 % over half of it.
const DEPTH: usize = 2048;

/// Blocks are whole multiples of so many steps, which are whole groups.
pub(super) const fn grain<F: Format>() -> usize {
    if F::GROUP > 64 { F::GROUP } else { 64 }
}

/// Steps of a block, for rows of `steps`: blocks are of about equal depth.
pub(super) fn depth<F: Format>(steps: usize) -> usize {
    let most = DEPTH / (F::PER_STEP * size_of::<F::Activation>());
    steps.div_ceil(steps.div_ceil(most)).next_multiple_of(grain::<F>())
}

/// Steps from one row of a block to the next, if the block has `steps`: what is in front of groups is counted.
pub(super) const fn stride<F: Format>(steps: usize) -> usize {
    if F::GROUP > 0 { steps + steps.div_ceil(F::GROUP) * F::HEAD } else { steps }
}

/// The weight layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    F32,
    F16,
    /// For vectors of so many lanes.
    Bf16(usize),
    /// Two elements of k side by side.
    Bf16Pairs,
    /// Four.
    Bf16Blocks,
    /// Behind the panels, a scale for each column.
    Int8,
    /// As `Int8`, four elements of k side by side, plus 128.
    Int8Quads,
    /// As `Int8`, eight elements of k side by side.
    Int8Blocks,
    /// As `Int8`.
    Fp8,
    /// For vectors of so many lanes, with so many elements of k to a scale.
    Int4(usize, usize),
    /// As `Int4`, four elements of k side by side.
    Int4Quads(usize, usize),
    /// With so many elements of k to a scale, eight of them side by side.
    Int4Blocks(usize),
}

impl Layout {
    /// What `isa` wants for `format`, if it can multiply that.
    pub(super) fn of(isa: Isa, format: WeightFormat) -> Option<Layout> {
        match format {
            WeightFormat::Float(DType::F32) => Some(Layout::F32),
            WeightFormat::Float(DType::F16) => Some(Layout::F16),
            WeightFormat::Float(DType::Bf16) => Some(match isa {
                _ if isa.has_blocks() => Layout::Bf16Blocks,
                _ if isa.has_pairs() => Layout::Bf16Pairs,
                _ => Layout::Bf16(isa.lanes()),
            }),
            WeightFormat::Int8 => Some(match isa {
                _ if isa.has_blocks() => Layout::Int8Blocks,
                _ if isa.has_bytes() => Layout::Int8Quads,
                _ => Layout::Int8,
            }),
            WeightFormat::Fp8 => Some(Layout::Fp8),
            WeightFormat::Int4 { group: group @ (32 | 128) } => Some(match (isa, group as usize) {
                (_, group) if isa.has_blocks() => Layout::Int4Blocks(group),
                (_, group) if isa.has_bytes() => Layout::Int4Quads(isa.lanes(), group),
                (_, group) => Layout::Int4(isa.lanes(), group),
            }),
            _ => None,
        }
    }

    /// Words behind the panels of a `[n, k]` matrix: scales and offsets, of which two ends of a group share one.
    pub(super) fn num_scales(self, (n, k): (usize, usize), ends: bool) -> usize {
        let columns = n.next_multiple_of(PANEL);
        match self {
            _ if self.scales_columns() => columns,
            Layout::Int4(_, group) | Layout::Int4Quads(_, group) | Layout::Int4Blocks(group) => {
                let words = if ends { 1 } else { 2 };
                words * columns * k.max(1).div_ceil(group)
            }
            _ => 0,
        }
    }

    /// Whether a column has one scale, which its sums are multiplied with.
    pub(super) fn scales_columns(self) -> bool {
        matches!(self, Layout::Int8 | Layout::Int8Quads | Layout::Int8Blocks | Layout::Fp8)
    }

    /// Bytes of a packed `[n, k]` matrix.
    pub(super) fn bytes(self, (n, k): (usize, usize), ends: bool) -> Option<usize> {
        let (steps, step_bytes) = match self {
            Layout::F32 => (steps::<Single<f32>>(k), 4 * PANEL),
            Layout::F16 | Layout::Bf16(_) => (steps::<Single<bf16>>(k), 2 * PANEL),
            Layout::Bf16Pairs => (steps::<Pairs>(k), 4 * PANEL),
            Layout::Bf16Blocks => (steps::<PairBlocks>(k), 8 * PANEL),
            Layout::Int8 | Layout::Fp8 => (steps::<Single<i8>>(k), PANEL),
            Layout::Int8Quads => (steps::<Quads>(k), 4 * PANEL),
            Layout::Int8Blocks => (steps::<QuadBlocks>(k), 8 * PANEL),
            Layout::Int4(..) => (steps::<Single<i8>>(k), PANEL / 2),
            Layout::Int4Quads(..) => (steps::<Quads>(k), 2 * PANEL),
            Layout::Int4Blocks(_) => (steps::<QuadBlocks>(k), 4 * PANEL),
        };
        let panels = n.div_ceil(PANEL).checked_mul(steps)?.checked_mul(step_bytes)?;
        panels.checked_add(self.num_scales((n, k), ends).checked_mul(size_of::<f32>())?)
    }
}

/// What to do with a [`Format`].
pub(super) trait WithFormat {
    /// What it yields.
    type Output;
    /// Does it.
    fn call<F: Format>(self) -> Self::Output;
}

impl Layout {
    /// Calls `f` with the format of this layout.
    pub(super) fn with<W: WithFormat>(self, f: W) -> W::Output {
        match self {
            Layout::F32 => f.call::<Single<f32>>(),
            Layout::F16 => f.call::<Single<f16>>(),
            #[cfg(target_arch = "aarch64")]
            Layout::Bf16(4) => f.call::<Halves<4>>(),
            Layout::Bf16(8) => f.call::<Halves<8>>(),
            Layout::Bf16(16) => f.call::<Halves<16>>(),
            Layout::Bf16(lanes) => unreachable!("no vectors of {lanes} lanes"),
            Layout::Bf16Pairs => f.call::<Pairs>(),
            Layout::Int8 => f.call::<Single<i8>>(),
            Layout::Int8Quads => f.call::<Quads>(),
            Layout::Fp8 => f.call::<Single<Fp8>>(),
            #[cfg(target_arch = "aarch64")]
            Layout::Int4(4, 32) => f.call::<Nibbles<4, 32>>(),
            Layout::Int4(8, 32) => f.call::<Nibbles<8, 32>>(),
            #[cfg(target_arch = "aarch64")]
            Layout::Int4(4, 128) => f.call::<Nibbles<4, 128>>(),
            Layout::Int4(8, 128) => f.call::<Nibbles<8, 128>>(),
            Layout::Int4(16, 32) => f.call::<Nibbles<16, 32>>(),
            Layout::Int4(16, 128) => f.call::<Nibbles<16, 128>>(),
            #[cfg(target_arch = "aarch64")]
            Layout::Int4Quads(4, 32) => f.call::<NibbleQuads<4, 32>>(),
            Layout::Int4Quads(8, 32) => f.call::<NibbleQuads<8, 32>>(),
            #[cfg(target_arch = "aarch64")]
            Layout::Int4Quads(4, 128) => f.call::<NibbleQuads<4, 128>>(),
            Layout::Int4Quads(8, 128) => f.call::<NibbleQuads<8, 128>>(),
            Layout::Int4Quads(16, 32) => f.call::<NibbleQuads<16, 32>>(),
            Layout::Int4Quads(16, 128) => f.call::<NibbleQuads<16, 128>>(),
            Layout::Bf16Blocks => f.call::<PairBlocks>(),
            Layout::Int8Blocks => f.call::<QuadBlocks>(),
            Layout::Int4Blocks(32) => f.call::<NibbleBlocks<32>>(),
            Layout::Int4Blocks(128) => f.call::<NibbleBlocks<128>>(),
            Layout::Int4(lanes, group) | Layout::Int4Quads(lanes, group) => {
                unreachable!("no vectors of {lanes} lanes with groups of {group}")
            }
            Layout::Int4Blocks(group) => unreachable!("no groups of {group}"),
        }
    }
}

/// Steps of a row of `k` elements; an empty row has one, of zeros, so that nothing is a special case.
pub(super) fn steps<F: Format>(k: usize) -> usize {
    k.div_ceil(F::PER_STEP).max(1)
}

/// Packs a row-major `[n, k]` matrix of little-endian elements into zeroed `out`.
pub(super) fn pack_weights<F: Format>(
    pool: &Pool,
    (n, k): (usize, usize),
    bytes: &[u8],
    out: &mut [F::Weight],
) {
    let row_bytes = k * size_of::<F::Weight>();
    assert_eq!(bytes.len(), n * row_bytes);
    let read = |column: usize, start: usize, line: &mut [u8; LINE]| {
        if column < n {
            let row = &bytes[column * row_bytes..(column + 1) * row_bytes][start..];
            match row.first_chunk() {
                Some(row) => *line = row.map(|byte| byte ^ F::FLIP),
                None => line.iter_mut().zip(row).for_each(|(out, byte)| *out = byte ^ F::FLIP),
            }
        }
    };
    let panels = Panels { pool, row_bytes, column: |at| at, place: F::place, read };
    match size_of::<F::Weight>() * F::PER_STEP {
        1 => panels.pack::<u8, PANEL>(bytemuck::cast_slice_mut(out)),
        2 => panels.pack::<u16, PANEL>(bytemuck::cast_slice_mut(out)),
        4 => panels.pack::<u32, PANEL>(bytemuck::cast_slice_mut(out)),
        8 => panels.pack::<u64, PANEL>(bytemuck::cast_slice_mut(out)),
        bytes => unreachable!("no format has {bytes} bytes of a column in a step"),
    }
}

/// Packs a matrix of nibbles for vectors of `lanes` columns, `per_step` elements of k side by side, into zeroed `out`.
pub(super) fn pack_nibbles(
    pool: &Pool,
    (n, k): (usize, usize),
    (lanes, per_step): (usize, usize),
    bytes: &[u8],
    out: &mut [u8],
) {
    let row_bytes = k.div_ceil(2);
    assert_eq!(bytes.len(), n * row_bytes);
    // Two columns make one of bytes, `lanes` apart; the first lies in the lower halves.
    let read = |first: usize, start: usize, line: &mut [u8; LINE]| {
        for (column, shift) in [(first, 0), (first + lanes, 4)] {
            if column < n {
                let codes = &bytes[column * row_bytes..(column + 1) * row_bytes][start / 2..];
                match codes.first_chunk::<{ LINE / 2 }>() {
                    Some(codes) => add_codes(codes, shift, line),
                    None => add_codes(codes, shift, &mut line[..LINE.min(k - start)]),
                }
            }
        }
    };
    let column = |at| at / lanes * 2 * lanes + at % lanes;
    let panels = Panels { pool, row_bytes: k, column, place: |at| at, read };
    match per_step {
        1 => panels.pack::<u8, { PANEL / 2 }>(out),
        4 => panels.pack::<u32, { PANEL / 2 }>(bytemuck::cast_slice_mut(out)),
        8 => panels.pack::<u64, { PANEL / 2 }>(bytemuck::cast_slice_mut(out)),
        steps => unreachable!("no format has {steps} nibbles of a column in a step"),
    }
}

/// Adds codes, two to a byte, to halves of bytes.
#[inline(always)]
fn add_codes(codes: &[u8], shift: u32, line: &mut [u8]) {
    let (pairs, last) = line.as_chunks_mut::<2>();
    for ([even, odd], code) in pairs.iter_mut().zip(codes) {
        *even |= (code & 15) << shift;
        *odd |= code >> 4 << shift;
    }
    if let ([even], Some(code)) = (last, codes.last()) {
        *even |= (code & 15) << shift;
    }
}

/// Bytes of a line of the caches.
const LINE: usize = 64;
/// Bytes of panels that one thread fills, if that leaves every thread as much: two that came to a page together
/// would both clear it, for one of them in vain. Zen 4, 2026-11: touching 3.1 GiB takes 0.38 s and not 0.47.
const TASK: usize = 2 << 20;

/// A matrix of bytes, column by column of what it is packed to.
struct Panels<'a, C, P, R> {
    pool: &'a Pool,
    /// Bytes of a column.
    row_bytes: usize,
    /// The column that a panel has at a place.
    column: C,
    /// Where a step holds it.
    place: P,
    /// Reads a column from a byte on, as much as there is, over zeros.
    read: R,
}

impl<C, P, R> Panels<'_, C, P, R>
where
    C: Fn(usize) -> usize + Sync,
    P: Fn(usize) -> usize + Sync,
    R: Fn(usize, usize, &mut [u8; LINE]) + Sync,
{
    /// Packs to zeroed `out`, where a step is `WIDTH` columns of a `U` each.
    ///
    /// Of as many columns as fill a line, a line each is read at a time: few enough streams for the processor to
    /// read ahead, and what is written is whole lines.
    fn pack<U: Pod + Send + Sync, const WIDTH: usize>(&self, out: &mut [U]) {
        let size = size_of::<U>();
        let panel_len = self.row_bytes.div_ceil(size).max(1) * WIDTH;
        let (panels, threads) = (out.len() / panel_len, self.pool.threads());
        assert_eq!(out.len(), panels * panel_len);
        let tasks = size_of_val(out).div_ceil(TASK).next_multiple_of(threads).min(panels);
        let out = Parts::new(out);
        self.pool.run(tasks, &|task| {
            for panel in task * panels / tasks..(task + 1) * panels / tasks {
                // SAFETY: each panel is of one task.
                let out = unsafe { out.part(panel * panel_len..(panel + 1) * panel_len) };
                let (steps, _) = out.as_chunks_mut::<WIDTH>();
                for first in (0..WIDTH).step_by(LINE / size) {
                    for start in (0..self.row_bytes).step_by(LINE) {
                        for at in first..WIDTH.min(first + LINE / size) {
                            let column = panel * PANEL + (self.column)(at);
                            let (mut line, place) = ([0; LINE], (self.place)(at) % WIDTH);
                            (self.read)(column, start, &mut line);
                            let units = line.chunks_exact(size).map(bytemuck::pod_read_unaligned);
                            for (step, unit) in steps[start / size..].iter_mut().zip(units) {
                                step[place] = unit;
                            }
                        }
                    }
                }
            }
        });
    }
}

/// Elements of a packed strip.
pub(super) fn strip_len<F: Format>(k: usize) -> usize {
    let steps = steps::<F>(k);
    let depth = depth::<F>(steps);
    steps.div_ceil(depth) * stride::<F>(depth) * ROWS * F::PER_STEP
}

/// Packs rows `source(first) .. source(first + rows)` of `x`. Elements of `out` that no tile reads keep what they
/// hold.
pub(super) fn pack_activations<S: Simd, F: Format, X: Float>(
    s: S,
    pool: &Pool,
    x: Rows<'_, X>,
    source: &(dyn Fn(usize) -> usize + Sync),
    (first, rows): (usize, usize),
    out: &mut [F::Activation],
) {
    // Below this, handing out work costs more than it saves: some 0.25 us, in which a thread rounds 400 elements.
    const SMALL: usize = 1 << 10;
    let (k, strip_len) = (x.cols(), strip_len::<F>(x.cols()));
    let steps = steps::<F>(k);
    let depth = depth::<F>(steps);
    let row_len = stride::<F>(depth) * F::PER_STEP;
    let out = Parts::new(out);
    let pack = |row: usize| {
        let x = x.row(source(first + row));
        for (block, start) in (0..steps).step_by(depth).enumerate() {
            let len = stride::<F>(depth.min(steps - start)) * F::PER_STEP;
            let at = row / ROWS * strip_len + (block * ROWS + row % ROWS) * row_len;
            // SAFETY: each task takes another row, and a row of a block is one's alone.
            let out = unsafe { out.part(at..at + len) };
            let x = &x[k.min(start * F::PER_STEP)..k.min((start + depth) * F::PER_STEP)];
            F::write_row(s, x, out);
        }
    };
    if rows == 1 || rows * k <= SMALL {
        (0..rows).for_each(pack);
    } else {
        pool.run(rows, &pack);
    }
}
