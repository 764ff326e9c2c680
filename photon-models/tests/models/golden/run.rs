//! Running the models whose numbers are recorded.
#![allow(clippy::unwrap_used, reason = "helpers of tests and of an example")]
use photon_core::{Arena, Cx, DType, Device, Kernels, SampleParams, Tensor};
use photon_cpu::{Cpu, CpuOptions};
use photon_models::{
    KvCache, Moondream, Precision,
    batch::{BatchBuilder, Row},
    checkpoint::Checkpoint,
    config::{Config, Family},
    expected_tensors,
    image::{CropConfig, Limits, decode},
    prompt::Input,
};
use safetensors::SafeTensors;
use serde_json::Value;

pub(crate) const PICTURES: [&str; 4] =
    ["chart_800x557", "small_200x150", "square_910x910", "wide_1200x300"];
pub(crate) const BLOCK_SIZE: usize = 16;
/// Of the cache; block 0 is the null block.
const NUM_BLOCKS: usize = 64;

/// What was recorded of a family.
pub(crate) struct Golden {
    family: Family,
    pub(crate) json: Value,
    bytes: Vec<u8>,
}

impl Golden {
    pub(crate) fn open(family: Family) -> Self {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden");
        let name = match family {
            Family::Moondream2 => "moondream2",
            Family::Moondream3 => "moondream3",
        };
        let json = std::fs::read(format!("{dir}/{name}.json")).unwrap();
        let bytes = std::fs::read(format!("{dir}/{name}.safetensors")).unwrap();
        Golden { family, json: serde_json::from_slice(&json).unwrap(), bytes }
    }

    pub(crate) fn config(&self) -> Config {
        let json = serde_json::json!({ "config": self.json["config"] });
        Config::from_json(json.to_string().as_bytes(), self.family).unwrap()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let bytes = tensors.tensor(name).unwrap().data().chunks_exact(4);
        bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// What is recorded of a picture; of Moondream 3 there is one record for either `gelu` in tau.
    pub(crate) fn record(&self, gelu: &str, picture: &str) -> &Value {
        match self.family {
            Family::Moondream2 => &self.json["images"][picture],
            Family::Moondream3 => &self.json["tau_gelu"][gelu][picture],
        }
    }

    /// The recorded logits of the first token of its question.
    pub(crate) fn query_logits(&self, gelu: &str, picture: &str) -> Vec<f32> {
        match self.family {
            Family::Moondream2 => self.floats(&format!("{picture}.query_logits")),
            Family::Moondream3 => self.floats(&format!("{gelu}.{picture}.query_logits")),
        }
    }
}

pub(crate) fn download<D: Kernels>(device: &D, stream: &mut D::Stream, t: &Tensor<D>) -> Vec<f32> {
    let range = t.byte_range();
    let host = device.host_buffer(range.len()).unwrap();
    let host = device.read_back(stream, t.buffer(), range, host).unwrap().wait().unwrap();
    let f32s = photon_core::convert(host.as_ref(), t.dtype(), DType::F32).into_owned();
    f32s.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// A model with room for one sequence.
pub(crate) struct Run {
    pub(crate) device: Cpu,
    pub(crate) stream: <Cpu as Device>::Stream,
    pub(crate) model: Moondream<Cpu>,
    pub(crate) kv: KvCache<Cpu>,
    pub(crate) image: Tensor<Cpu>,
}

impl Run {
    /// With the weights that the records were made with.
    pub(crate) fn new(config: &Config, precision: Precision) -> Self {
        Run::of(&Checkpoint::synthetic(0, expected_tensors(config)), config, precision)
    }

    pub(crate) fn of(checkpoint: &Checkpoint, config: &Config, precision: Precision) -> Self {
        let device = Cpu::open(CpuOptions::default()).unwrap();
        let stream = device.stream().unwrap();
        let model =
            Moondream::load(&device, checkpoint, config, precision, &mut |_, _| {}).unwrap();
        let kv = KvCache::new(&device, &config.text, NUM_BLOCKS, BLOCK_SIZE, precision.kv).unwrap();
        let shape = [config.vision.patches(), config.text.dim];
        let image = Tensor::zeros(&device, shape, precision.activations).unwrap();
        Run { device, stream, model, kv, image }
    }

    /// Runs `pass` in an arena of exactly the size it takes.
    pub(crate) fn pass<T>(
        &mut self,
        mut pass: impl FnMut(
            &Moondream<Cpu>,
            &mut Cx<'_, Cpu>,
            &mut KvCache<Cpu>,
            &mut Tensor<Cpu>,
        ) -> T,
    ) -> T {
        let Run { device, stream, model, kv, image } = self;
        let bytes = Arena::measure(device, stream, |cx| {
            pass(model, cx, kv, image);
        });
        let mut arena = Arena::new(device, bytes.unwrap()).unwrap();
        pass(model, &mut Cx::new(device, stream, &mut arena), kv, image)
    }

    /// Encodes a picture.
    pub(crate) fn look(&mut self, picture: &str) {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/images");
        let bytes = std::fs::read(format!("{dir}/{picture}.png")).unwrap();
        let rgb = decode(&bytes, &Limits::default()).unwrap();
        let crops = CropConfig::default().crops(&rgb).unwrap();
        self.pass(|model, cx, _, image| {
            let size = model.config().vision.crop_size;
            let mut staged = cx.tensor([crops.tiling.num_crops(), size, size, 3], DType::U8);
            cx.upload(&mut staged, &crops.crops);
            let features = model.encode_crops(cx, &staged);
            model.project_images(cx, &features, &[crops.tiling], image);
        });
    }

    /// The logits after these inputs, the first of which is at position `start`.
    pub(crate) fn logits(&mut self, inputs: &[Input], start: usize) -> Vec<f32> {
        let table: Vec<u32> = (1..NUM_BLOCKS as u32).collect();
        let row = Row {
            inputs,
            start,
            block_table: &table[..(start + inputs.len()).div_ceil(BLOCK_SIZE)],
            draft: &[],
            images: &[0],
            adapter: None,
            sample: Some(SampleParams::GREEDY),
            mask: None,
        };
        let logits = self.pass(|model, cx, kv, image| {
            let mut batch = BatchBuilder::new(BLOCK_SIZE, model.config().vision.patches(), [0; 4]);
            batch.push(&row);
            let batch = batch.upload(cx);
            let hidden = model.forward(cx, &batch, Some(image), None, kv);
            model.logits(cx, &hidden)
        });
        download(&self.device, &mut self.stream, &logits)
    }
}

/// BOS, an image and what was asked.
pub(crate) fn inputs(prompt: &Value, patches: usize) -> Vec<Input> {
    let mut inputs = vec![Input::Token(0)];
    inputs.extend((0..patches as u32).map(Input::Image));
    let ids = prompt.as_array().unwrap().iter();
    inputs.extend(ids.map(|id| Input::Token(id.as_u64().unwrap() as u32)));
    inputs
}

/// The logits after a question about a picture.
pub(crate) fn query_logits(run: &mut Run, picture: &str, prompt: &Value) -> Vec<f32> {
    run.look(picture);
    let inputs = inputs(prompt, run.model.config().vision.patches());
    run.logits(&inputs, 0)
}
