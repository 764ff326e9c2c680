//! A model of synthetic weights on a device, and the pieces of work that are timed on it.
//!
//! Every piece can be run any number of times in any order, once [`Rig::ask`] has put a context into the
//! cache: decoding writes the same positions each time. Nothing here looks at a clock.
use photon_core::{Kernels, SampleParams};
use photon_models::{
    Precision, batch::Row, config::Config, expected_tensors, image::Tiling, prompt::Input,
};

use super::BenchOptions;
use crate::engine::runner::{EncodeJob, Heads, Runner, RunnerLimits};

/// Tokens of a prompt after its picture, and of the question after it.
const WORDS: usize = 20;

/// What is timed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// A picture, from crops to embeddings.
    Vision(Tiling),
    /// A picture's embeddings and some words.
    Prefill,
    /// Tokens in a row, each in a step of its own, `draft` guessed ahead in each.
    Decode { batch: usize, draft: usize },
    /// What a decode step costs where a place is drawn, and not a word.
    Places { batch: usize },
}

/// A model on a device, and what it computes.
pub(super) struct Rig<D: Kernels> {
    runner: Runner<D>,
    config: Config,
    block_size: usize,
    /// How many sequences fit into the cache, of those that were asked for.
    room: usize,
    /// The blocks of each of them, of one at least.
    tables: Vec<Vec<u32>>,
    prompt: Vec<Input>,
    words: Vec<Input>,
    places: Vec<Input>,
    /// Noise, of the largest picture.
    crops: Vec<u8>,
}

impl<D: Kernels> Rig<D> {
    pub(super) fn new(
        runner: Runner<D>,
        config: Config,
        limits: RunnerLimits,
        bench: &BenchOptions,
    ) -> Self {
        let mut prompt = vec![Input::Token(config.tokenizer.bos_id)];
        prompt.extend((0..config.vision.patches() as u32).map(Input::Image));
        prompt.extend(words(WORDS));
        let RunnerLimits { num_blocks, block_size, .. } = limits;
        let longest = bench.drafts.iter().copied().max().unwrap_or(0);
        let context = prompt.len() + WORDS + bench.decode_tokens + longest;
        let blocks = context.div_ceil(block_size);
        let table = |row: usize| (0..blocks).map(|i| (1 + row * blocks + i) as u32).collect();
        // Block 0 is the null block.
        let room = num_blocks.saturating_sub(1) / blocks;
        let room = room.min(bench.batches.iter().copied().max().unwrap_or(1));
        let mut rig = Rig {
            runner,
            block_size,
            room,
            tables: (0..room.max(1)).map(table).collect(),
            prompt,
            words: words(bench.decode_tokens).collect(),
            places: vec![Input::Coord(0.5); bench.decode_tokens],
            crops: Vec::new(),
            config,
        };
        let most = rig.tilings().into_iter().map(Tiling::num_crops).max().unwrap_or(0);
        rig.crops = noise(rig.crop_bytes() * most);
        rig
    }

    pub(super) fn device(&self) -> String {
        self.runner.device.name()
    }

    pub(super) fn precision(&self) -> Precision {
        self.runner.model.precision()
    }

    pub(super) fn parameters(&self) -> u64 {
        let tensors = expected_tensors(&self.config);
        tensors.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// How many sequences fit into the cache, of those that were asked for.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// A picture that is not cut, and one of the most usual tiling.
    pub(super) fn tilings(&self) -> Vec<Tiling> {
        let most = self.config.vision.max_crops;
        let tilings = [Tiling { rows: 1, cols: 1 }, Tiling { rows: 2, cols: 4 }];
        tilings.into_iter().filter(|tiling| tiling.num_tiles() <= most).collect()
    }

    /// Short names, without guessed tokens.
    pub(super) fn named(&self, batches: &[usize]) -> Vec<(String, Work)> {
        let vision = |t: Tiling| (format!("vision {}", t.num_crops()), Work::Vision(t));
        let decode = |&batch: &usize| (format!("decode {batch}"), Work::Decode { batch, draft: 0 });
        let vision = self.tilings().into_iter().map(vision);
        let decode = batches.iter().filter(|&&batch| batch <= self.room()).map(decode);
        vision.chain([("prefill".into(), Work::Prefill)]).chain(decode).collect()
    }

    /// A name for a person to read.
    pub(super) fn describe(&self, work: Work) -> String {
        let together = |batch| match batch {
            1 => String::new(),
            _ => format!(" of {batch} sequences"),
        };
        let (tokens, first) = (self.words.len(), self.context());
        match work {
            Work::Vision(tiling) => format!("vision, crops: {}", tiling.num_crops()),
            Work::Prefill => format!("prefill, {} tokens", self.prompt.len()),
            Work::Decode { batch, draft } => {
                let ahead =
                    if draft == 0 { String::new() } else { format!(", {draft} guessed ahead") };
                format!("decode, {tokens} tokens{} from context {first}{ahead}", together(batch))
            }
            Work::Places { batch } => {
                format!("places, {tokens}{} from context {first}", together(batch))
            }
        }
    }

    /// Puts the question behind the prompt of the first sequence, which must have been computed.
    pub(super) fn ask(&mut self) -> photon_core::Result<()> {
        let question: Vec<Input> = words(WORDS).collect();
        self.step(&question, self.prompt.len(), 1, 0)
    }

    /// Gives `batch` sequences the context of the first.
    pub(super) fn share(&mut self, batch: usize) {
        let (first, others) = self.tables.split_first().expect("room for a sequence");
        let others = others.iter().take(batch.saturating_sub(1));
        for (&from, &to) in others.flat_map(|table| first.iter().zip(table)) {
            self.runner.copy_block(from, to, self.block_size);
        }
    }

    /// Does it once and waits for the result.
    pub(super) fn run(&mut self, work: Work) -> photon_core::Result<()> {
        let first = self.context();
        match work {
            Work::Vision(tiling) => self.encode(tiling),
            Work::Prefill => self.prefill(),
            Work::Decode { batch, draft } => (0..self.words.len())
                .try_for_each(|i| self.step(&[self.words[i]], first + i, batch, draft)),
            Work::Places { batch } => (0..self.places.len())
                .try_for_each(|i| self.step(&[self.places[i]], first + i, batch, 0)),
        }
    }

    /// Positions before the first that is decoded.
    fn context(&self) -> usize {
        self.prompt.len() + WORDS
    }

    fn crop_bytes(&self) -> usize {
        self.config.vision.crop_size.pow(2) * 3
    }

    fn encode(&mut self, tiling: Tiling) -> photon_core::Result<()> {
        let bytes = self.crop_bytes() * tiling.num_crops();
        let jobs = [EncodeJob { tiling, crops: &self.crops[..bytes], slot: 0 }];
        let done = self.runner.encode(&jobs)?;
        self.runner.device.wait(&done)
    }

    fn prefill(&mut self) -> photon_core::Result<()> {
        let prompt = std::mem::take(&mut self.prompt);
        let done = self.step(&prompt, 0, 1, 0);
        self.prompt = prompt;
        done
    }

    /// Computes `inputs`, words or a coordinate that another follows, from position `start` and as many guessed ids
    /// as `draft` says, in each of `batch` sequences.
    fn step(
        &mut self,
        inputs: &[Input],
        start: usize,
        batch: usize,
        draft: usize,
    ) -> photon_core::Result<()> {
        let draft: Vec<u32> = (0..draft as u32).collect();
        let ids = &self.config.tokenizer;
        let mut sample = SampleParams::GREEDY;
        let heads = Heads { coord: matches!(inputs, [Input::Coord(_)]), size: false };
        if heads.coord {
            sample.allowed = [ids.coord_id as i32, ids.eos_id as i32, -1, -1];
        }
        let rows = self.tables[..batch].iter().map(|block_table| Row {
            inputs,
            draft: &draft,
            start,
            block_table,
            images: &[0],
            adapter: None,
            sample: Some(sample),
            mask: None,
        });
        let step = self.runner.step(rows, heads)?;
        self.runner.finish(step, &mut Vec::new())
    }
}

/// Ids that differ.
fn words(n: usize) -> impl Iterator<Item = Input> {
    (0..n).map(|i| Input::Token((17 + 31 * i) as u32 % 500))
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}
