//! A program that depends on `photon` as strangers do, and checks that its features do what they say and nothing else.
//!
//! With `cpu` and `demo` it answers; without a device or a model it must be told which feature is missing. It prints `ok`.
use std::error::Error;

use photon::{Answer, Device, Image, Model, Photon, Request, Skill};

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<&str> = photon::doctor().iter().map(|backend| backend.device).collect();
    for (name, is_in) in [
        ("cpu", cfg!(feature = "cpu")),
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
    ] {
        assert_eq!(names.contains(&name), is_in, "{name} among {names:?}");
    }
    let unknown = Model::named("moondream9").unwrap_err().to_string();
    assert_eq!(unknown.contains("photon models"), cfg!(feature = "hub"), "{unknown}");

    match Photon::builder().device(Device::Cpu).build() {
        Ok(photon) => {
            assert!(cfg!(all(feature = "cpu", feature = "demo")));
            check(&photon)?;
            #[cfg(feature = "server")]
            serve(photon)?;
        }
        Err(why) if cfg!(feature = "cpu") => {
            assert!(!cfg!(feature = "demo") && why.to_string().contains("feature demo"), "{why}");
        }
        Err(why) => assert!(why.to_string().contains("no backend for Cpu"), "{why}"),
    }
    println!("ok");
    Ok(())
}

/// A red square on white is found.
fn check(photon: &Photon) -> Result<(), Box<dyn Error>> {
    let (side, mut pixels) = (256, vec![255; 3 * 256 * 256]);
    for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        if (80..180).contains(&(at % side)) && (60..160).contains(&(at / side)) {
            pixel.copy_from_slice(&[220, 30, 30]);
        }
    }
    let image = Image::from_rgb(256, 256, pixels)?;
    let skill = Skill::Detect { object: "square".into() };
    let response = photon.run(&Request::new(skill, Some(image)), &mut |_| {})?;
    let Answer::Detect { objects } = response.answer else { unreachable!() };
    assert_eq!(objects.len(), 1, "{objects:?}");
    Ok(())
}

#[cfg(feature = "server")]
fn serve(photon: Photon) -> Result<(), Box<dyn Error>> {
    let config = photon_server::Config {
        listen: ([127, 0, 0, 1], 0).into(),
        ..photon_server::Config::default()
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let server = photon_server::Server::bind(photon, config).await?;
        server.handle().stop();
        server.run().await;
        Ok(())
    })
}
