//! Prints an answer while it is being made: `cargo run -p photon --example stream -- assets/shapes.png`.
//!
//! A ticket's events come to a thread, as here, or to a task of any asynchronous runtime through `Ticket::next_event`.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]
use std::{error::Error, io::Write, path::PathBuf};

use photon::{CaptionLength, Event, Photon, Request, Skill, SkillEvent};

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args_os().nth(1).unwrap_or_else(|| "assets/shapes.png".into());
    let photon = Photon::builder().build()?;
    let skill = Skill::Caption { length: CaptionLength::Long };
    let ticket = photon.submit(Request::new(skill, Some(PathBuf::from(file))))?;
    for event in ticket {
        match event? {
            Event::Skill(SkillEvent::Text(text)) => print!("{text}"),
            Event::Done(response) => {
                let metrics = response.metrics;
                println!(
                    "\n{} tokens, the first after {:.0} ms",
                    metrics.output_tokens, metrics.ttft_ms
                );
            }
            _ => {}
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
