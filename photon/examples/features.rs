//! A program with only the backends it names, and what it does where none of them works:
//! `cargo run -p photon --example features --no-default-features --features cpu`.
//!
//! Without any backend the crate still builds; opening an engine is then an error that says so.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]
use std::error::Error;

use photon::{Device, Image, Photon, Request, Skill};

fn main() -> Result<(), Box<dyn Error>> {
    let backends = photon::doctor();
    println!("this build has {} backends", backends.len());
    let mut works = None;
    for backend in &backends {
        match &backend.found {
            Ok(found) => {
                println!("{} works:\n{found}", backend.device);
                works = works.or(backend.device.parse::<Device>().ok());
            }
            Err(why) => println!("{} does not: {why}", backend.device),
        }
    }
    let Some(device) = works else {
        println!("nothing to run on: enable cpu, cuda or metal");
        return Ok(());
    };
    let photon = Photon::builder().device(device).build()?;
    // A picture need not be a file: here is a red square on white.
    let (side, mut pixels) = (256, vec![255; 3 * 256 * 256]);
    for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let (x, y) = (at % side, at / side);
        if (80..180).contains(&x) && (60..160).contains(&y) {
            pixel.copy_from_slice(&[220, 30, 30]);
        }
    }
    let image = Image::from_rgb(side as u32, side as u32, pixels)?;
    let skill = Skill::Detect { object: "square".into() };
    let response = photon.run(&Request::new(skill, Some(image)), &mut |_| {})?;
    println!("on {}: {:?}", photon.device_name(), response.answer);
    Ok(())
}
