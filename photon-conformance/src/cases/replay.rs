//! A pass of every operation, captured once and replayed with other inputs, indices included: a kernel
//! may keep nothing it saw while it was recorded.
use photon_core::{
    Activate, Activation, Arena, Attention, Copy, Cx, DType, Fourier, GatedGelu, Gather,
    GroupedLinear, Kernels, LayerNorm, Linear, Masks, Nest, PagedAttention, PatchEmbed, Patchify,
    RopeStore, Route, Sample, SampleParams, Scatter, StitchPool, Tau, Tensor, Tile, Weight,
    WeightedSum,
};

use crate::{
    Options,
    rig::{Rig, encode, skip},
    rng::Rng,
};

/// What a tensor is filled with before a run.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// Random numbers.
    Floats,
    /// Random integers of a range that begins with the first.
    Ints(usize, usize),
    /// Distinct indices below this, in random order.
    Distinct(usize),
    /// These very integers.
    Fixed(&'static [i32]),
    Bytes,
    /// Records for the sampler.
    Params,
}

struct Pass<D: Kernels> {
    tensors: Vec<(&'static str, Fill, Tensor<D>)>,
    /// `[16, 8]`, `[8, 12]`, and three of `[8, 8]`.
    weights: [Weight<D>; 3],
}

impl<D: Kernels> Pass<D> {
    fn new(device: &D, options: &Options) -> Self {
        use Fill::*;
        let rig = &mut Rig::new(device, options);
        let rng = &mut Rng::new(1);
        let weights = [(1, 16, 8), (1, 8, 12), (3, 8, 8)]
            .map(|(count, n, k)| rig.weights(count, n, k, options.weight(2 * count), rng).0);
        let (f, other, vector) = (options.float(0), options.float(1), DType::F32);
        let list: [(&'static str, Fill, [usize; 2], DType); 49] = [
            ("x", Floats, [6, 8], f),
            ("vector8", Floats, [1, 8], vector),
            ("vector16", Floats, [1, 16], vector),
            ("linear", Floats, [6, 16], f),
            ("activate", Floats, [6, 8], f),
            ("groups", Ints(0, 5), [1, 12], DType::I32),
            ("grouped_linear", Floats, [12, 8], f),
            ("router", Floats, [6, 5], f),
            ("experts", Ints(0, 1), [6, 2], DType::I32),
            ("expert_weights", Floats, [6, 2], vector),
            ("nest", Ints(0, 1), [6, 2], DType::I32),
            ("gated_gelu", Floats, [12, 4], f),
            ("weighted_sum", Floats, [6, 8], f),
            ("scores", Floats, [6, 2], f),
            ("alpha", Floats, [1, 1], vector),
            ("layer_norm", Floats, [6, 8], f),
            ("crops", Bytes, [1, 48], DType::U8),
            ("patchify", Floats, [4, 12], f),
            ("tile", Floats, [9, 8], other),
            ("positions", Floats, [4, 8], vector),
            ("scratch", Floats, [4, 12], f),
            ("patch_embed", Floats, [4, 8], f),
            ("qkv", Floats, [6, 24], f),
            ("attention", Floats, [6, 8], f),
            ("rope_qkv", Floats, [6, 24], f),
            ("k_cache", Floats, [16, 8], other),
            ("v_cache", Floats, [16, 8], other),
            ("token_positions", Ints(0, 12), [1, 6], DType::I32),
            ("slots", Distinct(18), [1, 6], DType::I32),
            ("rope_table", Floats, [10, 8], vector),
            ("paged_attention", Floats, [6, 8], f),
            ("block_tables", Ints(0, 5), [2, 2], DType::I32),
            ("row_starts", Fixed(&[0, 2, 6]), [1, 3], DType::I32),
            ("visible", Ints(0, 9), [1, 6], DType::I32),
            ("patches", Floats, [8, 8], f),
            ("stitch_pool", Floats, [4, 16], f),
            ("rows", Ints(0, 8), [1, 5], DType::I32),
            ("gather", Floats, [5, 8], f),
            ("places", Distinct(11), [1, 6], DType::I32),
            ("scatter", Floats, [9, 8], f),
            ("values", Floats, [3, 2], vector),
            ("frequencies", Floats, [2, 4], vector),
            ("fourier", Floats, [3, 8], f),
            ("logits", Floats, [4, 33], f),
            ("params", Params, [4, size_of::<SampleParams>()], DType::U8),
            ("masks", Ints(0, 1 << 31), [3, 2], DType::I32),
            ("rows_of_masks", Ints(0, 4), [1, 4], DType::I32),
            ("ids", Ints(0, 1), [1, 4], DType::I32),
            ("logprobs", Floats, [1, 4], vector),
        ];
        let mut tensors: Vec<_> = list
            .into_iter()
            .map(|(name, fill, shape, dtype)| {
                (name, fill, Tensor::zeros(device, shape, dtype).expect("memory"))
            })
            .collect();
        tensors.push(("copy", Floats, Tensor::zeros(device, [6, 8], other).expect("memory")));
        Pass { tensors, weights }
    }

    fn get(&self, name: &str) -> Tensor<D> {
        let found = self.tensors.iter().find(|(n, ..)| *n == name);
        found.unwrap_or_else(|| panic!("no tensor {name}")).2.view()
    }

    /// Uploads everything, outputs too.
    fn fill(&self, device: &D, stream: &mut D::Stream, seed: u64) {
        let rng = &mut Rng::new(seed);
        for (_, fill, t) in &self.tensors {
            let n = t.shape().elements();
            let ints = |ids: Vec<i32>| ids.into_iter().flat_map(i32::to_le_bytes).collect();
            let bytes: Vec<u8> = match *fill {
                Fill::Floats => {
                    let size = t.dtype().size();
                    let values = rng.floats(n, 1.0).into_iter();
                    values.flat_map(|v| encode(v, t.dtype()).into_iter().take(size)).collect()
                }
                Fill::Ints(from, to) => {
                    ints((0..n).map(|_| (from + rng.below(to - from)) as i32).collect())
                }
                Fill::Distinct(below) => {
                    ints(rng.permutation(below)[..n].iter().map(|&i| i as i32).collect())
                }
                Fill::Fixed(ids) => ints(ids.to_vec()),
                Fill::Bytes => (0..n).map(|_| rng.bits() as u8).collect(),
                Fill::Params => {
                    let records = (0..t.rows()).map(|row| SampleParams {
                        temperature: [0.0, 1.0][rng.below(2)],
                        top_k: rng.below(5) as u32,
                        seed: [seed as u32, row as u32],
                        ..SampleParams::GREEDY
                    });
                    bytemuck::cast_slice(&records.collect::<Vec<_>>()).to_vec()
                }
            };
            device.upload(stream, t.buffer(), 0, &bytes);
        }
    }

    fn record(&self, cx: &mut Cx<'_, D>) {
        let t = |name| self.get(name);
        let crops = t("crops").reshape([1, 4, 4, 3]);
        cx.linear(Linear {
            out: &mut t("linear"),
            x: &t("x"),
            w: &self.weights[0],
            bias: Some(&t("vector16")),
            activation: Activation::GeluTanh,
            accumulate: true,
        });
        let (out, x, activation) = (&mut t("activate"), &t("x"), Activation::GeluErf);
        cx.activate(Activate { out, x, activation });
        cx.grouped_linear(GroupedLinear {
            out: &mut t("grouped_linear"),
            x,
            w: &self.weights[2],
            groups: &t("groups"),
            accumulate: true,
        });
        let (mut experts, mut weights) = (t("experts"), t("expert_weights"));
        let logits = &t("router");
        cx.route(Route { experts: &mut experts, weights: &mut weights, logits });
        let (out, outer) = (&mut t("nest"), &t("token_positions"));
        cx.nest(Nest { out, outer, inner: &experts, count: 5 });
        cx.gated_gelu(GatedGelu { out: &mut t("gated_gelu"), x: &t("grouped_linear") });
        let (out, x) = (&mut t("weighted_sum"), &t("grouped_linear"));
        cx.weighted_sum(WeightedSum { out, x, weights: &weights });
        let vector = &t("vector8");
        cx.layer_norm(LayerNorm {
            out: &mut t("layer_norm"),
            x: &t("x"),
            w: vector,
            b: vector,
            eps: 1e-5,
        });
        cx.patchify(Patchify { out: &mut t("patchify"), crops: &crops, patch: 2 });
        cx.tile(Tile { out: &mut t("tile"), x: &t("x") });
        cx.patch_embed(PatchEmbed {
            out: &mut t("patch_embed"),
            crops: &crops,
            patch: 2,
            w: &self.weights[1],
            bias: vector,
            positions: &t("positions"),
            scratch: &mut t("scratch"),
        });
        let (out, qkv) = (&mut t("attention"), &t("qkv"));
        cx.attention(Attention { out, qkv, seq_len: 3, heads: 2, scale: 0.5 });
        let (mut k_cache, mut v_cache, mut qkv) = (t("k_cache"), t("v_cache"), t("rope_qkv"));
        cx.rope_store(RopeStore {
            qkv: &mut qkv,
            k_cache: &mut k_cache,
            v_cache: &mut v_cache,
            positions: &t("token_positions"),
            slots: &t("slots"),
            table: &t("rope_table"),
            tau: Some(Tau { scores: &t("scores"), alpha: &t("alpha") }),
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
        });
        cx.paged_attention(PagedAttention {
            out: &mut t("paged_attention"),
            q: &qkv.col_range(0..8),
            k_cache: &k_cache,
            v_cache: &v_cache,
            block_tables: &t("block_tables"),
            row_starts: &t("row_starts"),
            visible: &t("visible"),
            block_size: 4,
            heads: 1,
            kv_heads: 1,
            scale: 0.4,
        });
        let (out, x) = (&mut t("stitch_pool"), &t("patches"));
        cx.stitch_pool(StitchPool { out, x, grid: 2, margin: 0, tiles: (1, 1) });
        cx.gather(Gather { out: &mut t("gather"), x: &t("x"), indices: &t("rows") });
        cx.scatter(Scatter { out: &mut t("scatter"), x: &t("x"), indices: &t("places") });
        cx.fourier(Fourier { out: &mut t("fourier"), values: &t("values"), w: &t("frequencies") });
        cx.sample(Sample {
            ids: &mut t("ids"),
            logprobs: &mut t("logprobs"),
            logits: &t("logits"),
            params: &t("params"),
            masks: Some(Masks { bits: &t("masks"), rows: &t("rows_of_masks") }),
        });
        cx.copy(Copy { out: &mut t("copy"), x: &t("x") });
    }

    /// The bytes of every tensor that is not void.
    fn read(&self, device: &D, stream: &mut D::Stream) -> Vec<(&'static str, Vec<u8>)> {
        let mut read = |name: &'static str, t: &Tensor<D>| {
            let range = t.byte_range();
            let host = device.host_buffer(range.len()).expect("a host buffer");
            let pending = device.read_back(stream, t.buffer(), range, host).expect("a read-back");
            (name, pending.wait().expect("finished work").as_ref().to_vec())
        };
        let kept = self.tensors.iter().filter(|(name, ..)| !["scratch", "rope_qkv"].contains(name));
        kept.map(|(name, _, t)| read(name, t)).collect()
    }
}

/// Replays equal eager runs to the last bit, whatever was in the inputs when it was captured.
pub(crate) fn every_operation<D: Kernels>(device: &D, options: &Options) {
    let pass = Pass::new(device, options);
    let stream = &mut device.stream().expect("a stream");
    let mut arena = Arena::new(device, 0).expect("an empty arena");
    pass.fill(device, stream, 1);
    let graph = device
        .capture(stream, &mut |stream| pass.record(&mut Cx::new(device, stream, &mut arena)))
        .expect("capture");
    let Some(graph) = graph else {
        let case = "device_replays_every_operation";
        return skip(case, &device.name(), "capture is not supported");
    };
    for seed in 1..12 {
        pass.fill(device, stream, seed);
        let inputs = pass.read(device, stream);
        pass.record(&mut Cx::new(device, stream, &mut arena));
        let eager = pass.read(device, stream);
        assert!(eager != inputs, "seed {seed}: the pass did nothing");
        pass.fill(device, stream, seed);
        device.replay(stream, &graph);
        for ((name, replayed), (_, eager)) in pass.read(device, stream).iter().zip(&eager) {
            assert!(replayed == eager, "seed {seed}: {name} differs between replay and eager run");
        }
    }
}
