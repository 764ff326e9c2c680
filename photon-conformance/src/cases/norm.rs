//! [`LayerNorm`] against the oracle, rows far from zero and constant rows included.
use photon_core::{DType, Kernels, LayerNorm};

use crate::{
    Options,
    cases::RAGGED,
    oracle,
    rig::{Gaps, Label, Rig, Want, skip},
    rng::Rng,
};

const EPS: f32 = 1e-5;

struct Config {
    rows: usize,
    dim: usize,
    x: DType,
    out: DType,
    /// Added to every element.
    offset: f32,
    /// The spread around it.
    spread: f32,
    seed: u64,
}

fn check<D: Kernels>(rig: &mut Rig<'_, D>, c: &Config) {
    let Config { rows, dim, offset, spread, .. } = *c;
    let about =
        format!("rows {rows}, dim {dim}; x {}, out {}; values {offset} +- {spread}", c.x, c.out);
    let label = Label { op: "layer_norm", about, seed: c.seed };
    let rng = &mut Rng::new(c.seed);
    let values: Vec<f32> = rng.floats(rows * dim, spread).into_iter().map(|v| v + offset).collect();
    let x = rig.input("x", [rows, dim], c.x, &values);
    let w = rig.input("w", [dim], DType::F32, &rng.floats(dim, 2.0));
    let b = rig.input("b", [dim], DType::F32, &rng.floats(dim, 1.0));
    let mut out = rig.output("out", [rows, dim], c.out, Gaps::NONE);
    rig.record(|cx| {
        cx.layer_norm(LayerNorm { out: &mut out.t, x: &x.t, w: &w.t, b: &b.t, eps: EPS });
    });
    let (xs, ws, bs) = (x.values(), w.values(), b.values());
    let want: Vec<_> = (0..rows)
        .flat_map(|i| oracle::layer_norm(&xs[i * dim..(i + 1) * dim], &ws, &bs, f64::from(EPS)))
        .collect();
    rig.check(&label, &out, |i, j| Want::Near(want[i * dim + j]));
    rig.unchanged(&label, &[&x, &w, &b]);
}

/// Every pair of types over ragged and real shapes.
pub(crate) fn every_type<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 40_000;
    for (x, out) in options.pairs() {
        for rows in [1, 7, 65] {
            for dim in RAGGED.into_iter().chain([16, 720, 729, 1152, 2048]) {
                seed += 1;
                check(rig, &Config { rows, dim, x, out, offset: 0.5, spread: 2.0, seed });
            }
        }
    }
    let (x, out) = (options.float(0), options.float(0));
    check(rig, &Config { rows: 729, dim: 1152, x, out, offset: 0.0, spread: 1.0, seed });
}

/// A mean much larger than the spread must be taken off before squaring; no spread at all leaves the
/// epsilon to divide by.
pub(crate) fn far_from_zero<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let values = [(300.0, 1.0), (-1000.0, 3.0), (0.0, 1e-4), (4.0, 0.0), (0.0, 0.0), (0.0, 2e4)];
    let mut seed = 45_000;
    for (offset, spread) in values {
        for dim in [1, 33, 720, 2048] {
            seed += 1;
            let (x, out) = (options.float(seed as usize), options.float(0));
            check(rig, &Config { rows: 3, dim, x, out, offset, spread, seed });
        }
    }
}

/// A row alone has the bits it has among others.
pub(crate) fn batch_invariance<D: Kernels>(device: &D, options: &Options) {
    if !options.batch_invariant {
        return skip("layer_norm_batch_invariance", &device.name(), "not promised");
    }
    let rig = &mut Rig::new(device, options);
    let mut seed = 48_000;
    for (x_type, out_type) in options.pairs() {
        for (rows, dim) in [(2, 7), (7, 65), (65, 720), (33, 2048)] {
            seed += 1;
            let rng = &mut Rng::new(seed);
            let about = format!("rows {rows}, dim {dim}; x {x_type}, out {out_type}");
            let label = Label { op: "layer_norm alone and in a batch", about, seed };
            let x = rig.input("x", [rows, dim], x_type, &rng.floats(rows * dim, 1.0));
            let w = rig.input("w", [dim], DType::F32, &rng.floats(dim, 1.0));
            let b = rig.input("b", [dim], DType::F32, &rng.floats(dim, 1.0));
            let mut run = |first: usize, count: usize| {
                let mut out = rig.output("out", [count, dim], out_type, Gaps::NONE);
                let x = x.t.row_range(first..first + count);
                rig.record(|cx| {
                    cx.layer_norm(LayerNorm { out: &mut out.t, x: &x, w: &w.t, b: &b.t, eps: EPS });
                });
                rig.read(&label, &out)
            };
            let together = run(0, rows);
            let row_bytes = dim * out_type.size();
            for row in [0, rows / 2, rows - 1] {
                let batched = &together[row * row_bytes..(row + 1) * row_bytes];
                assert!(run(row, 1) == batched, "{label}: row {row} differs");
            }
        }
    }
}
