//! Answers in pieces: server-sent events, or a line of JSON each.
//!
//! The first event decides: if it is an error, the answer is that error with its status. So a stream
//! begins with the first piece of the answer, or with a sign of life when that takes long.
use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderName,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use photon::Event;
use tokio::time::timeout;

use crate::{ask::Asked, error::Problem};

/// How pieces are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `data: {...}` and an empty line.
    Sse,
    /// A line each.
    Lines,
}

impl Framing {
    fn frame(self, out: &mut String, piece: &str) {
        match self {
            Framing::Sse => out.extend(["data: ", piece, "\n\n"]),
            Framing::Lines => out.extend([piece, "\n"]),
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Framing::Sse => "text/event-stream; charset=utf-8",
            Framing::Lines => "application/x-ndjson",
        }
    }
}

/// What a dialect makes of events. Pieces hold no line breaks, as JSON without indentation does not.
pub(crate) trait Render: Send + 'static {
    /// The pieces of an event; after [`Event::Done`] nothing follows.
    fn event(&mut self, event: Event) -> Vec<String>;

    /// The last pieces when it goes wrong on the way.
    fn problem(&mut self, problem: &Problem) -> Vec<String>;
}

struct Streaming<R> {
    asked: Asked,
    render: R,
    framing: Framing,
    ping: Duration,
    waiting: Option<Option<Result<Event, Problem>>>,
    done: bool,
}

impl<R: Render> Streaming<R> {
    /// The bytes of the next event, or of a sign of life.
    async fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        let event = match self.waiting.take() {
            Some(event) => event,
            None => match timeout(self.ping, self.asked.next()).await {
                Ok(event) => event,
                Err(_) => return Some(self.sign_of_life()),
            },
        };
        let pieces = match event {
            Some(Ok(event)) => {
                self.done = matches!(event, Event::Done(_));
                self.render.event(event)
            }
            Some(Err(problem)) => {
                self.done = true;
                self.render.problem(&problem)
            }
            None => return None,
        };
        let mut out = String::new();
        pieces.iter().for_each(|piece| self.framing.frame(&mut out, piece));
        Some(out)
    }

    /// A comment where there are comments; an empty line is nothing to who reads lines of JSON.
    fn sign_of_life(&self) -> String {
        match self.framing {
            Framing::Sse => ": ping\n\n".into(),
            Framing::Lines => "\n".into(),
        }
    }
}

/// Answers with a stream, or with the error that came before anything else.
pub(crate) async fn respond(
    mut asked: Asked,
    ping: Duration,
    framing: Framing,
    render: impl Render,
) -> Result<Response, Problem> {
    let waiting = match timeout(ping, asked.next()).await {
        Ok(Some(Err(problem))) => return Err(problem),
        Ok(event) => Some(event),
        Err(_) => None,
    };
    let state = Streaming { asked, render, framing, ping, waiting, done: false };
    let pieces = stream::unfold(state, |mut state| async move {
        let piece = state.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), state))
    });
    let headers = [
        (CONTENT_TYPE, framing.content_type()),
        (CACHE_CONTROL, "no-cache"),
        // Keeps proxies from collecting the pieces.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
