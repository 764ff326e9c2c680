//! Element-wise functions: [`Activate`], [`GatedGelu`] and [`Tau`].
use photon_core::{Activate, Activation, DType, GatedGelu, Kernels, Tau};

use crate::{
    Options,
    cases::RAGGED,
    oracle,
    rig::{Gaps, Label, Rig, Want},
    rng::Rng,
};

/// Every function, every pair of types, tails of vectors, a column view, large arguments.
pub(crate) fn activate<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 80_000;
    for (x_type, out_type) in options.pairs() {
        for activation in [Activation::None, Activation::GeluTanh, Activation::GeluErf] {
            for (rows, dim) in [(1, 1), (7, 33), (3, 720), (33, 7)] {
                for gaps in [Gaps::NONE, Gaps { before: 3, after: 2 }] {
                    seed += 1;
                    let about = format!(
                        "{activation:?}, rows {rows}, dim {dim}, {gaps:?}; x {x_type}, out {out_type}"
                    );
                    let label = Label { op: "activate", about, seed };
                    let values = Rng::new(seed).floats(rows * dim, 6.0);
                    let x = rig.view("x", [rows, dim], x_type, gaps, &values);
                    let mut out = rig.output("out", [rows, dim], out_type, Gaps::NONE);
                    rig.record(|cx| cx.activate(Activate { out: &mut out.t, x: &x.t, activation }));
                    let xs = x.values();
                    rig.check(&label, &out, |i, j| {
                        Want::Near(oracle::activate(activation, xs[i * dim + j]))
                    });
                    rig.unchanged(&label, &[&x]);
                }
            }
        }
    }
}

/// Every pair of types, tails of vectors.
pub(crate) fn gated_gelu<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 81_000;
    for (x_type, out_type) in options.pairs() {
        for rows in [1, 7, 65] {
            for dim in RAGGED.into_iter().chain([64, 1024]) {
                seed += 1;
                let about = format!("rows {rows}, dim {dim}; x {x_type}, out {out_type}");
                let label = Label { op: "gated_gelu", about, seed };
                let values = Rng::new(seed).floats(rows * 2 * dim, 4.0);
                let x = rig.input("x", [rows, 2 * dim], x_type, &values);
                let mut out = rig.output("out", [rows, dim], out_type, Gaps::NONE);
                rig.record(|cx| cx.gated_gelu(GatedGelu { out: &mut out.t, x: &x.t }));
                let xs = x.values();
                rig.check(&label, &out, |i, j| {
                    let row = &xs[2 * dim * i..2 * dim * (i + 1)];
                    Want::Near(oracle::gated_gelu(row[j], row[dim + j]))
                });
                rig.unchanged(&label, &[&x]);
            }
        }
    }
}

/// Every pair of types; positions up to the end of a long context, and negative ones, which skip.
pub(crate) fn tau<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 82_000;
    for (scores_type, qkv_type) in options.pairs() {
        for (tokens, heads, head_dim) in [(1, 1, 1), (7, 2, 33), (33, 3, 7), (65, 32, 64)] {
            seed += 1;
            let about = format!(
                "tokens {tokens}, heads {heads}, head_dim {head_dim}; qkv {qkv_type}, scores \
                 {scores_type}"
            );
            let label = Label { op: "tau", about, seed };
            let rng = &mut Rng::new(seed);
            let width = heads * head_dim;
            let values = rng.floats(tokens * 3 * width, 2.0);
            let qkv = &mut rig.in_out("qkv", [tokens, 3 * width], qkv_type, Gaps::NONE, &values);
            let scores = rng.floats(tokens * 2 * heads, 3.0);
            let scores = rig.input("scores", [tokens, 2 * heads], scores_type, &scores);
            let alpha = rig.input("alpha", [heads], DType::F32, &rng.floats(heads, 1.0));
            let mut places: Vec<i32> = (0..tokens).map(|_| rng.below(32_768) as i32).collect();
            for (bad, at) in [-1, i32::MIN, 0, i32::MAX].into_iter().zip(rng.permutation(tokens)) {
                places[at] = bad;
            }
            let positions = rig.indices("positions", [tokens], &places);
            rig.record(|cx| {
                cx.tau(Tau {
                    qkv: &mut qkv.t,
                    scores: &scores.t,
                    alpha: &alpha.t,
                    positions: &positions.t,
                    heads,
                });
            });
            let (old, given, alphas) = (qkv.values(), scores.values(), alpha.values());
            rig.check(&label, qkv, |t, j| {
                let (part, head) = (j / width, j % width / head_dim);
                if part == 1 || places[t] < 0 {
                    return Want::Stays;
                }
                let score = given[t * 2 * heads + part / 2 * heads + head];
                let x = old[t * 3 * width + j];
                Want::Near(oracle::tau(x, score, alphas[head], places[t]))
            });
            rig.unchanged(&label, &[&scores, &alpha, &positions]);
        }
    }
}
