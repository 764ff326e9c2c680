//! One request on the engine's thread.
use std::{ops::Range, time::Instant};

use photon_core::{SampleParams, sampler::NO_TOKEN};
use photon_kv::{Namespace, TokenKey};
use photon_models::{
    config::Config,
    coord_of_bin,
    prompt::{Input, Sampling},
    size_of_bin,
    skill::{Drawn, FinishReason, Next, RegionHead, SkillEvent, SkillState},
    tokenizer::Tokenizer,
};
use photon_sched::PlanRow;

use super::{
    adapters::AdapterUse,
    draft::Drafter,
    grammar::Guide,
    ms, ms_between,
    prepare::{Picture, PrefixId},
    runner::Drew,
};
use crate::{Event, Metrics, Response, RunError, ticket::EventSender};

/// A picture in a prompt.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) picture: Picture,
    /// The positions that see each other both ways: its patches, and BOS before the first picture.
    pub(crate) span: Range<usize>,
    /// Stands for the prompt up to the end of the span.
    pub(crate) prefix: PrefixId,
}

/// A request whose inputs are known.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Everything known: the prompt, and what was drawn.
    pub(crate) inputs: Vec<Input>,
    /// The prompt's names in the prefix cache; taken by the scheduler.
    pub(crate) keys: Vec<TokenKey>,
    pub(crate) namespace: Namespace,
    /// In the order of their places.
    pub(crate) pictures: Vec<Shown>,
    pub(crate) adapter: Option<AdapterUse>,
    pub(crate) state: SkillState,
    pub(crate) drafter: Drafter,
    /// Guessed to follow `inputs`.
    pub(crate) draft: Vec<u32>,
    /// Where in its grammar the answer is.
    pub(crate) guide: Option<Guide>,
    pub(crate) sampling: Sampling,
    pub(crate) priority: i8,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cache: bool,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Option<Vec<f32>>,
    pub(crate) metrics: Metrics,
    pub(crate) submitted: Instant,
    pub(crate) prepared: Instant,
    pub(crate) started: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) events: EventSender,
}

impl Sequence {
    /// The pictures that a row computes; none is ever cut. With the index of each.
    pub(crate) fn shown_in(&self, row: &PlanRow) -> impl Iterator<Item = (usize, &Shown)> {
        let row = row.start as usize..(row.start + row.len) as usize;
        let within = move |span: &Range<usize>| row.start <= span.start && span.end <= row.end;
        self.pictures.iter().enumerate().filter(move |(_, shown)| within(&shown.span))
    }

    /// How the token at `position` is drawn.
    pub(crate) fn sample_params(&self, position: usize) -> SampleParams {
        let (constraint, sampling) = (self.state.constraint(), &self.sampling);
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

    /// The ids that the grammar allows next, if there is one.
    pub(crate) fn mask(&self) -> Option<&[i32]> {
        self.guide.as_ref().filter(|_| self.state.is_answering()).map(Guide::mask)
    }

    /// Its first step begins.
    pub(crate) fn start(&mut self, cached: usize) {
        if self.started.is_none() {
            let now = Instant::now();
            self.started = Some(now);
            self.metrics.queue_time_ms = ms_between(self.prepared, now);
            self.metrics.cached_tokens = cached;
        }
    }

    /// Takes what a step drew. Gives the next input, already among `inputs`, or why there is none.
    pub(crate) fn advance(
        &mut self,
        drew: &Drew,
        config: &Config,
        tokenizer: &Tokenizer,
        events: &mut Vec<SkillEvent>,
    ) -> Result<Next, RunError> {
        #[cfg(test)]
        assert_ne!(self.namespace.tenant, super::tests::PANIC_IN_SKILL, "planted");
        let drawn = drawn(drew, self.state.head(drew.id as u32), config)?;
        if self.first_token.is_none() {
            let now = Instant::now();
            self.first_token = Some(now);
            self.metrics.ttft_ms = ms_between(self.submitted, now);
            let since = self.started.unwrap_or(self.prepared);
            self.metrics.prefill_time_ms =
                (ms_between(since, now) - self.metrics.vision_time_ms).max(0.0);
        }
        self.tokens.push(drew.id as u32);
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.push(drew.logprob);
        }
        let guide = self.guide.as_mut().filter(|_| self.state.is_answering());
        let mut next = self.state.advance(drawn, tokenizer, events);
        if let Some(guide) = guide
            && next != Next::Finish(FinishReason::Stop)
        {
            if guide.accept(drew.id as u32)? {
                self.state.cut(events);
                next = Next::Finish(FinishReason::Stop);
            } else if let Next::Feed(_) = next {
                guide.look_ahead()?;
            }
        }
        let next = match next {
            Next::Feed(_) if self.inputs.len() >= config.text.max_context => {
                self.state.cut(events);
                Next::Finish(FinishReason::Length)
            }
            next => next,
        };
        if let Next::Feed(input) = next {
            self.inputs.push(input);
        }
        Ok(next)
    }

    /// Guesses at most `most` ids, all of which are drawn like the next one if the guess is right.
    pub(crate) fn guess(&mut self, most: usize) {
        // What a grammar allows after a guess is not known before it is accepted.
        if self.guide.is_some() {
            return;
        }
        self.draft = self.drafter.guess(&self.inputs, most);
        self.draft.truncate(self.state.draftable(&self.draft));
    }

    /// The answer, when nothing more is to be drawn.
    pub(crate) fn respond(
        mut self,
        finish_reason: FinishReason,
        eos_id: u32,
    ) -> (EventSender, Event) {
        self.metrics.output_tokens = self.tokens.len();
        if let Some(first) = self.first_token {
            self.metrics.decode_time_ms = ms(first);
        }
        if finish_reason == FinishReason::Stop && self.tokens.last() == Some(&eos_id) {
            self.tokens.pop();
            if let Some(logprobs) = &mut self.logprobs {
                logprobs.pop();
            }
        }
        let response = Response {
            answer: self.state.into_answer(),
            finish_reason,
            tokens: self.tokens,
            logprobs: self.logprobs,
            metrics: self.metrics,
        };
        (self.events, Event::Done(response))
    }
}

fn drawn(drew: &Drew, head: Option<RegionHead>, config: &Config) -> Result<Drawn, RunError> {
    let (coords, sizes) = (config.region.coord_out_dim, config.region.size_out_dim / 2);
    let used = match head {
        None => &[drew.id][..],
        Some(RegionHead::Coord) => &[drew.id, drew.coord],
        Some(RegionHead::Size) => &[drew.id, drew.size[0], drew.size[1]],
    };
    if used.contains(&NO_TOKEN) {
        return Err(RunError::NotANumber);
    }
    Ok(match head {
        None => Drawn::Token(drew.id as u32),
        Some(RegionHead::Coord) => Drawn::Coord(coord_of_bin(drew.coord as u32, coords)),
        Some(RegionHead::Size) => Drawn::Size(drew.size.map(|bin| size_of_bin(bin as u32, sizes))),
    })
}
