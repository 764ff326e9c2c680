//! The CPU as a GPU would behave: work is recorded, runs when it is submitted, and can be captured.
//!
//! # Rules
//! - Recording only makes a list. Uploads copy their bytes into it. Nothing runs before
//!   [`Device::submit`] or [`Device::read_back`], which run the list on the calling thread.
//! - The first failure (a kernel that panics, a submit inside a capture, [`Tape::lose`]) is latched in
//!   the stream: the rest of the list is dropped, and the stream reports the failure ever after.
//! - While capturing nothing runs; what was recorded before the capture stays recorded.
//! - A list holds its own handles to every buffer it touches, and so does a graph.
//!
//! It exists so that capture, padding, overlap and errors are tested without a GPU. Buffers and weight
//! layouts are the [`Cpu`]'s, so tensors and weights of one convert to the other with `on`.
use std::{
    borrow::Cow,
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use photon_core::{
    Activate, Attention, Copy, Cx, DType, Device, Error, Fourier, GatedGelu, Gather, GroupedLinear,
    Kernels, LayerNorm, Linear, Masks, MemoryInfo, Nest, PagedAttention, Patchify, Pending, Result,
    RopeStore, Route, Sample, Scatter, StitchPool, Tau, Tile, Weight, WeightData, WeightedSum,
};

use crate::{
    Buffer, Cpu, kernels,
    linear::{grouped_linear, linear},
};

/// A device that records what a [`Cpu`] is to do. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Tape {
    cpu: Cpu,
    /// What took the device away, if anything did.
    lost: Arc<Mutex<Option<Error>>>,
}

/// One recorded operation.
#[derive(Clone)]
struct Step {
    name: Cow<'static, str>,
    run: Arc<dyn Fn(&Cpu) + Send + Sync>,
}

/// Work not yet submitted, and the first failure of what was.
#[derive(Default)]
pub struct TapeStream {
    steps: Vec<Step>,
    capturing: bool,
    failed: Option<Error>,
}

/// Captured work, and with it every buffer it touches.
pub struct TapeGraph {
    steps: Vec<Step>,
}

/// What became of a submission.
#[derive(Clone, Debug)]
pub struct TapeEvent {
    outcome: Result<()>,
}

impl fmt::Debug for TapeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.steps.iter().map(|step| &step.name).collect();
        f.debug_struct("TapeStream")
            .field("steps", &names)
            .field("capturing", &self.capturing)
            .field("failed", &self.failed)
            .finish()
    }
}

impl fmt::Debug for TapeGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|step| &step.name)).finish()
    }
}

impl TapeGraph {
    /// How many operations were captured.
    pub fn num_steps(&self) -> usize {
        self.steps.len()
    }
}

impl TapeStream {
    /// How many operations wait to be submitted.
    pub fn num_steps(&self) -> usize {
        self.steps.len()
    }

    fn push(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        run: impl Fn(&Cpu) + Send + Sync + 'static,
    ) {
        self.steps.push(Step { name: name.into(), run: Arc::new(run) });
    }

    fn fail(&mut self, doing: &str, why: String) {
        let error = Error::DeviceLost { device: "tape".into(), doing: doing.into(), why };
        self.failed.get_or_insert(error);
    }
}

impl Tape {
    /// Records for `cpu`.
    pub fn new(cpu: Cpu) -> Self {
        Tape { cpu, lost: Arc::default() }
    }

    /// The processor that runs what was recorded.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Makes everything submitted from now on fail as a GPU that fell off the bus would.
    pub fn lose(&self, why: &str) {
        let error = Error::DeviceLost {
            device: "tape".into(),
            doing: "running submitted work".into(),
            why: why.into(),
        };
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Runs what `stream` recorded, up to the first failure.
    fn run(&self, stream: &mut TapeStream) -> Result<()> {
        if stream.capturing {
            stream.fail("capturing", "work was submitted inside a capture".into());
        }
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(error) = lost {
            stream.failed.get_or_insert(error);
        }
        if stream.failed.is_none() {
            for step in std::mem::take(&mut stream.steps) {
                let run = AssertUnwindSafe(|| (step.run)(&self.cpu));
                if let Err(thrown) = catch_unwind(run) {
                    let why = match thrown.downcast_ref::<String>() {
                        Some(message) => message.as_str(),
                        None => thrown.downcast_ref::<&str>().copied().unwrap_or("a panic"),
                    };
                    stream.fail(&step.name, why.into());
                    break;
                }
            }
        }
        if !stream.capturing {
            stream.steps.clear();
        }
        stream.failed.clone().map_or(Ok(()), Err)
    }
}

impl Device for Tape {
    type Buffer = Buffer;
    type Stream = TapeStream;
    type Event = TapeEvent;
    type Graph = TapeGraph;
    type HostBuffer = Vec<u8>;

    fn name(&self) -> String {
        format!("tape on {}", self.cpu.name())
    }

    fn memory(&self) -> MemoryInfo {
        self.cpu.memory()
    }

    fn activations(&self, weights: DType) -> DType {
        self.cpu.activations(weights)
    }

    fn inner_activations(&self, weights: DType) -> DType {
        self.cpu.inner_activations(weights)
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.cpu.alloc(bytes)
    }

    fn weight(&self, data: WeightData<'_>) -> Result<Weight<Self>> {
        self.cpu.weight(data).map(|weight| weight.on())
    }

    fn stream(&self) -> Result<TapeStream> {
        Ok(TapeStream::default())
    }

    fn upload(&self, stream: &mut TapeStream, dst: &Buffer, offset: usize, bytes: &[u8]) {
        let (dst, bytes) = (dst.clone(), bytes.to_vec());
        stream.push("upload", move |_| dst.write(offset, &bytes));
    }

    fn host_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        self.cpu.host_buffer(bytes)
    }

    fn read_back(
        &self,
        stream: &mut TapeStream,
        src: &Buffer,
        range: Range<usize>,
        mut into: Vec<u8>,
    ) -> Result<Pending<Self>> {
        let event = self.submit(stream)?;
        src.read(range.start, &mut into[..range.len()]);
        Ok(Pending::new(self.clone(), into, event))
    }

    fn submit(&self, stream: &mut TapeStream) -> Result<TapeEvent> {
        self.run(stream)?;
        Ok(TapeEvent { outcome: Ok(()) })
    }

    fn wait(&self, event: &TapeEvent) -> Result<()> {
        event.outcome.clone()
    }

    fn capture(
        &self,
        stream: &mut TapeStream,
        record: &mut dyn FnMut(&mut TapeStream),
    ) -> Result<Option<TapeGraph>> {
        if stream.capturing {
            stream.fail("capturing", "a capture was begun inside a capture".into());
        } else {
            let before = std::mem::take(&mut stream.steps);
            stream.capturing = true;
            record(stream);
            stream.capturing = false;
            let steps = std::mem::replace(&mut stream.steps, before);
            if stream.failed.is_none() {
                return Ok(Some(TapeGraph { steps }));
            }
        }
        stream.failed.clone().map_or(Ok(None), Err)
    }

    fn replay(&self, stream: &mut TapeStream, graph: &TapeGraph) {
        stream.steps.extend(graph.steps.iter().cloned());
    }
}

/// Implements an operation by recording it: its outputs, its inputs, and its plain values.
macro_rules! record {
    ($($name:ident, $op:ident {
        $($out:ident),+; $($in:ident),*; $($plain:ident),*
    })+) => {$(
        fn $name(cx: &mut Cx<'_, Self>, op: $op<'_, Self>) {
            let $op { $($out,)+ $($in,)* $($plain,)* } = op;
            $(let $out = $out.on::<Cpu>();)+
            $(let $in = $in.on::<Cpu>();)*
            cx.stream.push(stringify!($name), move |cpu| {
                let op = $op { $($out: &mut $out.view(),)+ $($in: &$in,)* $($plain,)* };
                kernels::$name(cpu, op);
            });
        }
    )+};
}

impl Kernels for Tape {
    record! {
        activate, Activate { out; x; activation }
        route, Route { experts, weights; logits; }
        nest, Nest { out; outer, inner; count }
        gated_gelu, GatedGelu { out; x; }
        weighted_sum, WeightedSum { out; x, weights; }
        layer_norm, LayerNorm { out; x, w, b; eps }
        patchify, Patchify { out; crops; patch }
        tile, Tile { out; x; }
        attention, Attention { out; qkv; seq_len, heads, scale }
        paged_attention, PagedAttention {
            out;
            q, k_cache, v_cache, block_tables, row_starts, visible;
            block_size, heads, kv_heads, scale
        }
        stitch_pool, StitchPool { out; x; grid, margin, tiles }
        gather, Gather { out; x, indices; }
        scatter, Scatter { out; x, indices; }
        fourier, Fourier { out; values, w; }
        copy, Copy { out; x; }
    }

    // Not in the table for its optional tau.
    fn rope_store(cx: &mut Cx<'_, Self>, op: RopeStore<'_, Self>) {
        let RopeStore { qkv, k_cache, v_cache, positions, slots, table, tau, .. } = op;
        let (heads, kv_heads, head_dim) = (op.heads, op.kv_heads, op.head_dim);
        let (qkv, k_cache, v_cache) = (qkv.on::<Cpu>(), k_cache.on::<Cpu>(), v_cache.on::<Cpu>());
        let (positions, slots, table) = (positions.on(), slots.on(), table.on());
        let tau = tau.map(|Tau { scores, alpha }| (scores.on::<Cpu>(), alpha.on::<Cpu>()));
        cx.stream.push("rope_store", move |cpu| {
            let op = RopeStore {
                qkv: &mut qkv.view(),
                k_cache: &mut k_cache.view(),
                v_cache: &mut v_cache.view(),
                positions: &positions,
                slots: &slots,
                table: &table,
                tau: tau.as_ref().map(|(scores, alpha)| Tau { scores, alpha }),
                heads,
                kv_heads,
                head_dim,
            };
            kernels::rope_store(cpu, op);
        });
    }

    // Not in the table for its optional masks.
    fn sample(cx: &mut Cx<'_, Self>, op: Sample<'_, Self>) {
        let Sample { ids, logprobs, logits, params, masks } = op;
        let (ids, logprobs) = (ids.on::<Cpu>(), logprobs.on::<Cpu>());
        let (logits, params) = (logits.on::<Cpu>(), params.on::<Cpu>());
        let masks = masks.map(|Masks { bits, rows }| (bits.on::<Cpu>(), rows.on::<Cpu>()));
        cx.stream.push("sample", move |cpu| {
            let (ids, logprobs) = (&mut ids.view(), &mut logprobs.view());
            let masks = masks.as_ref().map(|(bits, rows)| Masks { bits, rows });
            let (logits, params) = (&logits, &params);
            kernels::sample(cpu, Sample { ids, logprobs, logits, params, masks });
        });
    }

    // Not in the table for its weight.
    fn grouped_linear(cx: &mut Cx<'_, Self>, op: GroupedLinear<'_, Self>) {
        let GroupedLinear { out, x, w, groups, accumulate } = op;
        let (out, x, w) = (out.on::<Cpu>(), x.on::<Cpu>(), w.on::<Cpu>());
        let groups = groups.on::<Cpu>();
        cx.stream.push("grouped_linear", move |cpu| {
            let out = &mut out.view();
            grouped_linear(cpu, GroupedLinear { out, x: &x, w: &w, groups: &groups, accumulate });
        });
    }

    // Not in the table for its weight and its optional bias. Its name says which matrix, so that tests can count
    // them.
    fn linear(cx: &mut Cx<'_, Self>, op: Linear<'_, Self>) {
        let Linear { out, x, w, bias, activation, accumulate } = op;
        let (out, x, w) = (out.on::<Cpu>(), x.on::<Cpu>(), w.on::<Cpu>());
        let bias = bias.map(photon_core::Tensor::on::<Cpu>);
        cx.stream.push(format!("linear {}x{}", w.n(), w.k()), move |cpu| {
            let (out, bias) = (&mut out.view(), bias.as_ref());
            linear(cpu, Linear { out, x: &x, w: &w, bias, activation, accumulate });
        });
    }
}
