//! Sizes an engine to the machine, loads the model, starts the threads.
use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};

use photon_core::{DType, Kernels, WeightFormat};
use photon_models::{
    KvCache, Moondream, Precision, Quant,
    adapter::{Adapter, AdapterSummary, MAX_RANK},
    checkpoint::Checkpoint,
    config::Config,
    image::{CropConfig, Limits as ImageLimits, ResizeOrder},
    prompt::MAX_IMAGES,
};
use photon_sched::{Limits, Scheduler};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{
    Engine,
    adapters::AdapterStore,
    cached::{CacheEvent, CacheLog},
    grammar::Grammars,
    prepare::{Open, Queue, Setup},
    runner::{Runner, RunnerLimits},
    slots::Slots,
};
use crate::{AdaptersInUse, BuildError, EngineStats, Model, adapters::AdapterFolder, model::Parts};

/// How to set up an engine. `None` chooses by the model and the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads of the CPU; one per core if `None`.
    pub threads: Option<usize>,
    /// Type of weights; the checkpoint's own if `None`, or f16 for bf16 on a GPU that has no arithmetic on bf16.
    pub dtype: Option<DType>,
    /// Matrices that are quantized when the model is loaded; none by default.
    pub quant: Quant,
    /// Type of keys and values: a float, or [`DType::Int8`] or [`DType::Fp8`], which take half the
    /// memory of 16 bits and change answers a little. That of the weights if `None`.
    pub kv_dtype: Option<DType>,
    /// Order of the passes of a resize.
    pub resize: ResizeOrder,
    /// Most requests computed at once; 16 by default, 64 on a device with memory of its own.
    pub max_seqs: Option<usize>,
    /// Most tokens computed in a step; 1,024 by default, 4,096 on a device with memory of its own. A picture's 730 positions are never cut.
    pub token_budget: Option<usize>,
    /// Slots per block of the cache; 16 by default.
    pub block_size: Option<usize>,
    /// Bytes of the key-value cache. By default room for `max_seqs` full contexts and as much again for
    /// what is kept, but at most a quarter of the free memory, or two thirds of what a device has of its own.
    pub kv_memory: Option<u64>,
    /// Most requests waiting; 512 by default.
    pub max_waiting: Option<usize>,
    /// Threads that decode, cut and tokenize; one per core if `None`, at most 8.
    pub workers: Option<usize>,
    /// Crops encoded in one pass; 4 by default, those of a picture on a device with memory of its own.
    pub crops_per_pass: Option<usize>,
    /// Adapters that requests will name: there is room for all of them, whatever their rank.
    pub adapters: Vec<PathBuf>,
    /// A folder of adapters that requests may name: see [`crate::adapters`].
    pub adapter_dir: Option<PathBuf>,
    /// Adapters there is room for at the same time; by default as many as `adapters`, and 8 at least if
    /// there is an `adapter_dir`.
    pub adapter_slots: Option<usize>,
    /// Their largest rank; by default that of `adapters` and of what is in `adapter_dir` now, or 16.
    pub adapter_rank: Option<usize>,
    /// Most tokens guessed ahead for a request and step, from what came before in its prompt and answer; 0,
    /// the default, guesses none. What comes out is the same, in fewer steps where it repeats itself.
    pub speculate: usize,
    /// Keep account of what is cached for [`Photon::cache_events`](crate::Photon::cache_events).
    pub cache_events: bool,
    /// Record every step anew even where the device could replay decode steps.
    pub no_capture: bool,
}

const BLOCK_SIZE: usize = 16;
const MAX_WAITING: usize = 512;
const ADAPTER_RANK: usize = 16;
/// Every row may draw so many more tokens, and there is room for all of their logits.
const MAX_DRAFT: usize = 64;
/// Pictures of a prepared request on average, at most: their crops are in memory.
const PICTURES_PER_REQUEST: usize = 4;
/// Adapters with room at the same time where they come by name.
const NAMED_ADAPTERS: usize = 8;
/// Pictures whose embeddings stay on the device: for what was preempted or evicted, and for other
/// tenants. 6 MB each in Moondream 2 with f32 activations.
const IMAGE_SLOTS: usize = 8;

/// How large steps are where nothing was asked for.
struct Defaults {
    max_seqs: usize,
    token_budget: usize,
    crops_per_pass: usize,
    /// The part of the free memory that keys and values may take: numerator, denominator.
    kv_share: [u64; 2],
}

impl Defaults {
    /// A processor's caches hold no more, and its memory is everybody's.
    const SHARED: Defaults =
        Defaults { max_seqs: 16, token_budget: 1024, crops_per_pass: 4, kv_share: [1, 4] };
    /// A GPU is idle with less; activations are what the last third is for.
    const DEDICATED: Defaults =
        Defaults { max_seqs: 64, token_budget: 4096, crops_per_pass: usize::MAX, kv_share: [2, 3] };
}

/// A running engine, as its handle knows it.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) queue: Arc<Queue>,
    pub(crate) stats: Arc<Mutex<EngineStats>>,
    pub(crate) in_use: Arc<Mutex<AdaptersInUse>>,
    pub(crate) cache_events: Option<UnboundedReceiver<Vec<CacheEvent>>>,
    pub(crate) threads: Vec<JoinHandle<()>>,
    pub(crate) device: String,
    pub(crate) dtype: DType,
}

/// The checkpoint's own type: that of its embedding, which is never quantized.
fn checkpoint_dtype(checkpoint: &Checkpoint) -> DType {
    match checkpoint.info("model.text.wte").map(|info| info.format) {
        Some(WeightFormat::Float(dtype)) => dtype,
        _ => DType::F32,
    }
}

pub(crate) fn precision<D: Kernels>(
    device: &D,
    dtype: DType,
    options: &EngineOptions,
) -> Precision {
    let precision = match dtype {
        DType::F32 => Precision::F32,
        dtype => Precision::mixed(dtype),
    };
    let kv = options.kv_dtype.unwrap_or(precision.kv);
    let (activations, inner) = (device.activations(dtype), device.inner_activations(dtype));
    Precision { kv, quant: options.quant, activations, inner, ..precision }
}

/// The precision of a checkpoint's model.
pub(crate) fn model_precision<D: Kernels>(
    device: &D,
    checkpoint: &Checkpoint,
    options: &EngineOptions,
) -> Precision {
    let own = || device.model_dtype(checkpoint_dtype(checkpoint));
    precision(device, options.dtype.unwrap_or_else(own), options)
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

/// What an engine's parts may use at most.
pub(crate) struct Sizes {
    pub(crate) runner: RunnerLimits,
    pub(crate) scheduler: Limits,
    max_prepared: usize,
    max_known: usize,
}

impl Sizes {
    /// # Errors
    /// If the cache would be too small for one request with a picture.
    pub(crate) fn choose<D: Kernels>(
        device: &D,
        config: &Config,
        precision: Precision,
        options: &EngineOptions,
    ) -> Result<Sizes, BuildError> {
        let memory = device.memory();
        let defaults = if memory.is_dedicated { Defaults::DEDICATED } else { Defaults::SHARED };
        let block_size = options.block_size.unwrap_or(BLOCK_SIZE).max(1);
        let max_seqs = options.max_seqs.unwrap_or(defaults.max_seqs).max(1);
        let token_budget = options.token_budget.unwrap_or(defaults.token_budget).max(max_seqs);
        let block_bytes = KvCache::<D>::bytes_per_block(&config.text, block_size, precision.kv);
        let context_blocks = config.text.max_context.div_ceil(block_size);
        let num_blocks = match options.kv_memory {
            Some(bytes) => (bytes / block_bytes) as usize,
            None => {
                let [part, whole] = defaults.kv_share;
                let room = (memory.free_bytes / whole * part / block_bytes) as usize;
                (2 * max_seqs * context_blocks).min(room).max(context_blocks + 1) + 1
            }
        };
        let least = (config.text.prefix_attn + 1).div_ceil(block_size) + 2;
        if num_blocks < least {
            let mib = |blocks: usize| (blocks as u64 * block_bytes).div_ceil(1 << 20);
            return Err(BuildError::KvMemory { mib: mib(num_blocks), least_mib: mib(least) });
        }
        let [adapter_slots, adapter_rank] = adapter_room(config, options)?;
        let longest = ImageLimits::default().max_side;
        let crops = crop_config(config, options.resize);
        let most_tiles = crops.most_tiles(longest).map_err(BuildError::Crops)?;
        let max_crops = 1 + most_tiles;
        let prefix_blocks = config.text.prefix_attn.div_ceil(block_size).max(1);
        let max_prepared = max_seqs + max_seqs.clamp(4, 32);
        Ok(Sizes {
            runner: RunnerLimits {
                max_rows: max_seqs,
                max_draft: options.speculate.min(MAX_DRAFT),
                max_tokens: token_budget.max(config.text.max_context),
                num_blocks,
                block_size,
                image_slots: IMAGE_SLOTS,
                crops_per_pass: options
                    .crops_per_pass
                    .unwrap_or(defaults.crops_per_pass)
                    .clamp(1, max_crops),
                max_crops,
                adapter_slots,
                adapter_rank: adapter_rank.min(MAX_RANK),
                capture: !options.no_capture,
            },
            scheduler: Limits {
                max_seqs: max_seqs as u32,
                token_budget: token_budget as u32,
                num_blocks: num_blocks as u32,
                block_size: block_size as u32,
                max_waiting: max_prepared as u32,
                watermark_blocks: (max_seqs as u32).min(num_blocks as u32 / 16),
                max_spans_per_step: IMAGE_SLOTS as u32,
                max_adapters: adapter_slots.max(1) as u32,
                max_passed: 16,
            },
            max_prepared,
            max_known: num_blocks / prefix_blocks,
        })
    }
}

/// How many adapters there is room for, and of which rank.
fn adapter_room(config: &Config, options: &EngineOptions) -> Result<[usize; 2], BuildError> {
    let mut slots = options.adapters.len();
    let mut rank = options.adapter_rank.unwrap_or(0);
    for path in &options.adapters {
        rank = rank.max(Adapter::open(path, config)?.rank(config));
    }
    if let Some(folder) = &options.adapter_dir {
        slots = slots.max(NAMED_ADAPTERS);
        let named = AdapterFolder::from(folder.clone()).list()?;
        for (_, path) in named.iter().filter(|_| options.adapter_rank.is_none()) {
            // One that cannot be read fails the requests that name it.
            rank = rank.max(AdapterSummary::open(path).map_or(0, |found| found.rank_in(config)));
        }
    }
    let rank = if rank == 0 { ADAPTER_RANK } else { rank };
    Ok([options.adapter_slots.unwrap_or(slots), rank])
}

/// Loads the model and starts the engine's threads.
pub(crate) fn start<D: Kernels>(
    device: D,
    model: &Model,
    options: &EngineOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Started, BuildError> {
    let Parts { config, checkpoint, tokenizer } = model.open()?;
    let crops = crop_config(&config, options.resize);
    crops.check().map_err(BuildError::Crops)?;
    let precision = model_precision(&device, &checkpoint, options);
    let model = Moondream::load(&device, &checkpoint, &config, precision, progress)?;
    let sizes = Sizes::choose(&device, &config, precision, options)?;
    let device_name = device.name();
    let max_waiting = options.max_waiting.unwrap_or(MAX_WAITING).max(1);
    let (max_prepared, max_known) = (sizes.max_prepared, sizes.max_known);
    let shape = sizes.runner.adapter_shape(&config, precision);
    let adapters = Arc::new(AdapterStore::new(device.clone(), config.clone(), shape));
    let tokenizer = Arc::new(tokenizer);
    let setup = Setup {
        adapters: Arc::clone(&adapters) as _,
        config,
        grammars: Grammars::new(Arc::clone(&tokenizer)),
        tokenizer,
        crops,
        max_waiting,
        max_prepared,
        max_pictures: PICTURES_PER_REQUEST * max_prepared.max(MAX_IMAGES),
        max_known,
    };
    let (queue, inbox) = Queue::new(setup);
    let stats = Arc::new(Mutex::new(EngineStats::default()));
    let in_use = Arc::new(Mutex::new(AdaptersInUse {
        slots: sizes.runner.adapter_slots,
        ..AdaptersInUse::default()
    }));
    let mut scheduler = Scheduler::new(sizes.scheduler);
    let (mut cached, mut cache_events) = (None, None);
    if options.cache_events {
        scheduler.record_cache_events();
        let (sender, receiver) = unbounded_channel();
        let vocab_size = queue.setup().config.text.vocab_size;
        cached = Some(CacheLog::new(sender, vocab_size, sizes.runner.block_size));
        cache_events = Some(receiver);
    }
    let engine = Engine {
        max_draft: sizes.runner.max_draft,
        image_slots: Slots::new(sizes.runner.image_slots),
        adapter_slots: Slots::new(sizes.runner.adapter_slots),
        adapters,
        runner: Runner::new(device, model, sizes.runner)?,
        scheduler,
        queue: Arc::clone(&queue),
        inbox,
        sequences: Default::default(),
        outbox: Vec::new(),
        plan: Default::default(),
        drew: Vec::new(),
        outputs: Vec::new(),
        tables: Vec::new(),
        places: Vec::new(),
        epoch: Instant::now(),
        stats: Arc::clone(&stats),
        in_use: Arc::clone(&in_use),
        cached,
        counts: EngineStats::default(),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = options.workers.unwrap_or(cores.min(8)).max(1);
    let thread = |name: &str, body: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(body).map_err(BuildError::Thread)
    };
    let mut threads = vec![thread("photon-engine", Box::new(move || engine.run()))?];
    type Work = fn(&Queue);
    let mut others = vec![("photon-worker", Queue::work as Work); workers];
    if sizes.runner.adapter_slots > 0 {
        others.push(("photon-adapters", Queue::load_adapters));
    }
    for (name, work) in others {
        let on = Arc::clone(&queue);
        match thread(name, Box::new(move || work(&on))) {
            Ok(other) => threads.push(other),
            Err(error) => {
                queue.close(Open::Stopped(error.to_string()));
                return Err(error);
            }
        }
    }
    Ok(Started {
        queue,
        stats,
        in_use,
        cache_events,
        threads,
        device: device_name,
        dtype: precision.weights,
    })
}
