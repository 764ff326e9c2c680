//! Element-wise functions: activations, and the gate of an expert.
use photon_core::{Activate, Activation, GatedGelu};

use super::for_runs;
use crate::{
    Cpu,
    elements::{Float, Rows, RowsMut, with_float},
    simd::{
        Element, MAX_LANES, Op, Readable, Simd, activate as apply, dispatch, gelu_erf, load, store,
    },
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
                dispatch(cpu.isa(), ActivateRow { out, x: x.row(i), activation });
            }
        });
    }));
}

struct ActivateRow<'a, T, U> {
    out: &'a mut [T],
    x: &'a [U],
    activation: Activation,
}

impl<T: Float, U: Float> Op for ActivateRow<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let ActivateRow { out, x, activation } = self;
        map(s, out, [x, x], |x, _| apply(s, activation, x));
    }
}

/// `out[i] = f(a[i], b[i])`.
#[inline(always)]
fn map<S: Simd, T: Element, U: Readable>(
    s: S,
    out: &mut [T],
    [a, b]: [&[U]; 2],
    f: impl Fn(S::V, S::V) -> S::V,
) {
    let body = out.len() - out.len() % S::LANES;
    for i in (0..body).step_by(S::LANES) {
        store(s, &mut out[i..], f(load(s, &a[i..]), load(s, &b[i..])));
    }
    let tail = |x: &[U]| {
        let mut padded = [U::default(); MAX_LANES];
        padded[..x.len() - body].copy_from_slice(&x[body..]);
        padded
    };
    let mut last = [T::default(); MAX_LANES];
    store(s, &mut last, f(load(s, &tail(a)), load(s, &tail(b))));
    let rest = out.len() - body;
    out[body..].copy_from_slice(&last[..rest]);
}

pub(crate) fn gated_gelu(cpu: &Cpu, op: GatedGelu<'_, Cpu>) {
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        let (out, x) = (RowsMut::<T>::new(op.out), Rows::<U>::new(op.x));
        for_runs(cpu, out.rows(), out.cols() * 32, |rows| {
            for i in rows {
                let (h, g) = x.row(i).split_at(out.cols());
                // SAFETY: runs of rows are disjoint (the partition).
                let out = unsafe { out.row(i) };
                dispatch(cpu.isa(), GateRow { out, h, g });
            }
        });
    }));
}

struct GateRow<'a, T, U> {
    out: &'a mut [T],
    h: &'a [U],
    g: &'a [U],
}

impl<T: Float, U: Float> Op for GateRow<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let GateRow { out, h, g } = self;
        map(s, out, [h, g], |h, g| s.mul(gelu_erf(s, h), s.add(g, s.splat(1.0))));
    }
}
