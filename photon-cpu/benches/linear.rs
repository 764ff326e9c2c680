//! Matrix products of the models' shapes, and what sharing a loop costs, beside what the machine does at most.
//!
//! `cargo bench -p photon-cpu --bench linear -- [filter]`. Products of many rows are given in
//! operations (Gelem/s is GFLOP/s), of few rows in bytes of weights; the table at the end has them all.
//! Weights are cycled through 256 MiB of copies, so that they come from memory as in a model.
#![allow(unsafe_code, reason = "entering a function with vector instructions")]
#![allow(clippy::print_stdout, reason = "a table for the terminal")]

mod peak;

use std::time::{Duration, Instant};

use criterion::Criterion;
use photon_core::{
    Activation, Arena, Cx, DType, Device, Linear, Tensor, Weight, WeightData, WeightFormat,
};
use photon_cpu::{Cpu, CpuOptions};

use peak::{COLD_BYTES, Peak, Report};

const MANY: [[usize; 3]; 5] =
    [[729, 1152, 1152], [729, 1152, 3456], [729, 1152, 4304], [729, 4304, 1152], [768, 2048, 8192]];
const FEW: [[usize; 3]; 5] =
    [[1, 2048, 6144], [1, 2048, 8192], [1, 2048, 51200], [4, 2048, 8192], [8, 2048, 8192]];
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
    let bytes = vec![0x3c; n * format.row_bytes(k)];
    // With ends of groups that are bf16, as of weights that were.
    let scales: Vec<f32> =
        [0.0625, -0.5].into_iter().cycle().take(n * format.row_scales(k)).collect();
    let data = WeightData { count: 1, n, k, format, bytes: &bytes, scales: &scales };
    (0..copies).map(|_| cpu.weight(data).expect("memory for weights")).collect()
}

/// What a product of many rows is bound by: the arithmetic it is done with.
fn arithmetic(cpu: &Cpu, format: WeightFormat) -> Peak {
    match format {
        WeightFormat::Float(DType::Bf16) if cpu.isa().has_pairs() => Peak::Pairs,
        WeightFormat::Int8 | WeightFormat::Int4 { .. } if cpu.isa().has_bytes() => Peak::Bytes,
        _ => Peak::Floats,
    }
}

fn products(c: &mut Criterion, report: &mut Report) {
    let cpu = Cpu::open(CpuOptions::default()).expect("a processor");
    let mut stream = cpu.stream().expect("a stream");
    let mut group = c.benchmark_group(format!("linear, {}", cpu.name()));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for ([rows, k, n], many) in MANY.map(|s| (s, true)).into_iter().chain(FEW.map(|s| (s, false))) {
        for format in FORMATS {
            let weight_bytes = weights(&cpu, n, k, format, 1)[0].matrix_bytes();
            // Quantized weights meet activations of 16 bits, as in a model.
            let dtype = if let WeightFormat::Float(dtype) = format { dtype } else { DType::Bf16 };
            let (work, copies) = match many {
                true => ((2 * rows * n * k, arithmetic(&cpu, format)), 1),
                false => ((weight_bytes, Peak::Read), COLD_BYTES.div_ceil(weight_bytes)),
            };
            let prepare = || {
                let tensor = |cols| Tensor::zeros(&cpu, [rows, cols], dtype).expect("memory");
                let arena = Arena::new(&cpu, 0).expect("nothing");
                (weights(&cpu, n, k, format, copies), tensor(k), tensor(n), arena)
            };
            let mut turn = 0;
            let name = format!("[{rows}, {k}] x [{n}, {k}] {format}");
            report.bench(&mut group, name, work, prepare, |(weights, x, out, arena)| {
                turn = (turn + 1) % copies;
                let (activation, w) = (Activation::None, &weights[turn]);
                let op = Linear { out, x, w, bias: None, activation, accumulate: false };
                Cx::new(&cpu, &mut stream, arena).linear(op);
            });
        }
    }
    group.finish();
}

/// What sharing a loop costs: two panels of nothing to do, on one thread and on all. Beside it, how soon a line of
/// cache goes from one thread to another and back. Then what a loop costs that comes a while after the last, when
/// threads may be asleep: between a model's loops there is what one thread does alone.
fn fork_and_join(c: &mut Criterion, report: &mut Report) {
    const PAUSE: Duration = Duration::from_micros(20);
    let mut group = c.benchmark_group("fork and join");
    for threads in [Some(1), None] {
        let cpu = Cpu::open(CpuOptions { threads, isa: None }).expect("a processor");
        let mut stream = cpu.stream().expect("a stream");
        let tensor = |cols| Tensor::zeros(&cpu, [1, cols], DType::F32).expect("memory");
        let prepare = || {
            let w = weights(&cpu, 128, 8, WeightFormat::Float(DType::F32), 1);
            (w, tensor(8), tensor(128), Arena::new(&cpu, 0).expect("nothing"))
        };
        let mut share = |(w, x, out, arena): &mut (Vec<Weight<Cpu>>, _, _, _)| {
            let (activation, w) = (Activation::None, &w[0]);
            let op = Linear { out, x, w, bias: None, activation, accumulate: false };
            Cx::new(&cpu, &mut stream, arena).linear(op);
        };
        let mut prepared = prepare();
        if threads.is_none() {
            let name = format!("fork and join, {}", cpu.name());
            report.bench(&mut group, name, (1, Peak::HandOver), prepare, &mut share);
        } else {
            group.bench_function(cpu.name(), |b| b.iter(|| share(&mut prepared)));
        }
        group.bench_function(format!("{PAUSE:?} after the last, {}", cpu.name()), |b| {
            b.iter_custom(|count| {
                let one = |_| {
                    let paused = Instant::now();
                    while paused.elapsed() < PAUSE {}
                    let begun = Instant::now();
                    share(&mut prepared);
                    begun.elapsed()
                };
                (0..count).map(one).sum()
            });
        });
    }
    group.finish();
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new();
    fork_and_join(&mut c, &mut report);
    products(&mut c, &mut report);
    c.final_summary();
    println!("{report}");
}
