//! Element-wise functions: [`Activate`] and [`GatedGelu`].
use photon_core::{Activate, Activation, GatedGelu, Kernels};

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
