//! The attentions of Moondream 2: of decoding rows by type of cache, in bytes of keys and values read; of a prompt of
//! 750 tokens and of a crop's 729 patches, in operations (Gelem/s is GFLOP/s).
//!
//! `cargo bench -p photon-cpu --bench attention -- [filter]`. 32 heads of 64 in the language model, each decoding row
//! with 770 positions of its own, and enough layers that they come from memory as in a model. The table at the end has all of
//! them beside what the machine does at most.
#![allow(unsafe_code, reason = "entering a function with vector instructions")]
#![allow(clippy::print_stdout, reason = "a table for the terminal")]

mod peak;

use std::time::Duration;

use criterion::Criterion;
use photon_core::{
    Arena, Attention, Cx, DType, Device, PagedAttention, Result, RopeStore, Tensor, kv,
};
use photon_cpu::{Cpu, CpuOptions};

use peak::{COLD_BYTES, Peak, Report};

const HEADS: usize = 32;
const HEAD_DIM: usize = 64;
const DIM: usize = HEADS * HEAD_DIM;
const BLOCK_SIZE: usize = 16;
const CONTEXT: usize = 770;

fn ints(cpu: &Cpu, values: impl IntoIterator<Item = usize>) -> Result<Tensor<Cpu>> {
    let bytes: Vec<u8> = values.into_iter().flat_map(|v| (v as i32).to_le_bytes()).collect();
    let t = Tensor::zeros(cpu, [bytes.len() / 4], DType::I32)?;
    cpu.upload(&mut cpu.stream()?, t.buffer(), 0, &bytes);
    Ok(t)
}

/// Caches of `layers` layers, every slot of which was stored through the operation a model uses.
fn caches(cpu: &Cpu, layers: usize, slots: usize, dtype: DType) -> Result<Vec<[Tensor<Cpu>; 2]>> {
    let (mut stream, mut arena) = (cpu.stream()?, Arena::new(cpu, 0)?);
    let mut qkv = Tensor::zeros(cpu, [slots, 3 * DIM], DType::F32)?;
    let wave = (0..slots * 3 * DIM).flat_map(|i| ((i % 997) as f32 * 0.37).sin().to_le_bytes());
    cpu.upload(&mut stream, qkv.buffer(), 0, &wave.collect::<Vec<u8>>());
    let (positions, all) = (ints(cpu, vec![0; slots])?, ints(cpu, 0..slots)?);
    let table = Tensor::zeros(cpu, [1, 32], DType::F32)?;
    let one = || Tensor::zeros(cpu, [slots, kv::row_len(dtype, HEADS, HEAD_DIM)], dtype);
    let mut layer = || {
        let (mut k, mut v) = (one()?, one()?);
        Cx::new(cpu, &mut stream, &mut arena).rope_store(RopeStore {
            qkv: &mut qkv,
            k_cache: &mut k,
            v_cache: &mut v,
            positions: &positions,
            slots: &all,
            table: &table,
            tau: None,
            heads: HEADS,
            kv_heads: HEADS,
            head_dim: HEAD_DIM,
        });
        Ok([k, v])
    };
    (0..layers).map(|_| layer()).collect()
}

/// A paged attention of rows of `tokens` tokens each, all of which see the row's first `seen` positions.
struct Paged {
    q: Tensor<Cpu>,
    out: Tensor<Cpu>,
    tables: Tensor<Cpu>,
    starts: Tensor<Cpu>,
    visible: Tensor<Cpu>,
}

impl Paged {
    fn new(cpu: &Cpu, rows: usize, tokens: usize, seen: usize, queries: DType) -> Result<Self> {
        let (blocks, count) = (seen.div_ceil(BLOCK_SIZE), rows * tokens);
        Ok(Paged {
            q: Tensor::zeros(cpu, [count, DIM], queries)?,
            out: Tensor::zeros(cpu, [count, DIM], queries)?,
            tables: ints(cpu, 0..rows * blocks)?.reshape([rows, blocks]),
            starts: ints(cpu, (0..=rows).map(|row| row * tokens))?,
            visible: ints(cpu, vec![seen; count])?,
        })
    }

    fn run(&mut self, cx: &mut Cx<'_, Cpu>, [k_cache, v_cache]: &[Tensor<Cpu>; 2]) {
        cx.paged_attention(PagedAttention {
            out: &mut self.out,
            q: &self.q,
            k_cache,
            v_cache,
            block_tables: &self.tables,
            row_starts: &self.starts,
            visible: &self.visible,
            block_size: BLOCK_SIZE,
            heads: HEADS,
            kv_heads: HEADS,
            scale: 0.125,
        });
    }
}

/// What an attention of many queries is bound by: the arithmetic it is done with.
fn arithmetic(cpu: &Cpu, queries: DType) -> Peak {
    if queries == DType::Bf16 && cpu.isa().has_pairs() { Peak::Pairs } else { Peak::Floats }
}

fn decode(c: &mut Criterion, report: &mut Report) {
    let cpu = Cpu::open(CpuOptions::default()).expect("a processor");
    let mut stream = cpu.stream().expect("a stream");
    let mut arena = Arena::new(&cpu, 0).expect("nothing");
    let mut group = c.benchmark_group(format!("decode attention, {}", cpu.name()));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for rows in [1, 16] {
        // Queries of 16 bits, with keys and values of 16 bits, are multiplied in pairs where the processor can.
        for (queries, dtype) in [
            (DType::F32, DType::F32),
            (DType::F32, DType::Bf16),
            (DType::Bf16, DType::Bf16),
            (DType::Bf16, DType::Fp8),
            (DType::Bf16, DType::Int8),
        ] {
            let blocks = CONTEXT.div_ceil(BLOCK_SIZE);
            // As large as caches are at least, so that they lie in huge pages.
            let slots = (rows * blocks * BLOCK_SIZE).max(4096);
            let row_bytes = kv::row_len(dtype, HEADS, HEAD_DIM) * dtype.size();
            let bytes = 2 * rows * CONTEXT * row_bytes;
            let layers = (COLD_BYTES / 2).div_ceil(bytes);
            let prepare = || {
                let caches = caches(&cpu, layers, slots, dtype).expect("memory");
                (caches, Paged::new(&cpu, rows, 1, CONTEXT, queries).expect("memory"))
            };
            let mut turn = 0;
            let name = format!("{rows} rows of {queries}, {dtype}");
            report.bench(&mut group, name, (bytes, Peak::Read), prepare, |(caches, paged)| {
                turn = (turn + 1) % layers;
                paged.run(&mut Cx::new(&cpu, &mut stream, &mut arena), &caches[turn]);
            });
        }
    }
    group.finish();
}

/// A prompt of a picture and a question, all of whose positions see each other.
fn prompt(c: &mut Criterion, report: &mut Report) {
    const TOKENS: usize = 750;
    let cpu = Cpu::open(CpuOptions::default()).expect("a processor");
    let (mut stream, mut arena) =
        (cpu.stream().expect("a stream"), Arena::new(&cpu, 0).expect("nothing"));
    let mut group = c.benchmark_group(format!("prompt attention, {}", cpu.name()));
    group.measurement_time(Duration::from_secs(3));
    for queries in [DType::F32, DType::Bf16] {
        let work = (4 * TOKENS * TOKENS * DIM, arithmetic(&cpu, queries));
        let prepare = || {
            let slots = TOKENS.next_multiple_of(BLOCK_SIZE);
            let caches = caches(&cpu, 1, slots, DType::Bf16).expect("memory");
            (caches, Paged::new(&cpu, 1, TOKENS, TOKENS, queries).expect("memory"))
        };
        let name = format!("{TOKENS} tokens of {queries}, bf16");
        report.bench(&mut group, name, work, prepare, |(caches, paged)| {
            paged.run(&mut Cx::new(&cpu, &mut stream, &mut arena), &caches[0]);
        });
    }
    group.finish();
}

/// One crop: 16 heads of 72.
fn vision(c: &mut Criterion, report: &mut Report) {
    const PATCHES: usize = 729;
    const WIDTH: usize = 16 * 72;
    let cpu = Cpu::open(CpuOptions::default()).expect("a processor");
    let (mut stream, mut arena) =
        (cpu.stream().expect("a stream"), Arena::new(&cpu, 0).expect("nothing"));
    let mut group = c.benchmark_group(format!("vision attention, {}", cpu.name()));
    group.measurement_time(Duration::from_secs(3));
    for dtype in [DType::F32, DType::Bf16] {
        let work = (4 * PATCHES * PATCHES * WIDTH, arithmetic(&cpu, dtype));
        let tensor = |cols| Tensor::zeros(&cpu, [PATCHES, cols], dtype).expect("memory");
        let prepare = || (tensor(3 * WIDTH), tensor(WIDTH));
        let name = format!("{PATCHES} patches of {dtype}");
        report.bench(&mut group, name, work, prepare, |(qkv, out)| {
            Cx::new(&cpu, &mut stream, &mut arena).attention(Attention {
                out,
                qkv,
                seq_len: PATCHES,
                heads: 16,
                scale: 0.118,
            });
        });
    }
    group.finish();
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut report = Report::new();
    decode(&mut c, &mut report);
    prompt(&mut c, &mut report);
    vision(&mut c, &mut report);
    c.final_summary();
    println!("{report}");
}
