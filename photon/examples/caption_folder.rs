//! Describes every picture of a folder, all at once: `cargo run -p photon --example caption_folder -- assets`.
//!
//! Requests are submitted without waiting, so the engine computes several in each step. A file that is no picture costs
//! the others nothing.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]
use std::{error::Error, path::PathBuf};

use photon::{Answer, CaptionLength, Photon, Request, Skill};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "assets".into());
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();

    let photon = Photon::builder().build()?;
    let caption = Skill::Caption { length: CaptionLength::Short };
    let tickets: Vec<_> = files
        .into_iter()
        .filter(|file| file.is_file())
        .map(|file| {
            let request = Request::new(caption.clone(), Some(file.clone()));
            photon.submit(request).map(|ticket| (file, ticket))
        })
        .collect::<Result<_, _>>()?;
    for (file, ticket) in tickets {
        match ticket.wait() {
            Ok(response) => {
                let Answer::Caption { caption } = response.answer else { unreachable!() };
                println!("{}: {caption}", file.display());
            }
            Err(why) => eprintln!("{}: {why}", file.display()),
        }
    }
    Ok(())
}
