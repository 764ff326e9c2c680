//! [`RopeStore`]: rotation in place, and the store into the paged cache.
use photon_core::{DType, Kernels, RopeStore, kv};

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
    poison: bool,
    seed: u64,
}

fn check<D: Kernels>(rig: &mut Rig<'_, D>, c: &Config) {
    let Config { tokens, heads, kv_heads, head_dim, rotary_dims, max_context, num_slots, .. } = *c;
    let about = format!(
        "tokens {tokens}, heads {heads}, kv_heads {kv_heads}, head_dim {head_dim}, rotary_dims \
         {rotary_dims}, max_context {max_context}, num_slots {num_slots}, poisoned {}; qkv {}, cache {}",
        c.poison, c.qkv, c.cache
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
    rig.record(|cx| {
        cx.rope_store(RopeStore {
            qkv: &mut qkv.t,
            k_cache: &mut k_cache.t,
            v_cache: &mut v_cache.t,
            positions: &position.t,
            slots: &slot.t,
            table: &table.t,
            heads,
            kv_heads,
            head_dim,
        });
    });

    let (before, angles) = (qkv.values(), table.values());
    let rotated = |t: usize, first: usize, heads: usize| -> Option<Vec<Value>> {
        let p = usize::try_from(positions[t]).ok().filter(|&p| p < max_context)?;
        let row = &before[t * width + first..][..heads * head_dim];
        let table = &angles[p * rotary_dims..(p + 1) * rotary_dims];
        Some(row.chunks_exact(head_dim).flat_map(|head| oracle::rope(head, table)).collect())
    };
    let q: Vec<_> = (0..tokens).map(|t| rotated(t, 0, heads)).collect();
    let k: Vec<_> = (0..tokens).map(|t| rotated(t, q_dim, kv_heads)).collect();
    rig.check(&label, &qkv, |t, j| match &q[t] {
        _ if j >= q_dim => Want::Any,
        Some(row) if j % head_dim < rotary_dims => Want::Near(row[j]),
        _ => Want::Exact(before[t * width + j] as f32),
    });
    let token_of: Vec<Option<usize>> =
        (0..num_slots).map(|s| slots.iter().position(|&slot| slot == s as i32)).collect();
    // What a slot shall hold: keys and values of its token, unless that was skipped.
    let stored = |slot: usize| token_of[slot].and_then(|t| Some((t, k[t].as_ref()?)));
    let v = |t: usize, j: usize| before[t * width + q_dim + kv_dim + j];
    if kv::is_scaled(c.cache) {
        let exact = |value| Value { value, ..Value::default() };
        cache.check(rig, &label, &k_cache, |slot| stored(slot).map(|(_, k)| k.clone()));
        cache.check(rig, &label, &v_cache, |slot| {
            stored(slot).map(|(t, _)| (0..kv_dim).map(|j| exact(v(t, j))).collect())
        });
    } else {
        rig.check(&label, &k_cache, |slot, j| match stored(slot) {
            Some((_, k)) => Want::Near(k[j]),
            None => Want::Stays,
        });
        rig.check(&label, &v_cache, |slot, j| match stored(slot) {
            Some((t, _)) => Want::Exact(v(t, j) as f32),
            None => Want::Stays,
        });
    }
    rig.unchanged(&label, &[&position, &slot, &table]);
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
