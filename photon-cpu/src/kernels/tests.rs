//! Every operation against plain loops in f64, at sizes that divide nothing, on every instruction set.
use photon_core::{
    Attention, Copy, DType, Fourier, Gather, LayerNorm, PagedAttention, Patchify, RopeStore,
    Scatter, StitchPool, Tensor, Tile,
};

use super::*;
use crate::{
    CpuOptions, Isa,
    test_support::{Random, contents, floats, ints, to_bytes},
};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// Every instruction set, on one thread and on three.
fn cpus() -> Vec<Cpu> {
    let open = |isa, threads| Cpu::open(CpuOptions { threads: Some(threads), isa: Some(isa) });
    Isa::available()
        .into_iter()
        .flat_map(|isa| [1, 3].map(|threads| open(isa, threads).unwrap()))
        .collect()
}

/// Half a unit in the last place of a number around 1, and what f32 sums lose.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 6e-4,
        DType::Bf16 => 4.5e-3,
        _ => 5e-6,
    }
}

#[track_caller]
fn assert_close(got: &Tensor<Cpu>, want: &[f64], what: &str) {
    assert_within(tolerance(got.dtype()), got, want, what);
}

/// As [`assert_close`], for an attention: of bf16, shares are rounded to bf16 where pairs of them are multiplied.
#[track_caller]
fn assert_attended(cpu: &Cpu, got: &Tensor<Cpu>, want: &[f64], what: &str) {
    let rounded = cpu.isa().has_pairs() && got.dtype() == DType::Bf16;
    let shares = if rounded { 2f64.powi(-8) } else { 0.0 };
    assert_within(tolerance(got.dtype()) + shares, got, want, what);
}

#[track_caller]
fn assert_within(tolerance: f64, got: &Tensor<Cpu>, want: &[f64], what: &str) {
    let got = contents(got);
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance * want.abs().max(1.0), "{what}: [{i}] = {got}, want {want}");
    }
}

fn nan(shape: impl Into<photon_core::Shape>, dtype: DType) -> Tensor<Cpu> {
    let shape = shape.into();
    floats(shape, dtype, &vec![f32::NAN; shape.elements()])
}

fn wide(tensor: &Tensor<Cpu>) -> Vec<f64> {
    contents(tensor).into_iter().map(f64::from).collect()
}

/// `softmax(scale q . k) v` over the positions that `sees` admits; `None` if there are none.
fn attend(
    q: &[f64],
    (k, v): (&[f64], &[f64]),
    scale: f64,
    sees: impl Fn(usize) -> bool,
) -> Option<Vec<f64>> {
    let dim = q.len();
    let seen: Vec<usize> = (0..k.len() / dim).filter(|&u| sees(u)).collect();
    let dot = |u: usize| -> f64 { (0..dim).map(|d| q[d] * k[u * dim + d]).sum() };
    let scores: Vec<f64> = seen.iter().map(|&u| scale * dot(u)).collect();
    let max = scores.iter().copied().reduce(f64::max)?;
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let share = |s: f64| (s - max).exp() / sum;
    let value =
        |d: usize| seen.iter().zip(&scores).map(|(&u, &s)| share(s) * v[u * dim + d]).sum::<f64>();
    Some((0..dim).map(value).collect())
}

#[test]
fn attention_is_the_softmax_of_scaled_products() {
    let mut random = Random::new(1);
    let shapes = [(1, 1, 1, 8), (2, 7, 3, 5), (3, 33, 2, 36), (2, 65, 2, 64), (1, 300, 2, 72)];
    for dtype in FLOATS {
        for (seqs, seq_len, heads, dim) in shapes {
            let rows = seqs * seq_len;
            let values = random.normals(rows * 3 * heads * dim);
            let qkv = floats([rows, 3 * heads * dim], dtype, &values);
            let scale = 1.5 / (dim as f32).sqrt();
            let exact = wide(&qkv);
            let column = &|part: usize, s: usize, u: usize, h: usize| {
                let start = ((s * seq_len + u) * 3 + part) * heads * dim + h * dim;
                &exact[start..start + dim]
            };
            let mut want = vec![0.0; rows * heads * dim];
            for s in 0..seqs {
                for h in 0..heads {
                    let all = |part| (0..seq_len).flat_map(move |u| column(part, s, u, h).to_vec());
                    let (k, v): (Vec<_>, Vec<_>) = (all(1).collect(), all(2).collect());
                    for t in 0..seq_len {
                        let row = attend(column(0, s, t, h), (&k, &v), scale.into(), |_| true);
                        want[((s * seq_len + t) * heads + h) * dim..][..dim]
                            .copy_from_slice(&row.unwrap());
                    }
                }
            }
            for cpu in cpus() {
                let mut out = nan([rows, heads * dim], dtype);
                let op = Attention { out: &mut out, qkv: &qkv, seq_len, heads, scale };
                attention(&cpu, op);
                assert_attended(
                    &cpu,
                    &out,
                    &want,
                    &format!("{cpu:?} {dtype} {seqs}x{seq_len}x{heads}x{dim}"),
                );
            }
        }
    }
}

/// A paged cache with sequences in it, each row's blocks scattered.
struct Paged {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    block_size: usize,
    num_blocks: usize,
    k: Tensor<Cpu>,
    v: Tensor<Cpu>,
    /// Per row: blocks, context length, how many first positions attend both ways.
    rows: Vec<(Vec<i32>, usize, i32)>,
}

impl Paged {
    fn new(random: &mut Random, cache: DType, sizes: &[(usize, i32)]) -> Self {
        let (heads, kv_heads, dim, block_size) = (4, 2, 36, 16);
        let needed: usize = sizes.iter().map(|&(c, _)| c.div_ceil(block_size)).sum();
        let num_blocks = needed + 3;
        let mut free: Vec<i32> = (0..num_blocks as i32).collect();
        let rows = sizes
            .iter()
            .map(|&(context, prefix)| {
                let take = |_| free.swap_remove(random.below(free.len()));
                ((0..context.div_ceil(block_size)).map(take).collect(), context, prefix)
            })
            .collect();
        let shape = [num_blocks * block_size, kv_heads * dim];
        let k = random.normals(shape[0] * shape[1]);
        let v = random.normals(shape[0] * shape[1]);
        let (k, v) = (floats(shape, cache, &k), floats(shape, cache, &v));
        Paged { heads, kv_heads, dim, block_size, num_blocks, k, v, rows }
    }

    fn slot(&self, row: usize, u: usize) -> Option<usize> {
        let block = index(self.rows[row].0[u / self.block_size], self.num_blocks)?;
        Some(block * self.block_size + u % self.block_size)
    }

    /// Runs the last `counts[r]` tokens of each row; `q` holds all tokens of all rows in order.
    fn run(&self, cpu: &Cpu, q: &[Tensor<Cpu>], counts: &[usize], out: &mut Tensor<Cpu>) {
        let dtype = out.dtype();
        let tokens: Vec<f32> = q.iter().flat_map(contents).collect();
        let q = floats([counts.iter().sum(), self.heads * self.dim], dtype, &tokens);
        let width = self.rows.iter().map(|row| row.0.len()).max().unwrap();
        let padded = |row: &(Vec<i32>, usize, i32)| {
            row.0.iter().copied().chain(std::iter::repeat(-7)).take(width).collect::<Vec<_>>()
        };
        let tables: Vec<i32> = self.rows.iter().flat_map(padded).collect();
        let starts: Vec<i32> =
            (0..=counts.len()).map(|r| counts[..r].iter().sum::<usize>() as i32).collect();
        let of_row = |((_, context, prefix), &count): (&(Vec<i32>, usize, i32), &usize)| {
            let (context, prefix) = (*context as i32, *prefix);
            (context - count as i32..context)
                .map(move |p| if p < prefix { prefix.min(context) } else { p + 1 })
        };
        let visible: Vec<i32> = self.rows.iter().zip(counts).flat_map(of_row).collect();
        let op = PagedAttention {
            out,
            q: &q,
            k_cache: &self.k,
            v_cache: &self.v,
            block_tables: &ints(&tables).reshape([self.rows.len(), width]),
            row_starts: &ints(&starts),
            visible: &ints(&visible),
            block_size: self.block_size,
            heads: self.heads,
            kv_heads: self.kv_heads,
            scale: 0.3,
        };
        paged_attention(cpu, op);
    }

    /// What the last `count` tokens of `row` should get; NaN where nothing is seen.
    fn want(&self, row: usize, q: &Tensor<Cpu>, count: usize) -> Vec<f64> {
        let (_, context, prefix) = self.rows[row];
        let (k, v, q) = (wide(&self.k), wide(&self.v), wide(q));
        let group = self.heads / self.kv_heads;
        let mut want = Vec::new();
        for i in 0..count {
            let p = context - count + i;
            for h in 0..self.heads {
                let gather = |cache: &[f64]| -> Vec<f64> {
                    let at = |u| match self.slot(row, u) {
                        Some(slot) => (slot * self.kv_heads + h / group) * self.dim,
                        None => 0,
                    };
                    (0..context).flat_map(|u| cache[at(u)..at(u) + self.dim].to_vec()).collect()
                };
                let sees = |u: usize| {
                    let both_ways = (p as i32) < prefix && (u as i32) < prefix;
                    self.slot(row, u).is_some() && (u <= p || both_ways)
                };
                let query = &q[(i * self.heads + h) * self.dim..][..self.dim];
                let row = attend(query, (&gather(&k), &gather(&v)), f64::from(0.3f32), sees);
                want.extend(row.unwrap_or(vec![f64::NAN; self.dim]));
            }
        }
        want
    }

    fn queries(&self, random: &mut Random, dtype: DType, count: usize) -> Tensor<Cpu> {
        let cols = self.heads * self.dim;
        floats([count, cols], dtype, &random.normals(count * cols))
    }
}

#[test]
fn paged_attention_follows_block_tables_and_masks() {
    let mut random = Random::new(2);
    let sizes = [(1, 0), (50, 0), (90, 41), (129, 200), (33, 10), (17, 5)];
    let counts = [1, 50, 90, 37, 1, 2];
    for (dtype, cache) in [
        (DType::F32, DType::F32),
        (DType::F32, DType::Bf16),
        (DType::Bf16, DType::Bf16),
        (DType::F16, DType::F16),
    ] {
        let paged = Paged::new(&mut random, cache, &sizes);
        let q: Vec<_> = counts.iter().map(|&n| paged.queries(&mut random, dtype, n)).collect();
        let want: Vec<f64> =
            (0..sizes.len()).flat_map(|r| paged.want(r, &q[r], counts[r])).collect();
        for cpu in cpus() {
            let mut out = nan([counts.iter().sum(), paged.heads * paged.dim], dtype);
            paged.run(&cpu, &q, &counts, &mut out);
            assert_attended(&cpu, &out, &want, &format!("{cpu:?} {dtype} {cache}"));
        }
    }
}

#[test]
fn unusable_blocks_are_not_seen_and_rows_without_any_stay() {
    let mut random = Random::new(3);
    let mut paged = Paged::new(&mut random, DType::F32, &[(60, 0), (20, 0), (40, 40)]);
    paged.rows[0].0[1] = -1;
    paged.rows[0].0[2] = paged.num_blocks as i32;
    paged.rows[1].0.fill(i32::MIN);
    paged.rows[2].0[0] = i32::MAX;
    let counts = [30, 3, 1];
    let q: Vec<_> = counts.iter().map(|&n| paged.queries(&mut random, DType::F32, n)).collect();
    let mut want: Vec<f64> = (0..3).flat_map(|r| paged.want(r, &q[r], counts[r])).collect();
    want.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 7.0);
    for cpu in cpus() {
        let shape = [34, paged.heads * paged.dim];
        let mut out = floats(shape, DType::F32, &vec![7.0; shape[0] * shape[1]]);
        paged.run(&cpu, &q, &counts, &mut out);
        assert_close(&out, &want, &format!("{cpu:?}"));
    }
}

#[test]
fn masked_positions_contribute_nothing_even_if_they_are_nan() {
    let mut random = Random::new(4);
    let paged = Paged::new(&mut random, DType::F32, &[(70, 0)]);
    let q = paged.queries(&mut random, DType::F32, 70);
    let cols = paged.heads * paged.dim;
    for cpu in cpus() {
        let mut clean = nan([70, cols], DType::F32);
        paged.run(&cpu, std::slice::from_ref(&q), &[70], &mut clean);
        // Spoil every position from 41 on: tokens before it must not notice.
        let saved = paged.k.buffer().clone();
        let mut bytes = vec![0; saved.len()];
        saved.read(0, &mut bytes);
        let mut v_bytes = vec![0; paged.v.buffer().len()];
        paged.v.buffer().read(0, &mut v_bytes);
        for u in 41..70 {
            let slot = paged.slot(0, u).unwrap();
            for cache in [&paged.k, &paged.v] {
                let row = cache.row_range(slot..slot + 1);
                let poison = to_bytes(&vec![f32::NAN; row.cols()], DType::F32);
                row.buffer().write(row.offset(), &poison);
            }
        }
        let mut spoiled = nan([70, cols], DType::F32);
        paged.run(&cpu, std::slice::from_ref(&q), &[70], &mut spoiled);
        let (clean, spoiled) = (contents(&clean), contents(&spoiled));
        assert_eq!(clean[..41 * cols], spoiled[..41 * cols], "{cpu:?}");
        assert!(spoiled[41 * cols..].iter().all(|x| x.is_nan()), "{cpu:?}");
        saved.write(0, &bytes);
        paged.v.buffer().write(0, &v_bytes);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_chunks_and_on_any_number_of_threads() {
    let mut random = Random::new(5);
    let (context, prefix) = (150, 90);
    let mut paged = Paged::new(&mut random, DType::Bf16, &[(context, prefix)]);
    let q = paged.queries(&mut random, DType::F32, context);
    let cols = paged.heads * paged.dim;
    for isa in Isa::available() {
        let cpu =
            |threads| Cpu::open(CpuOptions { threads: Some(threads), isa: Some(isa) }).unwrap();
        let mut whole = nan([context, cols], DType::F32);
        paged.rows[0].1 = context;
        paged.run(&cpu(1), std::slice::from_ref(&q), &[context], &mut whole);
        let whole = contents(&whole);
        // The image, then tokens one by one or in fives, on more threads.
        for (threads, step) in [(2, 1), (5, 5), (16, 60)] {
            let mut at = prefix as usize;
            while at < context {
                let count = step.min(context - at);
                paged.rows[0].1 = at + count;
                let mut out = nan([count, cols], DType::F32);
                let chunk = q.row_range(at..at + count);
                paged.run(&cpu(threads), &[chunk], &[count], &mut out);
                assert_eq!(contents(&out), whole[at * cols..(at + count) * cols], "{isa:?} {at}");
                at += count;
            }
        }
        // Beside other rows.
        paged.rows[0].1 = context;
        let other = paged.rows[0].clone();
        paged.rows.insert(0, (other.0, 20, 0));
        let first = paged.queries(&mut random, DType::F32, 3);
        let mut out = nan([context + 3, cols], DType::F32);
        paged.run(&cpu(3), &[first, q.view()], &[3, context], &mut out);
        assert_eq!(contents(&out)[3 * cols..], whole, "{isa:?}");
        paged.rows.remove(0);
    }
}

#[test]
fn nonsense_in_index_tensors_is_survived() {
    let mut random = Random::new(6);
    let paged = Paged::new(&mut random, DType::F32, &[(40, 0)]);
    let cols = paged.heads * paged.dim;
    let q = paged.queries(&mut random, DType::F32, 12);
    let cpu = &cpus()[0];
    for _ in 0..300 {
        let mut wild = |n: usize| {
            let value = |random: &mut Random| match random.below(3) {
                0 => random.next() as i32,
                _ => random.below(60) as i32 - 5,
            };
            ints(&(0..n).map(|_| value(&mut random)).collect::<Vec<_>>())
        };
        let mut out = nan([12, cols], DType::F32);
        let op = PagedAttention {
            out: &mut out,
            q: &q,
            k_cache: &paged.k,
            v_cache: &paged.v,
            block_tables: &wild(15).reshape([3, 5]),
            row_starts: &wild(4),
            visible: &wild(12),
            block_size: paged.block_size,
            heads: paged.heads,
            kv_heads: paged.kv_heads,
            scale: 0.3,
        };
        paged_attention(cpu, op);
    }
}

#[test]
fn layer_norm_centers_scales_and_shifts() {
    let mut random = Random::new(7);
    for (rows, dim) in [(1, 1), (3, 7), (5, 33), (65, 72), (2, 1152)] {
        for (dtype, to) in [(DType::F32, DType::F32), (DType::Bf16, DType::F16)] {
            let values: Vec<f32> = random.normals(rows * dim).iter().map(|x| x + 30.0).collect();
            let x = floats([rows, dim], dtype, &values);
            let (w, b) = (random.normals(dim), random.normals(dim));
            let mut want = Vec::new();
            for row in wide(&x).chunks(dim) {
                let mean = row.iter().sum::<f64>() / dim as f64;
                let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dim as f64;
                let norm = |x: &f64| (x - mean) / (var + f64::from(1e-5f32)).sqrt();
                want.extend(
                    row.iter()
                        .zip(w.iter().zip(&b))
                        .map(|(x, (&w, &b))| norm(x) * f64::from(w) + f64::from(b)),
                );
            }
            let (w, b) = (floats([dim], DType::F32, &w), floats([dim], DType::F32, &b));
            for cpu in cpus() {
                let mut out = nan([rows, dim], to);
                layer_norm(&cpu, LayerNorm { out: &mut out, x: &x, w: &w, b: &b, eps: 1e-5 });
                // Means of 30 cost five bits.
                let tolerance = if to == DType::F32 { 3e-5 } else { tolerance(to) };
                for (got, want) in contents(&out).iter().zip(&want) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= tolerance * want.abs().max(1.0), "{cpu:?}: {got}, {want}");
                }
            }
        }
    }
}

#[test]
fn patchify_cuts_and_normalizes() {
    let mut random = Random::new(8);
    let (crops, size, patch) = (2, 15, 5);
    let grid = size / patch;
    let bytes: Vec<u8> = (0..crops * size * size * 3).map(|_| random.next() as u8).collect();
    let buffer = crate::Buffer::new(bytes.len()).unwrap();
    buffer.write(0, &bytes);
    let tensor = Tensor::new(buffer, 0, [crops, size, size, 3], DType::U8);
    let mut want = vec![0.0; crops * grid * grid * 3 * patch * patch];
    for (i, &byte) in bytes.iter().enumerate() {
        let (c, x, y, crop) = (i % 3, i / 3 % size, i / 3 / size % size, i / 3 / size / size);
        let row = crop * grid * grid + y / patch * grid + x / patch;
        let col = c * patch * patch + y % patch * patch + x % patch;
        want[row * 3 * patch * patch + col] = (f64::from(byte) / 255.0 - 0.5) / 0.5;
    }
    for cpu in cpus() {
        let mut out = nan([crops * grid * grid, 3 * patch * patch], DType::Bf16);
        patchify(&cpu, Patchify { out: &mut out, crops: &tensor, patch });
        assert_close(&out, &want, &format!("{cpu:?}"));
    }
}

/// The map as its doc says it: each tile gives its patches, later cells are averages.
fn stitched(x: &[f64], dim: usize, grid: usize, margin: usize, tiles: (usize, usize)) -> Vec<f64> {
    let step = grid - 2 * margin;
    let side = |n: usize| step * n + 2 * margin;
    let (height, width) = (side(tiles.0), side(tiles.1));
    let mut map = vec![f64::NAN; height * width * dim];
    let local = usize::from(x.len() > grid * grid * dim);
    let span = |tile: usize, n: usize| {
        let start = if tile == 0 { 0 } else { margin };
        start..if tile == n - 1 { grid } else { grid - margin }
    };
    for ty in 0..tiles.0 {
        for tx in 0..tiles.1 {
            let crop = local + ty * tiles.1 + tx;
            for y in span(ty, tiles.0) {
                for px in span(tx, tiles.1) {
                    let to = ((ty * step + y) * width + tx * step + px) * dim;
                    let from = ((crop * grid + y) * grid + px) * dim;
                    map[to..to + dim].copy_from_slice(&x[from..from + dim]);
                }
            }
        }
    }
    let cell = |i: usize, n: usize| i * n / grid..((i + 1) * n).div_ceil(grid);
    let mut out = Vec::new();
    for i in 0..grid * grid {
        out.extend_from_slice(&x[i * dim..][..dim]);
        let (ys, xs) = (cell(i / grid, height), cell(i % grid, width));
        for d in 0..dim {
            let at = |y: usize, x: usize| map[(y * width + x) * dim + d];
            let sum: f64 = ys
                .clone()
                .flat_map(|y| xs.clone().map(move |x| (y, x)))
                .map(|(y, x)| at(y, x))
                .sum();
            out.push(sum / (ys.len() * xs.len()) as f64);
        }
    }
    out
}

#[test]
fn stitch_pool_joins_crops() {
    let mut random = Random::new(9);
    for (grid, margin, tiles, dim) in
        [(7, 2, (1, 1), 5), (7, 2, (2, 3), 33), (9, 1, (3, 1), 8), (5, 0, (2, 2), 20)]
    {
        let mut crops = vec![1 + tiles.0 * tiles.1];
        if tiles == (1, 1) {
            crops.push(1);
        }
        for crops in crops {
            let rows = crops * grid * grid;
            let x = floats([rows, dim], DType::F16, &random.normals(rows * dim));
            let want = stitched(&wide(&x), dim, grid, margin, tiles);
            for cpu in cpus() {
                let mut out = nan([grid * grid, 2 * dim], DType::F32);
                stitch_pool(&cpu, StitchPool { out: &mut out, x: &x, grid, margin, tiles });
                assert_close(&out, &want, &format!("{cpu:?} {grid} {margin} {tiles:?} {crops}"));
            }
        }
    }
}

#[test]
fn rope_store_rotates_and_stores() {
    let mut random = Random::new(10);
    let (tokens, heads, kv_heads, dim, rotary, slots, max) = (9, 4, 2, 20, 12, 30, 16);
    let cols = (heads + 2 * kv_heads) * dim;
    let positions = [0, 3, 15, 16, -1, 7, 8, 2, i32::MIN];
    let to = [5, 29, 30, 4, 6, -1, i32::MAX, 0, 1];
    let table = random.normals(max * rotary);
    let table_tensor = floats([max, rotary], DType::F32, &table);
    let values = random.normals(tokens * cols);
    for (dtype, cache) in [(DType::F32, DType::F32), (DType::Bf16, DType::F16)] {
        for cpu in cpus() {
            let mut qkv = floats([tokens, cols], dtype, &values);
            let before = wide(&qkv);
            let mut k_cache =
                floats([slots, kv_heads * dim], cache, &vec![9.0; slots * kv_heads * dim]);
            let mut v_cache =
                floats([slots, kv_heads * dim], cache, &vec![9.0; slots * kv_heads * dim]);
            rope_store(
                &cpu,
                RopeStore {
                    qkv: &mut qkv,
                    k_cache: &mut k_cache,
                    v_cache: &mut v_cache,
                    positions: &ints(&positions),
                    slots: &ints(&to),
                    table: &table_tensor,
                    tau: None,
                    heads,
                    kv_heads,
                    head_dim: dim,
                },
            );
            let q_cols = heads * dim;
            let mut want_q = Vec::new();
            let mut want_k = vec![9.0; slots * kv_heads * dim];
            let mut want_v = want_k.clone();
            for t in 0..tokens {
                let mut row = before[t * cols..(t + 1) * cols].to_vec();
                let position = positions[t];
                if (0..max as i32).contains(&position) {
                    let turns = &table[position as usize * rotary..][..rotary];
                    for head in row[..(heads + kv_heads) * dim].chunks_mut(dim) {
                        for j in 0..rotary / 2 {
                            let (c, s) = (f64::from(turns[j]), f64::from(turns[rotary / 2 + j]));
                            let (a, b) = (head[j], head[j + rotary / 2]);
                            head[j] = a * c - b * s;
                            head[j + rotary / 2] = a * s + b * c;
                        }
                    }
                    if (0..slots as i32).contains(&to[t]) {
                        let at = to[t] as usize * kv_heads * dim;
                        let (k, v) = row[q_cols..].split_at(kv_heads * dim);
                        want_k[at..at + kv_heads * dim].copy_from_slice(k);
                        want_v[at..at + kv_heads * dim].copy_from_slice(v);
                    }
                }
                want_q.extend_from_slice(&row[..q_cols]);
            }
            assert_close(&qkv.col_range(0..q_cols), &want_q, "q");
            assert_close(&k_cache, &want_k, "k");
            assert_close(&v_cache, &want_v, "v");
        }
    }
}

#[test]
fn rows_are_copied_tiled_gathered_and_scattered() {
    let mut random = Random::new(11);
    let (rows, dim) = (33, 65);
    for from in FLOATS {
        let x =
            floats([rows, dim + 7], from, &random.normals(rows * (dim + 7))).col_range(3..dim + 3);
        let exact = wide(&x);
        let row = |i: usize| exact[i * dim..(i + 1) * dim].to_vec();
        for to in FLOATS {
            for cpu in cpus() {
                let mut out = nan([rows, dim + 2], to).col_range(1..dim + 1);
                copy(&cpu, Copy { out: &mut out, x: &x });
                assert_close(&out, &exact, "copy");

                let mut out = nan([70, dim], to);
                tile(&cpu, Tile { out: &mut out, x: &x });
                let want: Vec<f64> = (0..70).flat_map(|i| row(i % rows)).collect();
                assert_close(&out, &want, "tile");

                let indices = [4, -1, 32, 33, 4, i32::MIN, 0];
                let mut out = floats([7, dim], to, &vec![9.0; 7 * dim]);
                gather(&cpu, Gather { out: &mut out, x: &x, indices: &ints(&indices) });
                let want: Vec<f64> = indices
                    .iter()
                    .flat_map(|&i| index(i, rows).map_or(vec![9.0; dim], row))
                    .collect();
                assert_close(&out, &want, "gather");

                let mut out = floats([40, dim], to, &vec![9.0; 40 * dim]);
                let targets: Vec<i32> = (0..rows as i32).map(|i| 41 - 2 * i).collect();
                scatter(&cpu, Scatter { out: &mut out, x: &x, indices: &ints(&targets) });
                let mut want = vec![9.0; 40 * dim];
                for (i, &t) in targets.iter().enumerate() {
                    if let Some(t) = index(t, 40) {
                        want[t * dim..(t + 1) * dim].copy_from_slice(&row(i));
                    }
                }
                assert_close(&out, &want, "scatter");
            }
        }
    }
}

#[test]
fn fourier_features_are_cosines_then_sines() {
    let mut random = Random::new(12);
    for (rows, dims, features) in [(1, 1, 3), (5, 2, 17)] {
        let values = floats([rows, dims], DType::F32, &random.normals(rows * dims));
        let w = floats([dims, features], DType::F32, &random.normals(dims * features));
        let (v, exact_w) = (wide(&values), wide(&w));
        let mut want = Vec::new();
        for i in 0..rows {
            let turn = |j: usize| -> f64 {
                (0..dims).map(|d| v[i * dims + d] * exact_w[d * features + j]).sum()
            };
            let angle = |j| std::f64::consts::TAU * turn(j);
            want.extend((0..features).map(|j| angle(j).cos()));
            want.extend((0..features).map(|j| angle(j).sin()));
        }
        for cpu in cpus() {
            let mut out = nan([rows, 2 * features], DType::F32);
            fourier(&cpu, Fourier { out: &mut out, values: &values, w: &w });
            assert_close(&out, &want, "fourier");
        }
    }
}
