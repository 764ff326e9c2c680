//! The image pipeline on files: what each encoding decodes to, what damage does, and the reference's
//! own crops. `tests/data/images/make_fixtures.py` made the small files.

use std::path::Path;

use photon_models::image::{
    CropConfig, ImageDigest, ImageError, ImageFormat, Limits, ResizeOrder, RgbImage, Tiling, decode,
};

const WIDTH: u32 = 24;
const HEIGHT: u32 = 16;

fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn open(name: &str) -> RgbImage {
    decode(&data(name), &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The picture in the small files, or one made from it pixel by pixel.
fn base(pixel: impl Fn(u32, u32, [u8; 3]) -> [u8; 3]) -> RgbImage {
    let pixels = (0..HEIGHT)
        .flat_map(|y| (0..WIDTH).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            pixel(x, y, [(x * 10) as u8, (y * 15) as u8, (255 - x * 5 - y * 7) as u8])
        })
        .collect();
    RgbImage::new(WIDTH, HEIGHT, pixels).expect("the size is right")
}

/// Largest and mean difference of two pictures of one size.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    difference_of(a.pixels(), b.pixels())
}

fn difference_of(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let each = || a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    (each().max().unwrap_or(0), each().map(f64::from).sum::<f64>() / a.len() as f64)
}

/// Name and bytes of every small file.
fn fixtures() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    let entries = std::fs::read_dir(folder).expect("the folder is in the repo");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".py"))
        .collect();
    names.sort();
    let small = |(_, bytes): &(String, Vec<u8>)| bytes.len() < 2000;
    names.into_iter().map(|name| (name.clone(), data(&name))).filter(small).collect()
}

#[test]
fn lossless_files_decode_exactly() {
    let check = |expected: RgbImage, names: &[&str]| {
        for name in names {
            let got = open(name);
            assert_eq!((got.width(), got.height()), (WIDTH, HEIGHT), "{name}");
            let wrong = got.pixels().iter().zip(expected.pixels()).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{name}: first wrong byte");
        }
    };
    let rgb = base(|_, _, rgb| rgb);
    check(
        rgb,
        &[
            "rgb8.png",
            "rgb16.png",
            "rgb8.webp",
            "rgb8.bmp",
            "rgb8.tiff",
            "rgb8_lzw.tiff",
            "rgb8_deflate.tiff",
            "cmyk.tiff",
            "animated.webp",
            // Alpha is dropped; the color under it stays.
            "rgba8.png",
            "rgba8.webp",
            "rgba8.bmp",
            "rgba8.tiff",
            // Orientation is applied in every format that has one.
            "orientation_6.png",
            "orientation_6.webp",
            "orientation_6.tiff",
        ],
    );
    check(
        base(|_, _, [red, _, _]| [red; 3]),
        &["gray8.png", "gray_alpha8.png", "gray16.png", "gray8.tiff", "gray16.tiff"],
    );
    check(
        base(|_, _, [red, _, _]| [if red >= 120 { 255 } else { 0 }; 3]),
        &["bilevel.png", "bilevel.tiff"],
    );
    check(
        base(|x, _, _| [(x * 10) as u8, 0, (255 - x * 5) as u8]),
        &[
            "palette.png",
            "palette_transparent.png",
            "palette.bmp",
            "palette.gif",
            "transparent.gif",
            "animated.gif",
        ],
    );
}

#[test]
fn lossy_files_decode_as_pillow_decodes_them() {
    let check = |name: &str, within: u8| {
        let (most, mean) = difference(&open(name), &open(&format!("{name}.pillow.png")));
        println!("{name}: max {most}, mean {mean:.3}");
        assert!(most <= within, "{name}: {most} levels off Pillow");
    };
    // Inverse transforms and chroma filters may round differently, nothing more.
    check("baseline_444.jpg", 2);
    check("baseline_422.jpg", 4);
    check("baseline_420.jpg", 4);
    check("progressive_444.jpg", 2);
    check("progressive_420.jpg", 4);
    check("restarts.jpg", 4);
    check("rgb_adobe.jpg", 2);
    check("gray.jpg", 2);
    check("gray_progressive.jpg", 2);
    check("cmyk_adobe.jpg", 3);
    check("cmyk_plain.jpg", 3);
    check("ycck_adobe.jpg", 3);
    check("filler.jpg", 2);
    check("rgb8_lossy.webp", 4);
}

#[test]
fn exif_orientation_is_applied() {
    let upright = base(|_, _, rgb| rgb);
    for value in 1..=8 {
        let (most, _) = difference(&open(&format!("orientation_{value}.jpg")), &upright);
        assert!(most <= 5, "orientation {value}: {most}");
    }
    let (most, _) = difference(&open("orientation_bad.jpg"), &upright);
    assert!(most <= 5, "malformed EXIF: {most}");
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_the_whole_picture() {
    for (name, bytes) in fixtures() {
        let whole = decode(&bytes, &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut succeeded_from = bytes.len();
        for cut in (0..bytes.len()).rev() {
            match decode(&bytes[..cut], &Limits::default()) {
                Ok(image) => {
                    assert!(image == whole, "{name} cut at {cut} decodes to another picture");
                    succeeded_from = cut;
                }
                Err(error) => {
                    let message = error.to_string();
                    assert!(!message.contains('\n') && message.len() < 400, "{name}: {message}");
                }
            }
        }
        // What follows the pixels is optional in most formats; of a JPEG every byte counts.
        if name.ends_with(".jpg") {
            assert_eq!(succeeded_from, bytes.len(), "{name}");
        }
    }
}

#[test]
fn a_cut_jpeg_says_so() {
    for name in ["baseline_420.jpg", "progressive_420.jpg", "gray.jpg", "cmyk_adobe.jpg"] {
        let bytes = data(name);
        for cut in [bytes.len() - 1, bytes.len() - 2, bytes.len() - 30, bytes.len() * 9 / 10] {
            let error = decode(&bytes[..cut], &Limits::default()).unwrap_err();
            assert!(
                matches!(&error, ImageError::Truncated { format: ImageFormat::Jpeg, .. }),
                "{name} cut at {cut}: {error}"
            );
            assert!(error.to_string().starts_with("truncated JPEG: "), "{error}");
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    // xorshift64*, so that a failure repeats.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    let limits = Limits { max_pixels: 1_000_000, max_memory: 16 << 20, ..Limits::default() };
    for (name, bytes) in fixtures() {
        for round in 0..150 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + random(4) {
                let at = random(damaged.len());
                damaged[at] = random(256) as u8;
            }
            if let Err(error) = decode(&damaged, &limits) {
                let message = error.to_string();
                assert!(!message.contains("gave up"), "{name}, round {round}: a decoder panicked");
                assert!(!message.contains('\n'), "{name}: {message}");
            }
        }
    }
}

#[test]
fn errors_are_one_clear_line() {
    let message = |bytes: &[u8]| decode(bytes, &Limits::default()).unwrap_err().to_string();
    assert_eq!(
        message(b"Not a picture at all."),
        "not an image Photon can read: it starts like text; \
         supported: JPEG, PNG, WebP, GIF, BMP, TIFF"
    );
    assert_eq!(
        message(&data("rgb8.png")[..60]),
        "truncated PNG: the file ends before the picture does; send the whole file"
    );
    let tight = Limits { max_memory: 500, ..Limits::default() };
    for name in ["baseline_444.jpg", "rgb8.png", "rgb8.webp", "palette.gif", "rgb8.tiff"] {
        assert_eq!(
            decode(&data(name), &tight).unwrap_err(),
            ImageError::TooMuchMemory {
                format: match name.rsplit('.').next() {
                    Some("jpg") => ImageFormat::Jpeg,
                    Some("png") => ImageFormat::Png,
                    Some("webp") => ImageFormat::WebP,
                    Some("gif") => ImageFormat::Gif,
                    _ => ImageFormat::Tiff,
                },
                max_memory: 500
            },
            "{name}"
        );
    }
    let few = Limits { max_pixels: 100, ..Limits::default() };
    let short = Limits { max_side: 20, ..Limits::default() };
    for (name, bytes) in fixtures() {
        let error = decode(&bytes, &few).unwrap_err();
        assert!(matches!(error, ImageError::TooManyPixels { .. }), "{name}: {error}");
        let error = decode(&bytes, &short).unwrap_err();
        assert!(matches!(error, ImageError::TooLong { .. }), "{name}: {error}");
    }
}

#[test]
fn crop_0_equals_the_references_within_two_levels() {
    let config = CropConfig::default();
    for (name, rows, cols) in [
        ("chart_800x557", 2, 4),
        ("small_200x150", 1, 1),
        ("square_910x910", 3, 3),
        ("wide_1200x300", 1, 1),
    ] {
        let crops = config.crops(&open(&format!("{name}.png"))).unwrap();
        assert_eq!(crops.tiling, Tiling { rows, cols }, "{name}");
        let expected = open(&format!("{name}.global.webp"));
        let (most, mean) = difference_of(crops.crop(0), expected.pixels());
        println!("{name}: max {most}, mean {mean:.4}");
        assert!(most <= 2, "{name}: {most} levels off");
        assert!(mean < 0.1, "{name}: mean difference {mean}");
    }
}

#[test]
fn tiles_equal_pillows_within_two_levels() {
    let crops = CropConfig::default().crops(&open("chart_800x557.png")).unwrap();
    assert_eq!(crops.num_crops(), 9);
    let large = open("chart_800x557.tiles.webp");
    let (mut most, mut sum) = (0, 0.0);
    for i in 0..8 {
        let (top, left) = (i / 4 * 266, i % 4 * 266);
        let mut expected = Vec::new();
        for y in top..top + 378 {
            let at = (y * large.width() as usize + left) * 3;
            expected.extend_from_slice(&large.pixels()[at..at + 378 * 3]);
        }
        let (tile_most, mean) = difference_of(crops.crop(1 + i), &expected);
        most = most.max(tile_most);
        sum += mean;
    }
    println!("chart_800x557 tiles: max {most}, mean {:.4}", sum / 8.0);
    assert!(most <= 2);
}

#[test]
fn the_kestrel_order_stays_close_to_pils() {
    let image = open("square_910x910.png");
    let kestrel = CropConfig { resize: ResizeOrder::Kestrel, ..CropConfig::default() };
    let pil = CropConfig::default().crops(&image).unwrap();
    let kestrel = kestrel.crops(&image).unwrap();
    let (most, mean) = difference_of(&pil.crops, &kestrel.crops);
    println!("square_910x910, pil against kestrel: max {most}, mean {mean:.4}");
    assert!(most > 0, "the orders are told apart");
    assert!(mean < 1.0);
}

#[test]
fn one_picture_in_two_files_has_one_pixel_digest() {
    let (png, tiff) = (data("rgb8.png"), data("rgb8.tiff"));
    let pixels = |name| ImageDigest::of_pixels(&open(name));
    assert_eq!(pixels("rgb8.png"), pixels("rgb8.tiff"));
    assert_ne!(pixels("rgb8.png"), pixels("gray8.png"));
    assert_ne!(ImageDigest::of_encoded(&png), ImageDigest::of_encoded(&tiff));
}
