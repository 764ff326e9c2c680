//! JPEG, through `zune-jpeg`.
//!
//! Decoders like to fill what is missing with gray and call it success; a model would answer about
//! the gray. So the decoder runs in its strict mode, which refuses damaged data, and a file without
//! an end marker is refused before that: strict mode does not notice a cut in the last row of
//! blocks.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::error::one_line;
use super::orientation::Orientation;
use super::{ImageError, ImageFormat, Limits, RgbImage};

const FORMAT: ImageFormat = ImageFormat::Jpeg;

/// What the decoder says in strict mode about filler between headers, which is harmless.
const FILLER: &str = "Extra bytes between headers";

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    match decode_with(bytes, limits, true) {
        Err(ImageError::Corrupt { detail, .. }) if detail.contains(FILLER) => {
            decode_with(bytes, limits, false)
        }
        other => other,
    }
}

fn decode_with(bytes: &[u8], limits: &Limits, strict: bool) -> Result<RgbImage, ImageError> {
    let markers = walk(bytes);
    if let Some(scheme) = markers.frame.and_then(unsupported_scheme) {
        return Err(ImageError::Unsupported { format: FORMAT, detail: scheme.into() });
    }
    // CMYK is taken as inverted, as Adobe writes it and as Pillow reads every four-channel JPEG.
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(decoder_error)?;
    let (width, height) = decoder.dimensions().expect("the headers were decoded");
    let (width, height) = (width as u32, height as u32);
    limits.check_size(width, height)?;
    if !markers.ended {
        return Err(ImageError::Truncated {
            format: FORMAT,
            detail: "it has no end-of-image marker".into(),
        });
    }
    let pixels = u64::from(width) * u64::from(height);
    let components = decoder.info().map_or(4, |info| u64::from(info.components));
    // The pixels, and where the file has several scans, all coefficients as i16.
    limits.check_memory(FORMAT, pixels * 3 + pixels * components * 2)?;
    let mut out = vec![0; pixels as usize * 3];
    decoder.decode_into(&mut out).map_err(decoder_error)?;
    let orientation =
        decoder.exif().map_or(Orientation::UPRIGHT, |exif| Orientation::from_exif(exif));
    Ok(orientation.apply(RgbImage::new(width, height, out)?))
}

fn decoder_error(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => ImageError::Truncated {
            format: FORMAT,
            detail: "the file ends before the picture does".into(),
        },
        DecodeErrors::ZeroError => {
            ImageError::Corrupt { format: FORMAT, detail: "its width or height is zero".into() }
        }
        DecodeErrors::Unsupported(scheme) => {
            ImageError::Unsupported { format: FORMAT, detail: one_line(&format!("{scheme:?}")) }
        }
        DecodeErrors::SofError(detail) if detail.contains("8-bit images") => {
            ImageError::Unsupported { format: FORMAT, detail: "it has 12 bits per sample".into() }
        }
        DecodeErrors::FormatStatic(detail) => {
            ImageError::Corrupt { format: FORMAT, detail: one_line(detail) }
        }
        DecodeErrors::Format(detail)
        | DecodeErrors::HuffmanDecode(detail)
        | DecodeErrors::DqtError(detail)
        | DecodeErrors::SosError(detail)
        | DecodeErrors::SofError(detail)
        | DecodeErrors::MCUError(detail) => {
            ImageError::Corrupt { format: FORMAT, detail: one_line(&detail) }
        }
        other => ImageError::Corrupt { format: FORMAT, detail: one_line(&format!("{other:?}")) },
    }
}

/// What the markers of a file say.
#[derive(Debug, Default, PartialEq)]
struct Markers {
    /// The kind of the first frame header, `C0` to `CF`.
    frame: Option<u8>,
    /// Whether there is an end-of-image marker.
    ended: bool,
}

/// Walks the markers up to the end-of-image one.
///
/// Segments are skipped by their length, so a thumbnail's end marker inside one does not count.
/// In coded data and filler, which have no length, the next `FF xx` that is no stuffing, restart or
/// fill byte is the next marker.
fn walk(bytes: &[u8]) -> Markers {
    let mut markers = Markers::default();
    let mut rest = &bytes[2..];
    while let Some(at) = rest.iter().position(|&b| b == 0xff) {
        rest = &rest[at + 1..];
        match rest.first() {
            None => break,
            Some(0xd9) => {
                markers.ended = true;
                break;
            }
            // A fill byte: the marker's FF is the next one.
            Some(0xff) => {}
            // Stuffing, TEM, restarts and a stray start of image have no length.
            Some(0x00 | 0x01 | 0xd0..=0xd8) => rest = &rest[1..],
            Some(&kind) => {
                if matches!(kind, 0xc0..=0xcf) && !matches!(kind, 0xc4 | 0xc8 | 0xcc) {
                    markers.frame.get_or_insert(kind);
                }
                let Some(length) = rest.get(1..3) else { break };
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                let Some(after) = rest.get(1 + length.max(2)..) else { break };
                rest = after;
            }
        }
    }
    markers
}

/// What a frame header announces that the decoder does not know.
fn unsupported_scheme(frame: u8) -> Option<&'static str> {
    match frame {
        0xc0..=0xc2 => None,
        0xc3 => Some("it is lossless JPEG"),
        0xc9..=0xcb => Some("it is arithmetic-coded"),
        _ => Some("it is hierarchical JPEG"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_marker_is_the_pictures_own() {
        let check = |bytes: &[u8], expected| assert_eq!(walk(bytes).ended, expected);
        check(b"\xff\xd8\xff\xd9", true);
        check(b"\xff\xd8", false);
        check(b"\xff\xd8\xff", false);
        // A segment that holds an end marker, with and without one after it.
        check(b"\xff\xd8\xff\xe1\0\x04\xff\xd9", false);
        check(b"\xff\xd8\xff\xe1\0\x04\xff\xd9\xff\xd9", true);
        check(b"\xff\xd8\xff\xe1\0\x40\xff\xd9", false);
        check(b"\xff\xd8\xff\xe1\0", false);
        // Coded data with stuffing, a restart and fill bytes; then something after the end.
        check(b"\xff\xd8\xff\xda\0\x02ab\xff\0c\xff\xd0\xff\xff\xd9tail", true);
        check(b"\xff\xd8\xff\xda\0\x02ab\xff\0c\xff\xd0\xff\xff", false);
    }

    #[test]
    fn frames_the_decoder_does_not_know_are_named() {
        let frame = |kind| [b"\xff\xd8\xff\xc4\0\x02\xff", &[kind][..], b"\0\x02\xff\xd9"].concat();
        assert_eq!(walk(&frame(0xc2)), Markers { frame: Some(0xc2), ended: true });
        let error = decode(&frame(0xc9), &Limits::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unsupported JPEG: it is arithmetic-coded; save it as an 8-bit RGB PNG or JPEG"
        );
    }
}
