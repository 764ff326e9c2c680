//! Rotary positions, what scales queries and values, and storing keys and values in the paged cache.
use photon_core::{RopeStore, Tau};

use super::{for_runs, index};
use crate::{
    Cpu,
    elements::{Cached, Float, Rows, RowsMut, with_cached, with_float},
    simd::{Convert, dispatch},
};

pub(crate) fn rope_store(cpu: &Cpu, op: RopeStore<'_, Cpu>) {
    let cache = op.k_cache.dtype();
    with_float!(op.qkv.dtype(), T => with_cached!(cache, U => rope_heads::<T, U>(cpu, op)));
}

/// Tasks own heads, not tokens, so that slots that repeat (as those of padding may) cannot race.
fn rope_heads<T: Float, U: Cached>(cpu: &Cpu, op: RopeStore<'_, Cpu>) {
    let RopeStore { qkv, k_cache, v_cache, positions, slots, table, tau, .. } = op;
    let (heads, kv_heads, head_dim) = (op.heads, op.kv_heads, op.head_dim);
    let factor = tau.map(|tau| with_float!(tau.scores.dtype(), V => factors::<V>(tau)));
    let positions = Rows::<i32>::new(positions).all();
    let slots = Rows::<i32>::new(slots).all();
    let table = Rows::<f32>::new(table);
    let qkv = RowsMut::<T>::new(qkv);
    let (k_cache, v_cache) = (RowsMut::<U>::new(k_cache), RowsMut::<U>::new(v_cache));
    let group = heads / kv_heads;
    let columns = |head: usize| head * head_dim..(head + 1) * head_dim;
    let scale = |kv_head: usize| {
        let at = kv_heads * head_dim + kv_head * U::SCALE_LEN;
        at..at + U::SCALE_LEN
    };
    for_runs(cpu, kv_heads, qkv.rows() * head_dim * (group + 2) * 8, |kv_heads_here| {
        let mut wide = vec![0.0; head_dim];
        for t in 0..qkv.rows() {
            let Some(position) = index(positions[t], table.rows()) else { continue };
            let turns = table.row(position);
            let slot = index(slots[t], k_cache.rows());
            for kv_head in kv_heads_here.clone() {
                for head in kv_head * group..(kv_head + 1) * group {
                    // SAFETY: a task's q heads are those of its kv heads (the partition).
                    let q = unsafe { qkv.part(t, columns(head)) };
                    dispatch(cpu.isa(), Convert { out: &mut wide, x: &*q });
                    if let Some(factor) = &factor {
                        scale_by(&mut wide, factor(t, head, position));
                    }
                    rotate(&mut wide, turns);
                    dispatch(cpu.isa(), Convert { out: q, x: &wide });
                }
                let Some(slot) = slot else { continue };
                // SAFETY: runs of kv heads are disjoint (the partition).
                let k = unsafe { qkv.part(t, columns(heads + kv_head)) };
                dispatch(cpu.isa(), Convert { out: &mut wide, x: &*k });
                rotate(&mut wide, turns);
                // SAFETY: as above; caches and qkv are different tensors (`Cx`).
                let to = unsafe { k_cache.part(slot, columns(kv_head)) };
                // SAFETY: as above; a head's scale is apart from all values.
                let to_scale = unsafe { k_cache.part(slot, scale(kv_head)) };
                U::store(cpu.isa(), to, to_scale, &wide);
                // SAFETY: as for k.
                let v = unsafe { qkv.part(t, columns(heads + kv_heads + kv_head)) };
                dispatch(cpu.isa(), Convert { out: &mut wide, x: &*v });
                if let Some(factor) = &factor {
                    scale_by(&mut wide, factor(t, heads + kv_head, position));
                }
                // SAFETY: as for k.
                let to = unsafe { v_cache.part(slot, columns(kv_head)) };
                // SAFETY: as for k.
                let to_scale = unsafe { v_cache.part(slot, scale(kv_head)) };
                U::store(cpu.isa(), to, to_scale, &wide);
            }
        }
    });
}

/// What tau makes of a score and a position: by token, place among its scores, and position.
type Factor<'a> = Box<dyn Fn(usize, usize, usize) -> f32 + Sync + 'a>;

fn factors<'a, V: Float + Into<f32>>(tau: Tau<'a, Cpu>) -> Factor<'a> {
    let (scores, alpha) = (Rows::<V>::new(tau.scores), Rows::<f32>::new(tau.alpha).all());
    Box::new(move |t, i, position| {
        let score: f32 = scores.row(t)[i].into();
        let a = alpha[i % alpha.len()] * (position as f32 + 1.0).ln();
        score.tanh() + 1.0 / (1.0 + (-a).exp()) + 0.5
    })
}

fn scale_by(head: &mut [f32], factor: f32) {
    head.iter_mut().for_each(|x| *x *= factor);
}

/// Rotates the first dims of a head by `turns`: cosines, then sines.
fn rotate(head: &mut [f32], turns: &[f32]) {
    let half = turns.len() / 2;
    let (cos, sin) = turns.split_at(half);
    let (first, rest) = head.split_at_mut(half);
    for ((a, b), (c, s)) in first.iter_mut().zip(rest).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}
