//! Encoded bytes to RGB.
//!
//! The first bytes decide the format, not a name or a content type. The header's size is checked
//! against [`Limits`] before anything is allocated for it. Every encoding ends as 8-bit RGB: gray is
//! replicated, alpha dropped without compositing (a transparent pixel keeps the color stored under
//! it, as the reference does), of 16 bits the high 8 are kept (`>> 8`, as Pillow does), and an EXIF
//! orientation is applied. Color profiles are ignored.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::{
    bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder,
};
use image::{ColorType, ImageDecoder};

use super::error::one_line;
use super::orientation::Orientation;
use super::{ImageError, ImageFormat, RgbImage, jpeg};

/// What a picture may cost; checked before the memory is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest encoded file, in bytes.
    pub max_bytes: u64,
    /// Most pixels of a decoded picture.
    pub max_pixels: u64,
    /// Longest side of a decoded picture, in pixels.
    pub max_side: u32,
    /// Most memory a decoder may take for one picture, in bytes. Approximate: it covers the buffers
    /// that grow with the picture.
    pub max_memory: u64,
}

impl Default for Limits {
    /// 64 MiB of file, 64 megapixels, sides up to 32,768, 768 MiB while decoding.
    fn default() -> Self {
        // 64 megapixels of RGB take 192 MB; a progressive JPEG of them takes three times that.
        Self {
            max_bytes: 64 << 20,
            max_pixels: 64_000_000,
            max_side: 32_768,
            max_memory: 768 << 20,
        }
    }
}

impl Limits {
    /// Checks a size from a header.
    pub(super) fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize { width, height });
        }
        // Pixels first: of a picture that breaks both limits, its area says more.
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooManyPixels { width, height, max_pixels: self.max_pixels });
        }
        if width.max(height) > self.max_side {
            return Err(ImageError::TooLong { width, height, max_side: self.max_side });
        }
        Ok(())
    }

    /// Checks what a decoder is going to allocate.
    pub(super) fn check_memory(&self, format: ImageFormat, bytes: u64) -> Result<(), ImageError> {
        if bytes > self.max_memory {
            return Err(ImageError::TooMuchMemory { format, max_memory: self.max_memory });
        }
        Ok(())
    }
}

/// Decodes a picture: JPEG, PNG, WebP, GIF (first frame), BMP or TIFF (first page).
///
/// # Errors
/// An [`ImageError`] for bytes that are no picture, are cut short, break their format's rules or
/// exceed `limits`.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes {
            bytes: bytes.len() as u64,
            max_bytes: limits.max_bytes,
        });
    }
    let Some(format) = sniff(bytes) else {
        return Err(ImageError::NotAnImage { looks_like: looks_like(bytes) });
    };
    // The decoders are other people's code fed with strangers' bytes. Should one of them panic, it
    // costs this picture and not the thread; they share no state that could be left broken.
    catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, limits))).unwrap_or_else(|_| {
        Err(ImageError::Corrupt { format, detail: "its decoder gave up on the data".into() })
    })
}

fn decode_as(format: ImageFormat, bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    let reader = Cursor::new(bytes);
    let failed = |e| decoder_error(format, limits, e);
    match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits),
        ImageFormat::Png => {
            // The decoder reserves row buffers while it opens the file, before we can ask its size.
            if let Some((width, height)) = png_size(bytes) {
                limits.check_size(width, height)?;
            }
            let decoder =
                PngDecoder::with_limits(reader, decoder_limits(limits)).map_err(failed)?;
            read(format, decoder, limits, |d| {
                d.exif_metadata()
                    .ok()
                    .flatten()
                    .map_or(Orientation::UPRIGHT, |exif| Orientation::from_exif(&exif))
            })
        }
        ImageFormat::WebP => {
            // The decoder does not miss what comes after the pixels, such as the orientation.
            if riff_is_cut(bytes) {
                return Err(truncated(format));
            }
            let decoder = WebPDecoder::new(reader).map_err(failed)?;
            // Not by the decoder: it would allocate what the chunk's header claims.
            let exif = riff_chunk(bytes, b"EXIF").unwrap_or_default();
            read(format, decoder, limits, |_| Orientation::from_exif(exif))
        }
        ImageFormat::Gif => {
            let decoder = GifDecoder::new(reader).map_err(failed)?;
            read(format, decoder, limits, |_| Orientation::UPRIGHT)
        }
        ImageFormat::Bmp => {
            let decoder = BmpDecoder::new(reader).map_err(failed)?;
            read(format, decoder, limits, |_| Orientation::UPRIGHT)
        }
        ImageFormat::Tiff => {
            let decoder = TiffDecoder::new(reader).map_err(failed)?;
            read(format, decoder, limits, |d| {
                let value = d.orientation().map_or(1, image::metadata::Orientation::to_exif);
                Orientation::from_exif_value(u32::from(value))
            })
        }
    }
}

/// Runs a decoder whose header has been read.
fn read<D: ImageDecoder>(
    format: ImageFormat,
    mut decoder: D,
    limits: &Limits,
    orientation: impl FnOnce(&mut D) -> Orientation,
) -> Result<RgbImage, ImageError> {
    let failed = |e| decoder_error(format, limits, e);
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    let color = decoder.color_type();
    let keep = match color {
        ColorType::L8 | ColorType::La8 | ColorType::L16 | ColorType::La16 => [0, 0, 0],
        ColorType::Rgb8 | ColorType::Rgba8 | ColorType::Rgb16 | ColorType::Rgba16 => [0, 1, 2],
        _ => {
            let detail = "its samples are floating point".into();
            return Err(ImageError::Unsupported { format, detail });
        }
    };
    let raw_bytes = decoder.total_bytes();
    // Besides the raw pixels there are ours, and of some decoders a copy of their own.
    limits.check_memory(format, raw_bytes + u64::from(width) * u64::from(height) * 3)?;
    decoder.set_limits(decoder_limits(limits)).map_err(failed)?;
    let orientation = orientation(&mut decoder);
    let mut raw = vec![0; raw_bytes as usize];
    decoder.read_image(&mut raw).map_err(failed)?;

    let pixels = if color == ColorType::Rgb8 {
        raw
    } else {
        let channels = usize::from(color.channel_count());
        if usize::from(color.bytes_per_pixel()) == channels {
            to_rgb(&raw, channels, keep)
        } else {
            to_rgb(&high_bytes(&raw), channels, keep)
        }
    };
    Ok(orientation.apply(RgbImage::new(width, height, pixels)?))
}

/// Channels `keep` of `raw`, `[pixels, channels]`.
fn to_rgb(raw: &[u8], channels: usize, keep: [usize; 3]) -> Vec<u8> {
    let mut pixels = vec![0; raw.len() / channels * 3];
    for (to, from) in pixels.chunks_exact_mut(3).zip(raw.chunks_exact(channels)) {
        *to.first_chunk_mut().expect("chunks are of 3") = keep.map(|channel| from[channel]);
    }
    pixels
}

/// The high bytes of native-endian 16-bit samples.
fn high_bytes(raw: &[u8]) -> Vec<u8> {
    raw.chunks_exact(2).map(|pair| (u16::from_ne_bytes([pair[0], pair[1]]) >> 8) as u8).collect()
}

/// Limits for the decoders' own buffers; the picture's size has been checked by us.
fn decoder_limits(limits: &Limits) -> image::Limits {
    let mut inner = image::Limits::no_limits();
    inner.max_alloc = Some(limits.max_memory);
    inner
}

fn truncated(format: ImageFormat) -> ImageError {
    ImageError::Truncated { format, detail: "the file ends before the picture does".into() }
}

/// One of our errors for one of the decoder's.
fn decoder_error(format: ImageFormat, limits: &Limits, error: image::ImageError) -> ImageError {
    use std::io::ErrorKind::UnexpectedEof;
    let message = error.to_string();
    // The decoders put the name of the format, which our message has already, before what they say,
    // and a dump of their own types behind it.
    let after = |lead: &str| message.split_once(lead).map_or(message.as_str(), |(_, rest)| rest);
    let corrupt = || {
        let said = if message.starts_with("Format error") { after(": ") } else { &message };
        let said = said.split_once(" while decoding").map_or(said, |(said, _)| said);
        ImageError::Corrupt { format, detail: one_line(said) }
    };
    match error {
        image::ImageError::IoError(e) if e.kind() == UnexpectedEof => truncated(format),
        image::ImageError::IoError(_) => corrupt(),
        image::ImageError::Limits(_) => {
            ImageError::TooMuchMemory { format, max_memory: limits.max_memory }
        }
        image::ImageError::Unsupported(_) => {
            let detail = one_line(after("does not support the format features "));
            ImageError::Unsupported { format, detail }
        }
        _ if message.to_ascii_lowercase().contains("unexpected end of file") => truncated(format),
        _ => corrupt(),
    }
}

/// The format the first bytes announce.
fn sniff(bytes: &[u8]) -> Option<ImageFormat> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if starts(b"\xff\xd8\xff") {
        Some(ImageFormat::Jpeg)
    } else if starts(b"\x89PNG\r\n\x1a\n") {
        Some(ImageFormat::Png)
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Some(ImageFormat::WebP)
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        Some(ImageFormat::Gif)
    } else if starts(b"BM") && bmp_header(bytes) {
        Some(ImageFormat::Bmp)
    } else if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|magic| starts(*magic)) {
        Some(ImageFormat::Tiff)
    } else {
        None
    }
}

/// `BM` alone begins many a text; a bitmap's second header has one of a few sizes.
fn bmp_header(bytes: &[u8]) -> bool {
    match bytes.get(14..18) {
        Some(size) => matches!(size, [12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]),
        None => bytes.len() >= 6 && bytes.iter().any(|b| !(b' '..=b'~').contains(b)),
    }
}

/// What bytes that are no picture of ours look like, for the error.
fn looks_like(bytes: &[u8]) -> String {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12) {
            Some(b"heic" | b"heix" | b"mif1" | b"msf1" | b"hevc") => "HEIC",
            Some(b"avif" | b"avis") => "AVIF",
            _ => "a video (MP4)",
        }
        .into();
    }
    let known: [(&[u8], &str); 13] = [
        (b"data:image/", "a data: URL (decode its base64 first)"),
        (b"/9j/", "base64 of a JPEG (decode it first)"),
        (b"iVBORw0KGgo", "base64 of a PNG (decode it first)"),
        (b"%PDF", "PDF"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b", "gzip"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"P6\n", "PPM"),
        (b"8BPS", "a Photoshop file"),
        (b"\0\0\x01\0", "a Windows icon"),
        (b"\x1aE\xdf\xa3", "a video (Matroska)"),
    ];
    if let Some((_, name)) = known.iter().find(|(magic, _)| starts(magic)) {
        return (*name).into();
    }
    let head = &bytes[..bytes.len().min(64)];
    let text = head.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~' | 0x80..));
    if text {
        let first = head.iter().find(|b| !b.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(b));
        return match first {
            Some(b'<') => "HTML or XML (an SVG must be rendered first)",
            Some(b'{' | b'[') => "JSON",
            _ => "text",
        }
        .into();
    }
    let hex: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("no format we know (bytes {})", hex.join(" "))
}

/// Width and height from the header chunk, which must come first.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    (bytes.get(12..16)? == b"IHDR").then_some(())?;
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some((number(16)?, number(20)?))
}

/// Whether a RIFF file is shorter than it says.
fn riff_is_cut(bytes: &[u8]) -> bool {
    let size = bytes.get(4..8).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
    size.is_none_or(|size| (bytes.len() as u64) < u64::from(size) + 8)
}

/// The first chunk of that name in a RIFF file, cut at the file's end.
fn riff_chunk<'a>(bytes: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    let mut rest = bytes.get(12..)?;
    loop {
        let size = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
        let body = &rest[8..];
        if &rest[..4] == name {
            return Some(&body[..size.min(body.len())]);
        }
        rest = body.get(size.checked_add(size & 1)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        decode(bytes, &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn things_that_are_no_picture_are_named() {
        let check = |bytes: &[u8], expected: &str| {
            let message = message(bytes);
            assert!(
                message.contains(&format!("starts like {expected}; supported: JPEG")),
                "{message}"
            );
        };
        check(b"hello, world", "text");
        check("привет".as_bytes(), "text");
        check(b"BMW and other cars", "text");
        check(b"\n <!doctype html>", "HTML or XML (an SVG must be rendered first)");
        check(b"{\"error\": 404}", "JSON");
        check(b"%PDF-1.7\n\xff\0", "PDF");
        check(b"PK\x03\x04\0\0", "a ZIP archive");
        check(b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC");
        check(b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF");
        check(b"\0\0\0\x18ftypisom\0\0\0\0", "a video (MP4)");
        check(b"data:image/png;base64,AAAA", "a data: URL (decode its base64 first)");
        check(b"/9j/4AAQSkZJRg", "base64 of a JPEG (decode it first)");
        check(b"\x01\x02", "no format we know (bytes 01 02)");
        assert_eq!(message(b""), "empty file: there are no image bytes to read");
    }

    #[test]
    fn limits_are_checked_from_the_header() {
        let png = |width: u32, height: u32| {
            let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
            bytes.extend(width.to_be_bytes().iter().chain(&height.to_be_bytes()));
            bytes.extend([8, 2, 0, 0, 0]);
            bytes
        };
        assert_eq!(
            message(&png(30_000, 30_000)),
            "picture is 30000x30000 = 900 megapixels, the limit is 64 megapixels; \
             scale it down or raise the limit"
        );
        assert_eq!(
            message(&png(40_000, 2)),
            "picture is 40000x2, a side may be 32768 pixels at most; \
             scale it down or raise the limit"
        );
        assert_eq!(message(&png(7, 0)), "picture is 7x0: it has no pixels");
        assert!(matches!(
            decode(&png(u32::MAX, u32::MAX), &Limits::default()),
            Err(ImageError::TooManyPixels { .. })
        ));
        let small = Limits { max_bytes: 20, ..Limits::default() };
        assert!(matches!(decode(&png(1, 1), &small), Err(ImageError::TooManyBytes { .. })));
    }

    #[test]
    fn riff_chunks_are_found_and_cut() {
        let file = b"RIFF\xff\0\0\0WEBPVP8X\x03\0\0\0abc\0EXIF\xff\xff\0\0Exif";
        assert_eq!(riff_chunk(file, b"EXIF"), Some(b"Exif".as_slice()));
        assert_eq!(riff_chunk(file, b"VP8X"), Some(b"abc".as_slice()));
        assert_eq!(riff_chunk(file, b"ICCP"), None);
        assert_eq!(riff_chunk(b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff", b"EXIF"), None);
    }
}
