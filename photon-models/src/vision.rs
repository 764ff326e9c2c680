//! The vision encoder and projector: u8 crops to image embeddings.
use photon_core::{Attention, Cx, DType, Device, Kernels, PatchEmbed, StitchPool, Tensor};

use crate::{
    config::VisionConfig,
    image::Tiling,
    layers::{Dense, LoadError, Loader, Norm},
    moondream::Precision,
    quant::Part,
    spec::Specs,
};

#[derive(Debug)]
struct Block<D: Device> {
    ln1: Norm<D>,
    qkv: Dense<D>,
    proj: Dense<D>,
    ln2: Norm<D>,
    fc1: Dense<D>,
    fc2: Dense<D>,
}

/// Encoder and projector.
#[derive(Debug)]
pub(crate) struct Vision<D: Device> {
    config: VisionConfig,
    patch_emb: Dense<D>,
    pos_emb: Tensor<D>,
    blocks: Vec<Block<D>>,
    post_ln: Norm<D>,
    proj_fc1: Dense<D>,
    proj_fc2: Dense<D>,
    /// From block to block, and within one.
    dtype: DType,
    inner: DType,
}

/// All tensors.
pub(crate) fn tensors(c: &VisionConfig, out: &mut Specs) {
    let (dim, ff, part) = (c.enc_dim, c.enc_ff_dim, Part::Vision);
    out.dense("model.vision.patch_emb", dim, c.patch_dim());
    out.exact("model.vision.pos_emb", &[1, c.patches(), dim]);
    for i in 0..c.enc_n_layers {
        let name = |leaf: &str| format!("model.vision.blocks.{i}.{leaf}");
        out.norm(&name("ln1"), dim);
        out.inner_dense(part, &name("attn.qkv"), 3 * dim, dim);
        out.inner_dense(part, &name("attn.proj"), dim, dim);
        out.norm(&name("ln2"), dim);
        out.inner_dense(part, &name("mlp.fc1"), ff, dim);
        out.inner_dense(part, &name("mlp.fc2"), dim, ff);
    }
    out.norm("model.vision.post_ln", dim);
    out.inner_dense(part, "model.vision.proj_mlp.fc1", c.proj_inner_dim, 2 * dim);
    out.inner_dense(part, "model.vision.proj_mlp.fc2", c.proj_out_dim, c.proj_inner_dim);
}

impl<D: Kernels> Vision<D> {
    pub(crate) fn load(
        l: &mut Loader<'_, D>,
        c: &VisionConfig,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let (dim, ff) = (c.enc_dim, c.enc_ff_dim);
        let mut blocks = Vec::with_capacity(c.enc_n_layers);
        for i in 0..c.enc_n_layers {
            let name = |leaf: &str| format!("model.vision.blocks.{i}.{leaf}");
            blocks.push(Block {
                ln1: l.norm(&name("ln1"), dim)?,
                qkv: l.inner_dense(&name("attn.qkv"), 3 * dim, dim)?,
                proj: l.inner_dense(&name("attn.proj"), dim, dim)?,
                ln2: l.norm(&name("ln2"), dim)?,
                fc1: l.inner_dense(&name("mlp.fc1"), ff, dim)?,
                fc2: l.inner_dense(&name("mlp.fc2"), dim, ff)?,
            });
        }
        Ok(Vision {
            patch_emb: l.dense("model.vision.patch_emb", dim, c.patch_dim())?,
            pos_emb: l.tensor("model.vision.pos_emb", [c.patches(), dim], DType::F32)?,
            blocks,
            post_ln: l.norm("model.vision.post_ln", dim)?,
            proj_fc1: l.inner_dense("model.vision.proj_mlp.fc1", c.proj_inner_dim, 2 * dim)?,
            proj_fc2: l.inner_dense(
                "model.vision.proj_mlp.fc2",
                c.proj_out_dim,
                c.proj_inner_dim,
            )?,
            config: c.clone(),
            dtype: precision.activations,
            inner: precision.inner,
        })
    }

    /// Crops `[num_crops, crop_size, crop_size, 3]` to features `[num_crops * patches, enc_dim]`,
    /// after the last layer norm.
    pub(crate) fn encode(&self, cx: &mut Cx<'_, D>, crops: &Tensor<D>) -> Tensor<D> {
        let c = &self.config;
        let rows = crops.shape().dims()[0] * c.patches();
        let mut x = cx.tensor([rows, c.enc_dim], self.dtype);
        let mut h = cx.tensor([rows, c.enc_dim], self.inner);
        let mut qkv = cx.tensor([rows, 3 * c.enc_dim], self.inner);
        let mut up = cx.tensor([rows, c.enc_ff_dim], self.inner);
        let mut scratch = cx.tensor([rows, c.patch_dim()], self.inner);
        cx.patch_embed(PatchEmbed {
            out: &mut x,
            crops,
            patch: c.enc_patch_size,
            w: &self.patch_emb.w,
            bias: &self.patch_emb.bias,
            positions: &self.pos_emb,
            scratch: &mut scratch,
        });
        let scale = ((c.enc_dim / c.enc_n_heads) as f32).sqrt().recip();
        for block in &self.blocks {
            block.ln1.record(cx, &mut h, &x);
            block.qkv.record(cx, &mut qkv, &h);
            cx.attention(Attention {
                out: &mut h,
                qkv: &qkv,
                seq_len: c.patches(),
                heads: c.enc_n_heads,
                scale,
            });
            block.proj.add_to(cx, &mut x, &h);
            block.ln2.record(cx, &mut h, &x);
            block.fc1.gelu(cx, &mut up, &h);
            block.fc2.add_to(cx, &mut x, &up);
        }
        self.post_ln.record(cx, &mut h, &x);
        h
    }

    /// Joins the crops of each image and projects them, to `[images * patches, proj_out_dim]`.
    pub(crate) fn project(
        &self,
        cx: &mut Cx<'_, D>,
        features: &Tensor<D>,
        tilings: &[Tiling],
        out: &mut Tensor<D>,
    ) {
        let c = &self.config;
        let patches = c.patches();
        let rows = tilings.len() * patches;
        let joined = cx.tensor([rows, 2 * c.enc_dim], self.inner);
        let mut up = cx.tensor([rows, c.proj_inner_dim], self.inner);
        let mut first = 0;
        for (i, tiling) in tilings.iter().enumerate() {
            let crops = tiling.num_crops();
            cx.stitch_pool(StitchPool {
                out: &mut joined.row_range(i * patches..(i + 1) * patches),
                x: &features.row_range(first * patches..(first + crops) * patches),
                grid: c.grid(),
                margin: c.overlap_margin,
                tiles: (tiling.rows as usize, tiling.cols as usize),
            });
            first += crops;
        }
        self.proj_fc1.gelu(cx, &mut up, &joined);
        self.proj_fc2.record(cx, out, &up);
    }
}
