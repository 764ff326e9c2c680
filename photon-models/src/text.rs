//! The language model: embeddings to hidden states and logits, keys and values in the paged cache.
use photon_core::{
    Activate, Activation, Cx, DType, Device, GatedGelu, Gather, GroupedLinear, Kernels, Linear,
    Nest, PagedAttention, RopeStore, Route, Tau, Tensor, Weight, WeightedSum,
};

use crate::{
    adapter::{AdapterSlots, Added, Site},
    batch::Batch,
    config::{MoeConfig, TauGelu, TextConfig},
    kv::{KvCache, LayerKv},
    layers::{Dense, LoadError, Loader, Norm},
    moondream::Precision,
    quant::Part,
    spec::Specs,
};

#[derive(Debug)]
struct Block<D: Device> {
    ln: Norm<D>,
    qkv: Dense<D>,
    tau: Option<Scaling<D>>,
    proj: Dense<D>,
    mlp: Mlp<D>,
}

/// Tau: what scales queries and values.
#[derive(Debug)]
struct Scaling<D: Device> {
    /// `[2 * heads, qkv_dim]`: for queries, then for values.
    w: Weight<D>,
    /// `[heads]`.
    alpha: Tensor<D>,
}

/// The part of a block that sees one token at a time.
#[derive(Debug)]
enum Mlp<D: Device> {
    Dense { fc1: Dense<D>, fc2: Dense<D> },
    Experts(Experts<D>),
}

#[derive(Debug)]
struct Experts<D: Device> {
    /// How many a token goes to.
    top: usize,
    router: Dense<D>,
    /// `[num_experts, 2 * inner, dim]`: what is gated, then the gate.
    up: Weight<D>,
    /// `[num_experts, dim, inner]`.
    down: Weight<D>,
}

/// The language model.
#[derive(Debug)]
pub(crate) struct Text<D: Device> {
    config: TextConfig,
    /// `[vocab_size, dim]`.
    pub(crate) wte: Tensor<D>,
    blocks: Vec<Block<D>>,
    post_ln: Norm<D>,
    lm_head: Dense<D>,
    /// The outputs of `lm_head` for the marks.
    mark_head: Dense<D>,
    /// `[max_context, rotary_dims]`: cosines, then sines.
    rope: Tensor<D>,
    /// From block to block, and within one.
    dtype: DType,
    inner: DType,
}

/// All tensors.
pub(crate) fn tensors(c: &TextConfig, out: &mut Specs) {
    let part = Part::Text;
    out.weight("model.text.wte", &[c.vocab_size, c.dim]);
    for i in 0..c.n_layers {
        let name = |leaf: &str| format!("model.text.blocks.{i}.{leaf}");
        out.norm(&name("ln"), c.dim);
        out.inner_dense(part, &name("attn.qkv"), c.qkv_dim(), c.dim);
        out.inner_dense(part, &name("attn.proj"), c.dim, c.dim);
        if c.tau_attn {
            out.exact(&name("attn.tau.alpha"), &[c.n_heads]);
            out.weight(&name("attn.tau.wq"), &[c.n_heads, c.qkv_dim()]);
            out.weight(&name("attn.tau.wv"), &[c.n_heads, c.qkv_dim()]);
        }
        match c.experts(i) {
            None => {
                out.inner_dense(part, &name("mlp.fc1"), c.ff_dim, c.dim);
                out.inner_dense(part, &name("mlp.fc2"), c.dim, c.ff_dim);
            }
            Some(&MoeConfig { num_experts, expert_inner_dim: inner, .. }) => {
                out.dense(&name("mlp.router"), num_experts, c.dim);
                out.inner(part, &name("mlp.fc1.weight"), &[num_experts, 2 * inner, c.dim]);
                out.inner(part, &name("mlp.fc2.weight"), &[num_experts, c.dim, inner]);
            }
        }
    }
    out.norm("model.text.post_ln", c.dim);
    out.inner_dense(Part::Head, "model.text.lm_head", c.vocab_size, c.dim);
}

impl<D: Kernels> Block<D> {
    /// `out += proj(attn) + mlp(h)`, with what adapters add.
    fn finish(
        &self,
        cx: &mut Cx<'_, D>,
        out: &mut Tensor<D>,
        h: &Tensor<D>,
        attn: &Tensor<D>,
        scratch: &mut Scratch<D>,
        adapted: Option<Adapted<'_, D>>,
    ) {
        self.proj.add_to(cx, out, attn);
        if let (Some(adapted), Some(room)) = (adapted, &scratch.adapted)
            && let Some(added) = adapted.slots.at(adapted.layer, Site::Proj)
        {
            // Of the normed input, not of what attention gives: see the module documentation.
            let mut low = room.low.row_range(0..out.rows());
            added.add(cx, out, h, adapted.rows, &mut low);
        }
        self.mlp.add_to(cx, out, h, scratch, adapted);
    }
}

impl<D: Kernels> Scaling<D> {
    fn load(l: &mut Loader<'_, D>, c: &TextConfig, name: &str) -> Result<Self, LoadError> {
        let names = [format!("{name}.wq"), format!("{name}.wv")];
        let w = l.weight(&[&names[0], &names[1]], [1, 2 * c.n_heads, c.qkv_dim()])?;
        Ok(Scaling { w, alpha: l.vector(&format!("{name}.alpha"), c.n_heads)? })
    }
}

impl<D: Kernels> Mlp<D> {
    fn load(
        l: &mut Loader<'_, D>,
        c: &TextConfig,
        layer: usize,
        name: &str,
    ) -> Result<Self, LoadError> {
        let (fc1, fc2) = (format!("{name}.fc1"), format!("{name}.fc2"));
        let Some(moe) = c.experts(layer) else {
            let fc1 = l.inner_dense(&fc1, c.ff_dim, c.dim)?;
            let fc2 = l.inner_dense(&fc2, c.dim, c.ff_dim)?;
            return Ok(Mlp::Dense { fc1, fc2 });
        };
        let &MoeConfig { num_experts, experts_per_token, expert_inner_dim: inner, .. } = moe;
        Ok(Mlp::Experts(Experts {
            top: experts_per_token,
            router: l.dense(&format!("{name}.router"), num_experts, c.dim)?,
            up: l.inner_weight(&format!("{fc1}.weight"), [num_experts, 2 * inner, c.dim])?,
            down: l.inner_weight(&format!("{fc2}.weight"), [num_experts, c.dim, inner])?,
        }))
    }

    /// `out += mlp(h)`, with what adapters add, for any number of rows up to those of `scratch`.
    fn add_to(
        &self,
        cx: &mut Cx<'_, D>,
        out: &mut Tensor<D>,
        h: &Tensor<D>,
        scratch: &mut Scratch<D>,
        adapted: Option<Adapted<'_, D>>,
    ) {
        let rows = out.rows();
        match self {
            Mlp::Dense { fc1, fc2 } => {
                let up = scratch.up.as_ref().expect("a model with a dense block has room for it");
                let mut up = up.row_range(0..rows);
                let Some(adapted) = adapted else {
                    fc1.gelu(cx, &mut up, h);
                    return fc2.add_to(cx, out, &up);
                };
                let room = scratch.adapted.as_ref().expect("made for this pass");
                let (mut low, mut sums) =
                    (room.low.row_range(0..rows), room.sums.row_range(0..rows));
                fc1.record(cx, &mut sums, h);
                adapted.at(Site::Up).add(cx, &mut sums, h, adapted.rows, &mut low);
                // What the layer does where it is not adapted, in two operations.
                let activation = Activation::GeluTanh;
                cx.activate(Activate { out: &mut up, x: &sums, activation });
                fc2.add_to(cx, out, &up);
                adapted.at(Site::Down).add(cx, out, &up, adapted.rows, &mut low);
            }
            Mlp::Experts(block) => {
                let room = scratch.experts.as_ref();
                let room = room.expect("a model with experts has room for them").first(rows);
                let low = scratch.adapted.as_ref().map(|room| &room.experts);
                let adapted = adapted.zip(low.and_then(|low| low.as_ref()));
                block.add_to(cx, out, h, room, adapted);
            }
        }
    }
}

impl<D: Kernels> Experts<D> {
    fn add_to(
        &self,
        cx: &mut Cx<'_, D>,
        out: &mut Tensor<D>,
        h: &Tensor<D>,
        room: ExpertScratch<D>,
        adapted: Option<(Adapted<'_, D>, &ExpertsAdapted<D>)>,
    ) {
        let ExpertScratch { mut logits, mut experts, mut weights, mut up, mut gated, mut down } =
            room;
        let rows = out.rows() * self.top;
        self.router.record(cx, &mut logits, h);
        cx.route(Route { experts: &mut experts, weights: &mut weights, logits: &logits });
        let mut adapted = adapted.map(|(adapted, room)| {
            let mut groups = room.groups.row_range(0..out.rows());
            let count = self.up.count();
            cx.nest(Nest { out: &mut groups, outer: adapted.rows, inner: &experts, count });
            (adapted, groups.reshape([rows]), room.low.row_range(0..rows))
        });
        let groups = &experts.reshape([rows]);
        let accumulate = false;
        cx.grouped_linear(GroupedLinear { out: &mut up, x: h, w: &self.up, groups, accumulate });
        if let Some((adapted, groups, low)) = &mut adapted {
            adapted.at(Site::Up).add(cx, &mut up, h, groups, low);
        }
        cx.gated_gelu(GatedGelu { out: &mut gated, x: &up });
        let (x, w) = (&gated, &self.down);
        cx.grouped_linear(GroupedLinear { out: &mut down, x, w, groups, accumulate });
        if let Some((adapted, groups, low)) = &mut adapted {
            adapted.at(Site::Down).add(cx, &mut down, &gated, groups, low);
        }
        cx.weighted_sum(WeightedSum { out, x: &down, weights: &weights });
    }
}

/// The adapters of a block's rows.
struct Adapted<'a, D: Device> {
    slots: &'a AdapterSlots<D>,
    layer: usize,
    /// `[rows]`, i32: the slot of each, or -1.
    rows: &'a Tensor<D>,
}

impl<D: Device> Clone for Adapted<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Adapted<'_, D> {}

impl<'a, D: Device> Adapted<'a, D> {
    fn at(&self, site: Site) -> Added<'a, D> {
        self.slots.at(self.layer, site).expect("every block has an MLP")
    }
}

/// Activations of adapted rows.
struct AdaptedScratch<D: Device> {
    /// `[tokens, rank]`.
    low: Tensor<D>,
    /// `[tokens, ff_dim]`, f32: of a row without an adapter the activation reads what it does within the layer.
    sums: Tensor<D>,
    experts: Option<ExpertsAdapted<D>>,
}

/// With `top` experts to a token.
struct ExpertsAdapted<D: Device> {
    /// `[tokens, top]`, i32: adapter and expert in one.
    groups: Tensor<D>,
    /// `[tokens * top, rank]`.
    low: Tensor<D>,
}

impl<D: Kernels> AdaptedScratch<D> {
    fn new(
        cx: &mut Cx<'_, D>,
        c: &TextConfig,
        slots: &AdapterSlots<D>,
        tokens: usize,
        dtype: DType,
    ) -> Self {
        let experts = c.moe.as_ref().map(|moe| ExpertsAdapted {
            groups: cx.tensor([tokens, moe.experts_per_token], DType::I32),
            low: cx.tensor([tokens * moe.experts_per_token, slots.rank(c.n_layers - 1)], dtype),
        });
        AdaptedScratch {
            low: cx.tensor([tokens, slots.shape().rank], dtype),
            sums: cx.tensor([tokens, c.ff_dim], DType::F32),
            experts,
        }
    }
}

/// Activations that one block uses after the other.
struct Scratch<D: Device> {
    /// `[tokens, qkv_dim]` and `[tokens, 2 * heads]`: the GELU of qkv, and what tau makes of it.
    tau: Option<(Tensor<D>, Tensor<D>)>,
    /// `[tokens, ff_dim]`.
    up: Option<Tensor<D>>,
    experts: Option<ExpertScratch<D>>,
    adapted: Option<AdaptedScratch<D>>,
}

/// With `top` experts to a token.
struct ExpertScratch<D: Device> {
    /// `[tokens, num_experts]`, f32: routing is a choice, so what it is made by is not rounded.
    logits: Tensor<D>,
    /// `[tokens, top]`, i32.
    experts: Tensor<D>,
    /// `[tokens, top]`, f32.
    weights: Tensor<D>,
    /// `[tokens * top, 2 * inner]`.
    up: Tensor<D>,
    /// `[tokens * top, inner]`.
    gated: Tensor<D>,
    /// `[tokens * top, dim]`.
    down: Tensor<D>,
}

impl<D: Kernels> Scratch<D> {
    fn new(
        cx: &mut Cx<'_, D>,
        c: &TextConfig,
        adapters: Option<&AdapterSlots<D>>,
        tokens: usize,
        dtype: DType,
    ) -> Self {
        let has_dense = (0..c.n_layers).any(|layer| c.experts(layer).is_none());
        let experts = c.moe.as_ref().map(|moe| {
            let (top, inner) = (moe.experts_per_token, moe.expert_inner_dim);
            ExpertScratch {
                logits: cx.tensor([tokens, moe.num_experts], DType::F32),
                experts: cx.tensor([tokens, top], DType::I32),
                weights: cx.tensor([tokens, top], DType::F32),
                up: cx.tensor([tokens * top, 2 * inner], dtype),
                gated: cx.tensor([tokens * top, inner], dtype),
                down: cx.tensor([tokens * top, c.dim], dtype),
            }
        });
        Scratch {
            tau: c.tau_attn.then(|| {
                let t = cx.tensor([tokens, c.qkv_dim()], dtype);
                (t, cx.tensor([tokens, 2 * c.n_heads], dtype))
            }),
            up: has_dense.then(|| cx.tensor([tokens, c.ff_dim], dtype)),
            experts,
            adapted: adapters.map(|slots| AdaptedScratch::new(cx, c, slots, tokens, dtype)),
        }
    }
}

impl<D: Device> ExpertScratch<D> {
    /// The room of the first tokens.
    fn first(&self, tokens: usize) -> Self {
        let top = self.experts.cols();
        ExpertScratch {
            logits: self.logits.row_range(0..tokens),
            experts: self.experts.row_range(0..tokens),
            weights: self.weights.row_range(0..tokens),
            up: self.up.row_range(0..tokens * top),
            gated: self.gated.row_range(0..tokens * top),
            down: self.down.row_range(0..tokens * top),
        }
    }
}

/// Cosines and sines of `pos theta^(-2 j / rotary_dims)`, in f32 as the reference computes them.
fn rope_table(c: &TextConfig) -> Vec<u8> {
    let half = c.rotary_dims / 2;
    let frequency = |j: usize| 1.0 / c.rope_theta.powf((2 * j) as f32 / c.rotary_dims as f32);
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut table = Vec::with_capacity(c.max_context * c.rotary_dims * 4);
    for pos in 0..c.max_context {
        let angles = frequencies.iter().map(|f| pos as f32 * f);
        angles.clone().for_each(|a| table.extend(a.cos().to_le_bytes()));
        angles.for_each(|a| table.extend(a.sin().to_le_bytes()));
    }
    table
}

impl<D: Kernels> Text<D> {
    pub(crate) fn load(
        l: &mut Loader<'_, D>,
        c: &TextConfig,
        marks: &[u32],
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let wte = l.tensor("model.text.wte", [c.vocab_size, c.dim], l.weights)?;
        let mut blocks = Vec::with_capacity(c.n_layers);
        for i in 0..c.n_layers {
            let name = |leaf: &str| format!("model.text.blocks.{i}.{leaf}");
            blocks.push(Block {
                ln: l.norm(&name("ln"), c.dim)?,
                qkv: l.inner_dense(&name("attn.qkv"), c.qkv_dim(), c.dim)?,
                tau: c.tau_attn.then(|| Scaling::load(l, c, &name("attn.tau"))).transpose()?,
                proj: l.inner_dense(&name("attn.proj"), c.dim, c.dim)?,
                mlp: Mlp::load(l, c, i, &name("mlp"))?,
            });
        }
        let post_ln = l.norm("model.text.post_ln", c.dim)?;
        let Precision { activations: dtype, inner, quant, .. } = precision;
        let [lm_head, mark_head] =
            l.dense_and_some("model.text.lm_head", [c.vocab_size, c.dim], quant.head, marks)?;
        let rope = Tensor::zeros(l.device, [c.max_context, c.rotary_dims], DType::F32)?;
        l.device.upload(&mut l.stream, rope.buffer(), 0, &rope_table(c));
        Ok(Text { wte, blocks, post_ln, lm_head, mark_head, rope, config: c.clone(), dtype, inner })
    }

    /// Runs `x` (`[tokens, dim]`, embedded inputs; read and written) through the blocks, storing keys
    /// and values; gives the hidden states of `batch.drawing`, `[drawn, dim]`, before the last norm.
    ///
    /// # Panics
    /// If a row has an adapter and there are no slots.
    pub(crate) fn forward(
        &self,
        cx: &mut Cx<'_, D>,
        x: &mut Tensor<D>,
        batch: &Batch<D>,
        adapters: Option<&AdapterSlots<D>>,
        kv: &mut KvCache<D>,
    ) -> Tensor<D> {
        let c = &self.config;
        let (tokens, rows) = (x.rows(), batch.drawn());
        let mut h = cx.tensor([tokens, c.dim], self.inner);
        let mut qkv = cx.tensor([tokens, c.qkv_dim()], self.inner);
        let mut attn = cx.tensor([tokens, c.dim], self.inner);
        let adapters = batch.adapters.as_ref().map(|rows| {
            let slots = adapters.expect("a batch with adapters comes with their slots");
            (slots, rows)
        });
        let slots = adapters.map(|(slots, _)| slots);
        let mut scratch = Scratch::new(cx, c, slots, tokens, self.inner);
        let adapted = |layer: usize, last: bool| {
            let (slots, [all, drawn]) = adapters?;
            Some(Adapted { slots, layer, rows: if last { drawn } else { all } })
        };
        let mut last =
            [self.dtype, self.inner, self.inner].map(|dtype| cx.tensor([rows, c.dim], dtype));
        let Some((final_block, blocks)) = self.blocks.split_last() else {
            panic!("a model has at least one block");
        };
        for (layer, (block, kv)) in blocks.iter().zip(kv.layers_mut()).enumerate() {
            let here = adapted(layer, false);
            let scratch = &mut scratch;
            self.attend(cx, block, x, &mut h, &mut qkv, &mut attn, scratch, here, batch, kv);
            // Attention and MLP are parallel in Moondream: both read the same norm.
            block.finish(cx, x, &h, &attn, scratch, here);
        }
        // Of the last block every token's key and value are needed, but only some tokens' output:
        // the rest of the block runs on those rows alone. Exact, and 3 % of a long prefill.
        let kv = kv.layers_mut().last_mut().expect("as many layers as blocks");
        let (scratch, layer) = (&mut scratch, blocks.len());
        let here = adapted(layer, false);
        self.attend(cx, final_block, x, &mut h, &mut qkv, &mut attn, scratch, here, batch, kv);
        for (out, x) in last.iter_mut().zip([&*x, &h, &attn]) {
            cx.gather(Gather { out, x, indices: &batch.drawing });
        }
        let [mut x, h, attn] = last;
        final_block.finish(cx, &mut x, &h, &attn, scratch, adapted(layer, true));
        x
    }

    /// `h = ln(x)`, then `attn = attention(h)` over the cache, this step's positions included.
    #[expect(clippy::too_many_arguments, reason = "the activations of one block, named by role")]
    fn attend(
        &self,
        cx: &mut Cx<'_, D>,
        block: &Block<D>,
        x: &Tensor<D>,
        h: &mut Tensor<D>,
        qkv: &mut Tensor<D>,
        attn: &mut Tensor<D>,
        scratch: &mut Scratch<D>,
        adapted: Option<Adapted<'_, D>>,
        batch: &Batch<D>,
        kv: &mut LayerKv<D>,
    ) {
        let c = &self.config;
        block.ln.record(cx, h, x);
        block.qkv.record(cx, qkv, h);
        if let (Some(adapted), Some(room)) = (adapted, &mut scratch.adapted)
            && let Some(added) = adapted.slots.at(adapted.layer, Site::Qkv)
        {
            added.add(cx, qkv, h, adapted.rows, &mut room.low);
        }
        let tau = block.tau.as_ref().zip(scratch.tau.as_mut()).map(|(tau, (t, scores))| {
            let activation = match c.tau_gelu {
                TauGelu::Tanh => Activation::GeluTanh,
                TauGelu::Erf => Activation::GeluErf,
            };
            cx.activate(Activate { out: t, x: qkv, activation });
            cx.linear(Linear {
                out: scores,
                x: t,
                w: &tau.w,
                bias: None,
                activation: Activation::None,
                accumulate: false,
            });
            Tau { scores: &*scores, alpha: &tau.alpha }
        });
        cx.rope_store(RopeStore {
            qkv,
            k_cache: &mut kv.k,
            v_cache: &mut kv.v,
            positions: &batch.positions,
            slots: &batch.slots,
            table: &self.rope,
            tau,
            heads: c.n_heads,
            kv_heads: c.n_kv_heads,
            head_dim: c.head_dim(),
        });
        cx.paged_attention(PagedAttention {
            out: attn,
            q: &qkv.col_range(0..c.dim),
            k_cache: &kv.k,
            v_cache: &kv.v,
            block_tables: &batch.block_tables,
            row_starts: &batch.row_starts,
            visible: &batch.visible,
            block_size: kv.block_size,
            heads: c.n_heads,
            kv_heads: c.n_kv_heads,
            scale: (c.head_dim() as f32).sqrt().recip(),
        });
    }

    /// Logits `[rows, vocab_size]`, f32, of hidden states `[rows, dim]`.
    pub(crate) fn logits(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        self.head(cx, hidden, &self.lm_head)
    }

    /// Of those the marks', `[rows, marks]`, f32.
    pub(crate) fn mark_logits(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        self.head(cx, hidden, &self.mark_head)
    }

    fn head(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>, head: &Dense<D>) -> Tensor<D> {
        let mut h = cx.tensor([hidden.rows(), self.config.dim], self.inner);
        let mut logits = cx.tensor([hidden.rows(), head.w.n()], DType::F32);
        self.post_ln.record(cx, &mut h, hidden);
        head.record(cx, &mut logits, &h);
        logits
    }
}
