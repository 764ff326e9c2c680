//! [`RopeStore`]: what scales, rotation in place, and the store into the paged cache.
use photon_core::{DType, Kernels, RopeStore, Tau, kv};

use crate::{
    Options,
    cache::Cache,
    cases::poisoned,
    oracle,
    rig::{Gaps, Label, Rig, Value, Want},
    rng::Rng,
};

struct Config {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dims: usize,
    max_context: usize,
    num_slots: usize,
    qkv: DType,
    cache: DType,
    /// The type of tau's scores, if there is tau.
    scores: Option<DType>,
    poison: bool,
    seed: u64,
}

fn check<D: Kernels>(rig: &mut Rig<'_, D>, c: &Config) {
    let Config { tokens, heads, kv_heads, head_dim, rotary_dims, max_context, num_slots, .. } = *c;
    let about = format!(
        "tokens {tokens}, heads {heads}, kv_heads {kv_heads}, head_dim {head_dim}, rotary_dims \
         {rotary_dims}, max_context {max_context}, num_slots {num_slots}, poisoned {}; qkv {}, cache \
         {}, scores {:?}",
        c.poison, c.qkv, c.cache, c.scores
    );
    let label = Label { op: "rope_store", about, seed: c.seed };
    let rng = &mut Rng::new(c.seed);
    let (q_dim, kv_dim) = (heads * head_dim, kv_heads * head_dim);
    let width = q_dim + 2 * kv_dim;
    let mut values = rng.floats(tokens * width, 2.0);
    // Values that an 8-bit cache must not make a number of, and a head of zeros.
    for (t, bad) in [f32::NAN, f32::INFINITY, 0.0].into_iter().enumerate().take(tokens) {
        let first = t * width + q_dim + kv_dim;
        values[first..first + if bad == 0.0 { head_dim } else { 1 }].fill(bad);
    }
    let mut positions: Vec<i32> = (0..tokens).map(|_| rng.below(max_context) as i32).collect();
    let mut slots: Vec<i32> =
        rng.permutation(num_slots)[..tokens].iter().map(|&slot| slot as i32).collect();
    if c.poison {
        for (bad, at) in poisoned(max_context).into_iter().zip(rng.permutation(tokens)) {
            positions[at] = bad;
        }
        for (bad, at) in poisoned(num_slots).into_iter().zip(rng.permutation(tokens)) {
            slots[at] = bad;
        }
    }

    let mut qkv = rig.in_out("qkv", [tokens, width], c.qkv, Gaps::NONE, &values);
    let cache = Cache { num_slots, kv_heads, head_dim, dtype: c.cache };
    let (mut k_cache, mut v_cache) = (cache.output(rig, "k_cache"), cache.output(rig, "v_cache"));
    let position = rig.indices("positions", [tokens], &positions);
    let slot = rig.indices("slots", [tokens], &slots);
    let angles = rng.floats(max_context * rotary_dims / 2, 3.2);
    let table: Vec<f32> = angles
        .chunks_exact(rotary_dims / 2)
        .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())))
        .collect();
    let table = rig.input("table", [max_context, rotary_dims], DType::F32, &table);
    let tau = c.scores.map(|dtype| {
        let scores = rng.floats(tokens * 2 * heads, 3.0);
        let scores = rig.input("scores", [tokens, 2 * heads], dtype, &scores);
        [scores, rig.input("alpha", [heads], DType::F32, &rng.floats(heads, 1.0))]
    });
    rig.record(|cx| {
        cx.rope_store(RopeStore {
            qkv: &mut qkv.t,
            k_cache: &mut k_cache.t,
            v_cache: &mut v_cache.t,
            positions: &position.t,
            slots: &slot.t,
            table: &table.t,
            tau: tau.as_ref().map(|[scores, alpha]| Tau { scores: &scores.t, alpha: &alpha.t }),
            heads,
            kv_heads,
            head_dim,
        });
    });

    let (before, angles) = (qkv.values(), table.values());
    let tau_values = tau.as_ref().map(|[scores, alpha]| (scores.values(), alpha.values()));
    // Heads of a token as they shall be, from column `first` on; `scaled` is where their scores begin.
    let stored = |t: usize, first: usize, heads: usize, turns: bool, scaled: Option<usize>| {
        let p = usize::try_from(positions[t]).ok().filter(|&p| p < max_context)?;
        let row = &before[t * width + first..][..heads * head_dim];
        let turns = if turns { &angles[p * rotary_dims..(p + 1) * rotary_dims] } else { &[] };
        let head = |(h, head): (usize, &[f64])| -> Vec<Value> {
            let mut head = oracle::rope(head, turns);
            if let (Some((scores, alpha)), Some(first)) = (&tau_values, scaled) {
                let score = scores[t * 2 * heads + first + h];
                oracle::tau(&mut head, score, alpha[h], positions[t]);
            }
            head
        };
        Some(row.chunks_exact(head_dim).enumerate().flat_map(head).collect::<Vec<_>>())
    };
    let q: Vec<_> = (0..tokens).map(|t| stored(t, 0, heads, true, Some(0))).collect();
    let k: Vec<_> = (0..tokens).map(|t| stored(t, q_dim, kv_heads, true, None)).collect();
    let v: Vec<_> =
        (0..tokens).map(|t| stored(t, q_dim + kv_dim, kv_heads, false, Some(heads))).collect();
    rig.check(&label, &qkv, |t, j| match &q[t] {
        _ if j >= q_dim => Want::Any,
        Some(row) if j % head_dim < rotary_dims || tau.is_some() => Want::Near(row[j]),
        _ => Want::Exact(before[t * width + j] as f32),
    });
    let token_of: Vec<Option<usize>> =
        (0..num_slots).map(|s| slots.iter().position(|&slot| slot == s as i32)).collect();
    // What a slot shall hold: keys and values of its token, unless that was skipped.
    for (probe, of_token, rounds) in [(&k_cache, &k, true), (&v_cache, &v, tau.is_some())] {
        let of_slot = |slot: usize| of_token[token_of[slot]?].as_ref();
        if kv::is_scaled(c.cache) {
            cache.check(rig, &label, probe, |slot| of_slot(slot).cloned());
            continue;
        }
        rig.check(&label, probe, |slot, j| match of_slot(slot) {
            Some(head) if rounds && head[j].value.is_finite() => Want::Near(head[j]),
            Some(head) => Want::Exact(head[j].value as f32),
            None => Want::Stays,
        });
    }
    rig.unchanged(&label, &[&position, &slot, &table]);
    if let Some([scores, alpha]) = &tau {
        rig.unchanged(&label, &[scores, alpha]);
    }
}

fn run<D: Kernels>(device: &D, options: &Options, poison: bool) {
    let rig = &mut Rig::new(device, options);
    let heads = [
        (1, 1, 2, 2),
        (2, 2, 7, 2),
        (4, 2, 33, 32),
        (3, 1, 72, 72),
        (32, 32, 64, 32),
        (8, 2, 64, 64),
    ];
    let mut seed = if poison { 75_000 } else { 70_000 };
    for (qkv, cache) in options.cache_pairs() {
        for (heads, kv_heads, head_dim, rotary_dims) in heads {
            for tokens in [1, 7, 33] {
                seed += 1;
                let (max_context, num_slots) = (40, tokens + 9);
                let c = Config {
                    tokens,
                    heads,
                    kv_heads,
                    head_dim,
                    rotary_dims,
                    max_context,
                    num_slots,
                    qkv,
                    cache,
                    scores: None,
                    poison,
                    seed,
                };
                check(rig, &c);
            }
        }
    }
}

/// Every pair of types, whole and partial rotation, shared key heads.
pub(crate) fn every_type<D: Kernels>(device: &D, options: &Options) {
    run(device, options, false);
}

/// A bad position skips the token, a bad slot only the store.
pub(crate) fn poisoned_indices<D: Kernels>(device: &D, options: &Options) {
    run(device, options, true);
}

/// Every pair of types of activations and scores with every type of cache in turn; bad positions and
/// slots, and positions of a long context.
pub(crate) fn tau<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let shapes = [(1, 1, 2, 2), (7, 2, 33, 32), (33, 3, 7, 2), (9, 32, 64, 32), (5, 4, 72, 72)];
    let mut seed = 77_000;
    for (qkv, scores) in options.pairs() {
        for (tokens, heads, head_dim, rotary_dims) in shapes {
            for poison in [false, true] {
                seed += 1;
                let c = Config {
                    tokens,
                    heads,
                    kv_heads: heads,
                    head_dim,
                    rotary_dims,
                    max_context: 32_768 / head_dim,
                    num_slots: tokens + 9,
                    qkv,
                    cache: options.caches[seed as usize % options.caches.len()],
                    scores: Some(scores),
                    poison,
                    seed,
                };
                check(rig, &c);
            }
        }
    }
}
