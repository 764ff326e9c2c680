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
            // Quantized weights meet activations of 16 bits, as in a model.
            let dtype = if let WeightFormat::Float(dtype) = format { dtype } else { DType::Bf16 };
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

/// What sharing a loop costs: two panels of nothing to do, on one thread and on all.
fn fork_and_join(c: &mut Criterion) {
    let mut group = c.benchmark_group("fork and join");
    for threads in [Some(1), None] {
        let cpu = Cpu::open(CpuOptions { threads, isa: None }).expect("a processor");
        let mut stream = cpu.stream().expect("a stream");
        let mut arena = Arena::new(&cpu, 0).expect("nothing");
        let tensor = |cols| Tensor::zeros(&cpu, [1, cols], DType::F32).expect("memory");
        let (x, mut out) = (tensor(8), tensor(128));
        let w = &weights(&cpu, 128, 8, WeightFormat::Float(DType::F32), 1)[0];
        group.bench_function(cpu.name(), |b| {
            b.iter(|| {
                let activation = Activation::None;
                let op =
                    Linear { out: &mut out, x: &x, w, bias: None, activation, accumulate: false };
                Cx::new(&cpu, &mut stream, &mut arena).linear(op);
            });
        });
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
    let cpu = Cpu::open(CpuOptions::default()).expect("a processor");
    // As weights lie: in huge pages, touched once.
    let memory = cpu.alloc(COLD_BYTES).expect("memory");
    cpu.upload(&mut cpu.stream().expect("a stream"), &memory, 0, &vec![1; COLD_BYTES]);
    let part = COLD_BYTES / threads;
    group.throughput(Throughput::Bytes((part * threads) as u64));
    group.bench_function("read", |b| {
        b.iter(|| {
            on_all_threads(
                |i| {
                    // SAFETY: thread `i` of `threads` reads its part of live memory, which nobody writes.
                    let part = unsafe {
                        std::slice::from_raw_parts(memory.as_ptr().wrapping_add(i * part), part)
                    };
                    black_box(read(part));
                },
                threads,
            );
        });
    });
    #[cfg(target_arch = "x86_64")]
    for (name, has, chains, operations) in multiply_add::KINDS {
        const STEPS: usize = 2_000_000;
        if !has() {
            continue;
        }
        group.throughput(Throughput::Elements((STEPS * operations * threads) as u64));
        group.bench_function(name, |b| {
            // SAFETY: the processor has the instructions: asked above.
            b.iter(|| on_all_threads(|_| unsafe { chains(STEPS) }, threads));
        });
    }
    group.finish();
}

/// Reads all of it, as fast as it comes: asked for well ahead, since the hardware's prefetcher stops at pages.
fn read(bytes: &[u8]) -> u64 {
    const AHEAD: usize = 4096;
    let mut sums = [0u64; 8];
    for line in bytes.chunks_exact(64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch of any address is allowed.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_NTA>(line.as_ptr().wrapping_add(AHEAD).cast());
        }
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum ^= u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// As many multiplications and additions as registers allow, for each kind of instruction.
#[cfg(target_arch = "x86_64")]
mod multiply_add {
    use std::{arch::x86_64::*, hint::black_box};

    /// Enough independent chains to keep two units of latency four or five busy.
    const CHAINS: usize = 12;

    type Kind = (&'static str, fn() -> bool, unsafe fn(usize), usize);
    /// What to call it, whether this processor has it, so many steps of it, and operations of a step.
    pub(super) const KINDS: [Kind; 4] = [
        (
            "f32, 256 bits",
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            f32_256,
            CHAINS * 8 * 2,
        ),
        ("f32, 512 bits", || is_x86_feature_detected!("avx512f"), f32_512, CHAINS * 16 * 2),
        (
            "pairs of bf16, 512 bits",
            || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
            pairs,
            CHAINS * 32 * 2,
        ),
        (
            "bytes in fours, 512 bits",
            || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"),
            quads,
            CHAINS * 64 * 2,
        ),
    ];

    macro_rules! chains {
        ($name:ident, $features:literal, $one:expr, |$acc:ident, $factor:ident| $step:expr) => {
            #[target_feature(enable = $features)]
            fn $name(steps: usize) {
                // Unknown to the compiler, or it would see that all chains are one.
                let mut all = black_box([$one; CHAINS]);
                let $factor = black_box($one);
                for _ in 0..steps {
                    for $acc in &mut all {
                        *$acc = $step;
                    }
                }
                black_box(all);
            }
        };
    }
    chains!(f32_256, "avx2,fma", _mm256_set1_ps(1.0), |acc, x| _mm256_fmadd_ps(*acc, x, x));
    chains!(f32_512, "avx512f", _mm512_set1_ps(1.0), |acc, x| _mm512_fmadd_ps(*acc, x, x));
    chains!(pairs, "avx512f,avx512bf16", _mm512_set1_ps(1.0), |acc, x| {
        // SAFETY: any bits are valid for both types, of 64 bytes.
        let pairs = unsafe { std::mem::transmute::<__m512, __m512bh>(x) };
        _mm512_dpbf16_ps(*acc, pairs, pairs)
    });
    chains!(quads, "avx512f,avx512vnni", _mm512_set1_epi32(1), |acc, x| {
        _mm512_dpbusd_epi32(*acc, x, x)
    });
}

criterion_group!(benches, peaks, fork_and_join, products);
criterion_main!(benches);
