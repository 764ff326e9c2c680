//! A request under way, waited for by a thread or told to an event loop.
use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Instant,
};

use photon::{Event, Response, RunError, SkillEvent};
use photon_server::wire;
use pyo3::{IntoPyObjectExt as _, intern, prelude::*, types::PyString};
use serde_json::{Value, json};
use tokio::{runtime::Handle, task::AbortHandle};

use crate::{aside::TICK, error, json, request};

type Told = Result<Event, RunError>;

/// A request under way: one of `Model`'s methods hands out what it gives. Dropping it cancels the request.
#[pyclass(frozen, module = "photon._photon")]
#[derive(Debug)]
pub(crate) struct Ticket {
    state: Mutex<State>,
    /// Somebody closed it while another thread waits.
    closed: AtomicBool,
    is_chat: bool,
}

#[derive(Debug)]
enum State {
    /// Whoever asks next gets the next event.
    Open(photon::Ticket),
    /// An event loop is told.
    Watched(AbortHandle),
    Over,
}

impl Ticket {
    pub(crate) fn new(ticket: photon::Ticket, is_chat: bool) -> Self {
        Ticket { state: Mutex::new(State::Open(ticket)), closed: AtomicBool::new(false), is_chat }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next event, without the interpreter; of a request whose pieces nobody wants, the last. `None` when it is time
    /// to look for signals.
    fn wait_a_tick(&self, pieces: bool) -> Option<Told> {
        let until = Instant::now() + TICK;
        let mut state = self.state();
        loop {
            let State::Open(ticket) = &mut *state else {
                return Some(Err(RunError::Cancelled));
            };
            let told = next_until(ticket, until)?;
            match told {
                Some(Ok(Event::Skill(_))) if !pieces => {}
                Some(Ok(Event::Skill(event))) => return Some(Ok(Event::Skill(event))),
                last => {
                    *state = State::Over;
                    return Some(last.unwrap_or(Err(RunError::Cancelled)));
                }
            }
        }
    }

    /// The next event, or the last one. Ctrl-C cancels the request.
    fn wait_for(&self, py: Python<'_>, pieces: bool) -> PyResult<Event> {
        loop {
            let told = py.detach(|| self.wait_a_tick(pieces));
            if let Some(told) = told {
                return told.map_err(|why| error::run(py, why));
            }
            if self.closed.load(Ordering::Relaxed) {
                *self.state() = State::Over;
            }
            if let Err(signal) = py.check_signals() {
                *self.state() = State::Over;
                return Err(signal);
            }
        }
    }
}

#[pymethods]
impl Ticket {
    /// Waits for the answer: its fields, why it ended, sizes and times.
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.wait_for(py, false)? {
            Event::Done(response) => done(py, &response, self.is_chat),
            event => unreachable!("pieces are passed over: {event:?}"),
        }
    }

    /// Waits for the next piece: what it is and its value; `done` and what `wait` gives at the end.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyString>, Bound<'py, PyAny>)> {
        let event = self.wait_for(py, true)?;
        piece(py, event, self.is_chat)
    }

    /// Has `callback(kind, value)` called in the thread of an event loop, for every piece or only at the end: `done` or
    /// `error`.
    fn watch(&self, event_loop: Py<PyAny>, callback: Py<PyAny>, pieces: bool) -> PyResult<()> {
        let mut state = self.state();
        let State::Open(mut ticket) = std::mem::replace(&mut *state, State::Over) else {
            return Ok(());
        };
        let is_chat = self.is_chat;
        let task = runtime()?.spawn(async move {
            while let Some(told) = ticket.next_event().await {
                if !pieces && matches!(told, Ok(Event::Skill(_))) {
                    continue;
                }
                // An interpreter that ends wants to know nothing more; neither does a loop that was closed.
                let told = Python::try_attach(|py| tell(py, &event_loop, &callback, told, is_chat));
                if !matches!(told, Some(Ok(()))) {
                    break;
                }
            }
            Python::try_attach(|_| drop((event_loop, callback)));
        });
        *state = State::Watched(task.abort_handle());
        Ok(())
    }

    /// Cancels the request, unless it has been answered.
    fn close(&self) {
        match self.state.try_lock() {
            Ok(mut state) => end(&mut state),
            Err(TryLockError::Poisoned(state)) => end(&mut state.into_inner()),
            // A thread waits; it looks at this soon.
            Err(TryLockError::WouldBlock) => self.closed.store(true, Ordering::Relaxed),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        end(&mut self.state());
    }
}

fn end(state: &mut State) {
    if let State::Watched(task) = std::mem::replace(state, State::Over) {
        task.abort();
    }
}

/// Calls a callback in the thread of an event loop.
fn tell(
    py: Python<'_>,
    event_loop: &Py<PyAny>,
    callback: &Py<PyAny>,
    told: Told,
    is_chat: bool,
) -> PyResult<()> {
    let (kind, value) = match told {
        Ok(event) => piece(py, event, is_chat)?,
        Err(why) => {
            let error = error::run(py, why).into_value(py).into_bound_py_any(py)?;
            (intern!(py, "error").clone(), error)
        }
    };
    let arguments = (callback.bind(py), kind, value);
    event_loop.bind(py).call_method1(intern!(py, "call_soon_threadsafe"), arguments)?;
    Ok(())
}

/// A piece's kind and value.
fn piece<'py>(
    py: Python<'py>,
    event: Event,
    is_chat: bool,
) -> PyResult<(Bound<'py, PyString>, Bound<'py, PyAny>)> {
    let value = |value: Value| json::to_python(py, &value);
    let (kind, value) = match event {
        Event::Skill(SkillEvent::Text(text)) => (intern!(py, "text"), value(text.into())?),
        Event::Skill(SkillEvent::Reasoning(text)) => {
            (intern!(py, "reasoning"), value(text.into())?)
        }
        Event::Skill(SkillEvent::Object(found)) => (intern!(py, "object"), value(json!(found))?),
        Event::Skill(SkillEvent::Point(found)) => (intern!(py, "point"), value(json!(found))?),
        Event::Skill(SkillEvent::Box(found)) => (intern!(py, "box"), value(json!(found))?),
        Event::Skill(SkillEvent::Path(path)) => (intern!(py, "path"), value(path.into())?),
        Event::Done(response) => (intern!(py, "done"), done(py, &response, is_chat)?),
        _ => (intern!(py, "other"), value(Value::Null)?),
    };
    Ok((kind.clone(), value))
}

/// The answer's fields, why it ended, sizes and times.
fn done<'py>(py: Python<'py>, response: &Response, is_chat: bool) -> PyResult<Bound<'py, PyAny>> {
    let answer = json::fields(py, &request::answer(response, is_chat))?;
    let metrics = json::to_python(py, &json!(response.metrics))?;
    let reason = wire::finish_reason(response.finish_reason);
    (answer, reason, metrics).into_bound_py_any(py)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The next event of a ticket, or nothing by then.
fn next_until(ticket: &mut photon::Ticket, until: Instant) -> Option<Option<Told>> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut next = pin!(ticket.next_event());
    loop {
        if let Poll::Ready(told) = next.as_mut().poll(&mut context) {
            return Some(told);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}

/// One thread carries events to event loops. A process that was forked has it no more, and gets another.
fn runtime() -> PyResult<Handle> {
    static RUNNING: Mutex<Option<(u32, Handle)>> = Mutex::new(None);
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((_, handle)) = running.as_ref().filter(|(of, _)| *of == process) {
        return Ok(handle.clone());
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).thread_name("photon-python").build()?;
    let handle = runtime.handle().clone();
    // It runs as long as the process, whose end does not wait for it.
    std::mem::forget(runtime);
    *running = Some((process, handle.clone()));
    Ok(handle)
}
