//! Experts: who gets a token, and how what they give is joined.
use photon_core::{Nest, Route, WeightedSum};

use super::{for_runs, index};
use crate::{
    Cpu,
    elements::{Rows, RowsMut, with_float},
    simd::{Convert, Op, Simd, dispatch, load, store},
};

pub(crate) fn route(cpu: &Cpu, op: Route<'_, Cpu>) {
    let Route { experts, weights, logits } = op;
    let (experts, weights) = (RowsMut::<i32>::new(experts), RowsMut::<f32>::new(weights));
    with_float!(logits.dtype(), T => {
        let logits = Rows::<T>::new(logits);
        // Every choice looks at all experts.
        for_runs(cpu, logits.rows(), logits.cols() * 4 * experts.cols(), |rows| {
            let mut wide = vec![0.0; logits.cols()];
            for i in rows {
                dispatch(cpu.isa(), Convert { out: &mut wide, x: logits.row(i) });
                // SAFETY: runs of rows are disjoint (the partition).
                let experts = unsafe { experts.row(i) };
                // SAFETY: as above.
                let weights = unsafe { weights.row(i) };
                choose(&mut wide, experts, weights);
            }
        });
    });
}

/// Fills one row; a chosen logit is overwritten.
fn choose(logits: &mut [f32], experts: &mut [i32], weights: &mut [f32]) {
    for slot in 0..experts.len() {
        let is_free = |place: usize| !experts[..slot].contains(&(place as i32));
        let free = (0..logits.len()).filter(|&place| is_free(place));
        // A NaN is never greater; it is taken only when nothing else is left.
        let best = free.reduce(|best, place| {
            let is_better =
                logits[place] > logits[best] || (logits[best].is_nan() && !logits[place].is_nan());
            if is_better { place } else { best }
        });
        let best = best.expect("no more choices than experts");
        experts[slot] = best as i32;
        weights[slot] = logits[best];
    }
    let Some(&largest) = weights.first() else { return };
    weights.iter_mut().for_each(|w| *w = (*w - largest).exp());
    let total: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
}

pub(crate) fn nest(cpu: &Cpu, op: Nest<'_, Cpu>) {
    let Nest { out, outer, inner, count } = op;
    let (outer, inner) = (Rows::<i32>::new(outer).all(), Rows::<i32>::new(inner));
    let out = RowsMut::<i32>::new(out);
    for_runs(cpu, out.rows(), out.cols() * 8, |rows| {
        for i in rows {
            // SAFETY: runs of rows are disjoint (the partition).
            let out = unsafe { out.row(i) };
            for (out, &inner) in out.iter_mut().zip(inner.row(i)) {
                let group = || Some(usize::try_from(outer[i]).ok()? * count + index(inner, count)?);
                *out = group().and_then(|group| i32::try_from(group).ok()).unwrap_or(-1);
            }
        }
    });
}

pub(crate) fn weighted_sum(cpu: &Cpu, op: WeightedSum<'_, Cpu>) {
    let weights = Rows::<f32>::new(op.weights);
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        let (out, x) = (RowsMut::<T>::new(op.out), Rows::<U>::new(op.x));
        let top = weights.cols();
        for_runs(cpu, out.rows(), out.cols() * 4 * (top + 2), |rows| {
            let (mut sum, mut wide) = (vec![0.0; out.cols()], vec![0.0; out.cols()]);
            for i in rows {
                sum.fill(0.0);
                for (j, &weight) in weights.row(i).iter().enumerate() {
                    dispatch(cpu.isa(), Convert { out: &mut wide, x: x.row(i * top + j) });
                    dispatch(cpu.isa(), AddScaled { sum: &mut sum, x: &wide, weight });
                }
                // SAFETY: runs of rows are disjoint (the partition).
                let out = unsafe { out.row(i) };
                dispatch(cpu.isa(), Convert { out: &mut wide, x: &*out });
                dispatch(cpu.isa(), AddScaled { sum: &mut sum, x: &wide, weight: 1.0 });
                dispatch(cpu.isa(), Convert { out, x: &sum });
            }
        });
    }));
}

/// `sum += weight x`.
struct AddScaled<'a> {
    sum: &'a mut [f32],
    x: &'a [f32],
    weight: f32,
}

impl Op for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let AddScaled { sum, x, weight } = self;
        let mut sums = sum.chunks_exact_mut(S::LANES);
        let mut xs = x.chunks_exact(S::LANES);
        for (sum, x) in sums.by_ref().zip(xs.by_ref()) {
            store(s, sum, s.fma(load(s, x), s.splat(weight), load(s, sum)));
        }
        for (sum, x) in sums.into_remainder().iter_mut().zip(xs.remainder()) {
            *sum += x * weight;
        }
    }
}
