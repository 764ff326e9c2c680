//! Everything a request needs before the device, done by a pool of threads: reading and decoding the
//! picture, its digest, its crops, the prompt's tokens.
//!
//! # Rules
//! - Requests wait here, by priority and then by order, in the form they came in. Only as many are
//!   prepared as the engine may soon run: crops are large.
//! - A request that cannot be prepared fails by itself, even if what prepares it panics.
//! - Who submits is told at once if too many wait.
use std::{
    collections::{BinaryHeap, HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Receiver, Sender},
    },
    time::Instant,
};

use photon_kv::{Namespace, TokenKey};
use photon_models::{
    config::Config,
    image::{CropConfig, Crops, ImageDigest},
    prompt::{Input, Rejected},
    skill::SkillState,
    tokenizer::Tokenizer,
};

use crate::{
    Image, ImageSource, Metrics, Request, RunError,
    engine::{
        adapters::{AdapterUse, LoadAdapters},
        ms,
        sequence::Sequence,
    },
    ticket::EventSender,
};

/// What is the same for all requests.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) adapters: Arc<dyn LoadAdapters>,
    pub(crate) config: Config,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) crops: CropConfig,
    /// Most requests waiting to be prepared.
    pub(crate) max_waiting: usize,
    /// Most requests prepared and not finished.
    pub(crate) max_prepared: usize,
    /// How many pictures' keys and values the cache can hold at most.
    pub(crate) max_known: usize,
}

/// A picture on its way to the device.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) digest: ImageDigest,
    source: ImageSource,
    crops: OnceLock<Crops>,
}

impl Picture {
    /// The crops, cut now if they were not needed so far.
    ///
    /// # Errors
    /// Of reading the picture.
    pub(crate) fn crops(&self, config: &CropConfig) -> Result<&Crops, RunError> {
        if let Some(crops) = self.crops.get() {
            return Ok(crops);
        }
        let decoded;
        let image = match &self.source {
            ImageSource::Decoded(image) => image,
            ImageSource::Encoded(bytes) => {
                decoded = Image::from_bytes(bytes)?;
                &decoded
            }
            ImageSource::File(_) => unreachable!("files are read when they are named"),
        };
        // The features have room for the tiles of no longer side, whatever limits it was decoded within.
        image.check_side()?;
        let crops = config.crops(image.rgb())?;
        Ok(self.crops.get_or_init(|| crops))
    }
}

/// What reaches the engine's thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// A prepared request.
    Arrived(Box<Sequence>),
    /// Look again: something outside changed.
    Wake,
}

struct Waiting {
    request: Request,
    events: EventSender,
    submitted: Instant,
    order: u64,
    /// Its adapter, once that is here.
    adapter: Option<AdapterUse>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl Waiting {
    /// The largest goes first.
    fn rank(&self) -> (i8, std::cmp::Reverse<u64>) {
        (self.request.priority, std::cmp::Reverse(self.order))
    }
}

/// Whether requests are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// They are.
    Yes,
    /// No more; those taken are answered.
    Draining,
    /// No more, and those taken are not answered.
    Stopped(String),
}

struct State {
    waiting: BinaryHeap<Waiting>,
    /// Requests whose adapter must be read first. Until it is, they wait like all others.
    unread: BinaryHeap<Waiting>,
    /// Requests whose adapter was read, to be prepared next. They count as prepared, as does that whose adapter
    /// is being read.
    read: VecDeque<Waiting>,
    reading: bool,
    order: u64,
    /// Requests being prepared, or prepared and not finished.
    prepared: usize,
    open: Open,
    /// Pictures likely to be in the cache: their crops are not cut in advance.
    known: (HashSet<ImageDigest>, VecDeque<ImageDigest>),
}

/// Requests on their way to the engine.
pub(crate) struct Queue {
    setup: Setup,
    state: Mutex<State>,
    changed: Condvar,
    inbox: Mutex<Sender<Message>>,
}

impl State {
    /// Requests nobody has begun to prepare.
    fn waiting(&self) -> usize {
        self.waiting.len() + self.unread.len()
    }

    /// Whether there is nothing left for who prepares, but what others may still hand on.
    fn is_prepared(&self) -> bool {
        self.waiting() == 0 && self.read.is_empty() && !self.reading
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl Queue {
    pub(crate) fn new(setup: Setup) -> (Arc<Self>, Receiver<Message>) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let state = State {
            waiting: BinaryHeap::new(),
            unread: BinaryHeap::new(),
            read: VecDeque::new(),
            reading: false,
            order: 0,
            prepared: 0,
            open: Open::Yes,
            known: Default::default(),
        };
        let (state, inbox) = (Mutex::new(state), Mutex::new(sender));
        (Arc::new(Queue { setup, state, changed: Condvar::new(), inbox }), receiver)
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request, or says why not.
    pub(crate) fn submit(&self, request: Request, events: EventSender) -> Result<(), RunError> {
        let mut state = self.lock();
        match &state.open {
            Open::Yes => {}
            Open::Draining => return Err(RunError::Stopped("it is shutting down".into())),
            Open::Stopped(why) => return Err(RunError::Stopped(why.clone())),
        }
        let waiting = state.waiting();
        if waiting >= self.setup.max_waiting {
            return Err(RunError::Busy { waiting });
        }
        state.order += 1;
        let order = state.order;
        let submitted = Instant::now();
        state.waiting.push(Waiting { request, events, submitted, order, adapter: None });
        self.changed.notify_all();
        Ok(())
    }

    /// Requests nobody has begun to prepare.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    /// A prepared request is done with.
    pub(crate) fn release(&self) {
        self.lock().prepared -= 1;
        self.changed.notify_all();
    }

    /// The keys and values of a picture are in the cache now.
    pub(crate) fn learn(&self, digest: ImageDigest) {
        let mut state = self.lock();
        let (known, order) = &mut state.known;
        if !known.insert(digest) {
            return;
        }
        order.push_back(digest);
        if order.len() > self.setup.max_known {
            let oldest = order.pop_front().expect("one was just added");
            known.remove(&oldest);
        }
    }

    /// Takes no more requests. Those waiting stay unless the engine has stopped.
    pub(crate) fn close(&self, how: Open) {
        let dropped = {
            let mut state = self.lock();
            if matches!(state.open, Open::Stopped(_)) {
                return;
            }
            let stopped = matches!(how, Open::Stopped(_));
            state.open = how;
            let State { waiting, unread, read, .. } = &mut *state;
            match stopped {
                true => waiting.drain().chain(unread.drain()).chain(read.drain(..)).collect(),
                false => Vec::new(),
            }
        };
        for waiting in dropped {
            let _ = waiting.events.send(Err(RunError::Cancelled));
        }
        self.changed.notify_all();
        self.wake();
    }

    pub(crate) fn open(&self) -> Open {
        self.lock().open.clone()
    }

    /// Whether every request taken was answered.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.waiting() == 0 && state.prepared == 0
    }

    fn wake(&self) {
        self.send(Message::Wake);
    }

    fn send(&self, message: Message) {
        // An engine that has ended has told every request.
        let _ = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).send(message);
    }

    /// The next request to prepare; `None` at the end.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if let Some(waiting) = state.read.pop_front() {
                return Some(waiting);
            }
            if state.prepared < self.setup.max_prepared
                && let Some(waiting) = state.waiting.pop()
            {
                state.prepared += 1;
                return Some(waiting);
            }
            let over = match state.open {
                Open::Yes => false,
                Open::Draining => state.is_prepared(),
                Open::Stopped(_) => true,
            };
            if over {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Prepares requests until the queue is closed: the body of a worker thread.
    pub(crate) fn work(&self) {
        while let Some(mut waiting) = self.next() {
            let late = |deadline| waiting.submitted.elapsed() >= deadline;
            let wanted = match waiting.request.deadline {
                _ if waiting.events.is_closed() => Err(RunError::Cancelled),
                Some(deadline) if late(deadline) => Err(RunError::Deadline),
                _ => Ok(()),
            };
            let adapter = match (&waiting.request.adapter, waiting.adapter.take()) {
                (Some(path), None) if wanted.is_ok() => match self.setup.adapters.find(path) {
                    Ok(None) => {
                        self.read_first(waiting);
                        continue;
                    }
                    found => found,
                },
                (_, adapter) => Ok(adapter),
            };
            let Waiting { request, events, submitted, .. } = waiting;
            let prepared = wanted.and(adapter).and_then(|adapter| {
                let events = events.clone();
                unless_it_panics(|| self.prepare(request, adapter, events, submitted))
            });
            match prepared {
                Ok(sequence) => self.send(Message::Arrived(Box::new(sequence))),
                Err(error) => self.refuse(&events, error),
            }
        }
    }

    /// Ends a request that counts as prepared.
    fn refuse(&self, events: &EventSender, error: RunError) {
        let _ = events.send(Err(error));
        self.release();
        self.wake();
    }

    /// Puts a request aside until its adapter was read; meanwhile it does not count as prepared.
    fn read_first(&self, waiting: Waiting) {
        let mut state = self.lock();
        if let Open::Stopped(_) = state.open {
            drop(state);
            return self.refuse(&waiting.events, RunError::Cancelled);
        }
        state.prepared -= 1;
        state.unread.push(waiting);
        self.changed.notify_all();
    }

    /// Reads adapters until the queue is closed: the body of a thread of its own, so that a large file keeps nobody
    /// waiting but who asks for it.
    pub(crate) fn load_adapters(&self) {
        while let Some(mut waiting) = self.next_unread() {
            let path = waiting.request.adapter.as_ref().expect("it waits for its adapter");
            let loaded = match waiting.events.is_closed() {
                true => Err(RunError::Cancelled),
                false => unless_it_panics(|| self.setup.adapters.load(path)),
            };
            let mut state = self.lock();
            state.reading = false;
            let stopped = matches!(state.open, Open::Stopped(_));
            match loaded {
                Ok(adapter) if !stopped => {
                    waiting.adapter = Some(adapter);
                    state.read.push_back(waiting);
                    self.changed.notify_all();
                }
                loaded => {
                    drop(state);
                    self.refuse(&waiting.events, loaded.err().unwrap_or(RunError::Cancelled));
                }
            }
        }
    }

    /// The next request whose adapter is to be read; `None` at the end.
    fn next_unread(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if state.prepared < self.setup.max_prepared
                && let Some(waiting) = state.unread.pop()
            {
                state.prepared += 1;
                state.reading = true;
                return Some(waiting);
            }
            let over = match state.open {
                Open::Yes => false,
                // Who is being prepared may turn out to need an adapter.
                Open::Draining => state.waiting() == 0 && state.prepared == 0,
                Open::Stopped(_) => true,
            };
            if over {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn prepare(
        &self,
        request: Request,
        adapter: Option<AdapterUse>,
        events: EventSender,
        submitted: Instant,
    ) -> Result<Sequence, RunError> {
        #[cfg(test)]
        assert_ne!(request.cache_salt, super::tests::PANIC_IN_PREPARE, "planted");
        let begun = Instant::now();
        let Setup { config, tokenizer, crops, .. } = &self.setup;
        let prompt = request.skill.prompt(config, tokenizer, request.image.is_some())?;
        request.sampling.check()?;
        let picture = request.image.map(|source| self.picture(source)).transpose()?;
        let mut inputs = vec![Input::Token(config.tokenizer.bos_id)];
        if picture.is_some() {
            inputs.extend((0..config.vision.patches() as u32).map(Input::Image));
        }
        inputs.extend(prompt);
        if inputs.len() >= config.text.max_context {
            let (tokens, max) = (inputs.len(), config.text.max_context);
            return Err(Rejected::TooLong { tokens, max }.into());
        }
        let mut budget = request.budget;
        let mut state = if let Some(forced) = request.forced_tokens {
            (budget.max_tokens, budget.max_objects) = (forced, forced);
            SkillState::new(&request.skill, config, budget).ignoring_eos()
        } else {
            SkillState::new(&request.skill, config, budget)
        };
        state = state.with_stop(request.stop);
        let mut metrics = Metrics { input_tokens: inputs.len(), ..Metrics::default() };
        if let Some(crops) = picture.as_ref().and_then(|picture| picture.crops.get()) {
            metrics.set_tiling(crops.tiling);
        }
        metrics.preprocess_time_ms = ms(begun);
        let keys = inputs.iter().map(|input| key(*input)).collect();
        let namespace = Namespace {
            model: 0,
            adapter: adapter.as_ref().map_or(0, |adapter| adapter.id),
            image: picture.as_ref().map(|picture| picture.digest.0),
            preprocess: crops.resize as u8,
            tenant: request.cache_salt,
        };
        Ok(Sequence {
            prefix_len: if picture.is_some() { config.text.prefix_attn } else { 0 },
            inputs,
            keys,
            namespace,
            picture,
            adapter,
            state,
            sampling: request.sampling,
            priority: request.priority,
            deadline: request.deadline.map(|deadline| submitted + deadline),
            cache: request.cache,
            tokens: Vec::new(),
            logprobs: request.logprobs.then(Vec::new),
            metrics,
            submitted,
            prepared: Instant::now(),
            started: None,
            first_token: None,
            events,
        })
    }

    fn picture(&self, source: ImageSource) -> Result<Arc<Picture>, RunError> {
        let source = match source {
            ImageSource::File(path) => ImageSource::Encoded(Image::read(&path)?),
            source => source,
        };
        let digest = match &source {
            ImageSource::Decoded(image) => ImageDigest::of_pixels(image.rgb()),
            ImageSource::Encoded(bytes) => ImageDigest::of_encoded(bytes),
            ImageSource::File(_) => unreachable!("just read"),
        };
        let picture = Picture { digest, source, crops: OnceLock::new() };
        let known = self.lock().known.0.contains(&digest);
        if !known {
            picture.crops(&self.setup.crops)?;
        }
        Ok(Arc::new(picture))
    }
}

/// What `work` gives; a panic is this request's error.
fn unless_it_panics<T>(work: impl FnOnce() -> Result<T, RunError>) -> Result<T, RunError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(RunError::Bug(panic_message(panic.as_ref()))))
}

/// What stands for an input in the prefix cache.
pub(crate) fn key(input: Input) -> TokenKey {
    match input {
        Input::Token(id) => TokenKey::text(id),
        Input::Image(index) => TokenKey::image(index),
        Input::Coord(value) => TokenKey::coord(value.to_bits()),
        Input::Size([w, h]) => TokenKey::size(w.to_bits(), h.to_bits()),
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".into())
}

#[cfg(test)]
mod tests;
