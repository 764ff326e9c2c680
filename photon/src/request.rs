//! What goes into the engine and what comes out.
use photon_models::{
    image::Tiling,
    prompt::{Sampling, Skill},
    skill::{Answer, Budget, FinishReason},
};
use serde::Serialize;

use crate::Image;

/// One thing to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub skill: Skill,
    /// The picture; only a query can do without.
    pub image: Option<Image>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// How much may come out.
    pub budget: Budget,
}

impl Request {
    /// With the skill's usual sampling and budget.
    pub fn new(skill: Skill, image: Option<Image>) -> Self {
        let sampling = Sampling::default_for(&skill);
        Request { skill, image, sampling, budget: Budget::default() }
    }
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
    /// Where the time went.
    pub metrics: Metrics,
}

/// Sizes and times of one request; times in milliseconds of wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Metrics {
    /// Positions before the answer: BOS, the image and the prompt.
    pub input_tokens: usize,
    /// Ids drawn.
    pub output_tokens: usize,
    /// Crops that were encoded; 0 without a picture.
    pub crops: usize,
    /// Resizing and cutting the picture.
    pub preprocess_time_ms: f64,
    /// Encoding its crops and projecting them.
    pub vision_time_ms: f64,
    /// The prompt, the image's positions included.
    pub prefill_time_ms: f64,
    /// Everything after the first id.
    pub decode_time_ms: f64,
    /// From the start of the request to its first id.
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

    pub(crate) fn set_tiling(&mut self, tiling: Tiling) {
        self.crops = tiling.num_crops();
    }
}
