//! Every operation in f64, one scalar at a time, straight from the formulas in photon-core's docs.
//!
//! Independent of any backend and of `photon_core::reference`. Slow on purpose: never optimize it.
//! Results come as [`Value`], which also says how much was added up, for the tolerance.
pub(crate) mod sample;

use photon_core::{Activation, DType, WeightFormat};

use crate::{
    Options,
    options::Rounding,
    rig::{Value, decode, half_ulp},
};

/// One element of a linear layer: `x` and `w` are the two rows, `old` what the output held.
pub(crate) fn linear(
    x: &[f64],
    w: &[f64],
    bias: Option<f64>,
    activation: Activation,
    old: Option<f64>,
) -> Value {
    let bias = bias.unwrap_or(0.0);
    let mut sum = bias;
    let mut magnitude = bias.abs();
    for (x, w) in x.iter().zip(w) {
        sum += x * w;
        magnitude += (x * w).abs();
    }
    let old = old.unwrap_or(0.0);
    // GELU's slope is below 1.13 everywhere.
    let slope = if activation == Activation::None { 1.0 } else { 1.13 };
    let (value, magnitude) = (apply(activation, sum), slope * magnitude);
    let magnitude = magnitude + old.abs();
    Value { value: value + old, magnitude, terms: x.len(), extra: 0.0 }
}

/// What rounding `x` to 8 bits may add to its product with `w`, where a device does so for weights of `format`.
/// The roundings are independent: six standard deviations of their sum, or all of them at their worst if
/// that is less.
pub(crate) fn rounded_row(x: &[f64], w: &[f64], format: WeightFormat, options: &Options) -> f64 {
    let group = match format {
        WeightFormat::Int8 if options.rounded_rows => 512,
        WeightFormat::Int4 { group } if options.rounded_rows => group as usize,
        _ => return 0.0,
    };
    let (mut squares, mut worst) = (0.0, 0.0);
    for (x, w) in x.chunks(group).zip(w.chunks(group)) {
        let half_step = x.iter().fold(0.0_f64, |largest, x| largest.max(x.abs())) / 254.0;
        squares += w.iter().map(|w| (half_step * w).powi(2) / 3.0).sum::<f64>();
        worst += w.iter().map(|w| half_step * w.abs()).sum::<f64>();
    }
    // GELU's slope is below 1.13 everywhere.
    1.13 * worst.min(6.0 * squares.sqrt())
}

fn apply(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::GeluTanh => gelu_tanh(x),
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
    }
}

/// By its series `2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!`, whose terms all have one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, 0.0);
    for n in 0..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 3);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// One element of an activation.
pub(crate) fn activate(activation: Activation, x: f64) -> Value {
    Value { value: apply(activation, x), magnitude: 1.13 * x.abs(), terms: 1, extra: 0.0 }
}

/// One element of a gate.
pub(crate) fn gated_gelu(h: f64, g: f64) -> Value {
    let value = apply(Activation::GeluErf, h) * (g + 1.0);
    Value { value, magnitude: 1.13 * h.abs() * (g.abs() + 1.0), terms: 1, extra: 0.0 }
}

/// The experts of a row and what each counts.
pub(crate) fn route(logits: &[f64], top: usize) -> Vec<(usize, Value)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Stable, so that of equals, as zeros of either sign are, the first stays first; NaN comes last.
    let key =
        |place: usize| if logits[place].is_nan() { f64::NEG_INFINITY } else { logits[place] + 0.0 };
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    order.truncate(top);
    let depth = |place: usize| logits[place] - logits[order[0]];
    let total: f64 = order.iter().map(|&place| depth(place).exp()).sum();
    let weight = |place: usize| {
        let value = depth(place).exp() / total;
        Value { value, magnitude: value * (1.0 + depth(place).abs()), terms: top, extra: 0.0 }
    };
    order.iter().map(|&place| (place, weight(place))).collect()
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// One row of a layer norm.
pub(crate) fn layer_norm(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<Value> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + eps).sqrt();
    let mean_size = x.iter().map(|x| x.abs()).sum::<f64>() / n;
    let normalized = x.iter().zip(w).zip(b);
    normalized
        .map(|((x, w), b)| Value {
            value: (x - mean) * scale * w + b,
            magnitude: (x.abs() + mean_size) * scale * w.abs() + b.abs(),
            terms: n as usize,
            extra: 0.0,
        })
        .collect()
}

/// One element of a patchified picture; `crops` is `[num_crops, size, size, 3]`.
pub(crate) fn patchify(crops: &[u8], size: usize, patch: usize, row: usize, col: usize) -> Value {
    let grid = size / patch;
    let (crop, py, px) = (row / (grid * grid), row / grid % grid, row % grid);
    let (c, y, x) = (col / (patch * patch), col / patch % patch, col % patch);
    let at = ((crop * size + py * patch + y) * size + px * patch + x) * 3 + c;
    let value = (f64::from(crops[at]) / 255.0 - 0.5) / 0.5;
    // The parts before they cancel are at most 2 and 1.
    Value { value, magnitude: 3.0, terms: 1, extra: 0.0 }
}

/// Attention of one query head over the keys and values it sees, which are not none.
pub(crate) fn attend(
    q: &[f64],
    seen: &[(&[f64], &[f64])],
    scale: f64,
    rounding: Rounding,
) -> Vec<Value> {
    let dot = |k: &[f64]| -> f64 { q.iter().zip(k).map(|(q, k)| q * k).sum() };
    let size = |k: &[f64]| -> f64 { q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum() };
    let scores: Vec<f64> = seen.iter().map(|(k, _)| scale * dot(k)).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let score_size = seen.iter().map(|(k, _)| scale.abs() * size(k)).fold(0.0, f64::max);
    let dims = seen[0].1.len();
    (0..dims)
        .map(|d| {
            let parts = || weights.iter().zip(seen).map(|(w, (_, v))| w / total * v[d]);
            // An error of a score is a relative error of its weight, and of the total.
            let magnitude = parts().map(f64::abs).sum::<f64>() * (1.0 + 2.0 * score_size);
            let terms = seen.len().max(q.len());
            // Weights too small for a normal f32 may count as nothing.
            let sizes = seen.iter().map(|(_, v)| v[d].abs()).sum::<f64>();
            let mut extra = f64::from(f32::MIN_POSITIVE) * sizes;
            // Rounding errors are independent: at most six standard deviations of their sum.
            let sum_of = |errors: &dyn Fn(usize) -> f64| {
                let errors = || (0..seen.len()).map(errors);
                let spread = errors().map(|error| error * error).sum::<f64>().sqrt();
                errors().sum::<f64>().min(6.0 * spread)
            };
            match rounding {
                Rounding::None => {}
                Rounding::Shares(dtype) => {
                    extra += sum_of(&|u| half_ulp(dtype, weights[u] / total) * seen[u].1[d].abs());
                }
                Rounding::Integers => {
                    // Relative to the largest. A head's largest code is half of 127 at least.
                    let half_step = 0.5 / 16383.0;
                    let largest = |x: &[f64]| x.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
                    let keys = seen.iter().map(|(k, _)| k.iter().map(|k| k.abs()).sum::<f64>());
                    let score = scale.abs() * half_step * largest(q) * keys.fold(0.0, f64::max);
                    extra += 2.0 * score * parts().map(f64::abs).sum::<f64>();
                    let shares = weights.iter().zip(seen).map(|(w, (_, v))| w / total * largest(v));
                    let share = 2.0 * half_step * shares.fold(0.0, f64::max);
                    extra += sum_of(&|_| share);
                }
            }
            Value { value: parts().sum(), magnitude, terms, extra }
        })
        .collect()
}

/// One head rotated by the table's row `[cosines, sines]`.
pub(crate) fn rope(x: &[f64], table: &[f64]) -> Vec<Value> {
    let half = table.len() / 2;
    let rotate =
        |a: f64, b: f64| Value { value: a + b, magnitude: a.abs() + b.abs(), terms: 2, extra: 0.0 };
    let mut out: Vec<Value> = x.iter().map(|&x| rotate(x, 0.0)).collect();
    for j in 0..half {
        let (c, s) = (table[j], table[half + j]);
        out[j] = rotate(x[j] * c, -x[j + half] * s);
        out[j + half] = rotate(x[j] * s, x[j + half] * c);
    }
    out
}

/// A head scaled by tau.
pub(crate) fn tau(head: &mut [Value], score: f64, alpha: f64, position: i32) {
    let a = alpha * (f64::from(position) + 1.0).ln();
    let factor = score.tanh() + 1.0 / (1.0 + (-a).exp()) + 0.5;
    for x in head {
        x.value *= factor;
        // The sigmoid's slope is at most a quarter.
        x.magnitude *= 2.5 + a.abs() / 4.0;
    }
}

/// What a code of an 8-bit cache stands for before its scale: two's complement, or `S.EEEE.MMM` with
/// bias 7.
pub(crate) fn code(code: u8, dtype: DType) -> f64 {
    if dtype == DType::Int8 {
        return f64::from(code as i8);
    }
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let size = match exponent {
        0 => mantissa * 2f64.powi(-6),
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// What rows of a weight's codes stand for.
pub(crate) fn weight(format: WeightFormat, k: usize, bytes: &[u8], scales: &[f32]) -> Vec<f64> {
    let rows = bytes.len() / format.row_bytes(k);
    let element = |row: usize, i: usize| {
        let codes = &bytes[row * format.row_bytes(k)..];
        let scale = |at: usize| f64::from(scales[row * format.row_scales(k) + at]);
        match format {
            WeightFormat::Float(dtype) => f64::from(decode(&codes[i * dtype.size()..], dtype)),
            WeightFormat::Int8 => code(codes[i], DType::Int8) * scale(0),
            WeightFormat::Fp8 => code(codes[i], DType::Fp8) * scale(0),
            WeightFormat::Int4 { group } => {
                let byte = codes[i / 2];
                let q = if i.is_multiple_of(2) { byte % 16 } else { byte / 16 };
                let group = i / group as usize;
                f64::from(q) * scale(2 * group) + scale(2 * group + 1)
            }
            other => panic!("{other} has no definition here"),
        }
    };
    (0..rows).flat_map(|row| (0..k).map(move |i| element(row, i))).collect()
}

/// Half the distance between the codes around a number of this size.
pub(crate) fn half_step(size: f64, dtype: DType) -> f64 {
    match dtype {
        DType::Int8 => 0.5,
        _ => 2f64.powi((size * (1.0 + 1e-6)).log2().floor().max(-6.0) as i32 - 4),
    }
}

/// Where the stitched map of local crops takes its patches from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stitch {
    pub(crate) grid: usize,
    pub(crate) margin: usize,
    pub(crate) tiles: (usize, usize),
    pub(crate) crops: usize,
}

impl Stitch {
    /// The tile and the patch within it that give place `i` of the map, along one axis.
    fn source(&self, i: usize, tiles: usize) -> (usize, usize) {
        let inner = self.grid - 2 * self.margin;
        for tile in 0..tiles {
            let first = if tile == 0 { 0 } else { self.margin };
            let last = if tile + 1 == tiles { self.grid } else { self.grid - self.margin };
            for patch in first..last {
                if tile * inner + patch == i {
                    return (tile, patch);
                }
            }
        }
        panic!("place {i} of the map belongs to no tile");
    }

    /// One element of the output's local half, from `x` as `[crops * grid^2, dim]`.
    pub(crate) fn pooled(&self, x: &[f64], dim: usize, row: usize, col: usize) -> Value {
        let covered = |i: usize, tiles: usize| {
            let n = (self.grid - 2 * self.margin) * tiles + 2 * self.margin;
            i * n / self.grid..((i + 1) * n).div_ceil(self.grid)
        };
        let (mut sum, mut size, mut count) = (0.0, 0.0, 0usize);
        for y in covered(row / self.grid, self.tiles.0) {
            for x_place in covered(row % self.grid, self.tiles.1) {
                let (tile_y, py) = self.source(y, self.tiles.0);
                let (tile_x, px) = self.source(x_place, self.tiles.1);
                let crop = if self.crops == 1 { 0 } else { 1 + tile_y * self.tiles.1 + tile_x };
                let value = x[((crop * self.grid + py) * self.grid + px) * dim + col];
                sum += value;
                size += value.abs();
                count += 1;
            }
        }
        let n = count as f64;
        Value { value: sum / n, magnitude: size / n, terms: count, extra: 0.0 }
    }
}

/// One element of the Fourier features of `values` `[dims]` under `w` `[dims, features]`.
pub(crate) fn fourier(values: &[f64], w: &[f64], features: usize, col: usize) -> Value {
    let j = col % features;
    let parts =
        || values.iter().enumerate().map(|(d, v)| std::f64::consts::TAU * v * w[d * features + j]);
    let angle: f64 = parts().sum();
    let value = if col < features { angle.cos() } else { angle.sin() };
    let magnitude = 1.0 + parts().map(f64::abs).sum::<f64>();
    Value { value, magnitude, terms: values.len(), extra: 0.0 }
}
