//! Every operation as scalar f32 loops over whole tensors: inputs are decoded first, then results are
//! rounded into place.
use photon_core::{
    Activate, Activation, Attention, Copy, Cx, DType, Fourier, GatedGelu, Gather, GroupedLinear,
    Kernels, LayerNorm, Linear, Masks, Nest, PagedAttention, Patchify, RopeStore, Route, Sample,
    SampleParams, Scatter, StitchPool, Tau, Tensor, Tile, Weight, WeightFormat, WeightedSum, kv,
    quant, sampler,
};

use super::Naive;
use crate::rig::{decode, encode};

/// Byte offset of every element, row by row.
fn elements(t: &Tensor<Naive>) -> impl Iterator<Item = usize> + use<> {
    let (size, stride, offset) = (t.dtype().size(), t.row_stride(), t.offset());
    let (rows, cols) = (t.rows(), t.cols());
    (0..rows).flat_map(move |i| (0..cols).map(move |j| offset + (i * stride + j) * size))
}

fn floats(t: &Tensor<Naive>) -> Vec<f32> {
    let bytes = t.buffer().lock();
    elements(t).map(|at| decode(&bytes[at..], t.dtype())).collect()
}

fn ints(t: &Tensor<Naive>) -> Vec<i32> {
    let bytes = t.buffer().lock();
    let int = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    elements(t).map(|at| i32::from_le_bytes(int(at))).collect()
}

/// Writes `value(row, col)` wherever there is one.
fn store(t: &Tensor<Naive>, mut value: impl FnMut(usize, usize) -> Option<f32>) {
    let mut bytes = t.buffer().lock();
    let (cols, size) = (t.cols(), t.dtype().size());
    for (i, at) in elements(t).enumerate() {
        if let Some(value) = value(i / cols, i % cols) {
            bytes[at..at + size].copy_from_slice(&encode(value, t.dtype())[..size]);
        }
    }
}

/// The numbers in a paged cache, `[num_slots, values]`, where a row has `values` beside the scales.
fn cached(t: &Tensor<Naive>, values: usize, head_dim: usize) -> Vec<f32> {
    if !kv::is_scaled(t.dtype()) {
        return floats(t);
    }
    let bytes = t.buffer().lock();
    let rows = bytes[t.byte_range()].chunks_exact(t.cols());
    let number = |row: &[u8], j: usize| {
        let scale = &row[values + j / head_dim * kv::SCALE_BYTES..];
        let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
        match t.dtype() {
            DType::Int8 => f32::from(row[j] as i8) * scale,
            _ => kv::from_fp8(row[j]) * scale,
        }
    };
    rows.flat_map(|row| (0..values).map(move |j| number(row, j))).collect()
}

/// Writes the heads of one row of a paged cache.
fn cache(t: &Tensor<Naive>, slot: usize, x: &[f32], head_dim: usize) {
    let row = t.row_range(slot..slot + 1);
    if !kv::is_scaled(t.dtype()) {
        return store(&row, |_, j| Some(x[j]));
    }
    let mut bytes = row.buffer().lock();
    let (values, scales) = bytes[row.byte_range()].split_at_mut(x.len());
    for (i, head) in x.chunks_exact(head_dim).enumerate() {
        let largest = if t.dtype() == DType::Int8 { kv::INT8_MAX } else { kv::FP8_MAX };
        let scale = kv::scale_of(head, largest);
        scales[i * kv::SCALE_BYTES..][..kv::SCALE_BYTES].copy_from_slice(&scale.to_le_bytes());
        for (code, x) in values[i * head_dim..].iter_mut().zip(head) {
            *code = match t.dtype() {
                DType::Int8 => kv::to_int8(x / scale) as u8,
                _ => kv::to_fp8(x / scale),
            };
        }
    }
}

/// Elements of one type, whatever it is.
fn copy_bits(out: &Tensor<Naive>, x: &Tensor<Naive>) {
    let size = x.dtype().size();
    // Copied out first: both may lie in one buffer.
    let bits: Vec<Vec<u8>> = {
        let bytes = x.buffer().lock();
        elements(x).map(|at| bytes[at..at + size].to_vec()).collect()
    };
    let mut bytes = out.buffer().lock();
    for (at, bits) in elements(out).zip(bits) {
        bytes[at..at + size].copy_from_slice(&bits);
    }
}

fn weights(w: &Weight<Naive>) -> Vec<f32> {
    let buffer = w.buffer().lock();
    if let WeightFormat::Float(dtype) = w.format() {
        return buffer.chunks_exact(dtype.size()).map(|b| decode(b, dtype)).collect();
    }
    let elements = w.n() * w.format().row_bytes(w.k());
    let matrix = |packed: &[u8]| {
        let (codes, scales) = packed.split_at(elements);
        let scales = scales.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        quant::dequantize(w.format(), w.k(), codes, &scales.collect::<Vec<_>>())
    };
    buffer.chunks_exact(w.matrix_bytes()).flat_map(matrix).collect()
}

/// The index as a row of `rows`, if it is one.
fn row_of(index: i32, rows: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&row| row < rows)
}

fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// GELU, exact form; `erf` by Abramowitz and Stegun 7.1.26, to 1.5e-7.
fn gelu_erf(x: f32) -> f32 {
    let z = f64::from(x) / 2f64.sqrt();
    let t = 1.0 / (1.0 + 0.3275911 * z.abs());
    let p = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
    let erfc = p.into_iter().fold(0.0, |sum, c| (sum + c) * t) * (-z * z).exp();
    let half = 0.5 * if z < 0.0 { erfc } else { 2.0 - erfc };
    (f64::from(x) * half) as f32
}

fn apply(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::None => x,
        Activation::GeluTanh => gelu_tanh(x),
        Activation::GeluErf => gelu_erf(x),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Attention of one head; `seen` are places of keys and values in `k` and `v`.
fn attend(q: &[f32], k: &[f32], v: &[f32], seen: &[(usize, usize)], scale: f32) -> Vec<f32> {
    let scores: Vec<f32> =
        seen.iter().map(|&(at, _)| scale * dot(q, &k[at..at + q.len()])).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut out = vec![0.0; q.len()];
    let mut total = 0.0;
    for (score, &(_, at)) in scores.iter().zip(seen) {
        let p = (score - max).exp();
        total += p;
        out.iter_mut().zip(&v[at..]).for_each(|(out, v)| *out += p * v);
    }
    out.iter().map(|out| out / total).collect()
}

impl Kernels for Naive {
    fn linear(cx: &mut Cx<'_, Self>, op: Linear<'_, Self>) {
        let (out, x, w) = (op.out.view(), op.x.view(), op.w.on::<Naive>());
        let bias = op.bias.map(Tensor::view);
        let (activation, accumulate) = (op.activation, op.accumulate);
        cx.stream.run(move || {
            let (xs, ws, k) = (floats(&x), weights(&w), w.k());
            let bias = bias.as_ref().map(floats);
            let old = accumulate.then(|| floats(&out));
            store(&out, |i, j| {
                let sum = dot(&xs[i * k..(i + 1) * k], &ws[j * k..(j + 1) * k]);
                let sum = sum + bias.as_ref().map_or(0.0, |b| b[j]);
                Some(apply(activation, sum) + old.as_ref().map_or(0.0, |old| old[i * w.n() + j]))
            });
        });
    }

    fn activate(cx: &mut Cx<'_, Self>, op: Activate<'_, Self>) {
        let (out, x, activation) = (op.out.view(), op.x.view(), op.activation);
        cx.stream.run(move || {
            let xs = floats(&x);
            store(&out, |i, j| Some(apply(activation, xs[i * x.cols() + j])));
        });
    }

    fn grouped_linear(cx: &mut Cx<'_, Self>, op: GroupedLinear<'_, Self>) {
        let (out, x, w) = (op.out.view(), op.x.view(), op.w.on::<Naive>());
        let (groups, accumulate) = (op.groups.view(), op.accumulate);
        cx.stream.run(move || {
            let (xs, ws, groups) = (floats(&x), weights(&w), ints(&groups));
            let (n, k) = (w.n(), w.k());
            let per_row = groups.len() / x.rows().max(1);
            let old = floats(&out);
            store(&out, |i, j| {
                let matrix = row_of(groups[i], w.count())?;
                let row = i / per_row;
                let sum = dot(&xs[row * k..(row + 1) * k], &ws[(matrix * n + j) * k..][..k]);
                Some(if accumulate { sum + old[i * n + j] } else { sum })
            });
        });
    }

    fn route(cx: &mut Cx<'_, Self>, op: Route<'_, Self>) {
        let (experts, weights) = (op.experts.view(), op.weights.view());
        let logits = op.logits.view();
        cx.stream.run(move || {
            let (values, top) = (floats(&logits), experts.cols());
            let mut chosen = Vec::new();
            for row in values.chunks_exact(logits.cols()) {
                let mut order: Vec<usize> = (0..row.len()).collect();
                let key = |i: usize| if row[i].is_nan() { f32::NEG_INFINITY } else { row[i] + 0.0 };
                order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
                order.truncate(top);
                let parts = order.iter().map(|&i| (row[i] - row[order[0]]).exp());
                let total: f32 = parts.clone().sum();
                chosen.extend(order.iter().zip(parts).map(|(&i, part)| (i as i32, part / total)));
            }
            store(&weights, |i, j| Some(chosen[i * top + j].1));
            let mut bytes = experts.buffer().lock();
            for (at, (place, _)) in elements(&experts).zip(chosen) {
                bytes[at..at + 4].copy_from_slice(&place.to_le_bytes());
            }
        });
    }

    fn nest(cx: &mut Cx<'_, Self>, op: Nest<'_, Self>) {
        let (out, outer, inner) = (op.out.view(), op.outer.view(), op.inner.view());
        let count = op.count as i64;
        cx.stream.run(move || {
            let (outer, inner, top) = (ints(&outer), ints(&inner), out.cols());
            let mut bytes = out.buffer().lock();
            for (i, at) in elements(&out).enumerate() {
                let (outer, inner) = (i64::from(outer[i / top]), i64::from(inner[i]));
                let group = match outer >= 0 && (0..count).contains(&inner) {
                    true => (outer * count + inner) as i32,
                    false => -1,
                };
                bytes[at..at + 4].copy_from_slice(&group.to_le_bytes());
            }
        });
    }

    fn gated_gelu(cx: &mut Cx<'_, Self>, op: GatedGelu<'_, Self>) {
        let (out, x) = (op.out.view(), op.x.view());
        cx.stream.run(move || {
            let (xs, n) = (floats(&x), out.cols());
            store(&out, |i, j| {
                let row = &xs[2 * n * i..2 * n * (i + 1)];
                Some(gelu_erf(row[j]) * (row[n + j] + 1.0))
            });
        });
    }

    fn weighted_sum(cx: &mut Cx<'_, Self>, op: WeightedSum<'_, Self>) {
        let (out, x, weights) = (op.out.view(), op.x.view(), op.weights.view());
        cx.stream.run(move || {
            let (xs, parts, top) = (floats(&x), floats(&weights), weights.cols());
            let (old, dim) = (floats(&out), out.cols());
            store(&out, |i, j| {
                let part = |e: usize| parts[i * top + e] * xs[(i * top + e) * dim + j];
                Some((0..top).map(part).sum::<f32>() + old[i * dim + j])
            });
        });
    }

    fn layer_norm(cx: &mut Cx<'_, Self>, op: LayerNorm<'_, Self>) {
        let (out, x, w, b) = (op.out.view(), op.x.view(), op.w.view(), op.b.view());
        let eps = op.eps;
        cx.stream.run(move || {
            let (xs, w, b, dim) = (floats(&x), floats(&w), floats(&b), x.cols());
            let moments: Vec<(f32, f32)> = xs
                .chunks_exact(dim)
                .map(|row| {
                    let mean = row.iter().sum::<f32>() / dim as f32;
                    let squares = row.iter().map(|x| (x - mean) * (x - mean));
                    (mean, 1.0 / (squares.sum::<f32>() / dim as f32 + eps).sqrt())
                })
                .collect();
            store(&out, |i, j| {
                let (mean, scale) = moments[i];
                Some((xs[i * dim + j] - mean) * scale * w[j] + b[j])
            });
        });
    }

    fn patchify(cx: &mut Cx<'_, Self>, op: Patchify<'_, Self>) {
        let (out, crops, patch) = (op.out.view(), op.crops.view(), op.patch);
        cx.stream.run(move || {
            let pixels = crops.buffer().lock()[crops.byte_range()].to_vec();
            let size = crops.shape().dims()[1];
            let grid = size / patch;
            store(&out, |row, col| {
                let (crop, place) = (row / (grid * grid), row % (grid * grid));
                let (c, within) = (col / (patch * patch), col % (patch * patch));
                let y = place / grid * patch + within / patch;
                let x = place % grid * patch + within % patch;
                let pixel = pixels[((crop * size + y) * size + x) * 3 + c];
                Some((f32::from(pixel) / 255.0 - 0.5) / 0.5)
            });
        });
    }

    fn tile(cx: &mut Cx<'_, Self>, op: Tile<'_, Self>) {
        let (out, x) = (op.out.view(), op.x.view());
        cx.stream.run(move || {
            let xs = floats(&x);
            store(&out, |i, j| Some(xs[i % x.rows() * x.cols() + j]));
        });
    }

    fn attention(cx: &mut Cx<'_, Self>, op: Attention<'_, Self>) {
        let (out, qkv) = (op.out.view(), op.qkv.view());
        let (seq_len, heads, scale) = (op.seq_len, op.heads, op.scale);
        cx.stream.run(move || {
            let (all, width) = (floats(&qkv), out.cols());
            let head_dim = width / heads;
            let mut result = Vec::with_capacity(out.rows() * width);
            for row in 0..out.rows() {
                let first = row / seq_len * seq_len;
                for head in 0..heads {
                    let place = |u: usize, part: usize| (3 * u + part) * width + head * head_dim;
                    let seen: Vec<_> =
                        (first..first + seq_len).map(|u| (place(u, 1), place(u, 2))).collect();
                    let q = &all[place(row, 0)..place(row, 0) + head_dim];
                    result.extend(attend(q, &all, &all, &seen, scale));
                }
            }
            store(&out, |i, j| Some(result[i * width + j]));
        });
    }

    fn rope_store(cx: &mut Cx<'_, Self>, op: RopeStore<'_, Self>) {
        let (qkv, k_cache, v_cache) = (op.qkv.view(), op.k_cache.view(), op.v_cache.view());
        let (positions, slots, table) = (op.positions.view(), op.slots.view(), op.table.view());
        let tau = op.tau.map(|Tau { scores, alpha }| (scores.view(), alpha.view()));
        let (heads, kv_heads, head_dim) = (op.heads, op.kv_heads, op.head_dim);
        cx.stream.run(move || {
            let (mut all, table_values) = (floats(&qkv), floats(&table));
            let (positions, slots) = (ints(&positions), ints(&slots));
            let (width, rotary) = (qkv.cols(), table.cols());
            let (q_dim, kv_dim) = (heads * head_dim, kv_heads * head_dim);
            if let Some((scores, alpha)) = &tau {
                let (scores, alpha) = (floats(scores), floats(alpha));
                for (i, head) in all.chunks_exact_mut(head_dim).enumerate() {
                    let (t, part, h) = (i / (3 * heads), i / heads % 3, i % heads);
                    if part != 1 {
                        let a = alpha[h] * (positions[t] as f32 + 1.0).ln();
                        let score = scores[t * 2 * heads + part / 2 * heads + h];
                        let factor = score.tanh() + 1.0 / (1.0 + (-a).exp()) + 0.5;
                        head.iter_mut().for_each(|x| *x *= factor);
                    }
                }
            }
            let rotated = |t: usize, j: usize, position: usize| -> f32 {
                let x = |d: usize| all[t * width + j - j % head_dim + d];
                let angle = |d: usize| table_values[position * rotary + d];
                let (d, half) = (j % head_dim, rotary / 2);
                if d < half {
                    x(d) * angle(d) - x(d + half) * angle(d + half)
                } else if d < rotary {
                    x(d - half) * angle(d) + x(d) * angle(d - half)
                } else {
                    x(d)
                }
            };
            for t in 0..positions.len() {
                let Some(position) = row_of(positions[t], table.rows()) else { continue };
                let q = qkv.row_range(t..t + 1).col_range(0..q_dim);
                store(&q, |_, j| Some(rotated(t, j, position)));
                let Some(slot) = row_of(slots[t], k_cache.rows()) else { continue };
                let k: Vec<f32> = (0..kv_dim).map(|j| rotated(t, q_dim + j, position)).collect();
                let v = &all[t * width + q_dim + kv_dim..][..kv_dim];
                cache(&k_cache, slot, &k, head_dim);
                cache(&v_cache, slot, v, head_dim);
            }
        });
    }

    fn paged_attention(cx: &mut Cx<'_, Self>, op: PagedAttention<'_, Self>) {
        let (out, q) = (op.out.view(), op.q.view());
        let (k_cache, v_cache) = (op.k_cache.view(), op.v_cache.view());
        let integers = [op.block_tables, op.row_starts, op.visible].map(Tensor::view);
        let (block_size, heads, kv_heads, scale) = (op.block_size, op.heads, op.kv_heads, op.scale);
        cx.stream.run(move || {
            let [tables, starts, visible] = [0, 1, 2].map(|i| ints(&integers[i]));
            let max_blocks = integers[0].cols();
            let num_blocks = k_cache.rows() / block_size;
            let head_dim = q.cols() / heads;
            let [k, v] = [&k_cache, &v_cache].map(|c| cached(c, kv_heads * head_dim, head_dim));
            let qs = floats(&q);
            for r in 0..starts.len() - 1 {
                for t in starts[r] as usize..starts[r + 1] as usize {
                    let visible = usize::try_from(visible[t]).unwrap_or(0);
                    let mut slots = Vec::new();
                    for u in 0..visible.min(max_blocks * block_size) {
                        let block = tables[r * max_blocks + u / block_size];
                        if let Some(block) = row_of(block, num_blocks) {
                            slots.push(block * block_size + u % block_size);
                        }
                    }
                    if slots.is_empty() {
                        continue;
                    }
                    let row: Vec<f32> = (0..heads)
                        .flat_map(|head| {
                            let kv_head = head / (heads / kv_heads);
                            let place = |slot: &usize| (slot * kv_heads + kv_head) * head_dim;
                            let seen: Vec<_> =
                                slots.iter().map(|slot| (place(slot), place(slot))).collect();
                            let at = t * q.cols() + head * head_dim;
                            attend(&qs[at..at + head_dim], &k, &v, &seen, scale)
                        })
                        .collect();
                    store(&out.row_range(t..t + 1), |_, j| Some(row[j]));
                }
            }
        });
    }

    fn stitch_pool(cx: &mut Cx<'_, Self>, op: StitchPool<'_, Self>) {
        let (out, x) = (op.out.view(), op.x.view());
        let (grid, margin, tiles) = (op.grid, op.margin, op.tiles);
        cx.stream.run(move || {
            let (xs, dim) = (floats(&x), x.cols());
            let inner = grid - 2 * margin;
            let num_crops = x.rows() / (grid * grid);
            // Tile and patch at a place of the map: margins at inner edges belong to the neighbor.
            let source = |place: usize, tiles: usize| {
                let tile = (place.saturating_sub(margin) / inner).min(tiles - 1);
                (tile, place - tile * inner)
            };
            let cell = |i: usize, tiles: usize| {
                let n = inner * tiles + 2 * margin;
                i * n / grid..((i + 1) * n).div_ceil(grid)
            };
            store(&out, |row, col| {
                if col < dim {
                    return Some(xs[row * dim + col]);
                }
                let (mut sum, mut count) = (0.0, 0);
                for y in cell(row / grid, tiles.0) {
                    for x in cell(row % grid, tiles.1) {
                        let ((ty, py), (tx, px)) = (source(y, tiles.0), source(x, tiles.1));
                        let crop = (1 + ty * tiles.1 + tx).min(num_crops - 1);
                        sum += xs[((crop * grid + py) * grid + px) * dim + col - dim];
                        count += 1;
                    }
                }
                Some(sum / count as f32)
            });
        });
    }

    fn gather(cx: &mut Cx<'_, Self>, op: Gather<'_, Self>) {
        let (out, x, indices) = (op.out.view(), op.x.view(), op.indices.view());
        cx.stream.run(move || {
            let (xs, ids) = (floats(&x), ints(&indices));
            store(&out, |i, j| Some(xs[row_of(ids[i], x.rows())? * x.cols() + j]));
        });
    }

    fn scatter(cx: &mut Cx<'_, Self>, op: Scatter<'_, Self>) {
        let (out, x, indices) = (op.out.view(), op.x.view(), op.indices.view());
        cx.stream.run(move || {
            let (xs, dim) = (floats(&x), x.cols());
            for (i, id) in ints(&indices).into_iter().enumerate() {
                if let Some(row) = row_of(id, out.rows()) {
                    store(&out.row_range(row..row + 1), |_, j| Some(xs[i * dim + j]));
                }
            }
        });
    }

    fn fourier(cx: &mut Cx<'_, Self>, op: Fourier<'_, Self>) {
        let (out, values, w) = (op.out.view(), op.values.view(), op.w.view());
        cx.stream.run(move || {
            let (vs, ws, features) = (floats(&values), floats(&w), w.cols());
            let dims = values.cols();
            store(&out, |i, j| {
                let part = |d: usize| vs[i * dims + d] * ws[d * features + j % features];
                let angle = std::f32::consts::TAU * (0..dims).map(part).sum::<f32>();
                Some(if j < features { angle.cos() } else { angle.sin() })
            });
        });
    }

    fn sample(cx: &mut Cx<'_, Self>, op: Sample<'_, Self>) {
        let (ids, logprobs) = (op.ids.view(), op.logprobs.view());
        let (logits, params) = (op.logits.view(), op.params.view());
        let masks = op.masks.map(|Masks { bits, rows }| (bits.view(), rows.view()));
        cx.stream.run(move || {
            let rows = floats(&logits);
            let masks = masks.as_ref().map(|(bits, rows)| (ints(bits), bits, ints(rows)));
            let mask_of = |row: usize| {
                let (words, bits, rows) = masks.as_ref()?;
                let mask = row_of(rows[row], bits.rows())?;
                Some(&words[mask * bits.cols()..(mask + 1) * bits.cols()])
            };
            let records = params.buffer().lock()[params.byte_range()].to_vec();
            let drawn: Vec<(i32, f32)> = rows
                .chunks_exact(logits.cols())
                .zip(records.chunks_exact(size_of::<SampleParams>()))
                .enumerate()
                .map(|(i, (row, record))| {
                    sampler::sample_row(row, &bytemuck::pod_read_unaligned(record), mask_of(i))
                })
                .collect();
            let bytes: Vec<u8> = drawn.iter().flat_map(|(id, _)| id.to_le_bytes()).collect();
            ids.buffer().lock()[ids.byte_range()].copy_from_slice(&bytes);
            let cols = logprobs.cols();
            store(&logprobs, |i, j| Some(drawn[i * cols + j].1));
        });
    }

    fn copy(cx: &mut Cx<'_, Self>, op: Copy<'_, Self>) {
        let (out, x) = (op.out.view(), op.x.view());
        cx.stream.run(move || {
            if x.dtype() == out.dtype() {
                return copy_bits(&out, &x);
            }
            let xs = floats(&x);
            store(&out, |i, j| Some(xs[i * x.cols() + j]));
        });
    }
}
