//! Matrix products of the models' shapes, beside the machine's peaks measured in the same run.
//!
//! `cargo bench -p photon-cpu --bench linear -- [filter]`. Products of many rows are given in
//! operations (Gelem/s is GFLOP/s), of few rows in bytes of weights; `peak` holds the ceilings of both.
//! Weights are cycled through 256 MiB of copies, so that they come from memory as in a model.
#![allow(unsafe_code, reason = "entering a function with vector instructions")]
#![allow(missing_docs, reason = "criterion's macros")]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use photon_core::{
    Activation, Arena, Cx, DType, Device, Linear, Tensor, Weight, WeightData, WeightFormat,
};
use photon_cpu::{Cpu, CpuOptions};

const MANY: [[usize; 3]; 5] =
    [[729, 1152, 1152], [729, 1152, 3456], [729, 1152, 4304], [729, 4304, 1152], [768, 2048, 8192]];
const FEW: [[usize; 3]; 5] =
    [[1, 2048, 6144], [1, 2048, 8192], [1, 2048, 51200], [4, 2048, 8192], [8, 2048, 8192]];
/// More than last-level caches hold.
const COLD_BYTES: usize = 256 << 20;

const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Float(DType::Bf16),
    WeightFormat::Float(DType::F32),
    WeightFormat::Int8,
    WeightFormat::Fp8,
    WeightFormat::Int4 { group: 128 },
    WeightFormat::Int4 { group: 32 },
];

fn weights(cpu: &Cpu, n: usize, k: usize, format: WeightFormat, copies: usize) -> Vec<Weight<Cpu>> {
    // 0.0115 as bf16 and as f32, 1.06 as f16: not subnormal in any.
    let (bytes, scales) =
        (vec![0x3c; n * format.row_bytes(k)], vec![0.01; n * format.row_scales(k)]);
    let data = WeightData { count: 1, n, k, format, bytes: &bytes, scales: &scales };
    (0..copies).map(|_| cpu.weight(data).expect("memory for weights")).collect()
}

fn products(c: &mut Criterion) {
    let cpu = Cpu::open(CpuOptions::default()).expect("a processor");
    let mut stream = cpu.stream().expect("a stream");
    let mut group = c.benchmark_group(format!("linear, {}", cpu.name()));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    group.sample_size(15);
    for ([rows, k, n], many) in MANY.map(|s| (s, true)).into_iter().chain(FEW.map(|s| (s, false))) {
        for format in FORMATS {
            let weight_bytes = n * (format.row_bytes(k) + 4 * format.row_scales(k));
            let dtype = if let WeightFormat::Float(dtype) = format { dtype } else { DType::F32 };
            group.throughput(if many {
                Throughput::Elements((2 * rows * n * k) as u64)
            } else {
                Throughput::Bytes(weight_bytes as u64)
            });
            let mut prepared = None;
            group.bench_function(format!("[{rows}, {k}] x [{n}, {k}] {format}"), |b| {
                let (weights, x, out, arena) = prepared.get_or_insert_with(|| {
                    let copies = if many { 1 } else { COLD_BYTES.div_ceil(weight_bytes) };
                    let tensor = |cols| Tensor::zeros(&cpu, [rows, cols], dtype).expect("memory");
                    let arena = Arena::new(&cpu, 0).expect("nothing");
                    (weights(&cpu, n, k, format, copies), tensor(k), tensor(n), arena)
                });
                let mut turn = 0;
                b.iter(|| {
                    turn = (turn + 1) % weights.len();
                    let activation = Activation::None;
                    let w = &weights[turn];
                    let op = Linear { out, x, w, bias: None, activation, accumulate: false };
                    Cx::new(&cpu, &mut stream, arena).linear(op);
                });
            });
        }
    }
    group.finish();
}

fn on_all_threads(work: impl Fn(usize) + Sync, threads: usize) {
    std::thread::scope(|scope| {
        for i in 1..threads {
            let work = &work;
            scope.spawn(move || work(i));
        }
        work(0);
    });
}

fn peaks(c: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = c.benchmark_group(format!("peak, {threads} threads"));
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    let memory: Vec<u64> = (0..COLD_BYTES as u64 / 8).collect();
    let part = memory.len() / threads;
    group.throughput(Throughput::Bytes((part * threads * 8) as u64));
    group.bench_function("read", |b| {
        b.iter(|| {
            let read = |i| {
                let sum = memory[i * part..(i + 1) * part].iter().fold(0, |sum, x| sum ^ x);
                black_box(sum);
            };
            on_all_threads(read, threads);
        });
    });
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        const STEPS: usize = 2_000_000;
        group.throughput(Throughput::Elements((STEPS * multiply_add::FLOPS * threads) as u64));
        group.bench_function("f32 multiply-add, 256 bits", |b| {
            b.iter(|| {
                let work = |_| {
                    // SAFETY: the processor has the instructions: asked above.
                    black_box(unsafe { multiply_add::chains(STEPS) });
                };
                on_all_threads(work, threads);
            });
        });
    }
    group.finish();
}

#[cfg(target_arch = "x86_64")]
mod multiply_add {
    use std::{
        arch::x86_64::{__m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_set1_ps},
        hint::black_box,
    };

    const CHAINS: usize = 12;
    /// Operations of a step.
    pub(super) const FLOPS: usize = CHAINS * 8 * 2;

    /// Enough independent chains to keep two units of latency four or five busy.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn chains(steps: usize) -> __m256 {
        // Unknown to the compiler, or it would see that all chains are one.
        let mut acc = black_box([_mm256_set1_ps(1.0); CHAINS]);
        let (a, b) = (_mm256_set1_ps(1.0 - 1e-7), _mm256_set1_ps(1e-7));
        for _ in 0..steps {
            for acc in &mut acc {
                *acc = _mm256_fmadd_ps(*acc, a, b);
            }
        }
        acc.into_iter().fold(_mm256_set1_ps(0.0), |sum, x| _mm256_add_ps(sum, x))
    }
}

criterion_group!(benches, peaks, products);
criterion_main!(benches);
