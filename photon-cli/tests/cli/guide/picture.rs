//! The pictures of the guide are what its commands draw.
//!
//! A picture in `docs/src/images` is compared with the file of its name that the page's blocks wrote, or else with the sample
//! picture of that name, if there is one. With `PHOTON_UPDATE_GUIDE=1` the file takes its place.
use std::path::Path;

use image::RgbImage;

use super::{page::Page, text};

/// The part of the pixels that may differ: where an outline's edge lies depends on the last bits of a coordinate.
const MAY_DIFFER: f64 = 0.01;

pub(super) fn compare(page: &Page, folder: &Path) -> Result<(), String> {
    let images =
        text::links(&page.text).into_iter().filter_map(|link| link.strip_prefix("images/"));
    for name in images {
        let files = [folder.join(name), folder.join("assets").join(name)];
        let Some(drawn) = files.into_iter().find(|file| file.exists()) else { continue };
        let kept = page.path.parent().unwrap().join("images").join(name);
        if std::env::var_os("PHOTON_UPDATE_GUIDE").is_some() {
            std::fs::copy(&drawn, &kept).unwrap();
        }
        let open = |path: &Path| image::open(path).map(|image| image.to_rgb8());
        let (drawn, kept) = (open(&drawn).unwrap(), open(&kept));
        let kept = kept.map_err(|error| format!("{}: {name}: {error}", page.name))?;
        if !are_alike(&drawn, &kept) {
            return Err(format!(
                "{}: images/{name} is not what its command draws; PHOTON_UPDATE_GUIDE=1 takes that",
                page.name
            ));
        }
    }
    Ok(())
}

fn are_alike(a: &RgbImage, b: &RgbImage) -> bool {
    let far = |(a, b): (&image::Rgb<u8>, &image::Rgb<u8>)| {
        a.0.iter().zip(b.0).any(|(&a, b)| a.abs_diff(b) > 48)
    };
    let differ = a.pixels().zip(b.pixels()).filter(|pair| far(*pair)).count();
    a.dimensions() == b.dimensions() && (differ as f64) < MAY_DIFFER * a.pixels().len() as f64
}
