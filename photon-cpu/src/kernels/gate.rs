//! Element-wise functions: activations, and the gate of an expert.
use photon_core::{Activate, Activation, GatedGelu};

use super::for_runs;
use crate::{
    Cpu,
    elements::{Float, Rows, RowsMut, with_float},
    simd::{MAX_LANES, Op, Simd, activate as activate_vector, dispatch, gelu_erf, load, store},
};

pub(crate) fn activate(cpu: &Cpu, op: Activate<'_, Cpu>) {
    let activation = op.activation;
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        let (out, x) = (RowsMut::<T>::new(op.out), Rows::<U>::new(op.x));
        // A GELU takes as long as moving some 8 times its bytes.
        for_runs(cpu, out.rows(), out.cols() * 32, |rows| {
            for i in rows {
                // SAFETY: runs of rows are disjoint (the partition).
                let out = unsafe { out.row(i) };
                let x = x.row(i);
                dispatch(cpu.isa(), Map { out, x: [x, x], function: activation });
            }
        });
    }));
}

/// A function of two numbers.
trait Function {
    fn apply<S: Simd>(&self, s: S, x: S::V, y: S::V) -> S::V;
}

impl Function for Activation {
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, x: S::V, _: S::V) -> S::V {
        activate_vector(s, *self, x)
    }
}

/// The gate of an expert: `gelu(x) (y + 1)`.
struct Gate;

impl Function for Gate {
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, x: S::V, y: S::V) -> S::V {
        s.mul(gelu_erf(s, x), s.add(y, s.splat(1.0)))
    }
}

/// `out[i] = function(x[0][i], x[1][i])`.
struct Map<'a, T, U, F> {
    out: &'a mut [T],
    x: [&'a [U]; 2],
    function: F,
}

impl<T: Float, U: Float, F: Function> Op for Map<'_, T, U, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Map { out, x: [x, y], function } = self;
        let body = out.len() - out.len() % S::LANES;
        for i in (0..body).step_by(S::LANES) {
            store(s, &mut out[i..], function.apply(s, load(s, &x[i..]), load(s, &y[i..])));
        }
        let tail = |x: &[U]| {
            let mut padded = [U::default(); MAX_LANES];
            padded[..x.len() - body].copy_from_slice(&x[body..]);
            padded
        };
        let mut last = [T::default(); MAX_LANES];
        store(s, &mut last, function.apply(s, load(s, &tail(x)), load(s, &tail(y))));
        let rest = out.len() - body;
        out[body..].copy_from_slice(&last[..rest]);
    }
}

pub(crate) fn gated_gelu(cpu: &Cpu, op: GatedGelu<'_, Cpu>) {
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        let (out, x) = (RowsMut::<T>::new(op.out), Rows::<U>::new(op.x));
        for_runs(cpu, out.rows(), out.cols() * 32, |rows| {
            for i in rows {
                let (h, g) = x.row(i).split_at(out.cols());
                // SAFETY: runs of rows are disjoint (the partition).
                let out = unsafe { out.row(i) };
                dispatch(cpu.isa(), Map { out, x: [h, g], function: Gate });
            }
        });
    }));
}
