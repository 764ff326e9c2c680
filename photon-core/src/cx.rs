//! The one door through which models reach kernels.
//!
//! Every operation is checked here once, with the caller's line in the message; backends rely on it
//! and do not check again. A violation is a bug in the model, so it panics.
use crate::{
    Activate, Arena, Attention, Copy, DType, Fourier, GatedGelu, Gather, GroupedLinear, Kernels,
    LayerNorm, Linear, Nest, PagedAttention, PatchEmbed, Patchify, RopeStore, Route, Sample,
    SampleParams, Scatter, Shape, StitchPool, Tensor, Tile, WeightedSum, kv,
};

/// A device, a stream to record on and an arena for activations.
#[derive(Debug)]
pub struct Cx<'a, D: Kernels> {
    /// The device.
    pub device: &'a D,
    /// Where work is recorded.
    pub stream: &'a mut D::Stream,
    arena: &'a mut Arena<D>,
}

macro_rules! dims {
    ($op:literal, $($what:literal: $got:expr => $want:expr),+ $(,)?) => {
        $(assert_eq!($got, $want, concat!($op, ": ", $what));)+
    };
}

impl<'a, D: Kernels> Cx<'a, D> {
    /// Starts a pass: everything the arena gave out before is void.
    pub fn new(device: &'a D, stream: &'a mut D::Stream, arena: &'a mut Arena<D>) -> Self {
        arena.restart();
        Cx { device, stream, arena }
    }

    /// An activation, valid until the next pass. Its contents are whatever was there.
    #[track_caller]
    pub fn tensor(&mut self, shape: impl Into<Shape>, dtype: DType) -> Tensor<D> {
        self.arena.take(shape.into(), dtype)
    }

    /// Records a copy of little-endian elements into a contiguous tensor.
    #[track_caller]
    pub fn upload(&mut self, dst: &mut Tensor<D>, bytes: &[u8]) {
        let range = dst.byte_range();
        assert_eq!(range.len(), bytes.len(), "upload: bytes for {:?} {}", dst.shape(), dst.dtype());
        if !self.arena.is_measuring() {
            self.device.upload(self.stream, dst.buffer(), range.start, bytes);
        }
    }

    /// Captures what `record` records instead of running it; `None` where the device cannot. The graph
    /// reads and writes the arena where `record` took from it, so it is replayed in a pass that took the
    /// same before.
    pub fn capture(
        &mut self,
        mut record: impl FnMut(&mut Cx<'_, D>),
    ) -> crate::Result<Option<D::Graph>> {
        let (device, arena) = (self.device, &mut *self.arena);
        device.capture(self.stream, &mut |stream| {
            record(&mut Cx { device, stream, arena: &mut *arena });
        })
    }

    /// Whether this is the dry run of [`Arena::measure`], which records nothing.
    pub fn is_measuring(&self) -> bool {
        self.arena.is_measuring()
    }

    /// Types and freshness of an operation's tensors.
    #[track_caller]
    fn check(&self, op: &str, floats: &[&Tensor<D>], others: &[(&Tensor<D>, DType)]) {
        for t in floats {
            assert!(t.dtype().is_float(), "{op}: expected floats, got {}", t.dtype());
        }
        for (t, dtype) in others {
            assert_eq!(t.dtype(), *dtype, "{op}: element type");
            assert!(t.is_contiguous(), "{op}: expected a contiguous tensor");
        }
        self.check_fresh(op, floats);
        others.iter().for_each(|(t, _)| self.check_fresh(op, &[t]));
    }

    #[track_caller]
    fn check_fresh(&self, op: &str, tensors: &[&Tensor<D>]) {
        for t in tensors {
            let fresh = t.epoch().is_none_or(|e| e == self.arena.epoch());
            assert!(fresh, "{op}: an activation from an earlier pass");
        }
    }

    /// Types, shapes and freshness of a paged cache.
    #[track_caller]
    fn check_caches(
        &self,
        op: &str,
        k: &Tensor<D>,
        v: &Tensor<D>,
        kv_heads: usize,
        head_dim: usize,
    ) {
        let dtype = k.dtype();
        assert!(kv::is_cache(dtype), "{op}: a cache of {dtype}");
        let what = (k.rows(), kv::row_len(dtype, kv_heads, head_dim), dtype);
        for (name, t) in [("k_cache", k), ("v_cache", v)] {
            assert_eq!(
                (t.rows(), t.cols(), t.dtype()),
                what,
                "{op}: rows, columns, type of {name}"
            );
        }
        self.check_fresh(op, &[k, v]);
    }

    /// Checks and records a [`Linear`].
    #[track_caller]
    pub fn linear(&mut self, op: Linear<'_, D>) {
        dims!("linear", "x columns": op.x.cols() => op.w.k(), "out columns": op.out.cols() => op.w.n(),
            "rows": op.out.rows() => op.x.rows(), "matrices": op.w.count() => 1);
        self.check("linear", &[op.out, op.x], &[]);
        if let Some(bias) = op.bias {
            dims!("linear", "bias": bias.shape().elements() => op.w.n());
            self.check("linear", &[], &[(bias, DType::F32)]);
        }
        if !self.arena.is_measuring() {
            D::linear(self, op);
        }
    }

    /// Checks and records an [`Activate`].
    #[track_caller]
    pub fn activate(&mut self, op: Activate<'_, D>) {
        dims!("activate", "rows": op.out.rows() => op.x.rows(), "columns": op.out.cols() => op.x.cols());
        self.check("activate", &[op.out, op.x], &[]);
        if !self.arena.is_measuring() {
            D::activate(self, op);
        }
    }

    /// Checks and records a [`GroupedLinear`].
    #[track_caller]
    pub fn grouped_linear(&mut self, op: GroupedLinear<'_, D>) {
        dims!("grouped_linear", "x columns": op.x.cols() => op.w.k(),
            "out columns": op.out.cols() => op.w.n(),
            "groups": op.groups.shape().elements() => op.out.rows());
        let is_whole = op.out.rows().checked_rem(op.x.rows()).unwrap_or(op.out.rows()) == 0;
        assert!(is_whole, "grouped_linear: {} rows of {}", op.out.rows(), op.x.rows());
        self.check("grouped_linear", &[op.out, op.x], &[(op.groups, DType::I32)]);
        if !self.arena.is_measuring() {
            D::grouped_linear(self, op);
        }
    }

    /// Checks and records a [`Route`].
    #[track_caller]
    pub fn route(&mut self, op: Route<'_, D>) {
        let (rows, top) = (op.logits.rows(), op.experts.cols());
        assert!(top <= op.logits.cols(), "route: {top} of {} experts", op.logits.cols());
        dims!("route", "rows of experts": op.experts.rows() => rows, "rows of weights": op.weights.rows() => rows,
            "columns of weights": op.weights.cols() => top);
        self.check("route", &[op.logits], &[(op.experts, DType::I32), (op.weights, DType::F32)]);
        if !self.arena.is_measuring() {
            D::route(self, op);
        }
    }

    /// Checks and records a [`Nest`].
    #[track_caller]
    pub fn nest(&mut self, op: Nest<'_, D>) {
        dims!("nest", "rows": op.out.rows() => op.inner.rows(), "columns": op.out.cols() => op.inner.cols(),
            "outer": op.outer.shape().elements() => op.inner.rows());
        let ints = [&*op.out, op.outer, op.inner];
        self.check("nest", &[], &ints.map(|t| (t, DType::I32)));
        if !self.arena.is_measuring() {
            D::nest(self, op);
        }
    }

    /// Checks and records a [`GatedGelu`].
    #[track_caller]
    pub fn gated_gelu(&mut self, op: GatedGelu<'_, D>) {
        dims!("gated_gelu", "rows": op.out.rows() => op.x.rows(), "columns": op.x.cols() => 2 * op.out.cols());
        self.check("gated_gelu", &[op.out, op.x], &[]);
        if !self.arena.is_measuring() {
            D::gated_gelu(self, op);
        }
    }

    /// Checks and records a [`WeightedSum`].
    #[track_caller]
    pub fn weighted_sum(&mut self, op: WeightedSum<'_, D>) {
        dims!("weighted_sum", "rows of weights": op.weights.rows() => op.out.rows(),
            "rows of x": op.x.rows() => op.weights.shape().elements(), "columns": op.x.cols() => op.out.cols());
        self.check("weighted_sum", &[op.out, op.x], &[(op.weights, DType::F32)]);
        if !self.arena.is_measuring() {
            D::weighted_sum(self, op);
        }
    }

    /// Checks and records a [`LayerNorm`].
    #[track_caller]
    pub fn layer_norm(&mut self, op: LayerNorm<'_, D>) {
        dims!("layer_norm", "rows": op.out.rows() => op.x.rows(), "columns": op.out.cols() => op.x.cols(),
            "weight": op.w.shape().elements() => op.x.cols(), "bias": op.b.shape().elements() => op.x.cols());
        self.check("layer_norm", &[op.out, op.x], &[(op.w, DType::F32), (op.b, DType::F32)]);
        if !self.arena.is_measuring() {
            D::layer_norm(self, op);
        }
    }

    #[track_caller]
    fn check_crops(&self, op: &str, crops: &Tensor<D>, patch: usize, rows: usize) {
        let dims = crops.shape();
        let &[num_crops, size, width, channels] = dims.dims() else {
            panic!("{op}: crops must be [num_crops, size, size, 3], got {dims:?}");
        };
        assert!(width == size && channels == 3, "{op}: crops {dims:?}");
        assert!(patch > 0 && size % patch == 0, "{op}: patch {patch} does not divide {size}");
        assert_eq!(rows, num_crops * (size / patch).pow(2), "{op}: rows");
        self.check(op, &[], &[(crops, DType::U8)]);
    }

    /// Checks and records a [`Patchify`].
    #[track_caller]
    pub fn patchify(&mut self, op: Patchify<'_, D>) {
        self.check_crops("patchify", op.crops, op.patch, op.out.rows());
        dims!("patchify", "columns": op.out.cols() => 3 * op.patch * op.patch);
        self.check("patchify", &[op.out], &[]);
        if !self.arena.is_measuring() {
            D::patchify(self, op);
        }
    }

    /// Checks and records a [`Tile`].
    #[track_caller]
    pub fn tile(&mut self, op: Tile<'_, D>) {
        dims!("tile", "columns": op.out.cols() => op.x.cols());
        assert!(op.x.rows() > 0, "tile: an empty table");
        self.check("tile", &[op.out, op.x], &[]);
        if !self.arena.is_measuring() {
            D::tile(self, op);
        }
    }

    /// Checks and records a [`PatchEmbed`].
    #[track_caller]
    pub fn patch_embed(&mut self, op: PatchEmbed<'_, D>) {
        self.check_crops("patch_embed", op.crops, op.patch, op.out.rows());
        let grid = op.crops.shape().dims()[1] / op.patch;
        dims!("patch_embed", "weight columns": op.w.k() => 3 * op.patch * op.patch,
            "out columns": op.out.cols() => op.w.n(), "bias": op.bias.shape().elements() => op.w.n(),
            "position rows": op.positions.rows() => grid * grid,
            "position columns": op.positions.cols() => op.w.n(),
            "scratch rows": op.scratch.rows() => op.out.rows(),
            "scratch columns": op.scratch.cols() => op.w.k());
        self.check("patch_embed", &[op.out, op.scratch], &[(op.bias, DType::F32)]);
        self.check("patch_embed", &[], &[(op.positions, DType::F32)]);
        if !self.arena.is_measuring() {
            D::patch_embed(self, op);
        }
    }

    /// Checks and records an [`Attention`].
    #[track_caller]
    pub fn attention(&mut self, op: Attention<'_, D>) {
        dims!("attention", "rows": op.qkv.rows() => op.out.rows(),
            "qkv columns": op.qkv.cols() => 3 * op.out.cols(), "types": op.qkv.dtype() => op.out.dtype(),
            "columns per head": op.out.cols() % op.heads => 0,
            "rows per sequence": op.out.rows() % op.seq_len => 0);
        self.check("attention", &[op.out, op.qkv], &[]);
        if !self.arena.is_measuring() {
            D::attention(self, op);
        }
    }

    /// Checks and records a [`RopeStore`].
    #[track_caller]
    pub fn rope_store(&mut self, op: RopeStore<'_, D>) {
        let tokens = op.qkv.rows();
        let kv_dim = op.kv_heads * op.head_dim;
        dims!("rope_store", "qkv columns": op.qkv.cols() => op.heads * op.head_dim + 2 * kv_dim,
            "positions": op.positions.shape().elements() => tokens,
            "slots": op.slots.shape().elements() => tokens, "odd rotary": op.table.cols() % 2 => 0,
            "heads per kv head": op.heads % op.kv_heads => 0);
        assert!(op.table.cols() <= op.head_dim, "rope_store: more rotary dims than a head has");
        self.check_caches("rope_store", op.k_cache, op.v_cache, op.kv_heads, op.head_dim);
        self.check("rope_store", &[op.qkv], &[(op.table, DType::F32)]);
        if let Some(tau) = &op.tau {
            dims!("rope_store", "key heads under tau": op.kv_heads => op.heads,
                "rows of scores": tau.scores.rows() => tokens, "scores": tau.scores.cols() => 2 * op.heads,
                "alpha": tau.alpha.shape().elements() => op.heads);
            self.check("rope_store", &[tau.scores], &[(tau.alpha, DType::F32)]);
        }
        self.check("rope_store", &[], &[(op.positions, DType::I32), (op.slots, DType::I32)]);
        if !self.arena.is_measuring() {
            D::rope_store(self, op);
        }
    }

    /// Checks and records a [`PagedAttention`].
    #[track_caller]
    pub fn paged_attention(&mut self, op: PagedAttention<'_, D>) {
        let rows = op.block_tables.rows();
        assert!(
            op.heads > 0 && op.kv_heads > 0 && op.block_size > 0,
            "paged_attention: zero sizes"
        );
        dims!("paged_attention", "q rows": op.q.rows() => op.out.rows(),
            "q columns": op.q.cols() => op.out.cols(), "types": op.q.dtype() => op.out.dtype(),
            "columns per head": op.out.cols() % op.heads => 0,
            "heads per kv head": op.heads % op.kv_heads => 0,
            "whole blocks": op.k_cache.rows() % op.block_size => 0,
            "row_starts": op.row_starts.shape().elements() => rows + 1,
            "visible": op.visible.shape().elements() => op.out.rows());
        let i32s = [op.block_tables, op.row_starts, op.visible];
        let head_dim = op.out.cols() / op.heads;
        self.check_caches("paged_attention", op.k_cache, op.v_cache, op.kv_heads, head_dim);
        self.check("paged_attention", &[op.out, op.q], &[]);
        self.check("paged_attention", &[], &i32s.map(|t| (t, DType::I32)));
        if !self.arena.is_measuring() {
            D::paged_attention(self, op);
        }
    }

    /// Checks and records a [`StitchPool`].
    #[track_caller]
    pub fn stitch_pool(&mut self, op: StitchPool<'_, D>) {
        let (patches, tiles) = (op.grid * op.grid, op.tiles.0 * op.tiles.1);
        assert!(tiles > 0 && 2 * op.margin < op.grid, "stitch_pool: tiles and margin");
        dims!("stitch_pool", "out rows": op.out.rows() => patches,
            "out columns": op.out.cols() => 2 * op.x.cols(), "whole crops": op.x.rows() % patches => 0);
        let crops = op.x.rows() / patches;
        assert!(
            crops == 1 + tiles || (crops == 1 && tiles == 1),
            "stitch_pool: {crops} crops for {:?} tiles",
            op.tiles
        );
        self.check("stitch_pool", &[op.out, op.x], &[]);
        if !self.arena.is_measuring() {
            D::stitch_pool(self, op);
        }
    }

    /// Checks and records a [`Gather`].
    #[track_caller]
    pub fn gather(&mut self, op: Gather<'_, D>) {
        dims!("gather", "columns": op.out.cols() => op.x.cols(),
            "indices": op.indices.shape().elements() => op.out.rows());
        self.check("gather", &[op.out, op.x], &[(op.indices, DType::I32)]);
        if !self.arena.is_measuring() {
            D::gather(self, op);
        }
    }

    /// Checks and records a [`Scatter`].
    #[track_caller]
    pub fn scatter(&mut self, op: Scatter<'_, D>) {
        dims!("scatter", "columns": op.out.cols() => op.x.cols(),
            "indices": op.indices.shape().elements() => op.x.rows());
        self.check("scatter", &[op.out, op.x], &[(op.indices, DType::I32)]);
        if !self.arena.is_measuring() {
            D::scatter(self, op);
        }
    }

    /// Checks and records a [`Fourier`].
    #[track_caller]
    pub fn fourier(&mut self, op: Fourier<'_, D>) {
        dims!("fourier", "rows": op.out.rows() => op.values.rows(),
            "dims": op.values.cols() => op.w.rows(), "columns": op.out.cols() => 2 * op.w.cols());
        self.check("fourier", &[op.out], &[(op.values, DType::F32), (op.w, DType::F32)]);
        if !self.arena.is_measuring() {
            D::fourier(self, op);
        }
    }

    /// Checks and records a [`Sample`].
    #[track_caller]
    pub fn sample(&mut self, op: Sample<'_, D>) {
        let rows = op.logits.rows();
        dims!("sample", "ids": op.ids.shape().elements() => rows,
            "logprobs": op.logprobs.shape().elements() => rows, "params": op.params.rows() => rows,
            "params bytes": op.params.cols() => size_of::<SampleParams>());
        self.check("sample", &[op.logits], &[(op.ids, DType::I32), (op.logprobs, DType::F32)]);
        self.check("sample", &[], &[(op.params, DType::U8)]);
        if let Some(masks) = &op.masks {
            dims!("sample", "mask words": masks.bits.cols() => op.logits.cols().div_ceil(32),
                "rows of masks": masks.rows.shape().elements() => rows);
            self.check("sample", &[], &[(masks.bits, DType::I32), (masks.rows, DType::I32)]);
        }
        if !self.arena.is_measuring() {
            D::sample(self, op);
        }
    }

    /// Checks and records a [`struct@Copy`].
    #[track_caller]
    pub fn copy(&mut self, op: Copy<'_, D>) {
        dims!("copy", "rows": op.out.rows() => op.x.rows(), "columns": op.out.cols() => op.x.cols());
        if op.out.dtype() == op.x.dtype() {
            self.check_fresh("copy", &[op.out, op.x]);
        } else {
            self.check("copy", &[op.out, op.x], &[]);
        }
        if !self.arena.is_measuring() {
            D::copy(self, op);
        }
    }
}
