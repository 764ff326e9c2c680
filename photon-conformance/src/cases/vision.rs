//! The vision side and the coordinate heads: [`Patchify`], [`PatchEmbed`], [`Attention`],
//! [`StitchPool`] and [`Fourier`].
use photon_core::{
    Attention, DType, Fourier, Kernels, PatchEmbed, Patchify, StitchPool, WeightFormat, reference,
};

use crate::{
    Options,
    cases::RAGGED,
    oracle::{self, Stitch},
    rig::{Gaps, Label, Rig, Value, Want, half_ulp},
    rng::Rng,
};

/// Crops, size, patch.
const CROPS: [[usize; 3]; 6] =
    [[1, 7, 1], [1, 14, 14], [3, 28, 14], [2, 15, 5], [7, 10, 2], [2, 42, 14]];

fn crops(rng: &mut Rng, num_crops: usize, size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..num_crops * size * size * 3).map(|_| rng.bits() as u8).collect();
    (bytes[0], bytes[1], bytes[2]) = (0, 127, 255);
    bytes
}

fn check_patchify<D: Kernels>(rig: &mut Rig<'_, D>, shape: [usize; 3], out_type: DType) {
    let [num_crops, size, patch] = shape;
    let seed = 60_000 + (size * num_crops) as u64;
    let about = format!("{num_crops} crops of {size}, patch {patch}; out {out_type}");
    let label = Label { op: "patchify", about, seed };
    let pixels = crops(&mut Rng::new(seed), num_crops, size);
    let x = rig.bytes("crops", [num_crops, size, size, 3], &pixels);
    let (rows, cols) = (num_crops * (size / patch).pow(2), 3 * patch * patch);
    let mut out = rig.output("out", [rows, cols], out_type, Gaps::NONE);
    rig.record(|cx| cx.patchify(Patchify { out: &mut out.t, crops: &x.t, patch }));
    rig.check(&label, &out, |i, j| Want::Near(oracle::patchify(&pixels, size, patch, i, j)));
    rig.unchanged(&label, &[&x]);
}

/// Every type of output, several sizes, and the models' 378 pixels in patches of 14.
pub(crate) fn patchify<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    for &out_type in options.floats {
        for shape in CROPS {
            check_patchify(rig, shape, out_type);
        }
    }
    check_patchify(rig, [2, 378, 14], options.float(2));
}

/// The override against the oracle and against `photon_core::reference`, on the same device.
pub(crate) fn patch_embed<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 61_000;
    for (out_type, scratch_type) in options.pairs() {
        for ([num_crops, size, patch], dim) in
            CROPS.into_iter().zip([1, 7, 33, 65, 16, 72]).chain([([1, 56, 14], 1152)])
        {
            seed += 1;
            let w_type = options.weight(seed as usize);
            check_patch_embed(
                rig,
                [num_crops, size, patch, dim],
                out_type,
                scratch_type,
                w_type,
                seed,
            );
        }
    }
}

fn check_patch_embed<D: Kernels>(
    rig: &mut Rig<'_, D>,
    [num_crops, size, patch, dim]: [usize; 4],
    out_type: DType,
    scratch_type: DType,
    w_type: WeightFormat,
    seed: u64,
) {
    let about = format!(
        "{num_crops} crops of {size}, patch {patch}, dim {dim}; w {w_type}, out {out_type}, \
         scratch {scratch_type}"
    );
    let label = Label { op: "patch_embed", about, seed };
    let rng = &mut Rng::new(seed);
    let pixels = crops(rng, num_crops, size);
    let grid = size / patch;
    let (rows, k) = (num_crops * grid * grid, 3 * patch * patch);
    let x = rig.bytes("crops", [num_crops, size, size, 3], &pixels);
    let (w, w_values) = rig.weight(dim, k, w_type, rng);
    let bias = rig.input("bias", [dim], DType::F32, &rng.floats(dim, 1.0));
    let positions =
        rig.input("positions", [grid * grid, dim], DType::F32, &rng.floats(grid * grid * dim, 1.0));
    let mut run = |fused: bool| {
        let mut scratch = rig.output("scratch", [rows, k], scratch_type, Gaps::NONE);
        let mut out = rig.output("out", [rows, dim], out_type, Gaps::NONE);
        rig.record(|cx| {
            let op = PatchEmbed {
                out: &mut out.t,
                crops: &x.t,
                patch,
                w: &w,
                bias: &bias.t,
                positions: &positions.t,
                scratch: &mut scratch.t,
            };
            if fused { cx.patch_embed(op) } else { reference::patch_embed(cx, op) }
        });
        rig.read(&label, &scratch); // For its guards.
        (rig.read_floats(&label, &out), out)
    };
    let (fused, out) = run(true);
    let (spelled_out, _) = run(false);

    let (biases, table) = (bias.values(), positions.values());
    let patches: Vec<f64> =
        (0..rows * k).map(|i| oracle::patchify(&pixels, size, patch, i / k, i % k).value).collect();
    let want = |i: usize, j: usize| -> Value {
        let x = &patches[i * k..(i + 1) * k];
        let w = &w_values[j * k..(j + 1) * k];
        let old = table[i % (grid * grid) * dim + j];
        let mut value =
            oracle::linear(x, w, Some(biases[j]), photon_core::Activation::None, Some(old));
        // The patches may be rounded to scratch's type and the positions to out's on the way.
        // Rounding errors are independent: six standard deviations of their sum.
        let squares: f64 =
            x.iter().zip(w).map(|(x, w)| (half_ulp(scratch_type, x.abs()) * w).powi(2)).sum();
        value.extra = 6.0 * squares.sqrt() + half_ulp(out_type, old.abs());
        value.extra += oracle::rounded_row(x, w, w_type, rig.options);
        value
    };
    rig.check(&label, &out, |i, j| Want::Near(want(i, j)));
    // Both are within tolerance of the oracle only if they are within twice that of each other.
    for (i, (&got, &reference)) in fused.iter().zip(&spelled_out).enumerate() {
        let v = want(i / dim, i % dim);
        let tolerance = 2.0 * (v.extra + half_ulp(out_type, v.value.abs()) + 1e-5 * v.magnitude);
        let difference = f64::from((got - reference).abs());
        assert!(
            difference <= tolerance + 2.0 * rig.options.product_error * v.magnitude,
            "{label}: out[{}, {}]: fused {got}, spelled out {reference}, tolerance {tolerance:.3e}",
            i / dim,
            i % dim,
        );
    }
    rig.unchanged(&label, &[&x, &bias, &positions]);
}

struct Vision {
    num_seqs: usize,
    seq_len: usize,
    heads: usize,
    head_dim: usize,
    dtype: DType,
    /// Size of the elements of q; those of k and v are 1.
    sharpness: f32,
    /// Compute the oracle for one position in so many.
    sparse: usize,
    seed: u64,
}

fn check_attention<D: Kernels>(rig: &mut Rig<'_, D>, c: &Vision) {
    let Vision { num_seqs, seq_len, heads, head_dim, dtype, sharpness, sparse, seed } = *c;
    let about = format!(
        "num_seqs {num_seqs}, seq_len {seq_len}, heads {heads}, head_dim {head_dim}, q of size \
         {sharpness}; {dtype}"
    );
    let label = Label { op: "attention", about, seed };
    let (rows, width) = (num_seqs * seq_len, heads * head_dim);
    let mut values = Rng::new(seed).floats(rows * 3 * width, 1.0);
    for row in values.chunks_exact_mut(3 * width) {
        row[..width].iter_mut().for_each(|q| *q *= sharpness);
    }
    let qkv = rig.input("qkv", [rows, 3 * width], dtype, &values);
    let mut out = rig.output("out", [rows, width], dtype, Gaps::NONE);
    let scale = 1.0 / (head_dim as f32).sqrt();
    rig.record(|cx| {
        cx.attention(Attention { out: &mut out.t, qkv: &qkv.t, seq_len, heads, scale });
    });
    let all = qkv.values();
    let part = |row: usize, part: usize, head: usize| {
        let at = row * 3 * width + part * width + head * head_dim;
        &all[at..at + head_dim]
    };
    let mut want = vec![Want::Finite; rows * width];
    for row in (0..rows).filter(|row| row % sparse == 0 || row + 1 == rows) {
        let first = row / seq_len * seq_len;
        for head in 0..heads {
            let seen: Vec<_> =
                (first..first + seq_len).map(|u| (part(u, 1, head), part(u, 2, head))).collect();
            let rounding = rig.options.attention_rounding(dtype, dtype);
            let values = oracle::attend(part(row, 0, head), &seen, f64::from(scale), rounding);
            for (d, value) in values.into_iter().enumerate() {
                want[row * width + head * head_dim + d] = Want::Near(value);
            }
        }
    }
    rig.check(&label, &out, |i, j| want[i * width + j]);
    rig.unchanged(&label, &[&qkv]);
}

/// Every type over ragged lengths, head sizes and numbers of sequences.
pub(crate) fn attention<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 62_000;
    for &dtype in options.floats {
        for seq_len in RAGGED.into_iter().chain([128]) {
            for (num_seqs, heads, head_dim) in
                [(1, 1, 1), (3, 2, 7), (2, 3, 33), (2, 2, 72), (1, 4, 64), (2, 2, 32)]
            {
                seed += 1;
                let sparse = if seq_len > 60 { 5 } else { 1 };
                let c = Vision {
                    num_seqs,
                    seq_len,
                    heads,
                    head_dim,
                    dtype,
                    sharpness: 2.0,
                    sparse,
                    seed,
                };
                check_attention(rig, &c);
            }
        }
    }
}

/// Scores far beyond what an exponential can hold, so the maximum has to come off first; and scores
/// that are all zero, which average.
pub(crate) fn attention_large_scores<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    for (i, &dtype) in options.floats.iter().enumerate() {
        for (j, sharpness) in [0.0, 50.0, 300.0].into_iter().enumerate() {
            let seed = 63_000 + (10 * i + j) as u64;
            let c = Vision {
                num_seqs: 2,
                seq_len: 65,
                heads: 2,
                head_dim: 72,
                dtype,
                sharpness,
                sparse: 3,
                seed,
            };
            check_attention(rig, &c);
        }
    }
}

/// Two crops of 729 patches, 16 heads of 72.
pub(crate) fn attention_real_shape<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let c = Vision {
        num_seqs: 2,
        seq_len: 729,
        heads: 16,
        head_dim: 72,
        dtype: options.float(options.floats.len() - 1),
        sharpness: 2.0,
        sparse: 131,
        seed: 64_000,
    };
    check_attention(rig, &c);
}

fn check_stitch<D: Kernels>(
    rig: &mut Rig<'_, D>,
    stitch: Stitch,
    dim: usize,
    (x_type, out_type): (DType, DType),
    seed: u64,
) {
    let label = Label {
        op: "stitch_pool",
        about: format!("{stitch:?}, dim {dim}; x {x_type}, out {out_type}"),
        seed,
    };
    let Stitch { grid, margin, tiles, crops } = stitch;
    let rows = crops * grid * grid;
    let x = rig.input("x", [rows, dim], x_type, &Rng::new(seed).floats(rows * dim, 2.0));
    let mut out = rig.output("out", [grid * grid, 2 * dim], out_type, Gaps::NONE);
    rig.record(|cx| cx.stitch_pool(StitchPool { out: &mut out.t, x: &x.t, grid, margin, tiles }));
    let xs = x.values();
    rig.check(&label, &out, |i, j| {
        if j < dim {
            Want::Exact(xs[i * dim + j] as f32)
        } else {
            Want::Near(stitch.pooled(&xs, dim, i, j - dim))
        }
    });
    rig.unchanged(&label, &[&x]);
}

/// Every pair of types over tilings wide, tall and square, margins and none.
pub(crate) fn stitch_pool<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 65_000;
    let tilings = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 4), (1, 7)];
    for types in options.pairs() {
        for (i, tiles) in tilings.into_iter().enumerate() {
            for (grid, margin) in [(1, 0), (3, 1), (5, 0), (7, 2)] {
                seed += 1;
                let dim = RAGGED[(seed as usize + i) % 3];
                let crops = 1 + tiles.0 * tiles.1;
                check_stitch(rig, Stitch { grid, margin, tiles, crops }, dim, types, seed);
                if tiles == (1, 1) {
                    // The one crop is both global and local.
                    check_stitch(rig, Stitch { grid, margin, tiles, crops: 1 }, dim, types, seed);
                }
            }
        }
    }
}

/// Crops of 27 x 27 patches with margins of 4, as the models cut them.
pub(crate) fn stitch_pool_real_shapes<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let types = (options.float(2), options.float(2));
    for (i, (tiles, crops, dim)) in
        [((1, 1), 1, 72), ((1, 1), 2, 33), ((1, 2), 3, 72), ((3, 4), 13, 16), ((2, 2), 5, 1152)]
            .into_iter()
            .enumerate()
    {
        let stitch = Stitch { grid: 27, margin: 4, tiles, crops };
        check_stitch(rig, stitch, dim, types, 66_000 + i as u64);
    }
}

/// Every type of output; the models' 1 and 2 values to 256 and 512 features, and ragged ones.
pub(crate) fn fourier<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 67_000;
    for &out_type in options.floats {
        for (rows, dims, features) in
            [(1, 1, 1), (7, 2, 7), (33, 1, 33), (3, 7, 65), (2, 1, 128), (5, 2, 256), (65, 2, 64)]
        {
            for scale in [0.3, 10.0] {
                seed += 1;
                let about = format!(
                    "rows {rows}, dims {dims}, features {features}, w of size {scale}; out {out_type}"
                );
                let label = Label { op: "fourier", about, seed };
                let rng = &mut Rng::new(seed);
                let values =
                    rig.input("values", [rows, dims], DType::F32, &rng.floats(rows * dims, 1.0));
                let w = rng.floats(dims * features, scale);
                let w = rig.input("w", [dims, features], DType::F32, &w);
                let mut out = rig.output("out", [rows, 2 * features], out_type, Gaps::NONE);
                rig.record(|cx| {
                    cx.fourier(Fourier { out: &mut out.t, values: &values.t, w: &w.t });
                });
                let (vs, ws) = (values.values(), w.values());
                rig.check(&label, &out, |i, j| {
                    Want::Near(oracle::fourier(&vs[i * dims..(i + 1) * dims], &ws, features, j))
                });
                rig.unchanged(&label, &[&values, &w]);
            }
        }
    }
}
