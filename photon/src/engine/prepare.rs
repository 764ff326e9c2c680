//! Everything a request needs before the device, done by a pool of threads: the prompt's tokens, reading
//! the pictures, their digests, decoding and cutting them.
//!
//! # Rules
//! - Requests wait here, by priority and then by order, in the form they came in. Only as many are
//!   prepared as the engine may soon run, and as have so many pictures: crops are large.
//! - A request that cannot be prepared fails by itself, even if what prepares it panics.
//! - Who submits is told at once if too many wait.
use std::{
    collections::{BTreeSet, BinaryHeap, HashSet, VecDeque},
    hash::{BuildHasher, Hash, Hasher, RandomState},
    ops::Range,
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
    prompt::{Input, MAX_IMAGES, Rejected, Skill, spans},
    skill::SkillState,
    tokenizer::Tokenizer,
};

use crate::{
    GrammarError, Image, ImageSource, Metrics, Request, RunError,
    engine::{
        adapters::{self, AdapterUse, LoadAdapters},
        grammar::{Grammars, Guide},
        ms,
        sequence::{Sequence, Shown},
    },
    ticket::EventSender,
};

/// What is the same for all requests.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) adapters: Arc<dyn LoadAdapters>,
    pub(crate) config: Config,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) grammars: Grammars,
    pub(crate) crops: CropConfig,
    /// Most requests waiting to be prepared.
    pub(crate) max_waiting: usize,
    /// Most requests prepared and not finished.
    pub(crate) max_prepared: usize,
    /// Most pictures of those; no fewer than one request may have.
    pub(crate) max_pictures: usize,
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
    /// Names it, which needs its file but not its pixels.
    ///
    /// # Errors
    /// Of reading the file.
    fn read(source: ImageSource) -> Result<Self, RunError> {
        let source = match source {
            ImageSource::File(path) => ImageSource::Encoded(Image::read(&path)?),
            source => source,
        };
        let digest = match &source {
            ImageSource::Decoded(image) => ImageDigest::of_pixels(image.rgb()),
            ImageSource::Encoded(bytes) => ImageDigest::of_encoded(bytes),
            ImageSource::File(_) => unreachable!("just read"),
        };
        Ok(Picture { digest, source, crops: OnceLock::new() })
    }

    /// The number of its crops; 0 as long as it is not cut.
    pub(crate) fn num_crops(&self) -> usize {
        self.crops.get().map_or(0, |crops| crops.tiling.num_crops())
    }

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
    /// Those it is granted; a request with more will be rejected.
    fn num_pictures(&self) -> usize {
        self.request.images.len().min(MAX_IMAGES)
    }

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
    /// Their pictures.
    pictures: usize,
    open: Open,
    /// Prompts up to the end of a picture that are likely to be in the cache: the picture is not cut in
    /// advance.
    known: (HashSet<PrefixId>, VecDeque<PrefixId>),
}

/// What stands for a prompt up to some position: a hash that nobody outside can foresee, as what is known
/// need not be decoded to see that it can be.
pub(crate) type PrefixId = u64;

/// Requests on their way to the engine.
pub(crate) struct Queue {
    setup: Setup,
    hash: RandomState,
    state: Mutex<State>,
    changed: Condvar,
    inbox: Mutex<Sender<Message>>,
}

impl State {
    /// Requests nobody has begun to prepare.
    fn waiting(&self) -> usize {
        self.waiting.len() + self.unread.len()
    }

    /// Whether a request may be prepared beside those that are.
    fn fits(&self, waiting: &Waiting, setup: &Setup) -> bool {
        self.prepared < setup.max_prepared
            && self.pictures + waiting.num_pictures() <= setup.max_pictures
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
            pictures: 0,
            open: Open::Yes,
            known: Default::default(),
        };
        let (state, inbox) = (Mutex::new(state), Mutex::new(sender));
        let (hash, changed) = (RandomState::new(), Condvar::new());
        (Arc::new(Queue { setup, hash, state, changed, inbox }), receiver)
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

    /// The adapters of requests that are not prepared, by name.
    pub(crate) fn waiting_adapters(&self) -> BTreeSet<Arc<str>> {
        let state = self.lock();
        let waiting = state.waiting.iter().chain(&state.unread).chain(&state.read);
        waiting
            .filter_map(|waiting| waiting.request.adapter.as_deref().map(adapters::name))
            .collect()
    }

    /// A prepared request with so many pictures is done with.
    pub(crate) fn release(&self, pictures: usize) {
        let mut state = self.lock();
        state.prepared -= 1;
        state.pictures -= pictures;
        self.changed.notify_all();
    }

    /// The keys and values of a prompt up to the end of a picture are in the cache now.
    pub(crate) fn learn(&self, prefix: PrefixId) {
        let mut state = self.lock();
        let (known, order) = &mut state.known;
        if !known.insert(prefix) {
            return;
        }
        order.push_back(prefix);
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
            if state.waiting.peek().is_some_and(|waiting| state.fits(waiting, &self.setup))
                && let Some(waiting) = state.waiting.pop()
            {
                state.prepared += 1;
                state.pictures += waiting.num_pictures();
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
            let pictures = waiting.num_pictures();
            let Waiting { request, events, submitted, .. } = waiting;
            let prepared = wanted.and(adapter).and_then(|adapter| {
                let events = events.clone();
                unless_it_panics(|| self.prepare(request, adapter, events, submitted))
            });
            match prepared {
                Ok(sequence) => self.send(Message::Arrived(Box::new(sequence))),
                Err(error) => self.refuse(&events, pictures, error),
            }
        }
    }

    /// Ends a request that counts as prepared.
    fn refuse(&self, events: &EventSender, pictures: usize, error: RunError) {
        let _ = events.send(Err(error));
        self.release(pictures);
        self.wake();
    }

    /// Puts a request aside until its adapter was read; meanwhile it does not count as prepared.
    fn read_first(&self, waiting: Waiting) {
        let mut state = self.lock();
        if let Open::Stopped(_) = state.open {
            drop(state);
            let pictures = waiting.num_pictures();
            return self.refuse(&waiting.events, pictures, RunError::Cancelled);
        }
        state.prepared -= 1;
        state.pictures -= waiting.num_pictures();
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
                    let error = loaded.err().unwrap_or(RunError::Cancelled);
                    self.refuse(&waiting.events, waiting.num_pictures(), error);
                }
            }
        }
    }

    /// The next request whose adapter is to be read; `None` at the end.
    fn next_unread(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if state.unread.peek().is_some_and(|waiting| state.fits(waiting, &self.setup))
                && let Some(waiting) = state.unread.pop()
            {
                state.prepared += 1;
                state.pictures += waiting.num_pictures();
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
        let inputs = request.skill.prompt(config, tokenizer, request.images.len())?;
        let guide = self.guide(&request)?;
        if inputs.len() >= config.text.max_context {
            let (tokens, max) = (inputs.len(), config.text.max_context);
            return Err(Rejected::TooLong { tokens, max }.into());
        }
        request.sampling.check()?;
        let pictures = request.images.into_iter().map(Picture::read);
        let pictures = pictures.collect::<Result<Vec<_>, _>>()?;
        let namespace = Namespace {
            model: 0,
            adapter: adapter.as_ref().map_or(0, |adapter| adapter.id),
            preprocess: crops.resize as u8,
            tenant: request.cache_salt,
        };
        let spans = spans(&inputs, 0, config.vision.patches());
        let shown: Vec<_> = pictures.into_iter().zip(spans).collect();
        let keys = keys(&inputs, &shown);
        let pictures = self.show(shown, &namespace, &keys)?;
        let mut budget = request.budget;
        let mut state = if let Some(forced) = request.forced_tokens {
            (budget.max_tokens, budget.max_objects) = (forced, forced);
            SkillState::new(&request.skill, config, budget).ignoring_eos()
        } else {
            SkillState::new(&request.skill, config, budget)
        };
        state = state.with_stop(request.stop);
        let mut metrics = Metrics { input_tokens: inputs.len(), ..Metrics::default() };
        metrics.crops = pictures.iter().map(|shown| shown.picture.num_crops()).sum();
        metrics.preprocess_time_ms = ms(begun);
        Ok(Sequence {
            inputs,
            keys,
            namespace,
            pictures,
            adapter,
            state,
            drafter: Default::default(),
            draft: Vec::new(),
            guide,
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

    /// Where the answer's grammar begins, if it has one.
    fn guide(&self, request: &Request) -> Result<Option<Guide>, GrammarError> {
        let Some(grammar) = &request.grammar else { return Ok(None) };
        match &request.skill {
            Skill::Query { .. } | Skill::Chat { .. } => {}
            other => return Err(GrammarError::Skill(other.name())),
        }
        if request.forced_tokens.is_some() {
            return Err(GrammarError::ForcedLength);
        }
        self.setup.grammars.guide(grammar, &self.setup.config).map(Some)
    }

    /// Cuts the pictures that are not likely to be in the cache where they stand.
    fn show(
        &self,
        pictures: Vec<(Picture, Range<usize>)>,
        namespace: &Namespace,
        keys: &[TokenKey],
    ) -> Result<Vec<Shown>, RunError> {
        let mut hasher = self.hash.build_hasher();
        namespace.hash(&mut hasher);
        let mut hashed = 0;
        let mut shown = Vec::with_capacity(pictures.len());
        for (picture, span) in pictures {
            keys[hashed..span.end].hash(&mut hasher);
            hashed = span.end;
            let prefix = hasher.finish();
            let is_known = self.lock().known.0.contains(&prefix);
            if !is_known {
                picture.crops(&self.setup.crops)?;
            }
            shown.push(Shown { picture, span, prefix });
        }
        Ok(shown)
    }
}

/// What stands for a prompt in the prefix cache.
fn keys(inputs: &[Input], pictures: &[(Picture, Range<usize>)]) -> Vec<TokenKey> {
    let mut keys = Vec::with_capacity(inputs.len());
    for (picture, span) in pictures {
        keys.extend(inputs[keys.len()..span.start].iter().copied().map(key));
        let places = 0..span.len() as u32;
        keys.extend(places.map(|place| TokenKey::image(&picture.digest.0, place)));
    }
    keys.extend(inputs[keys.len()..].iter().copied().map(key));
    keys
}

/// What `work` gives; a panic is this request's error.
fn unless_it_panics<T>(work: impl FnOnce() -> Result<T, RunError>) -> Result<T, RunError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(RunError::Bug(panic_message(panic.as_ref()))))
}

/// What stands for an input outside of pictures in the prefix cache.
///
/// # Panics
/// For a patch.
pub(crate) fn key(input: Input) -> TokenKey {
    match input {
        Input::Token(id) => TokenKey::text(id),
        Input::Image(index) => panic!("patch {index} outside of a picture"),
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
