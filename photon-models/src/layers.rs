//! The two layers everything is made of, and the loader that fills them.
use std::borrow::Cow;

use photon_core::{
    Activation, Cx, DType, Device, Kernels, LayerNorm, Linear, Tensor, Weight, WeightData,
    WeightFormat, quant::Quantized,
};

use crate::checkpoint::{Checkpoint, CheckpointError, floats_as};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// The device.
    #[error(transparent)]
    Device(#[from] photon_core::Error),
    /// Not a model directory.
    #[error("{0}")]
    NoModel(String),
}

/// Puts a checkpoint's tensors on a device.
pub(crate) struct Loader<'a, D: Device> {
    pub(crate) device: &'a D,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) stream: D::Stream,
    /// The type of weight matrices and of the embedding table.
    pub(crate) weights: DType,
    /// The format of the matrices inside of blocks, if it is another.
    pub(crate) quant: Option<WeightFormat>,
    /// Told the bytes of the checkpoint that were taken.
    pub(crate) progress: &'a mut dyn FnMut(u64),
}

impl<'a, D: Device> Loader<'a, D> {
    /// As they are stored, where that is the type.
    fn floats(&mut self, name: &str, to: DType) -> Result<Cow<'a, [u8]>, LoadError> {
        let found = self.checkpoint.floats(name);
        let (from, bytes) = found.expect("Checkpoint::check found every tensor of the model");
        (self.progress)(bytes.len() as u64);
        Ok(floats_as(name, bytes, from, to)?)
    }

    /// A row-major tensor.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dims: [usize; 2],
        dtype: DType,
    ) -> Result<Tensor<D>, LoadError> {
        let bytes = self.floats(name, dtype)?;
        self.tensor_of(&bytes, dims, dtype)
    }

    fn tensor_of(
        &mut self,
        bytes: &[u8],
        dims: [usize; 2],
        dtype: DType,
    ) -> Result<Tensor<D>, LoadError> {
        let tensor = Tensor::zeros(self.device, dims, dtype)?;
        self.device.upload(&mut self.stream, tensor.buffer(), 0, bytes);
        self.device.wait(&self.device.submit(&mut self.stream)?)?;
        Ok(tensor)
    }

    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor<D>, LoadError> {
        Ok(self.tensor(name, [1, len], DType::F32)?.reshape([len]))
    }

    /// `NAME.weight` as `[n, k]` and `NAME.bias`.
    pub(crate) fn dense(&mut self, name: &str, n: usize, k: usize) -> Result<Dense<D>, LoadError> {
        let w = self.weight(&[&format!("{name}.weight")], [1, n, k])?;
        Ok(Dense { w, bias: self.vector(&format!("{name}.bias"), n)? })
    }

    /// As [`inner_dense`](Self::inner_dense) in the format `quant`, and beside it a layer of some of its outputs.
    pub(crate) fn dense_and_some(
        &mut self,
        name: &str,
        [n, k]: [usize; 2],
        quant: Option<WeightFormat>,
        some: &[u32],
    ) -> Result<[Dense<D>; 2], LoadError> {
        let weight = format!("{name}.weight");
        let (format, w) = match self.checkpoint.quantized(&weight, k, quant)? {
            Some((format, coded)) => {
                (self.progress)((coded.bytes.len() + size_of_val(&coded.scales[..])) as u64);
                (format, coded)
            }
            None => {
                let bytes = self.floats(&weight, self.weights)?;
                (WeightFormat::Float(self.weights), Quantized { bytes, scales: Vec::new() })
            }
        };
        let bias = self.floats(&format!("{name}.bias"), DType::F32)?;
        let (bytes, scales) = (rows_of(&w.bytes, n, some), rows_of(&w.scales, n, some));
        let part = Quantized { bytes: bytes.into(), scales };
        let mut layer = |w: &Quantized<'_>, bias: &[u8], n: usize| {
            let Quantized { bytes, scales } = w;
            let w = self.device.weight(WeightData { count: 1, n, k, format, bytes, scales })?;
            let bias = self.tensor_of(bias, [1, n], DType::F32)?.reshape([n]);
            Ok::<_, LoadError>(Dense { w, bias })
        };
        Ok([layer(&w, &bias, n)?, layer(&part, &rows_of(&bias, n, some), some.len())?])
    }

    /// As [`dense`](Self::dense), inside of a block.
    pub(crate) fn inner_dense(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
    ) -> Result<Dense<D>, LoadError> {
        let w = self.inner_weight(&format!("{name}.weight"), [1, n, k])?;
        Ok(Dense { w, bias: self.vector(&format!("{name}.bias"), n)? })
    }

    /// Weight matrices inside of a block.
    pub(crate) fn inner_weight(
        &mut self,
        name: &str,
        [count, n, k]: [usize; 3],
    ) -> Result<Weight<D>, LoadError> {
        let Some((format, coded)) = self.checkpoint.quantized(name, k, self.quant)? else {
            return self.weight(&[name], [count, n, k]);
        };
        let Quantized { bytes, scales } = &coded;
        (self.progress)((bytes.len() + size_of_val(&scales[..])) as u64);
        Ok(self.device.weight(WeightData { count, n, k, format, bytes, scales })?)
    }

    /// Weight matrices `[count, n, k]` from tensors that together are that, one after the other.
    pub(crate) fn weight(
        &mut self,
        names: &[&str],
        [count, n, k]: [usize; 3],
    ) -> Result<Weight<D>, LoadError> {
        let mut all = Cow::<[u8]>::default();
        for name in names {
            let part = self.floats(name, self.weights)?;
            // One part, and that is the usual case, is not copied.
            if all.is_empty() { all = part } else { all.to_mut().extend(&*part) }
        }
        let format = WeightFormat::Float(self.weights);
        let data = WeightData { count, n, k, format, bytes: &all, scales: &[] };
        Ok(self.device.weight(data)?)
    }

    /// `NAME.weight` and `NAME.bias` of a layer norm.
    pub(crate) fn norm(&mut self, name: &str, dim: usize) -> Result<Norm<D>, LoadError> {
        let w = self.vector(&format!("{name}.weight"), dim)?;
        Ok(Norm { w, b: self.vector(&format!("{name}.bias"), dim)? })
    }
}

/// Some of the `n` rows of `all`.
fn rows_of<T: Copy>(all: &[T], n: usize, some: &[u32]) -> Vec<T> {
    let len = all.len() / n;
    some.iter().flat_map(|&i| &all[i as usize * len..][..len]).copied().collect()
}

/// A linear layer with bias.
#[derive(Debug)]
pub(crate) struct Dense<D: Device> {
    pub(crate) w: Weight<D>,
    pub(crate) bias: Tensor<D>,
}

impl<D: Kernels> Dense<D> {
    fn run(
        &self,
        cx: &mut Cx<'_, D>,
        out: &mut Tensor<D>,
        x: &Tensor<D>,
        activation: Activation,
        accumulate: bool,
    ) {
        cx.linear(Linear { out, x, w: &self.w, bias: Some(&self.bias), activation, accumulate });
    }

    /// `out = x W + b`.
    pub(crate) fn record(&self, cx: &mut Cx<'_, D>, out: &mut Tensor<D>, x: &Tensor<D>) {
        self.run(cx, out, x, Activation::None, false);
    }

    /// `out = gelu(x W + b)`.
    pub(crate) fn gelu(&self, cx: &mut Cx<'_, D>, out: &mut Tensor<D>, x: &Tensor<D>) {
        self.run(cx, out, x, Activation::GeluTanh, false);
    }

    /// `out += x W + b`.
    pub(crate) fn add_to(&self, cx: &mut Cx<'_, D>, out: &mut Tensor<D>, x: &Tensor<D>) {
        self.run(cx, out, x, Activation::None, true);
    }
}

/// Layer norm with Moondream's epsilon.
#[derive(Debug)]
pub(crate) struct Norm<D: Device> {
    w: Tensor<D>,
    b: Tensor<D>,
}

impl<D: Kernels> Norm<D> {
    pub(crate) fn record(&self, cx: &mut Cx<'_, D>, out: &mut Tensor<D>, x: &Tensor<D>) {
        cx.layer_norm(LayerNorm { out, x, w: &self.w, b: &self.b, eps: 1e-5 });
    }
}
