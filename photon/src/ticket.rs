//! The caller's end of a request under way.
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{Event, Response, RunError};

pub(crate) type EventSender = UnboundedSender<Result<Event, RunError>>;

/// A request under way: a stream of events that ends with [`Event::Done`] or an error. Dropping it
/// cancels the request.
#[derive(Debug)]
#[must_use = "dropping a ticket cancels its request"]
pub struct Ticket {
    events: UnboundedReceiver<Result<Event, RunError>>,
    finished: bool,
}

impl Ticket {
    /// A ticket and where its events are sent. As many events come as tokens are drawn, so the request's
    /// own budget bounds the channel.
    pub(crate) fn new() -> (EventSender, Ticket) {
        let (sender, events) = unbounded_channel();
        (sender, Ticket { events, finished: false })
    }

    /// Waits for the answer.
    ///
    /// # Panics
    /// Inside an asynchronous task; see [`Ticket::next_event`].
    pub fn wait(mut self) -> Result<Response, RunError> {
        loop {
            match self.next() {
                Some(Ok(Event::Done(response))) => return Ok(response),
                Some(Ok(Event::Skill(_))) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(RunError::Stopped("it went away".into())),
            }
        }
    }

    /// The next event; `None` after the last. Works under any asynchronous runtime.
    pub async fn next_event(&mut self) -> Option<Result<Event, RunError>> {
        if self.finished {
            return None;
        }
        let event = self.events.recv().await;
        self.note(event)
    }

    fn note(&mut self, event: Option<Result<Event, RunError>>) -> Option<Result<Event, RunError>> {
        // A sender that vanished without a last word is an engine that did.
        let event = event.unwrap_or_else(|| Err(RunError::Stopped("it went away".into())));
        self.finished = !matches!(event, Ok(Event::Skill(_)));
        Some(event)
    }
}

/// Blocks for each event.
///
/// # Panics
/// Inside an asynchronous task; see [`Ticket::next_event`].
impl Iterator for Ticket {
    type Item = Result<Event, RunError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let event = self.events.blocking_recv();
        self.note(event)
    }
}
