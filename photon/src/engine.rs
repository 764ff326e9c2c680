//! The engine's thread: takes prepared requests, runs steps, tells callers what became certain.
//!
//! # Rules
//! - One thread owns the model, the cache and the scheduler; everybody else reaches it by channel. Its
//!   handle is a plain type: the device's is known to this thread alone.
//! - While the device runs a step the thread delivers the events of the step before, takes in arrivals
//!   and notices what was cancelled. What must lie between two steps is only what decides the next one.
//! - A request can fail; the engine goes on. If the device fails, every request is told why, and so is
//!   whoever comes later.
mod adapters;
mod cached;
mod draft;
mod grammar;
pub(crate) mod prepare;
pub(crate) mod runner;
mod sequence;
mod setup;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};

use photon_core::Kernels;
use photon_models::{
    batch::Row,
    image::ImageDigest,
    prompt::Input,
    skill::{FinishReason, Next, SkillEvent},
};
use photon_sched::{AddError, EndReason, Output, PlanRow, Scheduler, SeqId, SeqSpec, StepPlan};

pub(crate) use self::setup::{Sizes, Started, model_precision, precision, start};
use self::{
    adapters::AdapterStore,
    cached::CacheLog,
    prepare::{Message, Open, Queue, key, panic_message},
    runner::{Drew, EncodeJob, Heads, Runner, Step},
    sequence::{Sequence, Shown},
    slots::{Place, Slots},
};
pub use self::{
    cached::{CacheEvent, StoredBlocks},
    setup::EngineOptions,
};
use crate::{AdaptersInUse, EngineStats, Event, RunError, ticket::EventSender};

/// Of a picture whose embeddings a row does not need.
const NO_PLACE: usize = usize::MAX;

/// The state of an engine's thread.
#[derive(Debug)]
pub(crate) struct Engine<D: Kernels> {
    runner: Runner<D>,
    scheduler: Scheduler,
    queue: Arc<Queue>,
    inbox: Receiver<Message>,
    sequences: HashMap<SeqId, Sequence>,
    /// Most tokens drafted for a sequence and step.
    max_draft: usize,
    image_slots: Slots<ImageDigest>,
    adapter_slots: Slots<u32>,
    adapters: Arc<AdapterStore<D>>,
    /// Events not yet delivered.
    outbox: Vec<(EventSender, Result<Event, RunError>)>,
    plan: StepPlan,
    drew: Vec<Drew>,
    outputs: Vec<Output>,
    tables: Vec<u32>,
    /// The slots of each row's pictures.
    places: Vec<usize>,
    epoch: Instant,
    stats: Arc<Mutex<EngineStats>>,
    in_use: Arc<Mutex<AdaptersInUse>>,
    /// If somebody wants to know what is cached.
    cached: Option<CacheLog>,
    counts: EngineStats,
}

/// Pictures being encoded.
struct Encoding<D: Kernels> {
    done: D::Event,
    /// Giving the work to the device: all of it, where the device is the processor.
    took: Duration,
    /// Whose pictures.
    seqs: Vec<SeqId>,
}

impl<D: Kernels> Engine<D> {
    /// Serves until the queue is closed and what it asks for is done; the body of the thread.
    pub(crate) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let error = || match &served {
            Ok(Ok(())) => RunError::Cancelled,
            Ok(Err(error)) => RunError::Device(error.clone()),
            Err(panic) => RunError::Bug(panic_message(panic.as_ref())),
        };
        self.queue.close(Open::Stopped(error().to_string()));
        self.deliver();
        let late = std::iter::from_fn(|| self.inbox.try_recv().ok()).filter_map(|m| match m {
            Message::Arrived(sequence) => Some(*sequence),
            Message::Wake => None,
        });
        for sequence in self.sequences.drain().map(|(_, sequence)| sequence).chain(late) {
            let _ = sequence.events.send(Err(error()));
            self.queue.release(sequence.pictures.len());
        }
    }

    fn serve(&mut self) -> photon_core::Result<()> {
        while self.receive() {
            let begun = Instant::now();
            let now = self.now();
            self.plan.clone_from(self.scheduler.step(now));
            self.counts.scheduler_us += begun.elapsed().as_micros() as u64;
            for (seq, reason) in std::mem::take(&mut self.plan.ended) {
                let error = match reason {
                    EndReason::Deadline => RunError::Deadline,
                    EndReason::Cancelled => RunError::Cancelled,
                };
                self.fail(seq, error);
            }
            for copy in &self.plan.copies {
                self.runner.copy_block(copy.from.get(), copy.to.get(), copy.slots as usize);
            }
            if self.plan.rows.is_empty() {
                self.deliver();
                continue;
            }
            self.start_rows();
            self.load_adapters();
            let encoding = self.encode_images()?;
            let begun = Instant::now();
            let step = self.record_step()?;
            self.deliver();
            let waited = encoding.map_or(Ok(Duration::ZERO), |encoding| self.encoded(encoding))?;
            self.runner.finish(step, &mut self.drew)?;
            self.counts.device_us += (begun.elapsed() - waited).as_micros() as u64;
            self.handle();
            self.count();
        }
        Ok(())
    }

    /// Milliseconds of the engine's life: the scheduler's clock.
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    /// Takes in what arrived, waiting for it if there is nothing else to do; false at the end.
    fn receive(&mut self) -> bool {
        loop {
            let message = match self.inbox.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => match self.queue.open() {
                    Open::Stopped(_) => return false,
                    Open::Draining if self.sequences.is_empty() && self.queue.is_idle() => {
                        return false;
                    }
                    _ if !self.sequences.is_empty() => break,
                    _ => {
                        self.deliver();
                        self.count();
                        match self.inbox.recv() {
                            Ok(message) => message,
                            Err(_) => return false,
                        }
                    }
                },
            };
            if let Message::Arrived(sequence) = message {
                self.add(*sequence);
            }
        }
        // A caller who dropped the ticket wants no more.
        for (&seq, sequence) in &self.sequences {
            if sequence.events.is_closed() {
                self.scheduler.cancel(seq);
            }
        }
        true
    }

    fn add(&mut self, mut sequence: Sequence) {
        let config = self.runner.model.config();
        let most = sequence.inputs.len() + sequence.state.max_inputs();
        let max_len = most.min(config.text.max_context) as u32;
        let spans = sequence.pictures.iter().map(|shown| &shown.span);
        let spans = spans.map(|span| span.start as u32..span.end as u32);
        let spec = SeqSpec {
            namespace: sequence.namespace,
            keys: std::mem::take(&mut sequence.keys),
            spans: spans.collect(),
            max_len,
            priority: sequence.priority,
            deadline: sequence
                .deadline
                .map(|at| at.saturating_duration_since(self.epoch).as_millis() as u64),
            cache: sequence.cache,
        };
        match self.scheduler.add(self.now(), spec) {
            Ok(seq) => {
                if let Some(cached) = &mut self.cached {
                    cached.meet(&sequence, self.sequences.values());
                }
                self.sequences.insert(seq, sequence);
            }
            Err(error) => {
                let error = match error {
                    AddError::Full { waiting, .. } => RunError::Busy { waiting: waiting as usize },
                    AddError::NeverFits { needed_blocks, num_blocks } => RunError::TooLarge {
                        needed: needed_blocks as usize,
                        blocks: num_blocks as usize,
                    },
                };
                self.end(sequence, Err(error));
            }
        }
    }

    /// The request is over; its last event goes out with the next delivery.
    fn end(&mut self, sequence: Sequence, last: Result<FinishReason, RunError>) {
        self.queue.release(sequence.pictures.len());
        let eos_id = self.queue.setup().config.tokenizer.eos_id;
        let (events, last) = match last {
            Ok(reason) => {
                let (events, done) = sequence.respond(reason, eos_id);
                (events, Ok(done))
            }
            Err(error) => (sequence.events, Err(error)),
        };
        self.outbox.push((events, last));
    }

    fn fail(&mut self, seq: SeqId, error: RunError) {
        if let Some(sequence) = self.sequences.remove(&seq) {
            self.end(sequence, Err(error));
        }
    }

    fn deliver(&mut self) {
        if let Some(cached) = &mut self.cached {
            cached.tell(self.scheduler.take_cache_events());
        }
        for (events, event) in self.outbox.drain(..) {
            // Nobody listens any more; the next look at the channel cancels the request.
            let _ = events.send(event);
        }
    }

    /// Whoever has a row for the first time waits no longer: what follows is its vision and its prefill.
    fn start_rows(&mut self) {
        for row in &self.plan.rows {
            let cached = self.scheduler.hit_tokens(row.seq) as usize;
            let sequence = self.sequences.get_mut(&row.seq).expect("a row of a known sequence");
            sequence.start(cached);
        }
    }

    /// Gives the adapters of the step's rows slots. The scheduler lets no more run than there are.
    fn load_adapters(&mut self) {
        self.adapter_slots.start_step();
        for row in &self.plan.rows {
            let Some(adapter) = &self.sequences[&row.seq].adapter else { continue };
            if let Place::Empty(slot) = self.adapter_slots.place(adapter.id) {
                self.runner.load_adapter(slot, &self.adapters.packed(adapter.id));
                self.counts.adapters_loaded += 1;
            }
        }
    }

    /// Encodes the pictures that the step computes, unless their embeddings are on the device. The device
    /// may still be at it when this returns.
    fn encode_images(&mut self) -> photon_core::Result<Option<Encoding<D>>> {
        self.image_slots.start_step();
        let crop_config = &self.queue.setup().crops;
        let (mut jobs, mut seqs) = (Vec::new(), Vec::new());
        for row in &self.plan.rows {
            for (_, Shown { picture, .. }) in self.sequences[&row.seq].shown_in(row) {
                if let Place::Empty(slot) = self.image_slots.place(picture.digest) {
                    let crops = picture.crops(crop_config);
                    let crops = crops
                        .expect("these bytes were decoded before, or they would not be cached");
                    jobs.push(EncodeJob { tiling: crops.tiling, crops: &crops.crops, slot });
                    seqs.push(row.seq);
                }
            }
        }
        if jobs.is_empty() {
            return Ok(None);
        }
        let begun = Instant::now();
        let done = self.runner.encode(&jobs)?;
        self.counts.images_encoded += jobs.len() as u64;
        drop(jobs);
        seqs.dedup();
        Ok(Some(Encoding { done, took: begun.elapsed(), seqs }))
    }

    /// Waits for pictures that were encoded; how long.
    fn encoded(&mut self, encoding: Encoding<D>) -> photon_core::Result<Duration> {
        let begun = Instant::now();
        self.runner.device.wait(&encoding.done)?;
        let waited = begun.elapsed();
        let took = encoding.took + waited;
        self.counts.vision_us += took.as_micros() as u64;
        for seq in encoding.seqs {
            let sequence = self.sequences.get_mut(&seq).expect("it has a row");
            let crops = sequence.pictures.iter().map(|shown| shown.picture.num_crops());
            sequence.metrics.crops = crops.sum();
            sequence.metrics.vision_time_ms += took.as_secs_f64() * 1000.0;
        }
        Ok(waited)
    }

    fn record_step(&mut self) -> photon_core::Result<Step<D>> {
        let mut heads = Heads::default();
        self.tables.clear();
        self.places.clear();
        for row in &self.plan.rows {
            self.tables.extend(self.scheduler.blocks(row.seq).iter().map(|block| block.get()));
            let sequence = &self.sequences[&row.seq];
            self.places.resize(self.places.len() + sequence.pictures.len(), NO_PLACE);
            let first = self.places.len() - sequence.pictures.len();
            for (i, shown) in sequence.shown_in(row) {
                self.places[first + i] = self.image_slots.find(shown.picture.digest);
            }
            if row.samples {
                let [coord, size] = sequence.state.possible_heads();
                heads.coord |= coord;
                heads.size |= size;
            }
        }
        let Engine { runner, scheduler, sequences, adapter_slots, plan, tables, places, .. } = self;
        let (mut rest, mut places) = (&tables[..], &places[..]);
        let rows = plan.rows.iter().map(|&PlanRow { seq, start, len, drafted, samples }| {
            let (block_table, others) = rest.split_at(scheduler.blocks(seq).len());
            rest = others;
            let sequence = &sequences[&seq];
            let end = (start + len) as usize;
            let (images, others) = places.split_at(sequence.pictures.len());
            places = others;
            Row {
                inputs: &sequence.inputs[start as usize..end],
                draft: &sequence.draft[..drafted as usize],
                start: start as usize,
                block_table,
                images,
                adapter: sequence.adapter.as_ref().map(|adapter| adapter_slots.find(adapter.id)),
                sample: samples.then(|| sequence.sample_params(end)),
                mask: sequence.mask(),
            }
        });
        runner.step(rows, heads)
    }

    /// Takes what the step drew: the next inputs, the scheduler's outputs, the events.
    fn handle(&mut self) {
        self.outputs.clear();
        let rows: Vec<PlanRow> = self.plan.rows.iter().filter(|row| row.samples).copied().collect();
        let drawn: usize = rows.iter().map(|row| 1 + row.drafted as usize).sum();
        assert_eq!(drawn, self.drew.len(), "a step draws for the rows that asked");
        let mut events = Vec::new();
        let mut first = 0;
        for row in &rows {
            self.take_row(row, first, &mut events);
            first += 1 + row.drafted as usize;
        }
        let begun = Instant::now();
        self.scheduler.apply(&self.outputs);
        if 0 < self.max_draft {
            rows.iter().for_each(|row| self.draft(row.seq));
        }
        self.counts.scheduler_us += begun.elapsed().as_micros() as u64;
        self.learn();
    }

    /// Takes what a row drew, the first of it and, as long as the draft was right, the next.
    fn take_row(&mut self, row: &PlanRow, first: usize, events: &mut Vec<SkillEvent>) {
        let PlanRow { seq, drafted, .. } = *row;
        let drafted = drafted as usize;
        let mut draft = Vec::new();
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            draft = std::mem::take(&mut sequence.draft);
            sequence.metrics.drafted_tokens += drafted;
        }
        let mut accepted = 0;
        loop {
            let next = self.advance(seq, first + accepted, events);
            self.outputs.push(Output { seq, next: next.map(key) });
            let Some(sequence) = self.sequences.get_mut(&seq) else { return };
            let guessed = draft[..drafted].get(accepted).map(|&id| Input::Token(id));
            if next.is_none() || next != guessed {
                return sequence.drafter.learn(drafted, accepted);
            }
            accepted += 1;
            sequence.metrics.accepted_tokens += 1;
        }
    }

    /// Guesses how a sequence goes on.
    fn draft(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.guess(self.max_draft);
            self.scheduler.draft(seq, sequence.draft.len() as u32);
        }
    }

    /// What follows the drawn token `i`; `None` if the sequence is over.
    fn advance(&mut self, seq: SeqId, i: usize, events: &mut Vec<SkillEvent>) -> Option<Input> {
        let queue = Arc::clone(&self.queue);
        let (config, tokenizer) = (&queue.setup().config, &queue.setup().tokenizer);
        let sequence = self.sequences.get_mut(&seq)?;
        let (drew, guided) = (self.drew[i], sequence.mask().is_some());
        let advanced =
            catch_unwind(AssertUnwindSafe(|| sequence.advance(&drew, config, tokenizer, events)));
        if let Some(guide) = &mut sequence.guide {
            self.counts.grammar_us += guide.take_spent().as_micros() as u64;
        }
        let sender = &sequence.events;
        self.outbox.extend(events.drain(..).map(|event| (sender.clone(), Ok(Event::Skill(event)))));
        self.counts.tokens_out += 1;
        self.counts.grammar_tokens += u64::from(guided);
        let error = match advanced {
            Ok(Ok(Next::Feed(input))) => return Some(input),
            Ok(Ok(Next::Finish(reason))) => {
                let sequence = self.sequences.remove(&seq).expect("it was just advanced");
                self.counts.finished += 1;
                self.end(sequence, Ok(reason));
                return None;
            }
            Ok(Err(error)) => error,
            Err(panic) => RunError::Bug(panic_message(panic.as_ref())),
        };
        self.fail(seq, error);
        None
    }

    /// The pictures that the step computed are in the prefix cache now.
    fn learn(&mut self) {
        for row in &self.plan.rows {
            let Some(sequence) = self.sequences.get(&row.seq) else { continue };
            for (_, shown) in sequence.shown_in(row) {
                self.queue.learn(shown.prefix);
            }
        }
    }

    fn count(&mut self) {
        let (stats, cache) = (self.scheduler.stats(), self.scheduler.cache());
        let counts = EngineStats {
            running: stats.running as usize,
            waiting: stats.waiting as usize + self.queue.waiting(),
            steps: stats.steps,
            graph_replays: self.runner.replays,
            preemptions: stats.preemptions,
            tokens_computed: stats.computed_tokens,
            drafted: stats.drafted_tokens,
            accepted: stats.accepted_tokens,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            prefix_hit_tokens: stats.prefix_hit_tokens,
            prefix_query_tokens: stats.prefix_query_tokens,
            blocks: cache.num_blocks() as usize - 1,
            block_size: cache.block_size() as usize,
            blocks_free: cache.num_free() as usize,
            blocks_cached: cache.num_cached() as usize,
            ..self.counts
        };
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = counts;
        self.count_adapters();
    }

    fn count_adapters(&self) {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        if in_use.slots == 0 {
            return;
        }
        let AdaptersInUse { running, waiting, .. } = &mut *in_use;
        running.clear();
        waiting.clear();
        for sequence in self.sequences.values() {
            let names = if sequence.started.is_some() { &mut *running } else { &mut *waiting };
            names.extend(sequence.adapter.as_ref().map(|adapter| Arc::clone(&adapter.name)));
        }
    }
}

pub(crate) fn ms(since: Instant) -> f64 {
    ms_between(since, Instant::now())
}

pub(crate) fn ms_between(start: Instant, end: Instant) -> f64 {
    end.saturating_duration_since(start).as_secs_f64() * 1000.0
}
