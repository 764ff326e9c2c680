//! Products against an f64 loop, and against themselves computed otherwise.
use half::{bf16, f16};
use photon_core::{Activation, DType, Device, Tensor, WeightFormat, convert};

use super::*;
use crate::CpuOptions;

/// Numbers that look random, in `-1 .. 1`.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

fn bytes_of(x: &[f32], dtype: DType) -> Vec<u8> {
    convert(bytemuck::cast_slice(x), DType::F32, dtype).into_owned()
}

fn floats_of(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let wide = convert(bytes, dtype, DType::F32).into_owned();
    wide.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

fn tensor(cpu: &Cpu, x: &[f32], rows: usize, dtype: DType) -> Tensor<Cpu> {
    let tensor = Tensor::zeros(cpu, [rows, x.len() / rows], dtype).unwrap();
    tensor.buffer().write(0, &bytes_of(x, dtype));
    tensor
}

fn contents(tensor: &Tensor<Cpu>) -> Vec<u8> {
    let mut bytes = vec![0; tensor.shape().elements() * tensor.dtype().size()];
    tensor.buffer().read(tensor.offset(), &mut bytes);
    bytes
}

#[derive(Clone, Copy, Debug)]
struct Case {
    isa: Isa,
    threads: usize,
    rows: usize,
    n: usize,
    k: usize,
    weight: DType,
    x: DType,
    out: DType,
    bias: bool,
    gelu: bool,
    accumulate: bool,
    /// Columns before and after `x` and `out` in wider tensors.
    margin: usize,
}

impl Case {
    /// Inputs as the kernel sees them: rounded to their types.
    fn inputs(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>) {
        let round = |x: Vec<f32>, dtype| floats_of(&bytes_of(&x, dtype), dtype);
        let x = round(noise(self.rows * self.k, 1), self.x);
        let w = round(noise(self.n * self.k, 2), self.weight);
        (x, w, noise(self.n, 3), round(noise(self.rows * self.n, 4), self.out))
    }

    /// Runs the kernel; the output's elements.
    fn run(&self) -> Vec<f32> {
        let Case { rows, n, k, margin, .. } = *self;
        let (x, w, bias, old) = self.inputs();
        let cpu =
            Cpu::open(CpuOptions { threads: Some(self.threads), isa: Some(self.isa) }).unwrap();
        let embed = |x: &[f32], cols: usize, dtype| {
            let wide = cols + 2 * margin;
            let mut all = vec![77.0; rows * wide];
            for (all, x) in all.chunks_exact_mut(wide).zip(x.chunks_exact(cols)) {
                all[margin..margin + cols].copy_from_slice(x);
            }
            tensor(&cpu, &all, rows, dtype)
        };
        let weight_bytes = bytes_of(&w, self.weight);
        let format = WeightFormat::Float(self.weight);
        let weight = cpu
            .weight(WeightData { count: 1, n, k, format, bytes: &weight_bytes, scales: &[] })
            .unwrap();
        let x = embed(&x, k, self.x);
        let old = if self.accumulate { old } else { vec![f32::NAN; rows * n] };
        let all_out = embed(&old, n, self.out);
        let bias =
            Tensor::new(tensor(&cpu, &bias, 1, DType::F32).buffer().clone(), 0, [n], DType::F32);
        linear(
            &cpu,
            Linear {
                out: &mut all_out.col_range(margin..margin + n),
                x: &x.col_range(margin..margin + k),
                w: &weight,
                bias: self.bias.then_some(&bias),
                activation: if self.gelu { Activation::GeluTanh } else { Activation::None },
                accumulate: self.accumulate,
            },
        );
        let all = floats_of(&contents(&all_out), self.out);
        let mut out = Vec::new();
        for row in all.chunks_exact(n + 2 * margin) {
            let (before, rest) = row.split_at(margin);
            let (row, after) = rest.split_at(n);
            assert!(before.iter().chain(after).all(|&x| x == 77.0), "{self:?}: wrote outside");
            out.extend_from_slice(row);
        }
        out
    }

    /// Compares with an f64 loop.
    fn check(self) {
        let got = self.run();
        let (x, w, bias, old) = self.inputs();
        // What this level computes with: it may round activations to bf16.
        let pairs = self.weight == DType::Bf16 && self.isa.has_pairs();
        let x: Vec<f32> =
            if pairs { x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect() } else { x };
        let unit = match self.out {
            DType::F16 => 2f64.powi(-11),
            DType::Bf16 => 2f64.powi(-8),
            _ => 2f64.powi(-23),
        };
        for i in 0..self.rows {
            for j in 0..self.n {
                let products = x[i * self.k..][..self.k].iter().zip(&w[j * self.k..][..self.k]);
                let (mut sum, mut size) = (0.0, 0.0);
                for (&x, &w) in products {
                    sum += f64::from(x) * f64::from(w);
                    size += (f64::from(x) * f64::from(w)).abs();
                }
                if self.bias {
                    sum += f64::from(bias[j]);
                }
                if self.gelu {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (sum + 0.044_715 * sum.powi(3));
                    sum = sum / 2.0 * (1.0 + u.tanh());
                }
                if self.accumulate {
                    sum += f64::from(old[i * self.n + j]);
                }
                let got = f64::from(got[i * self.n + j]);
                // Errors of a chain of roundings grow like the square root of its length at worst
                // here; then come a few operations and one rounding to the type of the output.
                let chain = size * 2f64.powi(-24) * (2.0 + (self.k as f64).sqrt());
                let bound = 1.2 * chain + sum.abs() * (unit + 1e-6) + 2e-7;
                assert!((got - sum).abs() <= bound, "{self:?} [{i}, {j}]: {got}, want {sum}");
            }
        }
    }
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn plain(isa: Isa) -> Case {
    Case {
        isa,
        threads: 2,
        rows: 7,
        n: 65,
        k: 33,
        weight: DType::F32,
        x: DType::F32,
        out: DType::F32,
        bias: false,
        gelu: false,
        accumulate: false,
        margin: 0,
    }
}

#[test]
fn ragged_sizes_are_exact_in_every_format() {
    for isa in Isa::available() {
        for weight in FLOATS {
            for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 33, 65] {
                for (n, k) in [(1, 1), (7, 33), (16, 256), (65, 65), (130, 257), (33, 600)] {
                    Case { rows, n, k, weight, ..plain(isa) }.check();
                }
            }
        }
    }
}

#[test]
fn every_epilogue_and_type_works_on_column_views_with_any_number_of_threads() {
    for isa in Isa::available() {
        for (i, (x, out)) in FLOATS.into_iter().flat_map(|x| FLOATS.map(|o| (x, o))).enumerate() {
            for flags in 0..8 {
                for rows in [1, 5, 29] {
                    Case {
                        threads: 1 + (flags + i) % 4,
                        rows,
                        n: 75,
                        k: 70,
                        weight: FLOATS[(i + flags) % 3],
                        x,
                        out,
                        bias: flags & 1 > 0,
                        gelu: flags & 2 > 0,
                        accumulate: flags & 4 > 0,
                        margin: 3,
                        ..plain(isa)
                    }
                    .check();
                }
            }
        }
    }
}

#[test]
fn a_picture_of_rows_is_exact() {
    for isa in Isa::available() {
        let case = Case { rows: 729, n: 300, k: 300, bias: true, gelu: true, ..plain(isa) };
        Case { weight: DType::Bf16, x: DType::Bf16, out: DType::Bf16, threads: 3, ..case }.check();
        Case { weight: DType::F16, threads: 4, ..case }.check();
    }
}

#[test]
fn a_row_does_not_depend_on_its_company_nor_on_the_threads() {
    for isa in Isa::available() {
        for weight in FLOATS {
            let case = Case { rows: 37, n: 200, k: 700, weight, ..plain(isa) };
            let batch = case.run();
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            // `noise` is a stream, so fewer rows are a prefix.
            for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 14] {
                for threads in [1, 3] {
                    let few = Case { rows, threads, ..case }.run();
                    assert_eq!(bits(&few), bits(&batch[..rows * 200]), "{rows} rows of {case:?}");
                }
            }
        }
    }
}

#[test]
fn a_row_alone_equals_itself_at_any_place_of_a_batch() {
    for isa in Isa::available() {
        for weight in FLOATS {
            let (n, k) = (130, 300);
            let cpu = Cpu::open(CpuOptions { threads: Some(2), isa: Some(isa) }).unwrap();
            let bytes = bytes_of(&noise(n * k, 2), weight);
            let format = WeightFormat::Float(weight);
            let w = cpu
                .weight(WeightData { count: 1, n, k, format, bytes: &bytes, scales: &[] })
                .unwrap();
            let x = tensor(&cpu, &noise(37 * k, 1), 37, DType::F32);
            let run = |x: &Tensor<Cpu>| {
                let mut out = Tensor::zeros(&cpu, [x.rows(), n], DType::F32).unwrap();
                let op = Linear {
                    out: &mut out,
                    x,
                    w: &w,
                    bias: None,
                    activation: Activation::GeluTanh,
                    accumulate: false,
                };
                linear(&cpu, op);
                contents(&out)
            };
            let batch = run(&x);
            for (row, want) in batch.chunks_exact(n * 4).enumerate() {
                assert_eq!(run(&x.row_range(row..row + 1)), want, "row {row}, {weight}");
            }
        }
    }
}

/// The layout for bf16 dot products, multiplied without the instruction: every level can do that.
#[test]
fn pairs_are_exact_without_the_instruction() {
    struct Emulated<'a> {
        pool: &'a Pool,
        dims: (usize, usize, usize),
        x: &'a Tensor<Cpu>,
        weights: &'a [bf16],
        out: &'a mut Tensor<Cpu>,
    }
    impl Op for Emulated<'_> {
        type Output = ();
        #[inline(always)]
        fn call<S: Simd>(self, s: S) {
            let Emulated { pool, dims: (rows, n, k), x, weights, out } = self;
            let product =
                Product::<S, tile::Pairs> { s, pool, n, k, weights, scales: Scales::NONE };
            let pack = |rows: (usize, usize), packed: &mut [bf16]| {
                let x = Rows::<f32>::new(x);
                layout::pack_activations::<S, tile::Pairs, f32>(
                    s,
                    pool,
                    x,
                    &|row| row,
                    rows,
                    packed,
                );
            };
            let (bias, activation) = (None, Activation::None);
            let epilogue = Epilogue::<f32> {
                out: RowsMut::new(out),
                members: None,
                scales: None,
                bias,
                activation,
                accumulate: false,
            };
            // SAFETY: `Product` stores each element once.
            product
                .compute(rows, &pack, &|piece| unsafe { finish::store_piece(s, &epilogue, piece) });
        }
    }
    let pool = Pool::new(2);
    let cpu = Cpu::open(CpuOptions { threads: Some(1), isa: Some(Isa::Portable) }).unwrap();
    let exact =
        |x: Vec<f32>| -> Vec<f32> { x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect() };
    for isa in Isa::available() {
        for (n, k) in [(1, 1), (65, 33), (130, 514), (64, 1025)] {
            let w = exact(noise(n * k, 2));
            let mut packed = vec![bf16::ZERO; Layout::Bf16Pairs.bytes((n, k), false).unwrap() / 2];
            let bytes = bytes_of(&w, DType::Bf16);
            layout::pack_weights::<tile::Pairs>(&pool, (n, k), &bytes, &mut packed);
            let mut first = Vec::new();
            for rows in [37, 1, 3, 6, 8] {
                let x = exact(noise(rows * k, 1));
                let x_tensor = tensor(&cpu, &x, rows, DType::F32);
                let mut out = Tensor::zeros(&cpu, [rows, n], DType::F32).unwrap();
                let dims = (rows, n, k);
                simd::dispatch(
                    isa,
                    Emulated { pool: &pool, dims, x: &x_tensor, weights: &packed, out: &mut out },
                );
                let got = floats_of(&contents(&out), DType::F32);
                for (at, &got) in got.iter().enumerate() {
                    let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
                    let want: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x * w)).sum();
                    let bound = 1e-7 * (k as f64 + 8.0);
                    assert!(
                        (f64::from(got) - want).abs() <= bound,
                        "{rows} {n} {k}: {got}, {want}"
                    );
                }
                if first.is_empty() {
                    first = got;
                } else {
                    assert_eq!(got, first[..rows * n], "{rows} rows of {n} x {k}");
                }
            }
        }
    }
}

/// Sums of integers are exact and what is done to them is the same, however many columns or rows an instruction has.
#[test]
fn products_of_bytes_have_the_same_bits_at_every_level() {
    let (n, k) = (130, 1090);
    for format in
        [WeightFormat::Int8, WeightFormat::Int4 { group: 32 }, WeightFormat::Int4 { group: 128 }]
    {
        let quantized = quant::quantize(format, k, &noise(n * k, 2)).unwrap();
        // As others may have quantized them: ends of groups are no bf16.
        let other: Vec<f32> = quantized.scales.iter().map(|scale| scale * 1.03).collect();
        let product = |isa: Isa, rows: usize, scales: &[f32]| {
            let cpu = Cpu::open(CpuOptions { threads: Some(2), isa: Some(isa) }).unwrap();
            let bytes = &quantized.bytes[..];
            let weight = cpu.weight(WeightData { count: 1, n, k, format, bytes, scales }).unwrap();
            let x = tensor(&cpu, &noise(rows * k, 1), rows, DType::F32);
            let mut out = Tensor::zeros(&cpu, [rows, n], DType::F32).unwrap();
            let (bias, activation) = (None, Activation::None);
            let op =
                Linear { out: &mut out, x: &x, w: &weight, bias, activation, accumulate: false };
            linear(&cpu, op);
            floats_of(&contents(&out), DType::F32)
        };
        let levels: Vec<_> = Isa::available().into_iter().filter(|isa| isa.has_bytes()).collect();
        for scales in [&quantized.scales, &other] {
            let first = levels.first().map_or_else(Vec::new, |&isa| product(isa, 13, scales));
            for &isa in &levels {
                for rows in [1, 2, 5, 8, 13] {
                    assert_eq!(
                        product(isa, rows, scales),
                        first[..rows * n],
                        "{}: {rows} rows of {format}",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn groups_whose_ends_are_bf16_take_a_word() {
    let (n, k) = (64, 256);
    let format = WeightFormat::Int4 { group: 32 };
    let mut quantized = quant::quantize(format, k, &noise(n * k, 2)).unwrap();
    for isa in Isa::available() {
        let cpu = Cpu::open(CpuOptions { threads: Some(1), isa: Some(isa) }).unwrap();
        let size = |scales: &[f32]| {
            let bytes = &quantized.bytes[..];
            cpu.weight(WeightData { count: 1, n, k, format, bytes, scales }).unwrap().matrix_bytes()
        };
        assert_eq!(size(&quantized.scales), n * (k / 2 + k / 32 * 4), "{}", isa.name());
        let mut scales = quantized.scales.clone();
        scales[77] += 1e-3;
        assert_eq!(size(&scales), n * (k / 2 + k / 32 * 8), "{}: one is no bf16", isa.name());
    }
    // Infinite: refused by what reads checkpoints, here to be kept as it is.
    quantized.scales[3] = f32::INFINITY;
    assert!(ends_of_groups(&quantized.scales).is_none());
}

#[test]
fn weights_pack_from_unaligned_bytes_and_unknown_formats_are_refused() {
    let cpu = Cpu::open(CpuOptions { threads: Some(2), isa: None }).unwrap();
    let (n, k) = (3, 5);
    let mut bytes = vec![0];
    bytes.extend(bytes_of(&noise(n * k, 2), DType::F16));
    let format = WeightFormat::Float(DType::F16);
    let data = WeightData { count: 1, n, k, format, bytes: &bytes[1..], scales: &[] };
    let weight = cpu.weight(data).unwrap();
    let mut packed = vec![0; weight.buffer().len()];
    weight.buffer().read(0, &mut packed);
    let packed: Vec<f16> = packed.chunks_exact(2).map(bytemuck::pod_read_unaligned).collect();
    for (at, x) in noise(n * k, 2).into_iter().enumerate() {
        assert_eq!(packed[at % k * PANEL + at / k], f16::from_f32(x));
    }
    let error =
        cpu.weight(WeightData { format: WeightFormat::Int4 { group: 20 }, ..data }).unwrap_err();
    assert_eq!(error.to_string(), "cpu has no kernel for int4 (groups of 20) weights");
}

#[test]
fn tasks_cover_the_output_and_keep_threads_equally_busy() {
    for threads in [1, 2, 3, 8, 16, 64] {
        for (panels, strips) in [(1, 2), (18, 122), (54, 122), (68, 122), (128, 128), (32, 300)] {
            let (p, s) = task_size(threads, (panels, strips), 8);
            assert!(p <= MAX_TASK.0 && s <= MAX_TASK.1);
            let rounds = (panels.div_ceil(p) * strips.div_ceil(s)).div_ceil(threads);
            let busy = (panels * strips) as f64 / (rounds * p * s * threads) as f64;
            let possible = panels * strips >= 16 * threads;
            assert!(busy > 0.8 || !possible, "{threads} {panels} {strips}: {p} {s} {busy}");
        }
    }
}
