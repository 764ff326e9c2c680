//! The language model: embeddings to hidden states and logits, keys and values in the paged cache.
use photon_core::{Cx, DType, Device, Gather, Kernels, PagedAttention, RopeStore, Tensor};

use crate::{
    batch::Batch,
    config::TextConfig,
    kv::{KvCache, LayerKv},
    layers::{Dense, LoadError, Loader, Norm, dense_tensors, norm_tensors},
};

#[derive(Debug)]
struct Block<D: Device> {
    ln: Norm<D>,
    qkv: Dense<D>,
    proj: Dense<D>,
    fc1: Dense<D>,
    fc2: Dense<D>,
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
    /// `[max_context, rotary_dims]`: cosines, then sines.
    rope: Tensor<D>,
    dtype: DType,
}

/// Names and shapes of all tensors.
pub(crate) fn tensors(c: &TextConfig, out: &mut Vec<(String, Vec<usize>)>) {
    out.push(("model.text.wte".into(), vec![c.vocab_size, c.dim]));
    for i in 0..c.n_layers {
        let name = |leaf: &str| format!("model.text.blocks.{i}.{leaf}");
        norm_tensors(out, &name("ln"), c.dim);
        dense_tensors(out, &name("attn.qkv"), c.qkv_dim(), c.dim);
        dense_tensors(out, &name("attn.proj"), c.dim, c.dim);
        dense_tensors(out, &name("mlp.fc1"), c.ff_dim, c.dim);
        dense_tensors(out, &name("mlp.fc2"), c.dim, c.ff_dim);
    }
    norm_tensors(out, "model.text.post_ln", c.dim);
    dense_tensors(out, "model.text.lm_head", c.vocab_size, c.dim);
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
        dtype: DType,
    ) -> Result<Self, LoadError> {
        let wte = l.tensor("model.text.wte", [c.vocab_size, c.dim], l.weights)?;
        let mut blocks = Vec::with_capacity(c.n_layers);
        for i in 0..c.n_layers {
            let name = |leaf: &str| format!("model.text.blocks.{i}.{leaf}");
            blocks.push(Block {
                ln: l.norm(&name("ln"), c.dim)?,
                qkv: l.dense(&name("attn.qkv"), c.qkv_dim(), c.dim)?,
                proj: l.dense(&name("attn.proj"), c.dim, c.dim)?,
                fc1: l.dense(&name("mlp.fc1"), c.ff_dim, c.dim)?,
                fc2: l.dense(&name("mlp.fc2"), c.dim, c.ff_dim)?,
            });
        }
        let rope = Tensor::zeros(l.device, [c.max_context, c.rotary_dims], DType::F32)?;
        l.device.upload(&mut l.stream, rope.buffer(), 0, &rope_table(c));
        Ok(Text {
            wte,
            blocks,
            post_ln: l.norm("model.text.post_ln", c.dim)?,
            lm_head: l.dense("model.text.lm_head", c.vocab_size, c.dim)?,
            rope,
            config: c.clone(),
            dtype,
        })
    }

    /// Runs `x` (`[tokens, dim]`, embedded inputs; read and written) through the blocks, storing keys
    /// and values; gives the hidden states of `batch.last`, `[drawn, dim]`, before the last norm.
    pub(crate) fn forward(
        &self,
        cx: &mut Cx<'_, D>,
        x: &mut Tensor<D>,
        batch: &Batch<D>,
        kv: &mut KvCache<D>,
    ) -> Tensor<D> {
        let c = &self.config;
        let (tokens, rows) = (x.rows(), batch.drawn());
        let mut h = cx.tensor([tokens, c.dim], self.dtype);
        let mut qkv = cx.tensor([tokens, c.qkv_dim()], self.dtype);
        let mut attn = cx.tensor([tokens, c.dim], self.dtype);
        let mut up = cx.tensor([tokens, c.ff_dim], self.dtype);
        let mut last = [(); 3].map(|()| cx.tensor([rows, c.dim], self.dtype));
        let Some((final_block, blocks)) = self.blocks.split_last() else {
            panic!("a model has at least one block");
        };
        for (block, kv) in blocks.iter().zip(kv.layers_mut()) {
            self.attend(cx, block, x, &mut h, &mut qkv, &mut attn, batch, kv);
            // Attention and MLP are parallel in Moondream: both read the same norm.
            block.proj.add_to(cx, x, &attn);
            block.fc1.gelu(cx, &mut up, &h);
            block.fc2.add_to(cx, x, &up);
        }
        // Of the last block every token's key and value are needed, but only some tokens' output:
        // the rest of the block runs on those rows alone. Exact, and 3 % of a long prefill.
        let kv = kv.layers_mut().last_mut().expect("as many layers as blocks");
        self.attend(cx, final_block, x, &mut h, &mut qkv, &mut attn, batch, kv);
        for (out, x) in last.iter_mut().zip([&*x, &h, &attn]) {
            cx.gather(Gather { out, x, indices: &batch.last });
        }
        let [mut x, h, attn] = last;
        let mut up = up.row_range(0..rows);
        final_block.proj.add_to(cx, &mut x, &attn);
        final_block.fc1.gelu(cx, &mut up, &h);
        final_block.fc2.add_to(cx, &mut x, &up);
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
        batch: &Batch<D>,
        kv: &mut LayerKv<D>,
    ) {
        let c = &self.config;
        block.ln.record(cx, h, x);
        block.qkv.record(cx, qkv, h);
        cx.rope_store(RopeStore {
            qkv,
            k_cache: &mut kv.k,
            v_cache: &mut kv.v,
            positions: &batch.positions,
            slots: &batch.slots,
            table: &self.rope,
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
            context_lens: &batch.context_lens,
            prefix_lens: &batch.prefix_lens,
            block_size: kv.block_size,
            heads: c.n_heads,
            kv_heads: c.n_kv_heads,
            scale: (c.head_dim() as f32).sqrt().recip(),
        });
    }

    /// Logits `[rows, vocab_size]`, f32, of hidden states `[rows, dim]`.
    pub(crate) fn logits(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        let mut h = cx.tensor([hidden.rows(), self.config.dim], self.dtype);
        let mut logits = cx.tensor([hidden.rows(), self.config.vocab_size], DType::F32);
        self.post_ln.record(cx, &mut h, hidden);
        self.lm_head.record(cx, &mut logits, &h);
        logits
    }
}
