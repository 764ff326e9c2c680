//! Layer norm: two passes over a row held in f32, so that a large mean does not cost precision.
use std::cell::RefCell;

use photon_core::LayerNorm;

use super::for_runs;
use crate::{
    Cpu,
    elements::{Float, Rows, RowsMut, with_float},
    simd::{Convert, Op, Simd, dispatch, load, store, sum_of_lanes},
};

thread_local! {
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn layer_norm(cpu: &Cpu, op: LayerNorm<'_, Cpu>) {
    let (w, b) = (Rows::new(op.w).all(), Rows::new(op.b).all());
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        norm_rows(cpu, RowsMut::<T>::new(op.out), Rows::<U>::new(op.x), w, b, op.eps);
    }));
}

fn norm_rows<T: Float, U: Float>(
    cpu: &Cpu,
    out: RowsMut<'_, T>,
    x: Rows<'_, U>,
    w: &[f32],
    b: &[f32],
    eps: f32,
) {
    for_runs(cpu, out.rows(), out.cols() * 8, |rows| {
        ROW.with_borrow_mut(|wide| {
            wide.resize(x.cols(), 0.0);
            for i in rows {
                // SAFETY: runs of rows are disjoint (the partition).
                let out = unsafe { out.row(i) };
                dispatch(cpu.isa(), NormRow { out, x: x.row(i), w, b, eps, wide });
            }
        });
    });
}

struct NormRow<'a, T, U> {
    out: &'a mut [T],
    x: &'a [U],
    w: &'a [f32],
    b: &'a [f32],
    eps: f32,
    wide: &'a mut [f32],
}

impl<T: Float, U: Float> Op for NormRow<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let NormRow { out, x, w, b, eps, wide } = self;
        let dim = x.len();
        Convert { out: wide, x }.call(s);
        let mean = sum(s, wide, |_, v| v, |v| v) / dim as f32;
        let center = s.splat(mean);
        let squares = sum(
            s,
            wide,
            |s, v| {
                let d = s.sub(v, center);
                s.mul(d, d)
            },
            |v| (v - mean) * (v - mean),
        );
        let scale = (squares / dim as f32 + eps).sqrt().recip();
        let body = dim - dim % S::LANES;
        for i in (0..body).step_by(S::LANES) {
            let x = s.mul(s.sub(load(s, &wide[i..]), center), s.splat(scale));
            store(s, &mut wide[i..], s.fma(x, load(s, &w[i..]), load(s, &b[i..])));
        }
        for i in body..dim {
            wide[i] = (wide[i] - mean) * scale * w[i] + b[i];
        }
        Convert { out, x: wide }.call(s);
    }
}

/// `sum(f(x))`, lanes summed apart so that the order depends on nothing but the length.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], f: impl Fn(S, S::V) -> S::V, f_one: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [s.splat(0.0); 4];
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in blocks.by_ref() {
        for (acc, x) in acc.iter_mut().zip(block.chunks_exact(S::LANES)) {
            *acc = s.add(*acc, f(s, load(s, x)));
        }
    }
    let lanes = s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3]));
    let rest: f32 = blocks.remainder().iter().map(|&x| f_one(x)).sum();
    sum_of_lanes(s, lanes) + rest
}
