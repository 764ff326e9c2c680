//! The microkernel: a tile of `R` rows by `V` vectors of columns, summed in registers.
//!
//! Every output element is one chain of additions over k, in order, whichever tile it falls in: the
//! shapes differ only in how many chains run side by side. So a row's result does not depend on the
//! rows it is computed with, nor on the number of threads.
#![allow(unsafe_code, reason = "loads and stores through pointers, after one check of the bounds")]

use std::marker::PhantomData;

use half::bf16;

use super::layout::{PANEL, ROWS};
use crate::simd::{Element, Op, Simd};

/// How weights and activations are stored and multiplied. The unit of k is a step.
pub(super) trait Format: Copy + Send + Sync + 'static {
    /// What weights are stored as.
    type Weight: Element + bytemuck::Pod;
    /// What activations are packed as.
    type Activation: Element + bytemuck::Pod;
    /// Elements of k in a step.
    const PER_STEP: usize;
    /// Whether weights are f32 already.
    const IS_F32: bool = false;

    /// `LANES` columns of one step.
    ///
    /// # Safety
    /// `LANES * PER_STEP` elements can be read at `p`.
    unsafe fn columns<S: Simd>(s: S, p: *const Self::Weight) -> S::V;
    /// One row of one step, in all lanes.
    ///
    /// # Safety
    /// `PER_STEP` elements can be read at `p`.
    unsafe fn row<S: Simd>(s: S, p: *const Self::Activation) -> S::V;
    /// Adds a step's product.
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V;
}

/// One element of k per step, multiplied as f32.
#[derive(Clone, Copy)]
pub(super) struct Single<T>(PhantomData<T>);

impl<T: Element + bytemuck::Pod> Format for Single<T> {
    type Weight = T;
    type Activation = f32;
    const PER_STEP: usize = 1;
    const IS_F32: bool = size_of::<T>() == size_of::<f32>();

    #[inline(always)]
    unsafe fn columns<S: Simd>(s: S, p: *const T) -> S::V {
        // SAFETY: the same contract.
        unsafe { T::read(s, p) }
    }
    #[inline(always)]
    unsafe fn row<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller vouches for an element.
        s.splat(unsafe { *p })
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

    #[inline(always)]
    unsafe fn columns<S: Simd>(s: S, p: *const bf16) -> S::V {
        // SAFETY: a pair of bf16 is as large as an f32, and the load need not be aligned.
        unsafe { s.read_f32(p.cast()) }
    }
    #[inline(always)]
    unsafe fn row<S: Simd>(s: S, p: *const bf16) -> S::V {
        // SAFETY: the caller vouches for two elements.
        s.splat(unsafe { p.cast::<f32>().read_unaligned() })
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, row: S::V, columns: S::V, sum: S::V) -> S::V {
        s.dot_pairs(sum, row, columns)
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

struct Shaped<'a, F: Format, const R: usize, const V: usize>(Tile<'a, F>);

impl<F: Format, const R: usize, const V: usize> Op for Shaped<'_, F, R, V> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Tile { rows, columns, steps, sums, sums_stride, fresh, prefetch, .. } = self.0;
        let row_stride = self.0.row_stride * F::PER_STEP;
        let stride = self.0.stride * F::PER_STEP;
        assert!(0 < steps);
        assert!(rows.len() >= (R - 1) * row_stride + steps * F::PER_STEP);
        assert!(columns.len() >= (steps - 1) * stride + V * S::LANES * F::PER_STEP);
        assert!(sums.len() >= (R - 1) * sums_stride + V * S::LANES);

        let sums = sums.as_mut_ptr();
        let mut acc = [[s.splat(0.0); V]; R];
        if !fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    let from = sums.wrapping_add(r * sums_stride + v * S::LANES);
                    // SAFETY: with the assertion on `sums`: row `r < R` and one of its `V` vectors.
                    *acc = unsafe { s.read_f32(from) };
                }
            }
        }
        let mut row = rows.as_ptr();
        let mut column = columns.as_ptr();
        for _ in 0..steps {
            let a = |r: usize| {
                // SAFETY: with the assertion on `rows`: row `r < R` and one of the first `steps` steps.
                unsafe { F::row(s, row.wrapping_add(r * row_stride)) }
            };
            let b = |v: usize| {
                // SAFETY: with the assertion on `columns`: one of the first `steps` steps and one of
                // the `V` vectors there.
                unsafe { F::columns(s, column.wrapping_add(v * S::LANES * F::PER_STEP)) }
            };
            if prefetch > 0 {
                for line in 0..(V * S::LANES * F::PER_STEP * size_of::<F::Weight>()).div_ceil(64) {
                    s.prefetch(column.cast::<u8>().wrapping_add(prefetch + 64 * line));
                }
            }
            // The shorter side stays in registers while the longer passes by: three rows by four
            // vectors leave four registers of sixteen.
            if R < V {
                let mut held = [s.splat(0.0); R];
                for (r, held) in held.iter_mut().enumerate() {
                    *held = a(r);
                }
                for v in 0..V {
                    let b = b(v);
                    for r in 0..R {
                        acc[r][v] = F::multiply(s, held[r], b, acc[r][v]);
                    }
                }
            } else {
                let mut held = [s.splat(0.0); V];
                for (v, held) in held.iter_mut().enumerate() {
                    *held = b(v);
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
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                let to = sums.wrapping_add(r * sums_stride + v * S::LANES);
                // SAFETY: with the assertion on `sums`: row `r < R` and one of its `V` vectors.
                unsafe { s.write_f32(to, acc) };
            }
        }
    }
}

/// The widest tile, in vectors, that `rows` rows leave registers for.
pub(super) const fn widest<S: Simd>(rows: usize) -> usize {
    let fit = S::ACCUMULATORS / rows;
    let most = PANEL / S::LANES;
    let vectors = if fit < most { fit } else { most };
    1 << vectors.ilog2()
}

/// Sums a tile of `rows` rows and `vectors` vectors of columns.
pub(super) fn run<S: Simd, F: Format>(s: S, rows: usize, vectors: usize, tile: Tile<'_, F>) {
    const { assert!(ROWS == 6) };
    match (rows, vectors) {
        (1, 1) => s.run(Shaped::<F, 1, 1>(tile)),
        (2, 1) => s.run(Shaped::<F, 2, 1>(tile)),
        (3, 1) => s.run(Shaped::<F, 3, 1>(tile)),
        (4, 1) => s.run(Shaped::<F, 4, 1>(tile)),
        (5, 1) => s.run(Shaped::<F, 5, 1>(tile)),
        (6, 1) => s.run(Shaped::<F, 6, 1>(tile)),
        (1, 2) => s.run(Shaped::<F, 1, 2>(tile)),
        (2, 2) => s.run(Shaped::<F, 2, 2>(tile)),
        (3, 2) => s.run(Shaped::<F, 3, 2>(tile)),
        (4, 2) => s.run(Shaped::<F, 4, 2>(tile)),
        (5, 2) => s.run(Shaped::<F, 5, 2>(tile)),
        (6, 2) => s.run(Shaped::<F, 6, 2>(tile)),
        (1, 4) => s.run(Shaped::<F, 1, 4>(tile)),
        (2, 4) => s.run(Shaped::<F, 2, 4>(tile)),
        (3, 4) => s.run(Shaped::<F, 3, 4>(tile)),
        (4, 4) => s.run(Shaped::<F, 4, 4>(tile)),
        (5, 4) => s.run(Shaped::<F, 5, 4>(tile)),
        (6, 4) => s.run(Shaped::<F, 6, 4>(tile)),
        (1, 8) => s.run(Shaped::<F, 1, 8>(tile)),
        _ => unreachable!("no tile of {rows} rows by {vectors} vectors"),
    }
}
