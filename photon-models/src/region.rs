//! Coordinates and sizes: Fourier encodings into the model, bins out of it.
use photon_core::{Cx, DType, Device, Fourier, Kernels, Tensor};

use crate::{
    config::RegionConfig,
    layers::{Dense, LoadError, Loader, dense_tensors},
};

/// The region model.
#[derive(Debug)]
pub(crate) struct Region<D: Device> {
    config: RegionConfig,
    coord_features: Tensor<D>,
    size_features: Tensor<D>,
    coord_encoder: Dense<D>,
    size_encoder: Dense<D>,
    coord_decoder: [Dense<D>; 2],
    size_decoder: [Dense<D>; 2],
    dtype: DType,
}

/// Names and shapes of all tensors.
pub(crate) fn tensors(c: &RegionConfig, out: &mut Vec<(String, Vec<usize>)>) {
    out.push(("model.region.coord_features".into(), vec![1, c.coord_feat_dim / 2]));
    out.push(("model.region.size_features".into(), vec![2, c.size_feat_dim / 2]));
    dense_tensors(out, "model.region.coord_encoder", c.dim, c.coord_feat_dim);
    dense_tensors(out, "model.region.size_encoder", c.dim, c.size_feat_dim);
    dense_tensors(out, "model.region.coord_decoder.fc1", c.inner_dim, c.dim);
    dense_tensors(out, "model.region.coord_decoder.fc2", c.coord_out_dim, c.inner_dim);
    dense_tensors(out, "model.region.size_decoder.fc1", c.inner_dim, c.dim);
    dense_tensors(out, "model.region.size_decoder.fc2", c.size_out_dim, c.inner_dim);
}

impl<D: Kernels> Region<D> {
    pub(crate) fn load(
        l: &mut Loader<'_, D>,
        c: &RegionConfig,
        dtype: DType,
    ) -> Result<Self, LoadError> {
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
            coord_decoder: [
                l.dense("model.region.coord_decoder.fc1", c.inner_dim, c.dim)?,
                l.dense("model.region.coord_decoder.fc2", c.coord_out_dim, c.inner_dim)?,
            ],
            size_decoder: [
                l.dense("model.region.size_decoder.fc1", c.inner_dim, c.dim)?,
                l.dense("model.region.size_decoder.fc2", c.size_out_dim, c.inner_dim)?,
            ],
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
        self.decode(cx, hidden, &self.coord_decoder, self.config.coord_out_dim)
    }

    /// Hidden states `[rows, dim]` to logits of size bins, `[2 * rows, size_out_dim / 2]`: widths
    /// and heights in turn.
    pub(crate) fn decode_size(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        let bins = self.config.size_out_dim / 2;
        let logits = self.decode(cx, hidden, &self.size_decoder, 2 * bins);
        logits.reshape([2 * hidden.rows(), bins])
    }

    fn decode(
        &self,
        cx: &mut Cx<'_, D>,
        hidden: &Tensor<D>,
        [fc1, fc2]: &[Dense<D>; 2],
        bins: usize,
    ) -> Tensor<D> {
        let mut up = cx.tensor([hidden.rows(), self.config.inner_dim], self.dtype);
        let mut logits = cx.tensor([hidden.rows(), bins], DType::F32);
        fc1.gelu(cx, &mut up, hidden);
        fc2.record(cx, &mut logits, &up);
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
