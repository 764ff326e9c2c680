//! Coordinates and sizes: Fourier encodings into the model, bins out of it.
use photon_core::{Cx, DType, Device, Fourier, Kernels, Tensor};

use crate::{
    config::{Config, Family, RegionConfig},
    layers::{Dense, LoadError, Loader, Norm},
    skill::RegionHead,
    spec::Specs,
};

/// The region model.
#[derive(Debug)]
pub(crate) struct Region<D: Device> {
    config: RegionConfig,
    coord_features: Tensor<D>,
    size_features: Tensor<D>,
    coord_encoder: Dense<D>,
    size_encoder: Dense<D>,
    decoders: Decoders<D>,
    dtype: DType,
}

/// Hidden states to bins.
#[derive(Debug)]
enum Decoders<D: Device> {
    /// Moondream 2: two layers.
    Mlp { coord: [Dense<D>; 2], size: [Dense<D>; 2] },
    /// Moondream 3: a norm, and one layer.
    Linear { ln: Norm<D>, coord: Dense<D>, size: Dense<D> },
}

/// All tensors.
pub(crate) fn tensors(config: &Config, out: &mut Specs) {
    let c = &config.region;
    out.exact("model.region.coord_features", &[1, c.coord_feat_dim / 2]);
    out.exact("model.region.size_features", &[2, c.size_feat_dim / 2]);
    out.dense("model.region.coord_encoder", c.dim, c.coord_feat_dim);
    out.dense("model.region.size_encoder", c.dim, c.size_feat_dim);
    if config.family() == Family::Moondream3 {
        out.norm("model.region.ln", c.dim);
    }
    for (head, bins) in [("coord_decoder", c.coord_out_dim), ("size_decoder", c.size_out_dim)] {
        let name = format!("model.region.{head}");
        match config.family() {
            Family::Moondream2 => {
                out.dense(&format!("{name}.fc1"), c.inner_dim, c.dim);
                out.dense(&format!("{name}.fc2"), bins, c.inner_dim);
            }
            Family::Moondream3 => out.dense(&name, bins, c.dim),
        }
    }
}

impl<D: Kernels> Decoders<D> {
    fn load(l: &mut Loader<'_, D>, config: &Config) -> Result<Self, LoadError> {
        let c = &config.region;
        let (coord, size) = ("model.region.coord_decoder", "model.region.size_decoder");
        if config.family() == Family::Moondream3 {
            return Ok(Decoders::Linear {
                ln: l.norm("model.region.ln", c.dim)?,
                coord: l.dense(coord, c.coord_out_dim, c.dim)?,
                size: l.dense(size, c.size_out_dim, c.dim)?,
            });
        }
        let mut mlp = |name: &str, bins: usize| -> Result<_, LoadError> {
            let fc1 = l.dense(&format!("{name}.fc1"), c.inner_dim, c.dim)?;
            Ok([fc1, l.dense(&format!("{name}.fc2"), bins, c.inner_dim)?])
        };
        Ok(Decoders::Mlp { coord: mlp(coord, c.coord_out_dim)?, size: mlp(size, c.size_out_dim)? })
    }
}

impl<D: Kernels> Region<D> {
    pub(crate) fn load(
        l: &mut Loader<'_, D>,
        config: &Config,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        let c = &config.region;
        let f32s = DType::F32;
        Ok(Region {
            coord_features: l.tensor(
                "model.region.coord_features",
                [1, c.coord_feat_dim / 2],
                f32s,
            )?,
            size_features: l.tensor(
                "model.region.size_features",
                [2, c.size_feat_dim / 2],
                f32s,
            )?,
            coord_encoder: l.dense("model.region.coord_encoder", c.dim, c.coord_feat_dim)?,
            size_encoder: l.dense("model.region.size_encoder", c.dim, c.size_feat_dim)?,
            decoders: Decoders::load(l, config)?,
            config: c.clone(),
            dtype,
        })
    }

    /// `[n, 1]` coordinates to `[n, dim]` embeddings.
    pub(crate) fn encode_coords(&self, cx: &mut Cx<'_, D>, values: &Tensor<D>) -> Tensor<D> {
        self.encode(cx, values, &self.coord_features, &self.coord_encoder)
    }

    /// `[n, 2]` widths and heights to `[n, dim]` embeddings.
    pub(crate) fn encode_sizes(&self, cx: &mut Cx<'_, D>, values: &Tensor<D>) -> Tensor<D> {
        self.encode(cx, values, &self.size_features, &self.size_encoder)
    }

    fn encode(
        &self,
        cx: &mut Cx<'_, D>,
        values: &Tensor<D>,
        w: &Tensor<D>,
        encoder: &Dense<D>,
    ) -> Tensor<D> {
        let mut features = cx.tensor([values.rows(), 2 * w.cols()], self.dtype);
        let mut out = cx.tensor([values.rows(), self.config.dim], self.dtype);
        cx.fourier(Fourier { out: &mut features, values, w });
        encoder.record(cx, &mut out, &features);
        out
    }

    /// Hidden states `[rows, dim]` to logits of coordinate bins, `[rows, coord_out_dim]`.
    pub(crate) fn decode_coord(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        self.decode(cx, hidden, RegionHead::Coord, self.config.coord_out_dim)
    }

    /// Hidden states `[rows, dim]` to logits of size bins, `[2 * rows, size_out_dim / 2]`: widths
    /// and heights in turn.
    pub(crate) fn decode_size(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        let bins = self.config.size_out_dim / 2;
        let logits = self.decode(cx, hidden, RegionHead::Size, 2 * bins);
        logits.reshape([2 * hidden.rows(), bins])
    }

    fn decode(
        &self,
        cx: &mut Cx<'_, D>,
        hidden: &Tensor<D>,
        head: RegionHead,
        bins: usize,
    ) -> Tensor<D> {
        let inner = match self.decoders {
            Decoders::Mlp { .. } => self.config.inner_dim,
            Decoders::Linear { .. } => self.config.dim,
        };
        let mut h = cx.tensor([hidden.rows(), inner], self.dtype);
        let mut logits = cx.tensor([hidden.rows(), bins], DType::F32);
        match &self.decoders {
            Decoders::Mlp { coord, size } => {
                let [fc1, fc2] = if head == RegionHead::Coord { coord } else { size };
                fc1.gelu(cx, &mut h, hidden);
                fc2.record(cx, &mut logits, &h);
            }
            Decoders::Linear { ln, coord, size } => {
                ln.record(cx, &mut h, hidden);
                let layer = if head == RegionHead::Coord { coord } else { size };
                layer.record(cx, &mut logits, &h);
            }
        }
        logits
    }
}

/// The coordinate a bin stands for: `bin / bins`, as the reference has it (not `bins - 1`).
pub fn coord_of_bin(bin: u32, bins: usize) -> f32 {
    bin as f32 / bins as f32
}

/// The width or height a bin stands for: `2^(10 bin / (bins - 1) - 10)`.
pub fn size_of_bin(bin: u32, bins: usize) -> f32 {
    (bin as f32 / (bins - 1) as f32 * 10.0 - 10.0).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_cover_the_picture() {
        assert_eq!(coord_of_bin(0, 1024), 0.0);
        assert_eq!(coord_of_bin(512, 1024), 0.5);
        assert_eq!(size_of_bin(1023, 1024), 1.0);
        assert_eq!(size_of_bin(0, 1024), 1.0 / 1024.0);
    }
}
