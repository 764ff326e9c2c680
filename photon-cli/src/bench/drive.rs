//! One run of one cell: a new engine, a warm-up, the questions, what they took.
//!
//! Every run has an engine of its own, so nothing that an earlier run computed can help it.
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::Context;
use indicatif::ProgressBar;
use photon::{
    EngineStats, Image, ImageSource, Metrics, Photon, Request, Response, RunError, Skill, Ticket,
};

use super::workload::{Alphabet, Workload};
use crate::args::{BenchAnswer, BenchMode};

/// Warm-up rounds before a run.
const WARM_UPS: usize = 2;

/// What happened in a run.
#[derive(Debug)]
pub(super) struct Sample {
    /// From the first decoding or submission to the last answer.
    pub(super) seconds: f64,
    pub(super) requests: Vec<Done>,
    /// The engine's counters, less those of the warm-up.
    pub(super) work: Work,
}

/// An answered request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) picture: usize,
    /// From submission to the last token.
    pub(super) latency_ms: f64,
    pub(super) metrics: Metrics,
}

/// What the engine counted during a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) steps: u64,
    pub(super) scheduler_us: u64,
    pub(super) vision_us: u64,
    pub(super) step_us: u64,
    pub(super) prefix_queries: u64,
    pub(super) prefix_hits: u64,
}

impl Work {
    fn between(before: &EngineStats, after: &EngineStats) -> Work {
        Work {
            steps: after.steps - before.steps,
            scheduler_us: after.scheduler_us - before.scheduler_us,
            vision_us: after.vision_us - before.vision_us,
            step_us: after.device_us - before.device_us,
            prefix_queries: after.prefix_queries - before.prefix_queries,
            prefix_hits: after.prefix_hits - before.prefix_hits,
        }
    }
}

/// Tokens of an answer.
pub(super) fn answer_tokens(answer: BenchAnswer) -> usize {
    match answer {
        BenchAnswer::Direct => 3,
        BenchAnswer::Thought => 30,
    }
}

/// The questions of a workload, put to engines.
#[derive(Debug)]
pub(super) struct Driver<'a> {
    pub(super) workload: &'a Workload,
    pub(super) alphabet: &'a Alphabet,
    pub(super) bar: &'a ProgressBar,
}

/// What questions can be made of for this model.
pub(super) fn alphabet(photon: &Photon) -> Result<Alphabet, RunError> {
    let request =
        Request { forced_tokens: Some(1), ..Request::new(query("a".into()), None::<ImageSource>) };
    let first = photon.count_tokens("a")?;
    let template = photon.submit(request)?.wait()?.metrics.input_tokens - 1 - first;
    let mut letters = Vec::new();
    for letter in 'a'..='z' {
        if photon.count_tokens(&format!("a {letter}"))? == first + 1 {
            letters.push(letter);
        }
    }
    if letters.is_empty() {
        letters.extend('a'..='z');
    }
    Ok(Alphabet { template, letters })
}

impl Driver<'_> {
    /// Everything asked once, `concurrency` at a time.
    pub(super) fn run(
        &self,
        photon: &Photon,
        mode: BenchMode,
        answer: BenchAnswer,
        concurrency: usize,
    ) -> anyhow::Result<Sample> {
        self.warm_up(photon, answer, concurrency)?;
        let files = |picture: usize| ImageSource::Encoded(self.workload.pictures[picture].clone());
        let before = photon.stats();
        let (seconds, requests) = match mode {
            BenchMode::Parity => {
                let begun = Instant::now();
                let images: Vec<Image> = self
                    .workload
                    .pictures
                    .iter()
                    .map(|png| Image::from_bytes(png).context("a drawn picture"))
                    .collect::<Result<_, _>>()?;
                let requests = self.requests(answer, |picture| images[picture].clone().into());
                let done = self.all_at_once(photon, requests)?;
                (begun.elapsed().as_secs_f64(), done)
            }
            BenchMode::Closed => {
                let requests: Vec<Request> = self.requests(answer, files).collect();
                let begun = Instant::now();
                let done = self.by_clients(photon, &requests, concurrency)?;
                (begun.elapsed().as_secs_f64(), done)
            }
            _ => {
                let requests: Vec<Request> = self.requests(answer, files).collect();
                let begun = Instant::now();
                let done = self.all_at_once(photon, requests.into_iter())?;
                (begun.elapsed().as_secs_f64(), done)
            }
        };
        let work = Work::between(&before, &photon.stats());
        Ok(Sample { seconds, requests, work })
    }

    /// Two questions in a row about each of some pictures, one at a time.
    pub(super) fn twice(
        &self,
        photon: &Photon,
        pictures: usize,
        decoded: bool,
    ) -> anyhow::Result<Sample> {
        let answer = BenchAnswer::Direct;
        self.warm_up(photon, answer, 1)?;
        let before = photon.stats();
        let begun = Instant::now();
        let mut requests = Vec::new();
        for (i, png) in self.workload.pictures.iter().take(pictures).enumerate() {
            let source = match decoded {
                true => Image::from_bytes(png).context("a drawn picture")?.into(),
                false => ImageSource::Encoded(png.clone()),
            };
            for index in [2 * i, 2 * i + 1] {
                requests.push(ask(photon, self.request(index, answer, source.clone()), i)?);
                self.bar.inc(1);
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Sample { seconds, requests, work: Work::between(&before, &photon.stats()) })
    }

    fn request(&self, index: usize, answer: BenchAnswer, image: ImageSource) -> Request {
        let question = self.workload.question(index, answer, self.alphabet);
        Request {
            forced_tokens: Some(answer_tokens(answer)),
            ..Request::new(query(question), Some(image))
        }
    }

    fn requests(
        &self,
        answer: BenchAnswer,
        image: impl Fn(usize) -> ImageSource,
    ) -> impl Iterator<Item = Request> {
        let asks = self.workload.asks.iter().enumerate();
        asks.map(move |(i, &picture)| self.request(i, answer, image(picture)))
    }

    /// Fills the caches of the machine, and nothing that the run could use.
    fn warm_up(
        &self,
        photon: &Photon,
        answer: BenchAnswer,
        concurrency: usize,
    ) -> Result<(), RunError> {
        let pictures = &self.workload.warm_up;
        // A small workload is not worth a large warm-up.
        let count = concurrency.min(self.workload.asks.len() / 4).max(1);
        for round in 0..WARM_UPS {
            let tickets = (0..count).map(|i| {
                let picture = pictures[(round + i) % pictures.len()].clone();
                let request = self.request(i, answer, ImageSource::Encoded(picture));
                // Each under a salt of its own, or the second would find what the first computed.
                let cache_salt = (1 + round * count + i) as u64;
                photon.submit(Request { cache_salt, ..request })
            });
            let tickets: Vec<Ticket> = tickets.collect::<Result<_, _>>()?;
            tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop))?;
        }
        Ok(())
    }

    /// Submits everything, then waits. Times are the engine's: answers are waited for in order, and
    /// many come before they are waited for.
    fn all_at_once(
        &self,
        photon: &Photon,
        requests: impl Iterator<Item = Request>,
    ) -> Result<Vec<Done>, RunError> {
        let tickets = requests.map(|request| photon.submit(request));
        let tickets: Vec<Ticket> = tickets.collect::<Result<_, _>>()?;
        let wait = |(ticket, &picture): (Ticket, &usize)| {
            let Response { metrics, .. } = ticket.wait()?;
            self.bar.inc(1);
            let latency_ms = metrics.ttft_ms + metrics.decode_time_ms;
            Ok(Done { picture, latency_ms, metrics })
        };
        tickets.into_iter().zip(&self.workload.asks).map(wait).collect()
    }

    /// Each client asks the next question as soon as it has its answer.
    fn by_clients(
        &self,
        photon: &Photon,
        requests: &[Request],
        clients: usize,
    ) -> Result<Vec<Done>, RunError> {
        let next = AtomicUsize::new(0);
        let client = || -> Result<Vec<Done>, RunError> {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(request) = requests.get(i) else { return Ok(done) };
                done.push(ask(photon, request.clone(), self.workload.asks[i])?);
                self.bar.inc(1);
            }
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.join().expect("a client does not panic")?);
            }
            Ok(all)
        })
    }
}

fn query(question: String) -> Skill {
    Skill::Query { question, reasoning: false, spatial_refs: Vec::new() }
}

/// Asks and waits; the time is the caller's.
fn ask(photon: &Photon, request: Request, picture: usize) -> Result<Done, RunError> {
    let begun = Instant::now();
    let metrics = photon.submit(request)?.wait()?.metrics;
    Ok(Done { picture, latency_ms: begun.elapsed().as_secs_f64() * 1000.0, metrics })
}
