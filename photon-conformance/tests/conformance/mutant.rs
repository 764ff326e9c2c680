//! [`Naive`] with one planted bug.
//!
//! Each operation is passed on to the plain device, with its arguments or its results bent by the bug.
//! Work runs as it is recorded, so results can be bent right after.
use std::ops::Range;

use photon_conformance::{Naive, naive};
use photon_core::{
    Activate, Activation, Arena, Attention, Copy, Cx, DType, Device, Error, Fourier, GatedGelu,
    Gather, GroupedLinear, Kernels, LayerNorm, Linear, Masks, MemoryInfo, Nest, PagedAttention,
    PatchEmbed, Patchify, Pending, Result, RopeStore, Route, Sample, SampleParams, Scatter,
    StitchPool, Tau, Tensor, Tile, Weight, WeightData, WeightedSum, convert, kv, reference,
};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    Nothing,
    AbsurdAllocationPanics,
    AcceptsAnyWeight,
    ActivatesTheResidual,
    AlwaysAccumulates,
    BadBlockIsClamped,
    BadIndexIsZero,
    BadIndexWraps,
    BadPositionIsZero,
    BadPositionStillStores,
    BadSlotSkipsTheToken,
    BakesInputs,
    CaptureBakesInputs,
    CaptureRuns,
    ChangesItsInput,
    ClearsFirst,
    CodesAreOneOff,
    ComputesVarianceInOnePass,
    CorrectsBessel,
    DependsOnTheBatch,
    DependsOnTheChunk,
    DropsTailColumns,
    DropsTailOfMasks,
    DropsTailOfSum,
    ForgetsAlpha,
    ForgetsEpsilon,
    ForgetsScale,
    ForgetsTau,
    ForgetsTheOne,
    ForgetsTheMaximum,
    ForgetsToAccumulate,
    ForgetsToRotateK,
    IgnoresAllowed,
    IgnoresBans,
    IgnoresBias,
    IgnoresBlockTables,
    IgnoresMargin,
    IgnoresMasks,
    IgnoresMinP,
    IgnoresPositions,
    IgnoresRowStride,
    IgnoresRowsOfMasks,
    IgnoresScales,
    IgnoresSeed,
    IgnoresSpans,
    IgnoresStream,
    IgnoresTemperature,
    IgnoresTopK,
    IgnoresTopP,
    IgnoresWeights,
    LogprobAfterTruncation,
    LosesTheSignOfZero,
    MemoryIsDirty,
    MissesLastPosition,
    NanIsLarge,
    NanIsSmall,
    OffByOnePixelValue,
    OtherGelu,
    PoolsTheGlobalCrop,
    PositionsOfFirstCropOnly,
    ReadBackIgnoresRange,
    ReadsTheNextRow,
    ReadsStaleSlots,
    RepeatsTheLastRow,
    ReplayDoesNothing,
    ReportsAllMemoryAsFree,
    ReversesMasks,
    RotatesTheRestToo,
    RoundsTwice,
    ScaleOfTheNextHead,
    ScalesAreHalved,
    ScalesKToo,
    ScalesTheDraw,
    SeesOtherSequences,
    SeesTheFuture,
    SkipsGelu,
    SkipsLastIndex,
    SoftmaxOverAll,
    SpillsIntoTheGap,
    SwapsAxes,
    SwapsHalves,
    TakesTheLastOfEquals,
    TilesSeeAlike,
    TopKOneTooMany,
    TrustsTheOrder,
    Truncates,
    TurnsBackwards,
    UploadIgnoresOffset,
    UsesWrongKeyHead,
    WritesOneRowTooMany,
    WritesRowsThatSeeNothing,
    ZeroRowsWriteOne,
    ZeroesWhatIsNotFinite,
}

use Bug::*;

/// `bug`, if it is about caches of this type.
fn in_cache(bug: Bug, dtype: DType) -> Bug {
    let is_about_scales = matches!(
        bug,
        CodesAreOneOff
            | IgnoresScales
            | ScaleOfTheNextHead
            | ScalesAreHalved
            | ZeroesWhatIsNotFinite
    );
    if is_about_scales == kv::is_scaled(dtype) { bug } else { Nothing }
}

/// The device with the bug.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutant(pub(crate) Bug);

impl Device for Mutant {
    type Buffer = naive::Buffer;
    type Stream = naive::Stream;
    type Event = naive::Event;
    type Graph = naive::Graph;
    type HostBuffer = Vec<u8>;

    fn name(&self) -> String {
        format!("naive with {:?}", self.0)
    }

    fn memory(&self) -> MemoryInfo {
        let memory = Naive.memory();
        let free_bytes = match self.0 {
            ReportsAllMemoryAsFree => memory.total_bytes + 1,
            _ => memory.free_bytes,
        };
        MemoryInfo { free_bytes, ..memory }
    }

    fn alloc(&self, bytes: usize) -> Result<naive::Buffer> {
        assert!(self.0 != AbsurdAllocationPanics || bytes < 1 << 40, "capacity overflow");
        let buffer = Naive.alloc(bytes)?;
        if self.0 == MemoryIsDirty {
            buffer.lock().iter_mut().skip(200).for_each(|b| *b = 1);
        }
        Ok(buffer)
    }

    fn weight(&self, data: WeightData<'_>) -> Result<Weight<Self>> {
        match Naive.weight(data) {
            Err(Error::UnsupportedFormat { .. }) if self.0 == AcceptsAnyWeight => {
                Ok(Weight::new(&data, Naive.alloc(1)?, 1))
            }
            weight => Ok(weight?.on()),
        }
    }

    fn stream(&self) -> Result<naive::Stream> {
        Naive.stream()
    }

    fn upload(&self, stream: &mut naive::Stream, dst: &naive::Buffer, at: usize, bytes: &[u8]) {
        let at = if self.0 == UploadIgnoresOffset { 0 } else { at };
        Naive.upload(stream, dst, at, bytes);
    }

    fn host_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        Naive.host_buffer(bytes)
    }

    fn read_back(
        &self,
        stream: &mut naive::Stream,
        src: &naive::Buffer,
        range: Range<usize>,
        into: Vec<u8>,
    ) -> Result<Pending<Self>> {
        let range = if self.0 == ReadBackIgnoresRange { 0..range.len() } else { range };
        let host = Naive.read_back(stream, src, range, into)?.wait()?;
        Ok(Pending::new(*self, host, Naive.submit(stream)?))
    }

    fn submit(&self, stream: &mut naive::Stream) -> Result<naive::Event> {
        Naive.submit(stream)
    }

    fn wait(&self, event: &naive::Event) -> Result<()> {
        Naive.wait(event)
    }

    fn capture(
        &self,
        stream: &mut naive::Stream,
        record: &mut dyn FnMut(&mut naive::Stream),
    ) -> Result<Option<naive::Graph>> {
        match self.0 {
            CaptureRuns => {
                let graph = Naive.capture(stream, &mut *record)?;
                let graph = graph.expect("it captures");
                Naive.replay(stream, &graph);
                Ok(Some(graph))
            }
            CaptureBakesInputs => {
                // Runs at once, and replays nothing.
                record(stream);
                Naive.capture(stream, &mut |_| ())
            }
            _ => Naive.capture(stream, record),
        }
    }

    fn replay(&self, stream: &mut naive::Stream, graph: &naive::Graph) {
        if self.0 != ReplayDoesNothing {
            Naive.replay(stream, graph);
        }
    }
}

type Plain = Tensor<Naive>;

/// Records on the plain device.
fn plain(cx: &mut Cx<'_, Mutant>, record: impl FnOnce(&mut Cx<'_, Naive>)) {
    let mut arena = Arena::new(&Naive, 0).expect("an empty arena");
    record(&mut Cx::new(&Naive, cx.stream, &mut arena));
}

fn place(t: &Plain, i: usize, j: usize) -> usize {
    t.offset() + (i * t.row_stride() + j) * t.dtype().size()
}

fn get(t: &Plain, i: usize, j: usize) -> f32 {
    let at = place(t, i, j);
    let bytes = t.buffer().lock()[at..at + t.dtype().size()].to_vec();
    let wide = convert(&bytes, t.dtype(), DType::F32);
    f32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]])
}

fn set(t: &Plain, i: usize, j: usize, value: f32) {
    let at = place(t, i, j);
    let bytes = value.to_le_bytes();
    let narrow = convert(&bytes, DType::F32, t.dtype());
    t.buffer().lock()[at..at + narrow.len()].copy_from_slice(&narrow);
}

/// A copy of `t` with every element changed.
fn edited(t: &Plain, edit: impl Fn(usize, usize, f32) -> f32) -> Plain {
    let copy = Tensor::zeros(&Naive, [t.rows(), t.cols()], t.dtype()).expect("memory");
    for i in 0..t.rows() {
        for j in 0..t.cols() {
            set(&copy, i, j, edit(i, j, get(t, i, j)));
        }
    }
    copy
}

/// Changes row `i` of an 8-bit cache: `edit` gets the codes and the scales.
fn edit_row(t: &Plain, i: usize, kv_heads: usize, edit: impl FnOnce(&mut [u8], &mut [f32])) {
    let row = t.row_range(i..i + 1).byte_range();
    let mut bytes = t.buffer().lock();
    let (codes, tail) = bytes[row].split_at_mut(t.cols() - kv_heads * kv::SCALE_BYTES);
    let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let mut scales: Vec<f32> = tail.chunks_exact(kv::SCALE_BYTES).map(number).collect();
    edit(codes, &mut scales);
    tail.copy_from_slice(bytemuck::cast_slice(&scales));
}

/// A copy of an 8-bit cache with other scales.
fn rescaled(t: &Plain, kv_heads: usize, edit: impl Fn(&mut [f32])) -> Plain {
    let copy = Tensor::zeros(&Naive, t.shape(), t.dtype()).expect("memory");
    copy.buffer().lock().copy_from_slice(&t.buffer().lock()[t.byte_range()]);
    (0..t.rows()).for_each(|i| edit_row(&copy, i, kv_heads, |_, scales| edit(scales)));
    copy
}

fn ints(t: &Plain) -> Vec<i32> {
    let bytes = t.buffer().lock()[t.byte_range()].to_vec();
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// A copy of `t` with every integer changed; `t` itself if none is, so that it stays an input.
fn edited_ints(t: &Plain, edit: impl Fn(usize, i32) -> i32) -> Plain {
    let old = ints(t);
    let edited: Vec<i32> = old.iter().enumerate().map(|(i, &v)| edit(i, v)).collect();
    if edited == old {
        return t.view();
    }
    let copy = Tensor::zeros(&Naive, t.shape(), DType::I32).expect("memory");
    copy.buffer().lock().copy_from_slice(bytemuck::cast_slice(&edited));
    copy
}

/// `visible` as a kernel would have it that takes it for something simpler.
fn misread(bug: Bug, visible: &Plain, starts: &Plain) -> Plain {
    let (old, starts) = (ints(visible), ints(starts));
    edited_ints(visible, |t, n| {
        let t = t as i32;
        let row = starts.windows(2).find(|row| row[0] <= t && t < row[1]);
        let Some(&[first, end]) = row else { return n };
        let of = |t: i32| old[t as usize];
        match bug {
            SeesTheFuture => (first..end).map(of).max().unwrap_or(n),
            // Back from the last token, as if every token saw itself last.
            IgnoresSpans => of(end - 1).saturating_sub(end - 1 - t),
            TilesSeeAlike => of(first + (t - first) / 16 * 16),
            _ => n.min(of(end - 1)),
        }
    })
}

fn is_row(index: i32, rows: usize) -> bool {
    usize::try_from(index).is_ok_and(|row| row < rows)
}

/// What the bug makes of an index into `rows` rows.
fn bent(bug: Bug, index: i32, rows: usize) -> i32 {
    match bug {
        BadIndexIsZero if rows > 0 && !is_row(index, rows) => 0,
        BadIndexWraps if rows > 0 => index.rem_euclid(rows as i32),
        BadBlockIsClamped => index.clamp(0, rows as i32 - 1),
        _ => index,
    }
}

/// Runs an operation that writes `out`, then does to its result what any operation might do wrong.
fn with_output(bug: Bug, out: &Plain, run: impl FnOnce(&mut Plain)) {
    let before = (bug == DropsTailColumns).then(|| edited(out, |_, _, v| v));
    let (rows, cols) = (out.rows(), out.cols());
    match bug {
        Truncates | RoundsTwice if out.dtype() != DType::F32 => {
            let mut wide = Tensor::zeros(&Naive, [rows, cols], DType::F32).expect("memory");
            for i in 0..rows {
                for j in 0..cols {
                    set(&wide, i, j, get(out, i, j));
                }
            }
            run(&mut wide);
            for i in 0..rows {
                for j in 0..cols {
                    let bits = get(&wide, i, j).to_bits();
                    // Truncated by cutting bits off, or rounded up one bit early and then again.
                    let kept = if out.dtype() == DType::Bf16 { 16 } else { 13 };
                    let value = match bug {
                        Truncates => bits >> kept << kept,
                        _ => (bits + (1 << (kept - 2))) >> (kept - 1) << (kept - 1),
                    };
                    set(out, i, j, f32::from_bits(value));
                }
            }
            return;
        }
        IgnoresRowStride if out.row_stride() != cols => {
            run(&mut Tensor::new(out.buffer().clone(), out.offset(), [rows, cols], out.dtype()));
            return;
        }
        _ => run(&mut out.view()),
    }
    match bug {
        WritesOneRowTooMany if rows > 0 => {
            (0..cols).for_each(|j| set(out, rows, j, get(out, rows - 1, j)));
        }
        DropsTailColumns => {
            let before = before.expect("kept for this bug");
            for i in 0..rows {
                (cols / 16 * 16..cols).for_each(|j| set(out, i, j, get(&before, i, j)));
            }
        }
        SpillsIntoTheGap if out.row_stride() > cols => set(out, 0, cols, 0.0),
        ZeroRowsWriteOne if rows == 0 => set(out, 0, 0, 0.0),
        DependsOnTheBatch if rows > 1 && out.dtype() == DType::F32 => {
            let last = get(out, rows - 1, cols - 1);
            set(out, rows - 1, cols - 1, f32::from_bits(last.to_bits() ^ 1));
        }
        DependsOnTheChunk if rows == 7 && out.dtype() == DType::F32 => {
            set(out, 3, 0, f32::from_bits(get(out, 3, 0).to_bits() ^ 1));
        }
        SwapsHalves => {
            let swapped = edited(out, |i, j, _| get(out, i, (j + cols / 2) % cols));
            for i in 0..rows {
                (0..cols).for_each(|j| set(out, i, j, get(&swapped, i, j)));
            }
        }
        _ => {}
    }
}

impl Kernels for Mutant {
    fn linear(cx: &mut Cx<'_, Self>, op: Linear<'_, Self>) {
        let bug = cx.device.0;
        let (mut x, w): (Plain, Weight<Naive>) = (op.x.on(), op.w.on());
        let bias: Option<Plain> = op.bias.map(Tensor::on);
        let k = x.cols();
        match bug {
            IgnoresRowStride => {
                x = Tensor::new(x.buffer().clone(), x.offset(), [x.rows(), k], x.dtype());
            }
            DropsTailOfSum => x = edited(&x, |_, j, v| if j < k / 8 * 8 { v } else { 0.0 }),
            _ => {}
        }
        let activation = if bug == SkipsGelu { Activation::None } else { op.activation };
        let accumulate = match bug {
            ForgetsToAccumulate => false,
            AlwaysAccumulates => true,
            _ => op.accumulate,
        };
        let bias = bias.as_ref().filter(|_| bug != IgnoresBias);
        with_output(bug, &op.out.on(), |out| {
            if bug == ActivatesTheResidual && accumulate {
                // Residual and sum go through the activation together: the bias carries the residual.
                let old = edited(out, |_, _, v| v);
                plain(cx, |cx| {
                    let accumulate = false;
                    cx.linear(Linear {
                        out,
                        x: &x,
                        w: &w,
                        bias,
                        activation: Activation::None,
                        accumulate,
                    });
                });
                for i in 0..out.rows() {
                    (0..out.cols()).for_each(|j| set(out, i, j, get(out, i, j) + get(&old, i, j)));
                }
                return;
            }
            plain(cx, |cx| cx.linear(Linear { out, x: &x, w: &w, bias, activation, accumulate }));
        });
        if bug == ChangesItsInput && op.x.rows() > 0 {
            let x: Plain = op.x.on();
            set(&x, 0, 0, get(&x, 0, 0) + 1.0);
        }
    }

    fn activate(cx: &mut Cx<'_, Self>, op: Activate<'_, Self>) {
        let bug = cx.device.0;
        let mut x: Plain = op.x.on();
        let activation = match (bug, op.activation) {
            (OtherGelu, Activation::GeluErf) => Activation::GeluTanh,
            (OtherGelu, Activation::GeluTanh) => Activation::GeluErf,
            (_, activation) => activation,
        };
        if bug == IgnoresRowStride {
            x = Tensor::new(x.buffer().clone(), x.offset(), [x.rows(), x.cols()], x.dtype());
        }
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.activate(Activate { out, x: &x, activation }));
        });
    }

    fn grouped_linear(cx: &mut Cx<'_, Self>, op: GroupedLinear<'_, Self>) {
        let bug = cx.device.0;
        let (mut x, w): (Plain, Weight<Naive>) = (op.x.on(), op.w.on());
        let mut groups: Plain = op.groups.on();
        let count = ints(&groups).len();
        groups = edited_ints(&groups, |i, group| match bug {
            SkipsLastIndex if i + 1 == count => -1,
            _ => bent(bug, group, w.count()),
        });
        if bug == ReadsTheNextRow {
            let all = x.view();
            x = edited(&all, |i, j, _| get(&all, (i + 1) % all.rows(), j));
        }
        let accumulate = match bug {
            ForgetsToAccumulate => false,
            AlwaysAccumulates => true,
            _ => op.accumulate,
        };
        with_output(bug, &op.out.on(), |out| {
            let (x, w, groups) = (&x, &w, &groups);
            plain(cx, |cx| cx.grouped_linear(GroupedLinear { out, x, w, groups, accumulate }));
        });
    }

    fn route(cx: &mut Cx<'_, Self>, op: Route<'_, Self>) {
        let bug = cx.device.0;
        let (mut experts, mut weights): (Plain, Plain) = (op.experts.on(), op.weights.on());
        let mut logits: Plain = op.logits.on();
        let (rows, num_experts, top) = (logits.rows(), logits.cols(), experts.cols());
        match bug {
            NanIsLarge => logits = edited(&logits, |_, _, v| if v.is_nan() { 1e4 } else { v }),
            // Of equals the last: the places in reverse, and turned back below.
            TakesTheLastOfEquals => {
                let all = logits.view();
                logits = edited(&all, |i, j, _| get(&all, i, num_experts - 1 - j));
            }
            _ => {}
        }
        plain(cx, |cx| {
            let (experts, weights) = (&mut experts, &mut weights);
            cx.route(Route { experts, weights, logits: &logits });
        });
        for i in 0..rows {
            let all: f32 = (0..num_experts).map(|j| get(&logits, i, j).exp()).sum();
            let mut chosen: Vec<i32> = ints(&experts.row_range(i..i + 1));
            match bug {
                TakesTheLastOfEquals => {
                    chosen.iter_mut().for_each(|e| *e = num_experts as i32 - 1 - *e);
                }
                BadIndexWraps => chosen.sort_unstable(),
                SoftmaxOverAll => (0..top).for_each(|j| {
                    set(&weights, i, j, get(&logits, i, chosen[j] as usize).exp() / all);
                }),
                IgnoresWeights => (0..top).for_each(|j| set(&weights, i, j, 1.0)),
                _ => {}
            }
            let at = place(&experts, i, 0);
            let bytes = bytemuck::cast_slice(&chosen);
            experts.buffer().lock()[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn nest(cx: &mut Cx<'_, Self>, op: Nest<'_, Self>) {
        let bug = cx.device.0;
        let mut out: Plain = op.out.on();
        let (mut outer, mut inner, mut count): (Plain, Plain, usize) =
            (op.outer.on(), op.inner.on(), op.count);
        match bug {
            BadIndexIsZero => outer = edited_ints(&outer, |_, index| index.max(0)),
            BadIndexWraps => inner = edited_ints(&inner, |_, i| i.rem_euclid(count as i32)),
            ForgetsScale => count += 1,
            _ => {}
        }
        plain(cx, |cx| {
            cx.nest(Nest { out: &mut out, outer: &outer, inner: &inner, count });
        });
        if bug == WritesOneRowTooMany && out.rows() > 0 {
            let at = place(&out, out.rows(), 0);
            out.buffer().lock()[at..at + 4].fill(0);
        }
    }

    fn gated_gelu(cx: &mut Cx<'_, Self>, op: GatedGelu<'_, Self>) {
        let bug = cx.device.0;
        let mut x: Plain = op.x.on();
        let n = x.cols() / 2;
        let all = x.view();
        match bug {
            ForgetsTheOne => x = edited(&all, |_, j, v| if j < n { v } else { v - 1.0 }),
            SwapsAxes => x = edited(&all, |i, j, _| get(&all, i, (j + n) % (2 * n))),
            _ => {}
        }
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.gated_gelu(GatedGelu { out, x: &x }));
            if bug == OtherGelu {
                for (i, j) in (0..out.rows()).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let (h, g) = (get(&x, i, j), get(&x, i, n + j));
                    let u = (2.0 / std::f32::consts::PI).sqrt() * (h + 0.044715 * h * h * h);
                    set(out, i, j, 0.5 * h * (1.0 + u.tanh()) * (g + 1.0));
                }
            }
        });
    }

    fn weighted_sum(cx: &mut Cx<'_, Self>, op: WeightedSum<'_, Self>) {
        let bug = cx.device.0;
        let (x, mut weights): (Plain, Plain) = (op.x.on(), op.weights.on());
        let top = weights.cols();
        match bug {
            IgnoresWeights => weights = edited(&weights, |_, _, _| 1.0),
            MissesLastPosition => {
                weights = edited(&weights, |_, j, v| if j + 1 == top { 0.0 } else { v });
            }
            _ => {}
        }
        with_output(bug, &op.out.on(), |out| {
            if bug == ForgetsToAccumulate {
                let (rows, cols) = (out.rows(), out.cols());
                (0..rows).for_each(|i| (0..cols).for_each(|j| set(out, i, j, 0.0)));
            }
            plain(cx, |cx| cx.weighted_sum(WeightedSum { out, x: &x, weights: &weights }));
        });
    }

    fn layer_norm(cx: &mut Cx<'_, Self>, op: LayerNorm<'_, Self>) {
        let bug = cx.device.0;
        let (x, w, mut b): (Plain, Plain, Plain) = (op.x.on(), op.w.on(), op.b.on());
        let dim = x.cols() as f32;
        let mut eps = op.eps;
        match bug {
            ForgetsEpsilon => eps = 0.0,
            IgnoresBias => b = edited(&b, |_, _, _| 0.0),
            _ => {}
        }
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.layer_norm(LayerNorm { out, x: &x, w: &w, b: &b, eps }));
            for i in 0..x.rows() {
                let row = || (0..x.cols()).map(|j| get(&x, i, j));
                let mean = row().sum::<f32>() / dim;
                let two_pass = row().map(|v| (v - mean).powi(2)).sum::<f32>() / dim;
                let variance = match bug {
                    CorrectsBessel => two_pass * dim / (dim - 1.0),
                    ComputesVarianceInOnePass => {
                        (row().map(|v| v * v).sum::<f32>() / dim - mean * mean).max(0.0)
                    }
                    _ => continue,
                };
                let scale = 1.0 / (variance + eps).sqrt();
                for j in 0..x.cols() {
                    set(out, i, j, (get(&x, i, j) - mean) * scale * get(&w, 0, j) + get(&b, 0, j));
                }
            }
        });
    }

    fn patchify(cx: &mut Cx<'_, Self>, op: Patchify<'_, Self>) {
        let bug = cx.device.0;
        let crops: Plain = op.crops.on();
        let patch = op.patch;
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.patchify(Patchify { out, crops: &crops, patch }));
            let edit = |i: usize, j: usize, v: f32| match bug {
                OffByOnePixelValue => v + 2.0 / 255.0,
                SwapsAxes => {
                    let (channel, y, x) = (j / (patch * patch), j / patch % patch, j % patch);
                    get(out, i, (channel * patch + x) * patch + y)
                }
                _ => v,
            };
            let result = edited(out, edit);
            for i in 0..out.rows() {
                (0..out.cols()).for_each(|j| set(out, i, j, get(&result, i, j)));
            }
        });
    }

    fn tile(cx: &mut Cx<'_, Self>, op: Tile<'_, Self>) {
        let bug = cx.device.0;
        let x: Plain = op.x.on();
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.tile(Tile { out, x: &x }));
            if bug == RepeatsTheLastRow {
                for i in x.rows()..out.rows() {
                    (0..x.cols()).for_each(|j| set(out, i, j, get(&x, x.rows() - 1, j)));
                }
            }
        });
    }

    fn patch_embed(cx: &mut Cx<'_, Self>, op: PatchEmbed<'_, Self>) {
        let bug = cx.device.0;
        let PatchEmbed { out, crops, patch, w, bias, positions, scratch } = op;
        let (table, period): (Plain, usize) = (positions.on(), positions.rows());
        let result: Plain = out.on();
        let embed = PatchEmbed { out, crops, patch, w, bias, positions, scratch };
        reference::patch_embed(cx, embed);
        let is_wrong = |row: usize| match bug {
            IgnoresPositions => true,
            PositionsOfFirstCropOnly => row >= period,
            _ => false,
        };
        for i in (0..result.rows()).filter(|&i| is_wrong(i)) {
            for j in 0..result.cols() {
                set(&result, i, j, get(&result, i, j) - get(&table, i % period, j));
            }
        }
    }

    fn attention(cx: &mut Cx<'_, Self>, op: Attention<'_, Self>) {
        let bug = cx.device.0;
        let mut qkv: Plain = op.qkv.on();
        let (mut seq_len, heads, mut scale) = (op.seq_len, op.heads, op.scale);
        let width = qkv.cols() / 3;
        match bug {
            ForgetsScale => scale = 1.0,
            SeesOtherSequences if qkv.rows() > 0 => seq_len = qkv.rows(),
            MissesLastPosition if seq_len > 1 => {
                // The last position of each sequence is the one before it, seen twice.
                let all = qkv.view();
                let edit = |i: usize, j: usize, v: f32| match i % seq_len + 1 == seq_len {
                    true if j >= width => get(&all, i - 1, j),
                    _ => v,
                };
                qkv = edited(&all, edit);
            }
            _ => {}
        }
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.attention(Attention { out, qkv: &qkv, seq_len, heads, scale }));
            if bug == ForgetsTheMaximum {
                let head_dim = width / heads;
                for (i, h) in (0..out.rows()).flat_map(|i| (0..heads).map(move |h| (i, h))) {
                    let first = i / seq_len * seq_len;
                    let score = |u: usize| {
                        let at = h * head_dim..(h + 1) * head_dim;
                        at.map(|d| get(&qkv, i, d) * get(&qkv, u, width + d)).sum::<f32>() * scale
                    };
                    let total: f32 = (first..first + seq_len).map(|u| score(u).exp()).sum();
                    if !total.is_normal() {
                        (0..head_dim).for_each(|d| set(out, i, h * head_dim + d, f32::NAN));
                    }
                }
            }
        });
    }

    fn rope_store(cx: &mut Cx<'_, Self>, op: RopeStore<'_, Self>) {
        let bug = in_cache(cx.device.0, op.k_cache.dtype());
        let (mut qkv, mut k_cache, mut v_cache): (Plain, Plain, Plain) =
            (op.qkv.on(), op.k_cache.on(), op.v_cache.on());
        let (mut positions, mut slots, mut table): (Plain, Plain, Plain) =
            (op.positions.on(), op.slots.on(), op.table.on());
        let (heads, kv_heads, head_dim) = (op.heads, op.kv_heads, op.head_dim);
        let (num_slots, max_context, rotary) = (k_cache.rows(), table.rows(), table.cols());
        let mut tau: Option<(Plain, Plain)> = op.tau.map(|t| (t.scores.on(), t.alpha.on()));
        if let Some((scores, alpha)) = &mut tau {
            let place = ints(&positions);
            let factor = |t: usize, part: usize, h: usize| {
                let a = get(alpha, 0, h) * (place[t] as f32 + 1.0).ln();
                get(scores, t, part / 2 * heads + h).tanh() + 1.0 / (1.0 + (-a).exp()) + 0.5
            };
            let wide = heads * head_dim;
            let scale = |part: usize| {
                for (t, j) in (0..place.len()).flat_map(|t| (0..wide).map(move |j| (t, j))) {
                    let x = get(&qkv, t, part * wide + j);
                    set(&qkv, t, part * wide + j, x * factor(t, part, j / head_dim));
                }
            };
            match bug {
                ForgetsAlpha => *alpha = edited(alpha, |_, _, _| 0.0),
                SwapsHalves => {
                    let swapped = |i, j, _| get(scores, i, (j + heads) % (2 * heads));
                    *scores = edited(scores, swapped);
                }
                ScalesKToo => scale(1),
                RoundsTwice => {
                    scale(0);
                    scale(2);
                    tau = None;
                }
                _ => {}
            }
        }
        let before = edited(&qkv, |_, _, v| v);
        match bug {
            ForgetsTau => tau = None,
            TurnsBackwards => table = edited(&table, |_, j, v| if j < rotary / 2 { v } else { -v }),
            BadIndexIsZero => slots = edited_ints(&slots, |_, s| bent(bug, s, num_slots)),
            BadPositionIsZero => {
                positions = edited_ints(&positions, |_, p| bent(BadIndexIsZero, p, max_context));
            }
            BadSlotSkipsTheToken => {
                let slots = ints(&slots);
                let edit = |t: usize, p| if is_row(slots[t], num_slots) { p } else { -1 };
                positions = edited_ints(&positions, edit);
            }
            _ => {}
        }
        let (place, slot) = (ints(&positions), ints(&slots));
        let stored = |t: usize| is_row(place[t], max_context) && is_row(slot[t], num_slots);
        plain(cx, |cx| {
            cx.rope_store(RopeStore {
                qkv: &mut qkv,
                k_cache: &mut k_cache,
                v_cache: &mut v_cache,
                positions: &positions,
                slots: &slots,
                table: &table,
                tau: tau.as_ref().map(|(scores, alpha)| Tau { scores, alpha }),
                heads,
                kv_heads,
                head_dim,
            });
        });
        let (q_dim, kv_dim) = (heads * head_dim, kv_heads * head_dim);
        for t in 0..place.len() {
            match bug {
                RotatesTheRestToo if is_row(place[t], max_context) && rotary < head_dim => {
                    set(&qkv, t, rotary, -get(&qkv, t, rotary));
                }
                ForgetsToRotateK if stored(t) => {
                    (0..kv_dim).for_each(|j| {
                        set(&k_cache, slot[t] as usize, j, get(&before, t, q_dim + j));
                    });
                }
                BadPositionStillStores if !stored(t) && is_row(slot[t], num_slots) => {
                    (0..kv_dim).for_each(|j| {
                        set(&v_cache, slot[t] as usize, j, get(&before, t, q_dim + kv_dim + j));
                    });
                }
                WritesOneRowTooMany if t == 0 => set(&k_cache, num_slots, 0, 0.0),
                CodesAreOneOff if stored(t) => {
                    let slot = slot[t] as usize;
                    edit_row(&k_cache, slot, kv_heads, |codes, _| codes[0] ^= 1);
                }
                ScalesAreHalved if stored(t) => {
                    let slot = slot[t] as usize;
                    edit_row(&v_cache, slot, kv_heads, |_, scales| scales[0] /= 2.0);
                }
                ZeroesWhatIsNotFinite if stored(t) => {
                    edit_row(&v_cache, slot[t] as usize, kv_heads, |_, scales| {
                        scales.iter_mut().filter(|s| !s.is_finite()).for_each(|s| *s = 0.0);
                    });
                }
                _ => {}
            }
        }
    }

    fn paged_attention(cx: &mut Cx<'_, Self>, op: PagedAttention<'_, Self>) {
        let bug = in_cache(cx.device.0, op.k_cache.dtype());
        let mut q: Plain = op.q.on();
        let (mut k_cache, mut v_cache): (Plain, Plain) = (op.k_cache.on(), op.v_cache.on());
        let (mut tables, starts): (Plain, Plain) = (op.block_tables.on(), op.row_starts.on());
        let mut visible: Plain = op.visible.on();
        let (block_size, heads, kv_heads) = (op.block_size, op.heads, op.kv_heads);
        let mut scale = op.scale;
        let num_blocks = k_cache.rows() / block_size;
        let max_blocks = tables.cols();
        match bug {
            ForgetsScale => scale = 1.0,
            ReadsStaleSlots => visible = edited_ints(&visible, |_, n| n.saturating_add(1)),
            MissesLastPosition => visible = edited_ints(&visible, |_, n| n.saturating_sub(1)),
            SeesTheFuture | IgnoresSpans | TilesSeeAlike | TrustsTheOrder => {
                visible = misread(bug, &visible, &starts);
            }
            BadIndexIsZero | BadBlockIsClamped => {
                tables = edited_ints(&tables, |_, b| bent(bug, b, num_blocks));
            }
            IgnoresBlockTables => {
                let edit = |i: usize, b| {
                    if is_row(b, num_blocks) { (i % max_blocks % num_blocks) as i32 } else { b }
                };
                tables = edited_ints(&tables, edit);
            }
            UsesWrongKeyHead => {
                let head_dim = q.cols() / heads;
                let other = |i: usize, j: usize, cache: &Plain| {
                    get(cache, i, (j / head_dim + 1) % kv_heads * head_dim + j % head_dim)
                };
                let (k, v) = (k_cache.view(), v_cache.view());
                k_cache = edited(&k, |i, j, _| other(i, j, &k));
                v_cache = edited(&v, |i, j, _| other(i, j, &v));
            }
            IgnoresScales => {
                let ones = |scales: &mut [f32]| scales.fill(1.0);
                k_cache = rescaled(&k_cache, kv_heads, ones);
            }
            ScaleOfTheNextHead => {
                v_cache = rescaled(&v_cache, kv_heads, |scales| scales.rotate_left(1));
            }
            IgnoresRowStride => {
                q = Tensor::new(q.buffer().clone(), q.offset(), [q.rows(), q.cols()], q.dtype());
            }
            _ => {}
        }
        with_output(bug, &op.out.on(), |out| {
            if bug == WritesRowsThatSeeNothing {
                for i in 0..out.rows() {
                    (0..out.cols()).for_each(|j| set(out, i, j, 0.0));
                }
            }
            plain(cx, |cx| {
                cx.paged_attention(PagedAttention {
                    out,
                    q: &q,
                    k_cache: &k_cache,
                    v_cache: &v_cache,
                    block_tables: &tables,
                    row_starts: &starts,
                    visible: &visible,
                    block_size,
                    heads,
                    kv_heads,
                    scale,
                });
            });
        });
    }

    fn stitch_pool(cx: &mut Cx<'_, Self>, op: StitchPool<'_, Self>) {
        let bug = cx.device.0;
        let x: Plain = op.x.on();
        let (grid, mut margin, mut tiles) = (op.grid, op.margin, op.tiles);
        match bug {
            SwapsAxes => tiles = (tiles.1, tiles.0),
            IgnoresMargin => margin = 0,
            _ => {}
        }
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.stitch_pool(StitchPool { out, x: &x, grid, margin, tiles }));
            if bug == PoolsTheGlobalCrop {
                for i in 0..out.rows() {
                    (0..x.cols()).for_each(|j| set(out, i, x.cols() + j, get(&x, i, j)));
                }
            }
        });
    }

    fn gather(cx: &mut Cx<'_, Self>, op: Gather<'_, Self>) {
        let bug = cx.device.0;
        let x: Plain = op.x.on();
        let mut indices: Plain = op.indices.on();
        let count = ints(&indices).len();
        indices = edited_ints(&indices, |i, id| match bug {
            SkipsLastIndex if i + 1 == count => -1,
            _ => bent(bug, id, x.rows()),
        });
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.gather(Gather { out, x: &x, indices: &indices }));
        });
    }

    fn scatter(cx: &mut Cx<'_, Self>, op: Scatter<'_, Self>) {
        let bug = cx.device.0;
        let x: Plain = op.x.on();
        let mut indices: Plain = op.indices.on();
        let (count, rows) = (x.rows(), op.out.rows());
        indices = edited_ints(&indices, |i, id| match bug {
            SkipsLastIndex if i + 1 == count => -1,
            _ => bent(bug, id, rows),
        });
        with_output(bug, &op.out.on(), |out| {
            if bug == ClearsFirst {
                for i in 0..rows {
                    (0..out.cols()).for_each(|j| set(out, i, j, 0.0));
                }
            }
            plain(cx, |cx| cx.scatter(Scatter { out, x: &x, indices: &indices }));
        });
    }

    fn fourier(cx: &mut Cx<'_, Self>, op: Fourier<'_, Self>) {
        let bug = cx.device.0;
        let values: Plain = op.values.on();
        let mut w: Plain = op.w.on();
        if bug == ForgetsScale {
            w = edited(&w, |_, _, v| v / std::f32::consts::TAU);
        }
        with_output(bug, &op.out.on(), |out| {
            plain(cx, |cx| cx.fourier(Fourier { out, values: &values, w: &w }));
        });
    }

    fn sample(cx: &mut Cx<'_, Self>, op: Sample<'_, Self>) {
        let bug = cx.device.0;
        let (mut ids, mut logprobs): (Plain, Plain) = (op.ids.on(), op.logprobs.on());
        let (mut logits, params): (Plain, Plain) = (op.logits.on(), op.params.on());
        let masks = op.masks.map(|Masks { bits, rows }| {
            let (bits, rows): (Plain, Plain) = (bits.on(), rows.on());
            let (count, words) = (bits.rows(), bits.cols());
            let rows = edited_ints(&rows, |i, row| match bug {
                IgnoresRowsOfMasks if count > 0 => (i % count) as i32,
                _ => bent(bug, row, count),
            });
            let bits = edited_ints(&bits, |i, word| match bug {
                ReversesMasks => word.reverse_bits(),
                DropsTailOfMasks if i % words + 1 == words => 0,
                _ => word,
            });
            (bits, rows)
        });
        let masks = masks.filter(|_| bug != IgnoresMasks);
        let bytes = params.buffer().lock()[params.byte_range()].to_vec();
        let records: Vec<SampleParams> = bytes
            .chunks_exact(size_of::<SampleParams>())
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let edit = |(row, p): (usize, &SampleParams)| {
            let mut p = *p;
            match bug {
                IgnoresBans => p.banned = [-1; 4],
                IgnoresAllowed => p.allowed = [-1; 4],
                IgnoresTopK => p.top_k = 0,
                IgnoresTopP => p.top_p = 1.0,
                IgnoresMinP => p.min_p = 0.0,
                TopKOneTooMany if p.top_k > 0 => p.top_k += 1,
                IgnoresTemperature if p.temperature > 0.0 => p.temperature = 1.0,
                IgnoresSeed => p.seed = [0; 2],
                IgnoresStream => p.stream = 0,
                DependsOnTheBatch => p.position += row as u32,
                ScalesTheDraw => p.seed[0] = p.seed[0].rotate_left(1),
                _ => {}
            }
            p
        };
        let bent: Vec<SampleParams> = records.iter().enumerate().map(edit).collect();
        let mut bent_params = params.view();
        if bent != records || bug == BakesInputs {
            bent_params = Tensor::zeros(&Naive, params.shape(), DType::U8).expect("memory");
            bent_params.buffer().lock().copy_from_slice(bytemuck::cast_slice(&bent));
        }
        if bug == NanIsSmall {
            logits = edited(&logits, |_, _, v| if v.is_nan() { f32::MIN } else { v });
        }
        plain(cx, |cx| {
            cx.sample(Sample {
                ids: &mut ids,
                logprobs: &mut logprobs,
                logits: &logits,
                params: &bent_params,
                masks: masks.as_ref().map(|(bits, rows)| Masks { bits, rows }),
            });
        });
        for (row, p) in records.iter().enumerate() {
            let at = place(&ids, 0, row);
            match bug {
                LogprobAfterTruncation if p.top_k == 1 => set(&logprobs, 0, row, 0.0),
                TakesTheLastOfEquals if p.temperature == 0.0 => {
                    let id = ints(&ids)[row];
                    if id >= 0 {
                        let chosen = get(&logits, row, id as usize);
                        let takes_part =
                            |j: usize| !p.banned.contains(&(j as i32)) && p.allowed == [-1; 4];
                        let last = (0..logits.cols())
                            .rfind(|&j| get(&logits, row, j) == chosen && takes_part(j));
                        let last = last.map_or(id, |j| j as i32);
                        ids.buffer().lock()[at..at + 4].copy_from_slice(&last.to_le_bytes());
                    }
                }
                _ => {}
            }
        }
    }

    fn copy(cx: &mut Cx<'_, Self>, op: Copy<'_, Self>) {
        let bug = cx.device.0;
        let mut x: Plain = op.x.on();
        if bug == LosesTheSignOfZero {
            x = edited(&x, |_, _, v| v + 0.0);
        }
        with_output(bug, &op.out.on(), |out| plain(cx, |cx| cx.copy(Copy { out, x: &x })));
    }
}
