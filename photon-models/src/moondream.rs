//! Moondream: vision, language and region models over one device.
use photon_core::{Cx, DType, Device, Gather, Kernels, Scatter, Tensor};

use crate::{
    adapter::AdapterSlots,
    batch::Batch,
    checkpoint::{Checkpoint, TensorInfo},
    config::Config,
    image::Tiling,
    kv::KvCache,
    layers::{LoadError, Loader},
    quant::Quant,
    region::{self, Region},
    skill::RegionHead,
    spec::{Spec, Specs},
    text::{self, Text},
    vision::{self, Vision},
};

/// Element types of a loaded model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Weight matrices and the embedding table.
    pub weights: DType,
    /// Matrices that are quantized instead.
    pub quant: Quant,
    /// Activations from block to block.
    pub activations: DType,
    /// Activations within a block: normed inputs, queries, keys and values, hidden layers.
    pub inner: DType,
    /// Keys and values: any float, or 8 bits ([`DType::Int8`], [`DType::Fp8`]) with scales.
    pub kv: DType,
}

impl Precision {
    /// f32 throughout: what golden outputs are compared in.
    pub const F32: Precision = Precision {
        weights: DType::F32,
        quant: Quant::NONE,
        activations: DType::F32,
        inner: DType::F32,
        kv: DType::F32,
    };

    /// Weights, keys and values in a 16-bit type, activations in f32: where arithmetic is in f32 anyway, rounding
    /// activations between operations would cost accuracy and gain nothing. A device may want other types for them.
    pub const fn mixed(dtype: DType) -> Precision {
        Precision { weights: dtype, kv: dtype, ..Precision::F32 }
    }
}

/// A model on a device.
#[derive(Debug)]
pub struct Moondream<D: Device> {
    config: Config,
    precision: Precision,
    vision: Vision<D>,
    text: Text<D>,
    region: Region<D>,
}

/// Every tensor of a model with this configuration, and what becomes of it.
pub fn tensor_specs(config: &Config) -> Vec<Spec> {
    let mut specs = Specs::default();
    vision::tensors(&config.vision, &mut specs);
    text::tensors(&config.text, &mut specs);
    region::tensors(config, &mut specs);
    specs.0
}

/// The names and shapes of every tensor of a model with this configuration.
pub fn expected_tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    tensor_specs(config).into_iter().map(|spec| (spec.name, spec.shape)).collect()
}

impl<D: Kernels> Moondream<D> {
    /// Puts a checkpoint on the device. `progress` is told bytes taken and bytes in all.
    pub fn load(
        device: &D,
        checkpoint: &Checkpoint,
        config: &Config,
        precision: Precision,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        checkpoint.check(&expected_tensors(config))?;
        let total = checkpoint.tensors().values().map(TensorInfo::bytes).sum::<u64>();
        let mut taken = 0;
        let mut loader = Loader {
            device,
            checkpoint,
            stream: device.stream()?,
            weights: precision.weights,
            quant: precision.quant.vision,
            progress: &mut |bytes| {
                taken += bytes;
                progress(taken, total);
            },
        };
        let vision = Vision::load(&mut loader, &config.vision, precision)?;
        loader.quant = precision.quant.text;
        let text = Text::load(&mut loader, &config.text, &config.tokenizer.marks(), precision)?;
        let region = Region::load(&mut loader, config, precision.activations)?;
        let mut stream = loader.stream;
        device.wait(&device.submit(&mut stream)?)?;
        Ok(Moondream { config: config.clone(), precision, vision, text, region })
    }

    /// The numbers of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The element types of the model.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Encodes crops `[num_crops, crop_size, crop_size, 3]`, u8, to features `[num_crops * patches,
    /// enc_dim]`. Crops of different images may stand together.
    pub fn encode_crops(&self, cx: &mut Cx<'_, D>, crops: &Tensor<D>) -> Tensor<D> {
        self.vision.encode(cx, crops)
    }

    /// Joins the features of each image's crops and projects them into the text model: `out` is
    /// `[images * patches, dim]`.
    pub fn project_images(
        &self,
        cx: &mut Cx<'_, D>,
        features: &Tensor<D>,
        tilings: &[Tiling],
        out: &mut Tensor<D>,
    ) {
        self.vision.project(cx, features, tilings, out);
    }

    /// Runs a step: embeds the inputs, fills the cache, and gives the hidden states of the
    /// tokens after which one is drawn, `[drawn, dim]`. `images` holds the embeddings the batch refers to,
    /// `adapters` the slots.
    pub fn forward(
        &self,
        cx: &mut Cx<'_, D>,
        batch: &Batch<D>,
        images: Option<&Tensor<D>>,
        adapters: Option<&AdapterSlots<D>>,
        kv: &mut KvCache<D>,
    ) -> Tensor<D> {
        let mut x = cx.tensor([batch.tokens(), self.config.text.dim], self.precision.activations);
        cx.gather(Gather { out: &mut x, x: &self.text.wte, indices: &batch.ids });
        if let Some(indices) = &batch.image_rows {
            let images = images.expect("a batch with image inputs comes with embeddings");
            cx.gather(Gather { out: &mut x, x: images, indices });
        }
        if let Some((values, indices)) = &batch.coords {
            let encoded = self.region.encode_coords(cx, values);
            cx.scatter(Scatter { out: &mut x, x: &encoded, indices });
        }
        if let Some((values, indices)) = &batch.sizes {
            let encoded = self.region.encode_sizes(cx, values);
            cx.scatter(Scatter { out: &mut x, x: &encoded, indices });
        }
        self.text.forward(cx, &mut x, batch, adapters, kv)
    }

    /// Logits of the next token, `[rows, vocab_size]`, f32.
    pub fn logits(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        self.text.logits(cx, hidden)
    }

    /// Of those logits the ones of the marks, `[rows, 4]`, in the order of [`marks`](crate::config::TokenConfig::marks); the other
    /// ids' are not computed.
    pub fn mark_logits(&self, cx: &mut Cx<'_, D>, hidden: &Tensor<D>) -> Tensor<D> {
        self.text.mark_logits(cx, hidden)
    }

    /// Logits of a region head's bins: `[rows, bins]` for a coordinate, `[2 * rows, bins]` (width,
    /// height) for a size, f32.
    pub fn region_logits(
        &self,
        cx: &mut Cx<'_, D>,
        hidden: &Tensor<D>,
        head: RegionHead,
    ) -> Tensor<D> {
        match head {
            RegionHead::Coord => self.region.decode_coord(cx, hidden),
            RegionHead::Size => self.region.decode_size(cx, hidden),
        }
    }
}
