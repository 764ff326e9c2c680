//! The engine: one request at a time, from picture and prompt to answer.
//!
//! A request owns the whole cache while it runs. Blocks are handed out in order, block 0 being the
//! null block that no table names. Deliberately absent: queues, batches and reuse between requests.
use std::time::Instant;

use photon_core::{
    Arena, Cx, DType, Kernels, Pending, Sample, SampleParams, Tensor, sampler::NO_TOKEN,
};
use photon_models::{
    KvCache, Moondream, Precision,
    batch::{BatchBuilder, Row},
    checkpoint::Checkpoint,
    config::Config,
    coord_of_bin,
    image::{CropConfig, ImageError, Limits, ResizeOrder, Tiling},
    prompt::{Input, Rejected, Sampling},
    size_of_bin,
    skill::{Drawn, FinishReason, Next, RegionHead, SkillEvent, SkillState},
    tokenizer::Tokenizer,
};

use crate::{
    BuildError, Image, Metrics, Model, Request, Response, RunError, backend::AnyEngine,
    model::Parts,
};

/// Slots per block. With one sequence at a time the size does not matter for speed; 16 keeps the paged
/// path honest.
const BLOCK_SIZE: usize = 16;

/// How to set up an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads of the CPU; one per core if `None`.
    pub threads: Option<usize>,
    /// Type of weights, keys and values; the checkpoint's own if `None`.
    pub dtype: Option<DType>,
    /// Order of the passes of a resize.
    pub resize: ResizeOrder,
}

/// The type most of the checkpoint's bytes are in.
fn checkpoint_dtype(checkpoint: &Checkpoint) -> DType {
    let tensors = checkpoint.tensors();
    let largest = tensors.values().max_by_key(|info| info.shape.iter().product::<usize>());
    largest.map_or(DType::F32, |info| info.dtype)
}

pub(crate) fn precision(dtype: DType) -> Precision {
    match dtype {
        DType::F32 => Precision::F32,
        dtype => Precision::mixed(dtype),
    }
}

pub(crate) fn crop_config(config: &Config, resize: ResizeOrder) -> CropConfig {
    let v = &config.vision;
    CropConfig {
        crop_size: v.crop_size as u32,
        patch_size: v.enc_patch_size as u32,
        overlap_margin: v.overlap_margin as u32,
        max_crops: v.max_crops as u32,
        resize,
    }
}

/// A model and its working memory on a device.
#[derive(Debug)]
pub(crate) struct Session<D: Kernels> {
    pub(crate) device: D,
    pub(crate) model: Moondream<D>,
    stream: D::Stream,
    arena: Arena<D>,
    kv: KvCache<D>,
    /// `[patches, dim]`: the image of the request.
    image: Tensor<D>,
    host: Option<D::HostBuffer>,
}

/// What a step gives: the id drawn for its only row, or the row's bins.
type Ids = Vec<i32>;

impl<D: Kernels> Session<D> {
    pub(crate) fn new(device: D, model: Moondream<D>) -> Result<Self, photon_core::Error> {
        let (config, precision) = (model.config().clone(), model.precision());
        let mut stream = device.stream()?;
        let num_blocks = config.text.max_context.div_ceil(BLOCK_SIZE) + 1;
        let mut kv = KvCache::new(&device, &config.text, num_blocks, BLOCK_SIZE, precision.kv)?;
        let image = [config.vision.patches(), config.text.dim];
        let mut image = Tensor::zeros(&device, image, precision.activations)?;
        let vision = Arena::measure(&device, &mut stream, |cx| {
            // Very long pictures are cut into more tiles than max_crops.
            let crops = crop_config(&config, ResizeOrder::default());
            let most = crops.most_tiles(Limits::default().max_side);
            let rows = most.unwrap_or(config.vision.max_crops) as u32;
            let tiling = Tiling { rows, cols: 1 };
            let crops = vec![0; 0];
            vision_pass(&model, cx, tiling, &crops, &mut image);
        })?;
        let text = Arena::measure(&device, &mut stream, |cx| {
            let inputs = vec![Input::Coord(0.0); config.text.max_context];
            text_pass(&model, cx, &inputs, 0, 0, &image, &mut kv, Some(RegionHead::Size));
        })?;
        let arena = Arena::new(&device, vision.max(text))?;
        let host = Some(device.host_buffer(64)?);
        Ok(Session { device, model, stream, arena, kv, image, host })
    }

    /// Encodes one image's crops, `[num_crops, size, size, 3]`, into `self.image`.
    pub(crate) fn encode(&mut self, tiling: Tiling, crops: &[u8]) -> photon_core::Result<()> {
        let cx = &mut Cx::new(&self.device, &mut self.stream, &mut self.arena);
        vision_pass(&self.model, cx, tiling, crops, &mut self.image);
        self.device.wait(&self.device.submit(&mut self.stream)?)
    }

    /// Computes `inputs` from position `start`, draws the next id under `params`, and, if `head` says
    /// the id stands for a number, asks that head for its bins.
    pub(crate) fn step(
        &mut self,
        inputs: &[Input],
        start: usize,
        prefix_len: usize,
        params: &SampleParams,
        head: impl FnOnce(u32) -> Option<RegionHead>,
    ) -> Result<(u32, Option<(RegionHead, Ids)>), RunError> {
        let mut host = self.host.take().expect("put back at the end of every step");
        let cx = &mut Cx::new(&self.device, &mut self.stream, &mut self.arena);
        let hidden = forward(&self.model, cx, inputs, start, prefix_len, &self.image, &mut self.kv);
        let logits = self.model.logits(cx, &hidden);
        let ids = sample(cx, &logits, params);
        let drawn = read_ids(cx, &ids, &mut host)?[0];
        let result = if drawn == NO_TOKEN {
            Err(RunError::NotANumber)
        } else if let Some(head) = head(drawn as u32) {
            let logits = self.model.region_logits(cx, &hidden, head);
            let bins = sample(cx, &logits, &SampleParams::GREEDY);
            let bins = read_ids(cx, &bins, &mut host)?;
            match bins.contains(&NO_TOKEN) {
                true => Err(RunError::NotANumber),
                false => Ok((drawn as u32, Some((head, bins)))),
            }
        } else {
            Ok((drawn as u32, None))
        };
        self.host = Some(host);
        result
    }
}

fn vision_pass<D: Kernels>(
    model: &Moondream<D>,
    cx: &mut Cx<'_, D>,
    tiling: Tiling,
    crops: &[u8],
    image: &mut Tensor<D>,
) {
    let size = model.config().vision.crop_size;
    let mut staged = cx.tensor([tiling.num_crops(), size, size, 3], DType::U8);
    if !cx.is_measuring() {
        cx.upload(&mut staged, crops);
    }
    let features = model.encode_crops(cx, &staged);
    model.project_images(cx, &features, &[tiling], image);
}

/// The hidden state of the last of `inputs`.
fn forward<D: Kernels>(
    model: &Moondream<D>,
    cx: &mut Cx<'_, D>,
    inputs: &[Input],
    start: usize,
    prefix_len: usize,
    image: &Tensor<D>,
    kv: &mut KvCache<D>,
) -> Tensor<D> {
    let num_blocks = (start + inputs.len()).div_ceil(kv.block_size()) as u32;
    let block_table: Vec<u32> = (1..=num_blocks).collect();
    let mut batch = BatchBuilder::new(kv.block_size());
    batch.push(&Row { inputs, start, block_table: &block_table, prefix_len, image_offset: 0 });
    let batch = batch.upload(cx);
    model.forward(cx, &batch, Some(image), kv)
}

/// Everything one step may record, for sizing the arena.
#[expect(clippy::too_many_arguments, reason = "forward's, and the head")]
fn text_pass<D: Kernels>(
    model: &Moondream<D>,
    cx: &mut Cx<'_, D>,
    inputs: &[Input],
    start: usize,
    prefix_len: usize,
    image: &Tensor<D>,
    kv: &mut KvCache<D>,
    head: Option<RegionHead>,
) {
    let hidden = forward(model, cx, inputs, start, prefix_len, image, kv);
    let logits = model.logits(cx, &hidden);
    sample(cx, &logits, &SampleParams::GREEDY);
    if let Some(head) = head {
        let logits = model.region_logits(cx, &hidden, head);
        sample(cx, &logits, &SampleParams::GREEDY);
    }
}

/// Draws an id for each row of `logits`, all under the same parameters.
fn sample<D: Kernels>(cx: &mut Cx<'_, D>, logits: &Tensor<D>, params: &SampleParams) -> Tensor<D> {
    let rows = logits.rows();
    let mut ids = cx.tensor([rows], DType::I32);
    let mut logprobs = cx.tensor([rows], DType::F32);
    let mut records = cx.tensor([rows, size_of::<SampleParams>()], DType::U8);
    cx.upload(&mut records, &bytemuck::bytes_of(params).repeat(rows));
    cx.sample(Sample { ids: &mut ids, logprobs: &mut logprobs, logits, params: &records });
    ids
}

fn read_ids<D: Kernels>(
    cx: &mut Cx<'_, D>,
    ids: &Tensor<D>,
    host: &mut D::HostBuffer,
) -> photon_core::Result<Vec<i32>> {
    let range = ids.byte_range();
    let len = range.len();
    let spare = cx.device.host_buffer(0)?;
    let taken = std::mem::replace(host, spare);
    let pending: Pending<D> = cx.device.read_back(cx.stream, ids.buffer(), range, taken)?;
    *host = pending.wait()?;
    let bytes = host.as_ref()[..len].chunks_exact(4);
    Ok(bytes.map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// A session that answers requests.
#[derive(Debug)]
pub(crate) struct Engine<D: Kernels> {
    session: Session<D>,
    tokenizer: Tokenizer,
    crops: CropConfig,
    description: String,
}

impl<D: Kernels> Engine<D> {
    pub(crate) fn open(
        device: D,
        model: &Model,
        options: &EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, BuildError> {
        let Parts { config, checkpoint, tokenizer } = model.open()?;
        let crops = crop_config(&config, options.resize);
        crops.check().map_err(BuildError::Crops)?;
        let dtype = options.dtype.unwrap_or_else(|| checkpoint_dtype(&checkpoint));
        let model = Moondream::load(&device, &checkpoint, &config, precision(dtype), progress)?;
        let description = format!("{} weights on {}", dtype, device.name());
        Ok(Engine { session: Session::new(device, model)?, tokenizer, crops, description })
    }

    /// Encodes the request's picture; gives how it was cut.
    fn see(&mut self, image: &Image, metrics: &mut Metrics) -> Result<(), RunError> {
        let start = Instant::now();
        // The arena has room for the tiles of no longer side, whatever limits it was decoded within.
        let ((width, height), max_side) = (image.size(), Limits::default().max_side);
        if width.max(height) > max_side {
            return Err(ImageError::TooLong { width, height, max_side }.into());
        }
        let crops = self.crops.crops(image.rgb())?;
        metrics.preprocess_time_ms = ms(start);
        metrics.set_tiling(crops.tiling);
        let start = Instant::now();
        self.session.encode(crops.tiling, &crops.crops)?;
        metrics.vision_time_ms = ms(start);
        Ok(())
    }
}

impl<D: Kernels> AnyEngine for Engine<D> {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn run(
        &mut self,
        request: &Request,
        on_event: &mut dyn FnMut(SkillEvent),
    ) -> Result<Response, RunError> {
        let begun = Instant::now();
        let config = self.session.model.config().clone();
        let prefix_len = if request.image.is_some() { config.text.prefix_attn } else { 0 };
        let prompt = request.skill.prompt(&config, &self.tokenizer, request.image.is_some())?;
        request.sampling.check()?;
        let mut inputs = vec![Input::Token(config.tokenizer.bos_id)];
        if request.image.is_some() {
            inputs.extend((0..config.vision.patches() as u32).map(Input::Image));
        }
        inputs.extend(prompt);
        if inputs.len() >= config.text.max_context {
            let (tokens, max) = (inputs.len(), config.text.max_context);
            return Err(Rejected::TooLong { tokens, max }.into());
        }
        let mut metrics = Metrics { input_tokens: inputs.len(), ..Metrics::default() };
        if let Some(image) = &request.image {
            self.see(image, &mut metrics)?;
        }

        let mut state = SkillState::new(&request.skill, &config.tokenizer, request.budget);
        let (mut tokens, mut events) = (Vec::new(), Vec::new());
        let (mut computed, mut phase_start) = (0, Instant::now());
        let finish_reason = loop {
            let params = sample_params(&request.sampling, &state, computed + inputs.len());
            let (id, bins) =
                self.session.step(&inputs, computed, prefix_len, &params, |id| state.head(id))?;
            computed += inputs.len();
            if tokens.is_empty() {
                metrics.prefill_time_ms = ms(phase_start);
                metrics.ttft_ms = ms(begun);
                phase_start = Instant::now();
            }
            tokens.push(id);
            let next = state.advance(drawn(id, bins, &config), &self.tokenizer, &mut events);
            let next = match next {
                Next::Feed(_) if computed >= config.text.max_context => {
                    state.cut(&mut events);
                    Next::Finish(FinishReason::Length)
                }
                next => next,
            };
            events.drain(..).for_each(&mut *on_event);
            match next {
                Next::Feed(input) => inputs = vec![input],
                Next::Finish(reason) => break reason,
            }
        };
        metrics.decode_time_ms = ms(phase_start);
        metrics.output_tokens = tokens.len();
        if finish_reason == FinishReason::Stop && tokens.last() == Some(&config.tokenizer.eos_id) {
            tokens.pop();
        }
        Ok(Response { answer: state.into_answer(), finish_reason, tokens, metrics })
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn sample_params(sampling: &Sampling, state: &SkillState, position: usize) -> SampleParams {
    let constraint = state.constraint();
    // So cold that only exact ties would be drawn among; dividing by less could overflow.
    let greedy = sampling.temperature < 1e-3;
    SampleParams {
        temperature: if greedy { 0.0 } else { sampling.temperature },
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        top_k: sampling.top_k,
        seed: [sampling.seed as u32, (sampling.seed >> 32) as u32],
        position: position as u32,
        stream: 0,
        allowed: constraint.allowed,
        banned: constraint.banned,
    }
}

fn drawn(id: u32, bins: Option<(RegionHead, Ids)>, config: &Config) -> Drawn {
    let (coords, sizes) = (config.region.coord_out_dim, config.region.size_out_dim / 2);
    match bins {
        None => Drawn::Token(id),
        Some((RegionHead::Coord, bins)) => Drawn::Coord(coord_of_bin(bins[0] as u32, coords)),
        Some((RegionHead::Size, bins)) => {
            Drawn::Size([bins[0], bins[1]].map(|bin| size_of_bin(bin as u32, sizes)))
        }
    }
}
