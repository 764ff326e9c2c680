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

use half::{bf16, f16};
use photon_core::{DType, WeightFormat};

use super::tile::{Format, Halves, NibbleQuads, Nibbles, Pairs, Quads, Single};
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
/// Most steps of a block. Twice what lets 16 columns of f32 share L1 with a strip: they stream from L2
/// without loss, and the sums go through memory half as often. Zen 3, 2025-11: 729 x 1152 x 4304 gains
/// 3 % over 256.
const DEPTH: usize = 512;

/// Blocks are whole multiples of so many steps, which are whole groups.
pub(super) const fn grain<F: Format>() -> usize {
    if F::GROUP > 64 { F::GROUP } else { 64 }
}

/// Steps of a block, for rows of `steps`: blocks are of about equal depth.
pub(super) fn depth<F: Format>(steps: usize) -> usize {
    steps.div_ceil(steps.div_ceil(DEPTH)).next_multiple_of(grain::<F>())
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
    /// Behind the panels, a scale for each column.
    Int8,
    /// As `Int8`, four elements of k side by side, plus 128.
    Int8Quads,
    /// As `Int8`.
    Fp8,
    /// For vectors of so many lanes, with so many elements of k to a scale.
    Int4(usize, usize),
    /// As `Int4`, four elements of k side by side.
    Int4Quads(usize, usize),
}

impl Layout {
    /// What `isa` wants for `format`, if it can multiply that.
    pub(super) fn of(isa: Isa, format: WeightFormat) -> Option<Layout> {
        match format {
            WeightFormat::Float(DType::F32) => Some(Layout::F32),
            WeightFormat::Float(DType::F16) => Some(Layout::F16),
            WeightFormat::Float(DType::Bf16) => Some(match isa.has_pairs() {
                true => Layout::Bf16Pairs,
                false => Layout::Bf16(isa.lanes()),
            }),
            WeightFormat::Int8 => {
                Some(if isa.has_bytes() { Layout::Int8Quads } else { Layout::Int8 })
            }
            WeightFormat::Fp8 => Some(Layout::Fp8),
            WeightFormat::Int4 { group: group @ (32 | 128) } => Some(match isa.has_bytes() {
                true => Layout::Int4Quads(isa.lanes(), group as usize),
                false => Layout::Int4(isa.lanes(), group as usize),
            }),
            _ => None,
        }
    }

    /// Floats behind the panels of a `[n, k]` matrix.
    pub(super) fn num_scales(self, n: usize, k: usize) -> usize {
        let columns = n.next_multiple_of(PANEL);
        match self {
            Layout::Int8 | Layout::Int8Quads | Layout::Fp8 => columns,
            Layout::Int4(_, group) | Layout::Int4Quads(_, group) => {
                2 * columns * k.max(1).div_ceil(group)
            }
            _ => 0,
        }
    }

    /// Whether a column has one scale, which its sums are multiplied with.
    pub(super) fn scales_columns(self) -> bool {
        matches!(self, Layout::Int8 | Layout::Int8Quads | Layout::Fp8)
    }

    /// Bytes of a packed `[n, k]` matrix.
    pub(super) fn bytes(self, n: usize, k: usize) -> Option<usize> {
        let (steps, step_bytes) = match self {
            Layout::F32 => (steps::<Single<f32>>(k), 4 * PANEL),
            Layout::F16 | Layout::Bf16(_) => (steps::<Single<bf16>>(k), 2 * PANEL),
            Layout::Bf16Pairs => (steps::<Pairs>(k), 4 * PANEL),
            Layout::Int8 | Layout::Fp8 => (steps::<Single<i8>>(k), PANEL),
            Layout::Int8Quads => (steps::<Quads>(k), 4 * PANEL),
            Layout::Int4(..) => (steps::<Single<i8>>(k), PANEL / 2),
            Layout::Int4Quads(..) => (steps::<Quads>(k), 2 * PANEL),
        };
        let panels = n.div_ceil(PANEL).checked_mul(steps)?.checked_mul(step_bytes)?;
        panels.checked_add(self.num_scales(n, k).checked_mul(size_of::<f32>())?)
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
            Layout::Int4(lanes, group) | Layout::Int4Quads(lanes, group) => {
                unreachable!("no vectors of {lanes} lanes with groups of {group}")
            }
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
    // Elements of k per round: 64 rows of them fit in L1 along with what they become.
    const RUN: usize = 32;
    let size = size_of::<F::Weight>();
    let panel_len = steps::<F>(k) * PANEL * F::PER_STEP;
    let panels = n.div_ceil(PANEL);
    assert_eq!(bytes.len(), n * k * size);
    assert_eq!(out.len(), panels * panel_len);
    let out = Parts::new(out);
    pool.run(panels, &|panel| {
        // SAFETY: each task takes another panel.
        let out = unsafe { out.part(panel * panel_len..(panel + 1) * panel_len) };
        let rows = panel * PANEL..n.min((panel + 1) * PANEL);
        for k0 in (0..k).step_by(RUN) {
            let run = k0..k.min(k0 + RUN);
            for (column, row) in rows.clone().enumerate() {
                let place = F::place(column) * F::PER_STEP;
                let row = &bytes[(row * k + run.start) * size..(row * k + run.end) * size];
                for (k, element) in run.clone().zip(row.chunks_exact(size)) {
                    let step = k / F::PER_STEP * PANEL * F::PER_STEP;
                    out[step + place + k % F::PER_STEP] =
                        F::encode(bytemuck::pod_read_unaligned(element));
                }
            }
        }
    });
}

/// Packs a matrix of nibbles for vectors of `lanes`, `per_step` elements of k side by side, into zeroed `out`.
pub(super) fn pack_nibbles(
    pool: &Pool,
    (n, k): (usize, usize),
    (lanes, per_step): (usize, usize),
    bytes: &[u8],
    out: &mut [u8],
) {
    let (row_bytes, step_len) = (k.div_ceil(2), PANEL / 2 * per_step);
    let panel_len = k.div_ceil(per_step).max(1) * step_len;
    assert_eq!(bytes.len(), n * row_bytes);
    let panels = n.div_ceil(PANEL);
    let out = Parts::new(out);
    pool.run(panels, &|panel| {
        // SAFETY: each task takes another panel.
        let out = unsafe { out.part(panel * panel_len..(panel + 1) * panel_len) };
        for (column, row) in (panel * PANEL..n.min((panel + 1) * PANEL)).enumerate() {
            let row = &bytes[row * row_bytes..(row + 1) * row_bytes];
            let (place, shift) = (
                (column / (2 * lanes) * lanes + column % lanes) * per_step,
                if (column / lanes).is_multiple_of(2) { 0 } else { 4 },
            );
            for k in 0..k {
                let code = row[k / 2] >> (4 * (k % 2)) & 15;
                out[k / per_step * step_len + place + k % per_step] |= code << shift;
            }
        }
    });
}

/// Lays out the scales of a matrix of `[n]` rows, `per_row` to each, in zeroed `out`: those of a panel
/// together, of its rows' first scales first.
pub(super) fn pack_scales(n: usize, per_row: usize, scales: &[f32], out: &mut [f32]) {
    assert_eq!(scales.len(), n * per_row);
    for (row, scales) in scales.chunks_exact(per_row).enumerate() {
        let (panel, column) = (row / PANEL, row % PANEL);
        for (i, scale) in scales.iter().enumerate() {
            out[(panel * per_row + i) * PANEL + column] = *scale;
        }
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
    // Below this, handing out work costs more than it saves: some 2 us.
    const SMALL: usize = 16 << 10;
    let (k, strip_len) = (x.cols(), strip_len::<F>(x.cols()));
    let steps = steps::<F>(k);
    let depth = depth::<F>(steps);
    let row_len = stride::<F>(depth) * F::PER_STEP;
    let strips = rows.div_ceil(ROWS);
    let out = Parts::new(out);
    let pack = |strip: usize| {
        // SAFETY: each task takes another strip.
        let out = unsafe { out.part(strip * strip_len..(strip + 1) * strip_len) };
        for row in 0..ROWS.min(rows - strip * ROWS) {
            let x = x.row(source(first + strip * ROWS + row));
            for (block, start) in (0..steps).step_by(depth).enumerate() {
                let len = stride::<F>(depth.min(steps - start)) * F::PER_STEP;
                let out = &mut out[(block * ROWS + row) * row_len..][..len];
                let x = &x[k.min(start * F::PER_STEP)..k.min((start + depth) * F::PER_STEP)];
                F::write_row(s, x, out);
            }
        }
    };
    if rows * k <= SMALL {
        (0..strips).for_each(pack);
    } else {
        pool.run(strips, &pack);
    }
}
