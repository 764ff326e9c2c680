//! A program that asks its own engine and lets others ask it over HTTP, too:
//! `cargo run -p photon-server --example in_process`.
//!
//! The handle of the engine is cloned: requests of the program and of clients run together and share what is computed. It
//! serves until Enter is pressed.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]
use std::{error::Error, net::SocketAddr, path::PathBuf};

use photon::{CaptionLength, Photon, Request, Skill};
use photon_server::{Config, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let photon = Photon::builder().build()?;
    let config = Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::default() };
    let server = Server::bind(photon.clone(), config).await?;
    for address in server.addresses() {
        println!("serving on http://{address}; press Enter to stop");
    }
    let handle = server.handle();
    let serving = tokio::spawn(server.run());

    let file = PathBuf::from("assets/shapes.png");
    let skill = Skill::Caption { length: CaptionLength::Short };
    let mut ticket = photon.submit(Request::new(skill, Some(file)))?;
    while let Some(event) = ticket.next_event().await {
        if let photon::Event::Done(response) = event? {
            println!("{:?}", response.answer);
        }
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    handle.stop();
    serving.await?;
    Ok(())
}
