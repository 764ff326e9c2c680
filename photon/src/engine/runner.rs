//! A model on a device: encodes pictures and runs steps, knowing nothing of requests.
//!
//! # Rules
//! - A step is one upload, the model, and one read-back. What is read comes out of [`Runner::finish`]; until
//!   then the device works and the caller does something else.
//! - A token of which only marks are allowed is drawn from the marks' logits, whatever the other rows need, so
//!   that it does not depend on them; where no row draws words, the head over all ids does not run.
//! - A step of one token per row is padded to a bucket of rows and replayed from a captured graph, where
//!   the device captures; what a row computes does not depend on it.
//! - Everything a step needs was allocated at the start: the arena is sized by a dry run of the largest
//!   step, the largest vision pass and the largest projection.
use std::collections::HashMap;

use photon_core::{
    Arena, Copy, Cx, DType, Kernels, Pending, Result, Sample, SampleParams, Tensor,
    sampler::NO_TOKEN,
};
use photon_models::{
    KvCache, Moondream, Precision,
    adapter::{AdapterShape, AdapterSlots, PackedAdapter},
    batch::{Batch, BatchBuilder, Draws, Row},
    config::Config,
    image::Tiling,
    prompt::Input,
    skill::RegionHead,
};

#[cfg(test)]
mod tests;

/// Sizes of a runner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunnerLimits {
    /// Most rows of a step.
    pub(crate) max_rows: usize,
    /// Most drafted tokens of a row.
    pub(crate) max_draft: usize,
    /// Most tokens of a step.
    pub(crate) max_tokens: usize,
    /// Blocks of the cache, the null block included.
    pub(crate) num_blocks: usize,
    /// Slots per block.
    pub(crate) block_size: usize,
    /// Pictures whose embeddings stay on the device.
    pub(crate) image_slots: usize,
    /// Crops encoded in one pass.
    pub(crate) crops_per_pass: usize,
    /// Most crops of one picture.
    pub(crate) max_crops: usize,
    /// Adapters there is room for, and their largest rank.
    pub(crate) adapter_slots: usize,
    pub(crate) adapter_rank: usize,
    /// Whether decode steps are captured, where the device can.
    pub(crate) capture: bool,
}

impl RunnerLimits {
    /// Most tokens that a step draws.
    fn max_drawn(&self) -> usize {
        self.max_rows * (1 + self.max_draft)
    }

    /// The room for adapters.
    pub(crate) fn adapter_shape(&self, config: &Config, precision: Precision) -> AdapterShape {
        AdapterShape::new(config, self.adapter_slots, self.adapter_rank, precision.weights)
    }
}

/// A picture to encode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodeJob<'a> {
    pub(crate) tiling: Tiling,
    /// `[num_crops, crop_size, crop_size, 3]`.
    pub(crate) crops: &'a [u8],
    /// Where the embeddings go.
    pub(crate) slot: usize,
}

/// What was drawn after a token: the id, its logarithm of probability, and what each region head says of the same
/// hidden state, if it was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Drew {
    pub(crate) id: i32,
    pub(crate) logprob: f32,
    pub(crate) coord: i32,
    pub(crate) size: [i32; 2],
}

/// The region heads some row of a step may need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Heads {
    pub(crate) coord: bool,
    pub(crate) size: bool,
}

/// Where a step's results lie in the output buffer, in words for each of `max_drawn` tokens: ids, and behind them
/// logarithms of probability; marks, likewise; coordinates; sizes.
const IDS: usize = 0;
const MARKS: usize = 2;
const COORDS: usize = 4;
const SIZES: usize = 5;
const OUT_BYTES: usize = 4 * 7;

/// What a captured decode step depends on: as exactly as can be, so that it reads no weights that no row needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    rows: usize,
    draws: Draws,
    heads: Heads,
    coords: bool,
    sizes: bool,
    adapters: bool,
    masks: bool,
}

/// A model and its working memory on a device.
#[derive(Debug)]
pub(crate) struct Runner<D: Kernels> {
    pub(crate) device: D,
    pub(crate) model: Moondream<D>,
    limits: RunnerLimits,
    stream: D::Stream,
    arena: Arena<D>,
    kv: KvCache<D>,
    /// `[image_slots * patches, dim]`.
    images: Tensor<D>,
    adapters: Option<AdapterSlots<D>>,
    /// `[max_crops * patches, enc_dim]`: the crops of the pictures being encoded.
    features: Tensor<D>,
    /// `[max_drawn * OUT_BYTES]`, u8.
    out: Tensor<D>,
    /// `[2 * max_drawn, size_of::<SampleParams>()]`, u8: the region heads' bins are drawn greedily.
    greedy: Tensor<D>,
    host: Option<D::HostBuffer>,
    batch: BatchBuilder,
    graphs: HashMap<Bucket, Option<D::Graph>>,
    /// Decode steps that were replayed.
    pub(crate) replays: u64,
}

/// A step under way.
#[derive(Debug)]
pub(crate) struct Step<D: Kernels> {
    pending: Pending<D>,
    max_drawn: usize,
    /// Of each token that is drawn, whether from the marks.
    from_marks: Vec<bool>,
}

impl<D: Kernels> Runner<D> {
    pub(crate) fn new(device: D, model: Moondream<D>, limits: RunnerLimits) -> Result<Self> {
        let (config, precision) = (model.config(), model.precision());
        let mut stream = device.stream()?;
        let RunnerLimits { num_blocks, block_size, .. } = limits;
        let max_drawn = limits.max_drawn();
        let kv = KvCache::new(&device, &config.text, num_blocks, block_size, precision.kv)?;
        let (v, act) = (&config.vision, precision.activations);
        let images =
            Tensor::zeros(&device, [limits.image_slots * v.patches(), config.text.dim], act)?;
        let adapters = match limits.adapter_slots {
            0 => None,
            _ => Some(AdapterSlots::new(&device, &limits.adapter_shape(config, precision))?),
        };
        let features = [limits.max_crops * v.patches(), v.enc_dim];
        let features = Tensor::zeros(&device, features, precision.inner)?;
        let out = Tensor::zeros(&device, [max_drawn * OUT_BYTES], DType::U8)?;
        let greedy = [2 * max_drawn, size_of::<SampleParams>()];
        let greedy = Tensor::zeros(&device, greedy, DType::U8)?;
        let records = bytemuck::bytes_of(&SampleParams::GREEDY).repeat(2 * max_drawn);
        device.upload(&mut stream, greedy.buffer(), 0, &records);
        let host = Some(device.host_buffer(max_drawn * OUT_BYTES)?);
        let arena = Arena::new(&device, 0)?;
        let batch = BatchBuilder::new(block_size, v.patches(), config.tokenizer.marks());
        let graphs = HashMap::new();
        let mut runner = Runner {
            device,
            model,
            limits,
            stream,
            arena,
            kv,
            images,
            adapters,
            features,
            out,
            greedy,
            host,
            batch,
            graphs,
            replays: 0,
        };
        let bytes = runner.measure()?;
        runner.arena = Arena::new(&runner.device, bytes)?;
        Ok(runner)
    }

    /// Arena bytes of the largest pass of each kind.
    fn measure(&mut self) -> Result<usize> {
        let limits = self.limits;
        let Runner { device, model, stream, features, images, adapters, kv, out, greedy, .. } =
            self;
        let crops = limits.crops_per_pass.min(limits.max_crops);
        let encode = Arena::measure(device, stream, |cx| {
            encode_pass(model, cx, &[], &mut features.row_range(0..crops * patches(model)));
        })?;
        let project = Arena::measure(device, stream, |cx| {
            let mut image = images.row_range(0..patches(model));
            model.project_images(
                cx,
                &features.row_range(0..patches(model)),
                &[Tiling::SINGLE],
                &mut image,
            );
        })?;
        // As many rows as can be, each with a draft, the first with all tokens to spare, everything a
        // coordinate.
        let context = model.config().text.max_context;
        let table = vec![0; context.div_ceil(limits.block_size)];
        let adapter = adapters.is_some().then_some(0);
        let mask = vec![0; model.config().text.vocab_size.div_ceil(32)];
        let mask = Some(&mask[..]);
        let marks = model.config().tokenizer.marks();
        let mut batch = BatchBuilder::new(limits.block_size, patches(model), marks);
        let draft = &vec![0; limits.max_draft];
        let mut left = limits.max_tokens.max(limits.max_drawn());
        for row in (0..limits.max_rows).rev() {
            let len = (left - row * (1 + draft.len()) - draft.len()).min(context - draft.len());
            let inputs = vec![Input::Coord(0.0); len];
            left -= len + draft.len();
            let sample = Some(SampleParams::GREEDY);
            let (inputs, block_table, images) = (&inputs[..], &table[..], &[]);
            let start = 0;
            batch.push(&Row { inputs, draft, start, block_table, images, adapter, sample, mask });
        }
        let (draws, heads) =
            (Draws { words: true, marks: true }, Heads { coord: true, size: true });
        let text = Arena::measure(device, stream, |cx| {
            let batch = batch.upload(cx);
            let adapters = adapters.as_ref();
            text_pass(model, cx, &batch, images, adapters, kv, draws, heads, out, greedy);
        })?;
        Ok(encode.max(project).max(text))
    }

    /// Encodes and projects pictures into their slots. Their crops share passes, whoever they belong to.
    /// Ordered before the steps that follow; the event fires when it is done.
    pub(crate) fn encode(&mut self, jobs: &[EncodeJob<'_>]) -> Result<D::Event> {
        let mut first = 0;
        while first < jobs.len() {
            let mut crops = 0;
            let fits = |job: &&EncodeJob<'_>| {
                crops += job.tiling.num_crops();
                crops <= self.limits.max_crops
            };
            let count = jobs[first..].iter().take_while(fits).count();
            assert!(
                count > 0,
                "a picture of {crops} crops; there is room for {}",
                self.limits.max_crops
            );
            self.encode_group(&jobs[first..first + count]);
            first += count;
        }
        self.device.submit(&mut self.stream)
    }

    /// Pictures whose crops fit `features` together.
    fn encode_group(&mut self, jobs: &[EncodeJob<'_>]) {
        let Runner { device, model, stream, arena, features, images, limits, .. } = self;
        let patches = patches(model);
        let crop_bytes = model.config().vision.crop_size.pow(2) * 3;
        let crops: Vec<&[u8]> = jobs.iter().flat_map(|job| job.crops.chunks(crop_bytes)).collect();
        for (i, pass) in crops.chunks(limits.crops_per_pass).enumerate() {
            let start = i * limits.crops_per_pass * patches;
            let mut out = features.row_range(start..start + pass.len() * patches);
            encode_pass(model, &mut Cx::new(device, stream, arena), pass, &mut out);
        }
        let mut start = 0;
        for job in jobs {
            let end = start + job.tiling.num_crops() * patches;
            let features = features.row_range(start..end);
            let mut image = images.row_range(job.slot * patches..(job.slot + 1) * patches);
            let cx = &mut Cx::new(device, stream, arena);
            model.project_images(cx, &features, &[job.tiling], &mut image);
            start = end;
        }
    }

    /// Copies an adapter to a slot. Ordered before the steps that follow.
    pub(crate) fn load_adapter(&mut self, slot: usize, adapter: &PackedAdapter<D>) {
        let cx = &mut Cx::new(&self.device, &mut self.stream, &mut self.arena);
        self.adapters.as_mut().expect("an engine with slots").load(cx, slot, adapter);
    }

    /// Copies the first `slots` slots of a block, in every layer. Ordered before the steps that follow.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32, slots: usize) {
        let cx = &mut Cx::new(&self.device, &mut self.stream, &mut self.arena);
        self.kv.copy_block(cx, from, to, slots);
    }

    /// Runs rows of a step. `decode` says that each has one token, no image and draws.
    pub(crate) fn step<'a>(
        &mut self,
        rows: impl Iterator<Item = Row<'a>>,
        heads: Heads,
    ) -> Result<Step<D>> {
        let Runner {
            device, model, stream, arena, kv, images, adapters, out, greedy, batch, ..
        } = self;
        let adapters = adapters.as_ref();
        batch.clear();
        let mut is_decode = true;
        for row in rows {
            is_decode &= row.inputs.len() == 1
                && row.draft.is_empty()
                && row.sample.is_some()
                && !matches!(row.inputs[0], Input::Image(_));
            batch.push(&row);
        }
        let (max_rows, max_blocks) = (
            self.limits.max_rows,
            model.config().text.max_context.div_ceil(self.limits.block_size),
        );
        let (rows, draws) = (batch.rows(), batch.draws());
        let from_marks = batch.from_marks().to_vec();
        let cx = &mut Cx::new(device, stream, arena);
        if is_decode && self.limits.capture {
            let bucket = Bucket {
                rows: rows.next_power_of_two().min(max_rows),
                draws,
                heads,
                coords: batch.has_coords(),
                sizes: batch.has_sizes(),
                adapters: batch.has_adapters(),
                masks: batch.has_masks(),
            };
            batch.pad(bucket.rows, max_blocks);
            let batch = batch.upload(cx);
            let graph = match self.graphs.entry(bucket) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(cx.capture(|cx| {
                        text_pass(
                            model, cx, &batch, images, adapters, kv, draws, heads, out, greedy,
                        );
                    })?)
                }
            };
            match graph {
                Some(graph) => {
                    cx.device.replay(cx.stream, graph);
                    self.replays += 1;
                }
                None => {
                    text_pass(model, cx, &batch, images, adapters, kv, draws, heads, out, greedy);
                }
            }
        } else {
            let batch = batch.upload(cx);
            text_pass(model, cx, &batch, images, adapters, kv, draws, heads, out, greedy);
        }
        let max_drawn = self.limits.max_drawn();
        let host = self.host.take().expect("given back by the step before");
        let pending = self.device.read_back(
            &mut self.stream,
            self.out.buffer(),
            self.out.byte_range(),
            host,
        )?;
        Ok(Step { pending, max_drawn, from_marks })
    }

    /// Waits for a step; what was drawn after each drawing row's last input and after each id of its draft,
    /// in order.
    pub(crate) fn finish(&mut self, step: Step<D>, drew: &mut Vec<Drew>) -> Result<()> {
        let host = step.pending.wait()?;
        let word = |i: usize| {
            let bytes = host.as_ref()[4 * i..4 * i + 4].try_into();
            i32::from_le_bytes(bytes.expect("four bytes"))
        };
        let (n, marks) = (step.max_drawn, self.model.config().tokenizer.marks());
        drew.clear();
        let mark = |place: i32| usize::try_from(place).map_or(NO_TOKEN, |i| marks[i] as i32);
        drew.extend(step.from_marks.iter().enumerate().map(|(i, &is_mark)| {
            let first = if is_mark { MARKS } else { IDS };
            let id = word(first * n + i);
            Drew {
                id: if is_mark { mark(id) } else { id },
                logprob: f32::from_bits(word((first + 1) * n + i) as u32),
                coord: word(COORDS * n + i),
                size: [word(SIZES * n + 2 * i), word(SIZES * n + 2 * i + 1)],
            }
        }));
        self.host = Some(host);
        Ok(())
    }
}

fn patches<D: Kernels>(model: &Moondream<D>) -> usize {
    model.config().vision.patches()
}

/// Crops to features; `crops` may be empty while measuring.
fn encode_pass<D: Kernels>(
    model: &Moondream<D>,
    cx: &mut Cx<'_, D>,
    crops: &[&[u8]],
    out: &mut Tensor<D>,
) {
    let size = model.config().vision.crop_size;
    let count = out.rows() / patches(model);
    let mut staged = cx.tensor([count, size, size, 3], DType::U8);
    if !cx.is_measuring() {
        cx.upload(&mut staged, &crops.concat());
    }
    let features = model.encode_crops(cx, &staged);
    cx.copy(Copy { out, x: &features });
}

/// The model, and draws after every drawing token from all ids, from the marks and from the region heads, as far as
/// some row wants it.
#[expect(clippy::too_many_arguments, reason = "everything a graph may touch, by name")]
fn text_pass<D: Kernels>(
    model: &Moondream<D>,
    cx: &mut Cx<'_, D>,
    batch: &Batch<D>,
    images: &Tensor<D>,
    adapters: Option<&AdapterSlots<D>>,
    kv: &mut KvCache<D>,
    draws: Draws,
    heads: Heads,
    out: &Tensor<D>,
    greedy: &Tensor<D>,
) {
    let (rows, max_drawn) = (batch.drawn(), out.cols() / OUT_BYTES);
    let part = |at: usize, n: usize, dtype| out.bytes_as(4 * at * max_drawn, [n], dtype);
    let hidden = model.forward(cx, batch, Some(images), adapters, kv);
    if draws.words {
        let logits = model.logits(cx, &hidden);
        cx.sample(Sample {
            ids: &mut part(IDS, rows, DType::I32),
            logprobs: &mut part(IDS + 1, rows, DType::F32),
            logits: &logits,
            params: &batch.params,
            masks: batch.masks(),
        });
    }
    if draws.marks {
        let logits = model.mark_logits(cx, &hidden);
        cx.sample(Sample {
            ids: &mut part(MARKS, rows, DType::I32),
            logprobs: &mut part(MARKS + 1, rows, DType::F32),
            logits: &logits,
            params: &batch.params,
            masks: None,
        });
    }
    let heads = [
        (heads.coord, RegionHead::Coord, COORDS, rows),
        (heads.size, RegionHead::Size, SIZES, 2 * rows),
    ];
    for (_, head, at, rows) in heads.into_iter().filter(|(wanted, ..)| *wanted) {
        let logits = model.region_logits(cx, &hidden, head);
        let mut logprobs = cx.tensor([rows], DType::F32);
        cx.sample(Sample {
            ids: &mut part(at, rows, DType::I32),
            logprobs: &mut logprobs,
            logits: &logits,
            params: &greedy.row_range(0..rows),
            masks: None,
        });
    }
}
