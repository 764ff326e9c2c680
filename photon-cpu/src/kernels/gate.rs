//! Element-wise functions: activations, the gate of an expert, and tau, which scales heads.
use photon_core::{Activate, Activation, GatedGelu, Tau};

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

pub(crate) fn tau(cpu: &Cpu, op: Tau<'_, Cpu>) {
    with_float!(op.qkv.dtype(), T => with_float!(op.scores.dtype(), U => {
        scale_heads::<T, U>(cpu, op);
    }));
}

fn scale_heads<T: Float, U: Float>(cpu: &Cpu, op: Tau<'_, Cpu>) {
    let Tau { qkv, scores, alpha, positions, heads } = op;
    let positions = Rows::<i32>::new(positions).all();
    let alpha = Rows::<f32>::new(alpha).all();
    let (qkv, scores) = (RowsMut::<T>::new(qkv), Rows::<U>::new(scores));
    let width = qkv.cols() / 3;
    let head_dim = width / heads;
    for_runs(cpu, qkv.rows(), width * 16, |tokens| {
        let mut wide = vec![0.0; 2 * heads];
        for t in tokens {
            let Ok(position) = u32::try_from(positions[t]) else { continue };
            let depth = (position as f32 + 1.0).ln();
            dispatch(cpu.isa(), crate::simd::Convert { out: &mut wide, x: scores.row(t) });
            for (first, scores) in [0, 2 * width].into_iter().zip(wide.chunks_exact(heads)) {
                for (h, (score, alpha)) in scores.iter().zip(alpha).enumerate() {
                    let factor = score.tanh() + 1.0 / (1.0 + (-alpha * depth).exp()) + 0.5;
                    let at = first + h * head_dim;
                    // SAFETY: runs of rows are disjoint (the partition).
                    let head = unsafe { qkv.part(t, at..at + head_dim) };
                    dispatch(cpu.isa(), Scale { head, factor });
                }
            }
        }
    });
}

struct Scale<'a, T> {
    head: &'a mut [T],
    factor: f32,
}

impl<T: Float> Op for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Scale { head, factor } = self;
        let mut vectors = head.chunks_exact_mut(S::LANES);
        for x in vectors.by_ref() {
            store(s, x, s.mul(load(s, x), s.splat(factor)));
        }
        let rest = vectors.into_remainder();
        let mut padded = [T::default(); MAX_LANES];
        padded[..rest.len()].copy_from_slice(rest);
        let scaled = s.mul(load(s, &padded), s.splat(factor));
        store(s, &mut padded, scaled);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}
