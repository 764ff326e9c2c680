//! The only place that talks to the engine: a request goes in, events come out, and whatever happens to
//! it is counted once.
use std::{sync::Arc, time::Instant};

use photon::{Event, Request, Response, Ticket};

use crate::{app::App, error::Problem};

/// A request under way. Dropping it cancels it.
pub(crate) struct Asked {
    app: Arc<App>,
    ticket: Ticket,
    skill: &'static str,
    arrived: Instant,
    /// Whether its end was counted.
    counted: bool,
}

impl Asked {
    /// Hands a request to the engine, with the server's deadline unless it has a nearer one.
    pub(crate) fn submit(
        app: &Arc<App>,
        mut request: Request,
        arrived: Instant,
    ) -> Result<Self, Problem> {
        let most = app.config.deadline;
        let left =
            request.deadline.map_or(most, |own| own.min(most)).checked_sub(arrived.elapsed());
        request.deadline = Some(left.ok_or_else(Problem::deadline)?);
        let skill = request.skill.name();
        let ticket = app.photon.submit(request)?;
        Ok(Asked { app: Arc::clone(app), ticket, skill, arrived, counted: false })
    }

    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<Event, Problem>> {
        let event = self.ticket.next_event().await?;
        match &event {
            Ok(Event::Done(response)) => {
                self.counted = true;
                let seconds = self.arrived.elapsed().as_secs_f64();
                self.app.metrics.answered(self.skill, &response.metrics, seconds);
            }
            Err(_) => {
                self.counted = true;
                self.app.metrics.ended(self.skill, "error");
            }
            Ok(_) => {}
        }
        Some(event.map_err(Problem::from))
    }

    /// The answer.
    pub(crate) async fn response(mut self) -> Result<Response, Problem> {
        while let Some(event) = self.next().await {
            if let Event::Done(response) = event? {
                return Ok(response);
            }
        }
        Err(Problem::internal())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.counted {
            self.app.metrics.ended(self.skill, "cancelled");
        }
    }
}
