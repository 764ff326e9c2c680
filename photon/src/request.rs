//! What goes into the engine and what comes out.
use std::{path::PathBuf, time::Duration};

use photon_models::{
    prompt::{Sampling, Skill},
    skill::{Answer, Budget, FinishReason, SkillEvent},
};
use serde::Serialize;

use crate::{Grammar, Image};

/// A picture in whatever form the caller has it. What is not decoded yet is decoded by the engine's own
/// threads, and not at all if the same file is in its cache.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// Pixels.
    Decoded(Image),
    /// The bytes of a file: JPEG, PNG, WebP, GIF, BMP or TIFF.
    Encoded(Vec<u8>),
    /// A file.
    File(PathBuf),
}

impl From<Image> for ImageSource {
    fn from(image: Image) -> Self {
        ImageSource::Decoded(image)
    }
}

impl From<PathBuf> for ImageSource {
    fn from(path: PathBuf) -> Self {
        ImageSource::File(path)
    }
}

/// One thing to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub skill: Skill,
    /// The pictures: one, but that a query or a chat can do without or with several, up to
    /// [`MAX_IMAGES`](crate::MAX_IMAGES).
    pub images: Vec<ImageSource>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// How much may come out.
    pub budget: Budget,
    /// A file with an adapter (LoRA) to answer with.
    pub adapter: Option<PathBuf>,
    /// Higher runs first.
    pub priority: i8,
    /// Time from submission after which the answer is of no use; none by default.
    pub deadline: Option<Duration>,
    /// Whether [`Response::logprobs`] is wanted.
    pub logprobs: bool,
    /// Strings that end an answer or caption where they would appear.
    pub stop: Vec<String>,
    /// What the answer of a query or a chat must be.
    pub grammar: Option<Grammar>,
    /// Whether what is computed may serve later requests.
    pub cache: bool,
    /// Requests with different salts never share what is computed: one per tenant keeps tenants from
    /// learning of each other's pictures by timing.
    pub cache_salt: u64,
    /// For benchmarks: exactly this many tokens of an answer or caption come out.
    pub forced_tokens: Option<usize>,
}

impl Request {
    /// About one picture or none, with the skill's usual sampling and budget.
    pub fn new(skill: Skill, image: Option<impl Into<ImageSource>>) -> Self {
        let sampling = Sampling::default_for(&skill);
        Request {
            skill,
            images: image.map(Into::into).into_iter().collect(),
            sampling,
            budget: Budget::default(),
            adapter: None,
            priority: 0,
            deadline: None,
            logprobs: false,
            stop: Vec::new(),
            grammar: None,
            cache: true,
            cache_salt: 0,
            forced_tokens: None,
        }
    }

    /// About these pictures instead.
    pub fn with_images(self, images: impl IntoIterator<Item = impl Into<ImageSource>>) -> Self {
        Request { images: images.into_iter().map(Into::into).collect(), ..self }
    }
}

/// What a request's channel carries.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A piece of the answer that became certain.
    Skill(SkillEvent),
    /// The whole answer; nothing follows.
    Done(Response),
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Response {
    /// The answer.
    pub answer: Answer,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The ids drawn, control ids included, the one that ended the answer not.
    pub tokens: Vec<u32>,
    /// If asked for, the natural logarithm of each of `tokens`' probability among the ids that the skill
    /// and the grammar allow, before truncation by `top_p`, `top_k` or `min_p`.
    pub logprobs: Option<Vec<f32>>,
    /// Where the time went.
    pub metrics: Metrics,
}

/// Sizes and times of one request; times in milliseconds of wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Metrics {
    /// Positions before the answer: BOS, the images and the prompt.
    pub input_tokens: usize,
    /// How many of them were found in the prefix cache.
    pub cached_tokens: usize,
    /// Ids drawn.
    pub output_tokens: usize,
    /// Ids guessed and computed ahead, see [`EngineOptions::speculate`](crate::EngineOptions::speculate).
    pub drafted_tokens: usize,
    /// How many of them were drawn, too.
    pub accepted_tokens: usize,
    /// Crops of the pictures, but of those found in the prefix cache, which need not be cut.
    pub crops: usize,
    /// Waiting for the device, from the end of preprocessing to the first step.
    pub queue_time_ms: f64,
    /// Decoding, resizing and cutting the pictures.
    pub preprocess_time_ms: f64,
    /// Encoding their crops and projecting them, together with those of other requests in the same step;
    /// 0 if that had been done before.
    pub vision_time_ms: f64,
    /// From the first step to the first id, without vision.
    pub prefill_time_ms: f64,
    /// Everything after the first id.
    pub decode_time_ms: f64,
    /// From submission to the first id.
    pub ttft_ms: f64,
}

impl Metrics {
    /// Ids per second after the first; 0 if there was one at most.
    pub fn decode_tokens_per_second(&self) -> f64 {
        match self.output_tokens {
            0 | 1 => 0.0,
            n => (n - 1) as f64 / (self.decode_time_ms / 1000.0),
        }
    }
}
