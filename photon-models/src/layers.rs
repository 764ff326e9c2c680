//! The two layers everything is made of, and the loader that fills them.
use std::borrow::Cow;

use photon_core::{
    Activation, Cx, DType, Device, Kernels, LayerNorm, Linear, Tensor, Weight, WeightData,
    WeightFormat, convert, quant,
};

use crate::checkpoint::{Checkpoint, CheckpointError};

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

impl<D: Device> Loader<'_, D> {
    fn floats(&mut self, name: &str, to: DType) -> Result<Vec<u8>, LoadError> {
        let (from, bytes) = self.stored(name);
        Ok(convert(&bytes, from, to).into_owned())
    }

    fn stored(&mut self, name: &str) -> (DType, Cow<'_, [u8]>) {
        let found = self.checkpoint.floats(name);
        let found = found.expect("Checkpoint::check found every tensor of the model");
        (self.progress)(found.1.len() as u64);
        found
    }

    /// A row-major tensor.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dims: [usize; 2],
        dtype: DType,
    ) -> Result<Tensor<D>, LoadError> {
        let bytes = self.floats(name, dtype)?;
        let tensor = Tensor::zeros(self.device, dims, dtype)?;
        self.device.upload(&mut self.stream, tensor.buffer(), 0, &bytes);
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
        let stored = self.format(name);
        let coded = match self.quant {
            // What is quantized already stays so, unless another format is asked for.
            None => self.checkpoint.coded(name),
            Some(format) if format == stored => self.checkpoint.coded(name),
            Some(_) => None,
        };
        let (format, coded) = match (coded, self.quant) {
            (Some(coded), _) => {
                (self.progress)(coded.bytes.len() as u64);
                (stored, Some(coded).filter(|c| c.scales.iter().all(|scale| scale.is_finite())))
            }
            (None, Some(format)) => {
                let (from, bytes) = self.stored(name);
                (format, quantize(format, k, &bytes, from))
            }
            (None, None) => return self.weight(&[name], [count, n, k]),
        };
        let coded = coded.ok_or_else(|| CheckpointError::NotFinite { name: name.into() })?;
        let quant::Quantized { bytes, scales } = &coded;
        Ok(self.device.weight(WeightData { count, n, k, format, bytes, scales })?)
    }

    /// How the checkpoint stores a tensor.
    fn format(&self, name: &str) -> WeightFormat {
        let info = self.checkpoint.info(name);
        info.expect("Checkpoint::check found every tensor of the model").format
    }

    /// Weight matrices `[count, n, k]` from tensors that together are that, one after the other.
    pub(crate) fn weight(
        &mut self,
        names: &[&str],
        [count, n, k]: [usize; 3],
    ) -> Result<Weight<D>, LoadError> {
        let mut all = Vec::new();
        for name in names {
            let part = self.floats(name, self.weights)?;
            // One part, and that is the usual case, is not copied.
            if all.is_empty() { all = part } else { all.extend(part) }
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

/// Quantizes rows of `k` floats on all processors; `None` if a number is not finite.
fn quantize(format: WeightFormat, k: usize, bytes: &[u8], from: DType) -> Option<quant::Quantized> {
    let row_bytes = k * from.size();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = (bytes.len() / row_bytes).div_ceil(threads).max(1);
    let piece = |bytes: &[u8]| {
        // Few rows at a time: all of them as f32 would be twice the checkpoint's memory.
        let mut out = quant::Quantized::default();
        for rows in bytes.chunks(256 * row_bytes) {
            let wide = convert(rows, from, DType::F32);
            let values: Vec<f32> = wide
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let coded = quant::quantize(format, k, &values)?;
            out.bytes.extend(coded.bytes);
            out.scales.extend(coded.scales);
        }
        Some(out)
    };
    std::thread::scope(|scope| {
        let pieces: Vec<_> =
            bytes.chunks(rows * row_bytes).map(|bytes| scope.spawn(move || piece(bytes))).collect();
        let mut all = quant::Quantized::default();
        for piece in pieces {
            let coded = piece.join().expect("quantizing does not panic")?;
            all.bytes.extend(coded.bytes);
            all.scales.extend(coded.scales);
        }
        Some(all)
    })
}

/// The names and shapes of a [`Dense`].
pub(crate) fn dense_tensors(out: &mut Vec<(String, Vec<usize>)>, name: &str, n: usize, k: usize) {
    out.push((format!("{name}.weight"), vec![n, k]));
    out.push((format!("{name}.bias"), vec![n]));
}

/// The names and shapes of a [`Norm`].
pub(crate) fn norm_tensors(out: &mut Vec<(String, Vec<usize>)>, name: &str, dim: usize) {
    out.push((format!("{name}.weight"), vec![dim]));
    out.push((format!("{name}.bias"), vec![dim]));
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
