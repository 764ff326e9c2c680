//! Memory, ordering, replay and the checks of [`Cx`].
use std::panic::{AssertUnwindSafe, catch_unwind};

use photon_core::{
    Activation, Arena, Attention, Copy, Cx, DType, Error, Fourier, Gather, Kernels, LayerNorm,
    Linear, Masks, PagedAttention, PatchEmbed, Patchify, RopeStore, Sample, SampleParams, Scatter,
    StitchPool, Tau, Tensor, Tile, Weight, WeightData, WeightFormat,
};

use crate::{
    Options,
    rig::{Gaps, Label, Rig, Want, encode, skip},
    rng::Rng,
};

fn label(about: impl Into<String>) -> Label {
    Label { op: "device", about: about.into(), seed: 0 }
}

fn read<D: Kernels>(device: &D, stream: &mut D::Stream, from: &D::Buffer, bytes: usize) -> Vec<u8> {
    let host = device.host_buffer(bytes).expect("a host buffer");
    let pending = device.read_back(stream, from, 0..bytes, host).expect("a read-back");
    pending.wait().expect("finished work").as_ref()[..bytes].to_vec()
}

/// A name to log, and free memory that is part of the total.
pub(crate) fn names_itself<D: Kernels>(device: &D, _: &Options) {
    let name = device.name();
    assert!(!name.trim().is_empty() && !name.contains('\n'), "name {name:?}");
    let memory = device.memory();
    assert!(0 < memory.free_bytes && memory.free_bytes <= memory.total_bytes, "{name}: {memory:?}");
}

/// New memory is zero, and memory of another buffer is other memory.
pub(crate) fn memory_starts_as_zero<D: Kernels>(device: &D, _: &Options) {
    let stream = &mut device.stream().expect("a stream");
    for bytes in [1, 255, 4096, 100_001] {
        for round in 0..3 {
            let buffer = device.alloc(bytes).expect("memory");
            let got = read(device, stream, &buffer, bytes);
            let dirty = got.iter().position(|&b| b != 0);
            assert_eq!(dirty, None, "round {round}: byte of {bytes} that is not zero");
            // Dropped dirty, so that memory handed out again would show.
            device.upload(stream, &buffer, 0, &vec![0xEE; bytes]);
            assert_eq!(read(device, stream, &buffer, bytes), vec![0xEE; bytes]);
        }
    }
    let empty = device.alloc(0).expect("no memory at all is allowed");
    device.upload(stream, &empty, 0, &[]);
    assert_eq!(read(device, stream, &empty, 0), []);
}

/// More memory than there is, is an error with the numbers in it.
pub(crate) fn absurd_allocations_fail<D: Kernels>(device: &D, _: &Options) {
    for bytes in [1usize << 52, isize::MAX as usize, usize::MAX] {
        match device.alloc(bytes) {
            Err(Error::OutOfMemory { requested_bytes, .. }) => {
                assert_eq!(requested_bytes, bytes as u64, "bytes named in the error");
            }
            Err(other) => panic!("alloc({bytes}): want OutOfMemory, got {other}"),
            Ok(_) => panic!("alloc({bytes}) succeeded"),
        }
    }
    device.alloc(64).expect("the device still works");
}

/// Uploads happen in order, at their offsets, from bytes that may be reused at once; a read-back sees
/// what was recorded before it and nothing that was recorded after.
pub(crate) fn uploads_and_read_backs_keep_order<D: Kernels>(device: &D, _: &Options) {
    let stream = &mut device.stream().expect("a stream");
    let size = 1000;
    let buffer = device.alloc(size).expect("memory");
    let mut model = vec![0u8; size];
    let mut pendings = Vec::new();
    let rng = &mut Rng::new(1);
    let mut source = vec![0u8; size];
    for step in 0..200 {
        let start = rng.below(size);
        let len = rng.below(size - start + 1);
        source[..len].fill_with(|| rng.bits() as u8);
        device.upload(stream, &buffer, start, &source[..len]);
        model[start..start + len].copy_from_slice(&source[..len]);
        source.fill(0xDD);
        if step % 7 == 0 {
            let from = rng.below(size);
            let host = device.host_buffer(size).expect("a host buffer");
            let pending = device.read_back(stream, &buffer, from..size, host).expect("a read-back");
            if step % 3 == 0 {
                drop(pending); // Waits, and nobody looks.
            } else {
                pendings.push((step, from, pending, model[from..].to_vec()));
            }
        }
    }
    for (step, from, pending, want) in pendings.into_iter().rev() {
        let host = pending.wait().expect("finished work");
        let got = &host.as_ref()[..want.len()];
        let wrong = got.iter().zip(&want).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "read-back at step {step} from {from}: first wrong byte");
    }
}

/// Host memory is as large as asked for and can be written.
pub(crate) fn host_buffers_hold_bytes<D: Kernels>(device: &D, _: &Options) {
    for bytes in [0, 1, 4096, 100_001] {
        let mut host = device.host_buffer(bytes).expect("a host buffer");
        assert_eq!(host.as_ref().len(), bytes);
        host.as_mut().fill(3);
        assert!(host.as_ref().iter().all(|&b| b == 3));
    }
}

/// `out = x w^T`, with x known to the caller.
struct Job<D: Kernels> {
    x: Tensor<D>,
    w: Weight<D>,
    out: Tensor<D>,
    w_values: Vec<f32>,
}

const ROWS: usize = 3;
const N: usize = 33;
const K: usize = 17;

impl<D: Kernels> Job<D> {
    fn new(device: &D, options: &Options, seed: u64) -> Self {
        // Small whole numbers: every type holds them and their sums of products exactly.
        let rng = &mut Rng::new(seed);
        let w_values: Vec<f32> = (0..N * K).map(|_| rng.below(5) as f32 - 2.0).collect();
        let dtype = options.float_weight();
        let bytes: Vec<u8> = w_values
            .iter()
            .flat_map(|v| encode(*v, dtype).into_iter().take(dtype.size()))
            .collect();
        let format = WeightFormat::Float(dtype);
        let data = WeightData { count: 1, n: N, k: K, format, bytes: &bytes, scales: &[] };
        Job {
            x: Tensor::zeros(device, [ROWS, K], options.float(0)).expect("memory"),
            w: device.weight(data).expect("a weight in a format the options list"),
            out: Tensor::zeros(device, [ROWS, N], options.float(0)).expect("memory"),
            w_values,
        }
    }

    fn x_values(&self, seed: u64) -> Vec<f32> {
        let rng = &mut Rng::new(seed);
        (0..ROWS * K).map(|_| rng.below(7) as f32 - 3.0).collect()
    }

    fn upload(&self, device: &D, stream: &mut D::Stream, seed: u64) {
        let dtype = self.x.dtype();
        let values = self.x_values(seed);
        let bytes: Vec<u8> =
            values.iter().flat_map(|v| encode(*v, dtype).into_iter().take(dtype.size())).collect();
        device.upload(stream, self.x.buffer(), 0, &bytes);
    }

    fn record(&mut self, cx: &mut Cx<'_, D>) {
        cx.linear(Linear {
            out: &mut self.out,
            x: &self.x,
            w: &self.w,
            bias: None,
            activation: Activation::None,
            accumulate: false,
        });
    }

    fn want(&self, seed: u64) -> Vec<u8> {
        let x = self.x_values(seed);
        let dtype = self.out.dtype();
        let dot = |i: usize, j: usize| -> f32 {
            (0..K).map(|k| x[i * K + k] * self.w_values[j * K + k]).sum()
        };
        let outs = (0..ROWS * N).map(|at| dot(at / N, at % N));
        outs.flat_map(|v| encode(v + 0.0, dtype).into_iter().take(dtype.size())).collect()
    }

    fn read(&self, device: &D, stream: &mut D::Stream) -> Vec<u8> {
        read(device, stream, self.out.buffer(), ROWS * N * self.out.dtype().size())
    }
}

/// Many streams of many threads at once, each with work of its own.
pub(crate) fn streams_are_independent<D: Kernels>(device: &D, options: &Options) {
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            scope.spawn(move || {
                let mut jobs: Vec<_> = (0..2)
                    .map(|i| {
                        let stream = device.stream().expect("a stream");
                        let arena = Arena::new(device, 0).expect("an empty arena");
                        (Job::new(device, options, thread * 10 + i), stream, arena)
                    })
                    .collect();
                for round in 0..20u64 {
                    for (job, stream, arena) in &mut jobs {
                        job.upload(device, stream, thread * 1000 + round);
                        job.record(&mut Cx::new(device, stream, arena));
                    }
                    for (job, stream, _) in jobs.iter_mut().rev() {
                        let got = job.read(device, stream);
                        let want = job.want(thread * 1000 + round);
                        assert!(got == want, "thread {thread}, round {round}: wrong product");
                    }
                }
            });
        }
    });
}

/// An event may be waited for by another thread, several times, in any order, and after it fired the
/// work before it is visible to other streams.
pub(crate) fn events_are_waited_for_elsewhere<D: Kernels>(device: &D, options: &Options) {
    let mut job = Job::new(device, options, 5);
    let mut stream = device.stream().expect("a stream");
    let mut arena = Arena::new(device, 0).expect("an empty arena");
    for round in 0..20 {
        job.upload(device, &mut stream, round);
        let uploaded = device.submit(&mut stream).expect("submitted");
        job.record(&mut Cx::new(device, &mut stream, &mut arena));
        let done = device.submit(&mut stream).expect("submitted");
        let got = std::thread::scope(|scope| {
            let (job, done) = (&job, done);
            scope
                .spawn(move || {
                    device.wait(&done).expect("finished work");
                    device.wait(&done).expect("finished work, once more");
                    let mut other = device.stream().expect("a stream");
                    job.read(device, &mut other)
                })
                .join()
                .expect("the waiting thread")
        });
        device.wait(&uploaded).expect("an earlier event, later");
        assert!(got == job.want(round), "round {round}: another thread saw other numbers");
    }
    let nothing = device.submit(&mut stream).expect("submitting nothing");
    device.wait(&nothing).expect("waiting for nothing");
}

/// Capturing runs nothing; each replay reads the inputs as they are then; a graph keeps alive what it
/// touches.
pub(crate) fn replay_equals_eager<D: Kernels>(device: &D, options: &Options) {
    let mut job = Job::new(device, options, 7);
    let stream = &mut device.stream().expect("a stream");
    let mut arena = Arena::new(device, 0).expect("an empty arena");
    let bytes = ROWS * N * job.out.dtype().size();
    job.upload(device, stream, 1);
    device.upload(stream, job.out.buffer(), 0, &vec![0x77; bytes]);
    let mut num_calls = 0;
    let graph = device
        .capture(stream, &mut |stream| {
            num_calls += 1;
            job.record(&mut Cx::new(device, stream, &mut arena));
        })
        .expect("capture");
    let Some(graph) = graph else {
        assert_eq!(num_calls, 0, "capture is not supported, yet it recorded");
        return skip("device_replay_equals_eager", &device.name(), "capture is not supported");
    };
    assert_eq!(num_calls, 1, "captured by one recording");
    assert!(job.read(device, stream) == vec![0x77; bytes], "capturing ran the work");
    for seed in 1..20 {
        job.upload(device, stream, seed);
        if seed % 4 == 0 {
            job.record(&mut Cx::new(device, stream, &mut arena)); // Eager work in between.
        } else {
            device.replay(stream, &graph);
        }
        assert!(job.read(device, stream) == job.want(seed), "replay with inputs {seed}");
    }
    // Two replays without anyone waiting in between, and inputs that change between them.
    job.upload(device, stream, 100);
    device.replay(stream, &graph);
    let host = device.host_buffer(bytes).expect("a host buffer");
    let first = device.read_back(stream, job.out.buffer(), 0..bytes, host).expect("a read-back");
    job.upload(device, stream, 101);
    device.replay(stream, &graph);
    assert!(job.read(device, stream) == job.want(101), "the second of two replays");
    assert!(first.wait().expect("finished work").as_ref() == job.want(100), "the first of two");
    // On another stream, too.
    let other = &mut device.stream().expect("a stream");
    job.upload(device, other, 102);
    device.replay(other, &graph);
    assert!(job.read(device, other) == job.want(102), "replay on another stream");

    job.upload(device, stream, 103);
    let want = job.want(103);
    let Job { x, w, out, .. } = job;
    let buffer = out.buffer().clone();
    let submitted = device.submit(stream).expect("submitted");
    device.wait(&submitted).expect("finished work");
    drop((x, w, out, arena));
    // Whatever reuses freed memory would be seen.
    let _dirt: Vec<_> = (0..8)
        .map(|_| {
            let dirt = device.alloc(bytes).expect("memory");
            device.upload(stream, &dirt, 0, &vec![0x55; bytes]);
            dirt
        })
        .collect();
    device.upload(stream, &buffer, 0, &vec![0; bytes]);
    device.replay(stream, &graph);
    assert!(read(device, stream, &buffer, bytes) == want, "replay after its tensors were dropped");
}

/// Every float operation accepts no rows at all and does nothing.
pub(crate) fn zero_rows_are_nothing<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let rng = &mut Rng::new(3);
    let f = options.float(0);
    let label = label("zero rows");
    let (w, _) = rig.weight(8, 12, options.weight(0), rng);
    let f32s = |rig: &mut Rig<'_, D>, rows: usize, cols: usize| {
        rig.input("f32", [rows, cols], DType::F32, &vec![1.0; rows * cols])
    };
    let floats = |rig: &mut Rig<'_, D>, cols| rig.output("none", [0, cols], f, Gaps::NONE);
    let eight = f32s(rig, 1, 8);
    let table = f32s(rig, 4, 8);
    let square = f32s(rig, 4, 4);
    let ids = rig.indices("ids", [0], &[]);
    let crops = rig.bytes("crops", [0, 4, 4, 3], &[]);
    let params = rig.bytes("params", [0, size_of::<SampleParams>()], &[]);
    let mask = rig.indices("masks", [1, 1], &[-1]);
    let mut none: Vec<_> = [8, 12, 24].into_iter().map(|cols| floats(rig, cols)).collect();
    let mut caches = [
        rig.in_out("k_cache", [16, 8], f, Gaps::NONE, &[1.0; 128]),
        rig.in_out("v_cache", [16, 8], f, Gaps::NONE, &[1.0; 128]),
    ];
    let mut num_rows = rig.in_out("rows", [3, 8], f, Gaps::NONE, &[2.0; 24]);
    let zero = rig.indices("row_starts", [1], &[0]);
    let tables = rig.indices("block_tables", [0, 2], &[]);
    let mut int_out = rig.output("ids", [0], DType::I32, Gaps::NONE);
    let mut f32_out = rig.output("logprobs", [0], DType::F32, Gaps::NONE);
    rig.record(|cx| {
        let [out8, out12, out24] = &mut none[..] else { unreachable!("three of them") };
        let (x8, x12, x24) = (out8.t.view(), out12.t.view(), out24.t.view());
        cx.linear(Linear {
            out: &mut out8.t,
            x: &x12,
            w: &w,
            bias: Some(&eight.t),
            activation: Activation::GeluTanh,
            accumulate: true,
        });
        let (w8, b8) = (&eight.t, &eight.t);
        cx.layer_norm(LayerNorm { out: &mut out8.t, x: &x8, w: w8, b: b8, eps: 1e-5 });
        cx.patchify(Patchify { out: &mut out12.t, crops: &crops.t, patch: 2 });
        cx.tile(Tile { out: &mut out8.t, x: &table.t });
        cx.patch_embed(PatchEmbed {
            out: &mut out8.t,
            crops: &crops.t,
            patch: 2,
            w: &w,
            bias: &eight.t,
            positions: &table.t,
            scratch: &mut out12.t,
        });
        cx.attention(Attention { out: &mut out8.t, qkv: &x24, seq_len: 5, heads: 2, scale: 1.0 });
        let [k_cache, v_cache] = &mut caches;
        cx.rope_store(RopeStore {
            qkv: &mut out24.t,
            k_cache: &mut k_cache.t,
            v_cache: &mut v_cache.t,
            positions: &ids.t,
            slots: &ids.t,
            table: &table.t,
            tau: None,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
        });
        cx.paged_attention(PagedAttention {
            out: &mut out8.t,
            q: &x8,
            k_cache: &k_cache.t,
            v_cache: &v_cache.t,
            block_tables: &tables.t,
            row_starts: &zero.t,
            visible: &ids.t,
            block_size: 4,
            heads: 1,
            kv_heads: 1,
            scale: 1.0,
        });
        cx.gather(Gather { out: &mut out8.t, x: &table.t, indices: &ids.t });
        cx.scatter(Scatter { out: &mut num_rows.t, x: &x8, indices: &ids.t });
        let no_values = Tensor::new(f32_out.t.buffer().clone(), 0, [0, 4], DType::F32);
        cx.fourier(Fourier { out: &mut out8.t, values: &no_values, w: &square.t });
        cx.sample(Sample {
            ids: &mut int_out.t,
            logprobs: &mut f32_out.t,
            logits: &x8,
            params: &params.t,
            masks: Some(Masks { bits: &mask.t, rows: &ids.t }),
        });
        cx.copy(Copy { out: &mut out8.t, x: &x8 });
    });
    let [k_cache, v_cache] = &caches;
    rig.unchanged(&label, &[&none[0], &none[1], &none[2], k_cache, v_cache, &num_rows]);
    rig.unchanged(&label, &[&table, &eight, &int_out, &f32_out]);
}

/// Rows of indices that name nothing in an empty table are skipped, not read.
pub(crate) fn empty_tables_are_safe<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let f = options.float(0);
    let label = label("gather from and scatter to no rows");
    let ids = rig.indices("indices", [3], &[0, -1, 5]);
    let empty = rig.input("x", [0, 8], f, &[]);
    let mut out = rig.output("out", [3, 8], f, Gaps::NONE);
    let x = rig.input("x", [3, 8], f, &[1.0; 24]);
    let mut none = rig.output("out", [0, 8], f, Gaps::NONE);
    rig.record(|cx| {
        cx.gather(Gather { out: &mut out.t, x: &empty.t, indices: &ids.t });
        cx.scatter(Scatter { out: &mut none.t, x: &x.t, indices: &ids.t });
    });
    rig.check(&label, &out, |_, _| Want::Stays);
    rig.check(&label, &none, |_, _| Want::Stays);
    rig.unchanged(&label, &[&ids, &empty, &x]);
}

/// What an arena measures is what the same pass takes, to the byte; measuring records nothing.
pub(crate) fn arena_measures_what_a_pass_takes<D: Kernels>(device: &D, options: &Options) {
    let stream = &mut device.stream().expect("a stream");
    let mut job = Job::new(device, options, 11);
    let bytes = ROWS * N * job.out.dtype().size();
    device.upload(stream, job.out.buffer(), 0, &vec![0x33; bytes]);
    let source = [1u8; 12];
    let mut pass = |cx: &mut Cx<'_, D>| {
        let mut a = cx.tensor([3], DType::F32);
        let _b = cx.tensor([65, 33], DType::Bf16);
        let _c = cx.tensor([1], DType::U8);
        let _d = cx.tensor([0, 7], DType::F16);
        cx.upload(&mut a, &source);
        job.record(cx);
        a
    };
    let need = Arena::measure(device, stream, |cx| {
        assert!(cx.is_measuring());
        pass(cx);
    })
    .expect("measured");
    assert!(need > 12 + 65 * 33 * 2, "measured {need} bytes");
    let mut arena = Arena::new(device, need).expect("an arena of the size measured");
    assert_eq!(arena.capacity(), need);
    for _ in 0..3 {
        let mut cx = Cx::new(device, stream, &mut arena);
        assert!(!cx.is_measuring());
        let a = pass(&mut cx);
        assert_eq!(a.offset() % 256, 0, "activations are aligned");
        let got = read(device, stream, a.buffer(), need);
        assert_eq!(&got[a.offset()..a.offset() + 12], &source);
    }
    // A pass that takes any more than was measured is refused, here one tensor of 256 bytes.
    let refused = panics(|| {
        let mut cx = Cx::new(device, stream, &mut arena);
        pass(&mut cx);
        cx.tensor([257], DType::U8);
    });
    assert!(refused.is_some_and(|m| m.contains("too small")), "a pass larger than the arena");
    // Only now: the passes above ran the job for real.
    device.upload(stream, job.out.buffer(), 0, &vec![0x33; bytes]);
    let again = Arena::measure(device, stream, |cx| job.record(cx)).expect("measured");
    assert_eq!(again, 0, "an operation takes nothing from the arena");
    assert!(job.read(device, stream) == vec![0x33; bytes], "measuring ran the work");
}

/// The message `f` panics with, if it does.
fn panics(f: impl FnOnce()) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    let text = payload.downcast_ref::<String>().cloned();
    Some(
        text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default(),
    )
}

/// An activation of an earlier pass may not be used in a later one, by any operation.
pub(crate) fn arena_epochs_are_checked<D: Kernels>(device: &D, options: &Options) {
    let stream = &mut device.stream().expect("a stream");
    let mut arena = Arena::new(device, 1 << 14).expect("an arena");
    let f = options.float(0);
    let mut stale = Cx::new(device, stream, &mut arena).tensor([4, 8], f);
    let stale_view = stale.row_range(0..2).col_range(0..8);
    let mut cx = Cx::new(device, stream, &mut arena);
    let fresh = cx.tensor([4, 8], f);
    let mut out = cx.tensor([4, 8], f);
    let mut small = cx.tensor([2, 8], f);
    assert_eq!(panics(|| cx.copy(Copy { out: &mut out, x: &fresh })), None);
    let uses: [(&str, Option<String>); 4] = [
        ("as input", panics(|| cx.copy(Copy { out: &mut out, x: &stale }))),
        ("through a view", panics(|| cx.copy(Copy { out: &mut small, x: &stale_view }))),
        ("as output", panics(|| cx.copy(Copy { out: &mut stale, x: &fresh }))),
        ("by another operation", panics(|| cx.tile(Tile { out: &mut out, x: &stale }))),
    ];
    for (how, message) in uses {
        let message = message.unwrap_or_else(|| panic!("an activation was used {how} a pass late"));
        assert!(message.contains("earlier pass"), "used {how}: {message}");
    }
}

/// Shapes and types that do not fit are refused before a kernel sees them, with the operation's name.
pub(crate) fn mismatches_are_refused<D: Kernels>(device: &D, options: &Options) {
    let f = options.float(0);
    let t = |shape: [usize; 2], dtype| Tensor::<D>::zeros(device, shape, dtype).expect("memory");
    let float = |rows, cols| t([rows, cols], f);
    let f32s = |rows, cols| t([rows, cols], DType::F32);
    let i32s = |n| t([1, n], DType::I32);
    let crops = Tensor::<D>::zeros(device, [1, 4, 4, 3], DType::U8).expect("memory");
    let odd = Tensor::<D>::zeros(device, [1, 4, 5, 3], DType::U8).expect("memory");
    let dtype = options.float_weight();
    let bytes = vec![0; 8 * 12 * dtype.size()];
    let format = WeightFormat::Float(dtype);
    let data = WeightData { count: 1, n: 8, k: 12, format, bytes: &bytes, scales: &[] };
    let w = device.weight(data).expect("a weight in a format the options list");
    let params = t([2, size_of::<SampleParams>()], DType::U8);

    let linear = |cx: &mut Cx<'_, D>, out: [usize; 2], x: [usize; 2], bias: Option<&Tensor<D>>| {
        let (x, activation) = (&float(x[0], x[1]), Activation::None);
        let out = &mut float(out[0], out[1]);
        cx.linear(Linear { out, x, w: &w, bias, activation, accumulate: false });
    };
    let paged = |cx: &mut Cx<'_, D>, num_slots, rows, heads, kv_heads, starts: &Tensor<D>| {
        cx.paged_attention(PagedAttention {
            out: &mut float(3, 8),
            q: &float(3, 8),
            k_cache: &float(num_slots, 8),
            v_cache: &float(num_slots, 8),
            block_tables: &t([rows, 2], DType::I32),
            row_starts: starts,
            visible: &i32s(3),
            block_size: 4,
            heads,
            kv_heads,
            scale: 1.0,
        });
    };
    let rope = |cx: &mut Cx<'_, D>,
                table: usize,
                tokens: usize,
                positions: DType,
                tau: Option<Tau<'_, D>>| {
        cx.rope_store(RopeStore {
            qkv: &mut float(3, 24),
            k_cache: &mut float(4, 8),
            v_cache: &mut float(4, 8),
            positions: &t([1, tokens], positions),
            slots: &i32s(3),
            table: &f32s(4, table),
            tau,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
        });
    };
    let tau = |cx: &mut Cx<'_, D>, scores: [usize; 2], alpha: Tensor<D>| {
        let scores = &float(scores[0], scores[1]);
        rope(cx, 4, 3, DType::I32, Some(Tau { scores, alpha: &alpha }));
    };
    let sample = |cx: &mut Cx<'_, D>, ids: &mut Tensor<D>, logits: &Tensor<D>| {
        let (logprobs, params) = (&mut f32s(1, 2), &params);
        cx.sample(Sample { ids, logprobs, logits, params, masks: None });
    };
    let masked = |cx: &mut Cx<'_, D>, words: usize, rows: usize, dtype: DType| {
        let (bits, rows) = (&t([3, words], dtype), &i32s(rows));
        let (ids, logprobs, logits) = (&mut i32s(2), &mut f32s(1, 2), &float(2, 33));
        let (params, masks) = (&params, Some(Masks { bits, rows }));
        cx.sample(Sample { ids, logprobs, logits, params, masks });
    };
    let stitch = |cx: &mut Cx<'_, D>, rows, grid, margin, tiles| {
        cx.stitch_pool(StitchPool {
            out: &mut float(9, 8),
            x: &float(rows, 4),
            grid,
            margin,
            tiles,
        });
    };
    let attention = |cx: &mut Cx<'_, D>, qkv, seq_len, heads| {
        let qkv = &float(6, qkv);
        cx.attention(Attention { out: &mut float(6, 8), qkv, seq_len, heads, scale: 1.0 });
    };
    let patchify = |cx: &mut Cx<'_, D>, crops: &Tensor<D>, rows, patch| {
        cx.patchify(Patchify { out: &mut float(rows, 12), crops, patch });
    };
    let norm = |cx: &mut Cx<'_, D>, x, w, w_type| {
        let w = &t([1, w], w_type);
        cx.layer_norm(LayerNorm { out: &mut float(3, 8), x: &float(3, x), w, b: w, eps: 1e-5 });
    };
    let fourier = |cx: &mut Cx<'_, D>, values: &Tensor<D>| {
        cx.fourier(Fourier { out: &mut float(3, 8), values, w: &f32s(2, 4) });
    };
    let embed = |cx: &mut Cx<'_, D>, positions, bias| {
        cx.patch_embed(PatchEmbed {
            out: &mut float(4, 8),
            crops: &crops,
            patch: 2,
            w: &w,
            bias: &f32s(1, bias),
            positions: &f32s(positions, 8),
            scratch: &mut float(4, 12),
        });
    };
    let rows_of = |cx: &mut Cx<'_, D>, gather: bool, count: usize, dim: usize, dtype: DType| {
        let indices = &t([1, count], dtype);
        let (x, out) = (&float(3, dim), &mut float(3, 8));
        if gather {
            cx.gather(Gather { out, x, indices });
        } else {
            cx.scatter(Scatter { out, x, indices });
        }
    };

    type Attempt<'a, D> = (&'static str, &'static str, &'a dyn Fn(&mut Cx<'_, D>));
    let attempts: &[Attempt<'_, D>] = &[
        ("linear", "x columns", &|cx| linear(cx, [3, 8], [3, 11], None)),
        ("linear", "out columns", &|cx| linear(cx, [3, 7], [3, 12], None)),
        ("linear", "rows", &|cx| linear(cx, [2, 8], [3, 12], None)),
        ("linear", "bias size", &|cx| linear(cx, [3, 8], [3, 12], Some(&f32s(1, 7)))),
        ("linear", "bias type", &|cx| linear(cx, [3, 8], [3, 12], Some(&i32s(8)))),
        ("layer_norm", "columns", &|cx| norm(cx, 7, 8, DType::F32)),
        ("layer_norm", "weight size", &|cx| norm(cx, 8, 9, DType::F32)),
        ("layer_norm", "weight type", &|cx| norm(cx, 8, 8, DType::I32)),
        ("patchify", "not square", &|cx| patchify(cx, &odd, 4, 2)),
        ("patchify", "patch does not divide", &|cx| patchify(cx, &crops, 4, 3)),
        ("patchify", "patch zero", &|cx| patchify(cx, &crops, 4, 0)),
        ("patchify", "rows", &|cx| patchify(cx, &crops, 5, 2)),
        ("tile", "columns", &|cx| cx.tile(Tile { out: &mut float(3, 8), x: &float(3, 7) })),
        ("tile", "no table", &|cx| cx.tile(Tile { out: &mut float(3, 8), x: &float(0, 8) })),
        ("patch_embed", "positions", &|cx| embed(cx, 3, 8)),
        ("patch_embed", "bias", &|cx| embed(cx, 4, 7)),
        ("attention", "qkv columns", &|cx| attention(cx, 23, 3, 2)),
        ("attention", "heads", &|cx| attention(cx, 24, 3, 3)),
        ("attention", "sequences", &|cx| attention(cx, 24, 4, 2)),
        ("rope_store", "table wider than a head", &|cx| rope(cx, 6, 3, DType::I32, None)),
        ("rope_store", "odd table", &|cx| rope(cx, 3, 3, DType::I32, None)),
        ("rope_store", "positions", &|cx| rope(cx, 4, 2, DType::I32, None)),
        ("rope_store", "positions type", &|cx| rope(cx, 4, 3, DType::F32, None)),
        ("rope_store", "rows of scores", &|cx| tau(cx, [2, 4], f32s(1, 2))),
        ("rope_store", "scores", &|cx| tau(cx, [3, 2], f32s(1, 2))),
        ("rope_store", "alpha", &|cx| tau(cx, [3, 4], f32s(1, 4))),
        ("rope_store", "alpha type", &|cx| tau(cx, [3, 4], i32s(2))),
        ("paged_attention", "part of a block", &|cx| paged(cx, 10, 2, 2, 2, &i32s(3))),
        ("paged_attention", "rows", &|cx| paged(cx, 8, 3, 2, 2, &i32s(3))),
        ("paged_attention", "heads", &|cx| paged(cx, 8, 2, 3, 3, &i32s(3))),
        ("paged_attention", "key heads", &|cx| paged(cx, 8, 2, 2, 0, &i32s(3))),
        ("paged_attention", "starts", &|cx| paged(cx, 8, 2, 2, 2, &i32s(2))),
        ("paged_attention", "starts type", &|cx| paged(cx, 8, 2, 2, 2, &f32s(1, 3))),
        ("stitch_pool", "crops", &|cx| stitch(cx, 36, 3, 1, (2, 2))),
        ("stitch_pool", "margin", &|cx| stitch(cx, 45, 3, 2, (2, 2))),
        ("stitch_pool", "no tiles", &|cx| stitch(cx, 9, 3, 1, (0, 1))),
        ("stitch_pool", "grid", &|cx| stitch(cx, 45, 4, 1, (2, 2))),
        ("gather", "columns", &|cx| rows_of(cx, true, 3, 7, DType::I32)),
        ("gather", "indices", &|cx| rows_of(cx, true, 2, 8, DType::I32)),
        ("gather", "index type", &|cx| rows_of(cx, true, 3, 8, DType::F32)),
        ("scatter", "columns", &|cx| rows_of(cx, false, 3, 7, DType::I32)),
        ("scatter", "indices", &|cx| rows_of(cx, false, 4, 8, DType::I32)),
        ("scatter", "index type", &|cx| rows_of(cx, false, 3, 8, DType::U8)),
        ("fourier", "dims", &|cx| fourier(cx, &f32s(3, 3))),
        ("fourier", "rows", &|cx| fourier(cx, &f32s(4, 2))),
        ("fourier", "type", &|cx| fourier(cx, &t([3, 2], DType::I32))),
        ("sample", "ids", &|cx| sample(cx, &mut i32s(3), &float(2, 9))),
        ("sample", "ids type", &|cx| sample(cx, &mut f32s(1, 2), &float(2, 9))),
        ("sample", "rows", &|cx| sample(cx, &mut i32s(2), &float(3, 9))),
        ("sample", "logits type", &|cx| sample(cx, &mut i32s(2), &t([2, 9], DType::I32))),
        ("sample", "mask words", &|cx| masked(cx, 1, 2, DType::I32)),
        ("sample", "rows of masks", &|cx| masked(cx, 2, 3, DType::I32)),
        ("sample", "mask type", &|cx| masked(cx, 2, 2, DType::F32)),
        ("copy", "rows", &|cx| cx.copy(Copy { out: &mut float(3, 8), x: &float(2, 8) })),
        ("copy", "columns", &|cx| cx.copy(Copy { out: &mut float(3, 8), x: &float(3, 9) })),
        ("copy", "type", &|cx| cx.copy(Copy { out: &mut float(1, 8), x: &i32s(8) })),
        ("upload", "bytes", &|cx| cx.upload(&mut float(1, 8), &[0; 3])),
        ("byte_range", "column view", &|cx| cx.upload(&mut float(3, 8).col_range(0..4), &[0; 48])),
    ];
    let stream = &mut device.stream().expect("a stream");
    let mut arena = Arena::new(device, 0).expect("an empty arena");
    for (op, what, attempt) in attempts {
        let mut cx = Cx::new(device, stream, &mut arena);
        let message = panics(|| attempt(&mut cx));
        let message = message.unwrap_or_else(|| panic!("{op} accepted a mismatch: {what}"));
        assert!(message.contains(op), "{op}, {what}: the message names another: {message}");
    }
}

/// Every format the options list is packed; any other is packed or refused, never a panic, and what is
/// no float at all is refused.
pub(crate) fn weight_formats<D: Kernels>(device: &D, options: &Options) {
    let (n, k) = (7, 32);
    let all = Options::FULL.weights.iter().chain(&[WeightFormat::Int4 { group: 20 }]);
    for &format in all {
        let (bytes, scales) =
            (vec![0; n * format.row_bytes(k)], vec![1.0; n * format.row_scales(k)]);
        let data = WeightData { count: 1, n, k, format, bytes: &bytes, scales: &scales };
        match device.weight(data) {
            Ok(w) => assert_eq!((w.n(), w.k(), w.format()), (n, k, format)),
            Err(Error::UnsupportedFormat { .. }) if !options.weights.contains(&format) => {}
            Err(other) => panic!("{format}: {other}"),
        }
    }
    for dtype in [DType::I32, DType::U8] {
        let format = WeightFormat::Float(dtype);
        let data = WeightData {
            count: 1,
            n,
            k,
            format,
            bytes: &vec![0; n * k * dtype.size()],
            scales: &[],
        };
        match device.weight(data) {
            Err(e @ Error::UnsupportedFormat { .. }) => {
                assert!(e.to_string().contains(dtype.name()), "{e} does not name {dtype}");
            }
            Err(other) => panic!("{format}: want UnsupportedFormat, got {other}"),
            Ok(_) => panic!("{format} is no float, yet it was packed"),
        }
    }
}
