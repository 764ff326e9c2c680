//! What can be wrong with a picture.
//!
//! Each message is one line that says what is wrong and what to do about it; text that comes from
//! a decoder is cut to one line before it gets in. They are meant to reach the person who sent the
//! picture, so they name no file, no path and no Rust type.

/// The encodings Photon reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// Baseline and progressive, gray, YCbCr, RGB, CMYK and YCCK.
    Jpeg,
    /// Any color type and bit depth; of an animation, the default image.
    Png,
    /// Lossy and lossless; the first frame of an animation.
    WebP,
    /// The first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// The first page; gray, RGB and CMYK of 8 or 16 bits, and 1-bit gray.
    Tiff,
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}

/// A picture that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There are no bytes.
    #[error("empty file: there are no image bytes to read")]
    Empty,
    /// The first bytes belong to none of the formats.
    #[error(
        "not an image Photon can read: it starts like {looks_like}; \
         supported: JPEG, PNG, WebP, GIF, BMP, TIFF"
    )]
    NotAnImage {
        /// What the first bytes look like.
        looks_like: String,
    },
    /// The encoded file is over [`Limits::max_bytes`](super::Limits::max_bytes).
    #[error(
        "image file is {:.1} MiB, the limit is {:.1} MiB; send a smaller file or raise the limit",
        mib(*bytes), mib(*max_bytes)
    )]
    TooManyBytes {
        /// Size of the file.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// The picture has more pixels than [`Limits::max_pixels`](super::Limits::max_pixels).
    #[error(
        "picture is {width}x{height} = {} megapixels, the limit is {} megapixels; \
         scale it down or raise the limit",
        megapixels(u64::from(*width) * u64::from(*height)), megapixels(*max_pixels)
    )]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// A side is longer than [`Limits::max_side`](super::Limits::max_side).
    #[error(
        "picture is {width}x{height}, a side may be {max_side} pixels at most; \
         scale it down or raise the limit"
    )]
    TooLong {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit.
        max_side: u32,
    },
    /// Decoding would need more memory than [`Limits::max_memory`](super::Limits::max_memory).
    #[error(
        "decoding this {format} needs more than {:.0} MiB of memory; \
         save it with fewer pixels or raise the limit",
        mib(*max_memory)
    )]
    TooMuchMemory {
        /// Its format.
        format: ImageFormat,
        /// The limit in bytes.
        max_memory: u64,
    },
    /// A side is zero.
    #[error("picture is {width}x{height}: it has no pixels")]
    ZeroSize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// Raw pixels whose number does not fit the size given with them.
    #[error("a {width}x{height} RGB picture takes {expected} bytes of pixels, got {got}")]
    PixelCount {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// `height * width * 3`.
        expected: u64,
        /// Number of bytes given.
        got: u64,
    },
    /// The file ends before the picture does.
    #[error("truncated {format}: {detail}; send the whole file")]
    Truncated {
        /// Its format.
        format: ImageFormat,
        /// Where it ends.
        detail: String,
    },
    /// The file breaks the rules of its format.
    #[error("corrupt {format}: {detail}; open it in an image editor and save it again")]
    Corrupt {
        /// Its format.
        format: ImageFormat,
        /// The rule it breaks.
        detail: String,
    },
    /// A legal file that uses something Photon does not read.
    #[error("unsupported {format}: {detail}; save it as an 8-bit RGB PNG or JPEG")]
    Unsupported {
        /// Its format.
        format: ImageFormat,
        /// What it uses.
        detail: String,
    },
    /// Crop numbers that cannot work together.
    #[error("bad crop config: {0}")]
    BadCropConfig(String),
    /// A preprocess mode that does not exist.
    #[error("unknown preprocess mode `{0}`; use `pil` or `kestrel`")]
    UnknownResizeOrder(String),
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// Millions of pixels, short: `900`, `64`, `0.12`.
fn megapixels(pixels: u64) -> String {
    let millions = pixels as f64 / 1e6;
    if millions >= 10.0 { format!("{millions:.0}") } else { format!("{millions:.2}") }
}

/// The first line of a decoder's own message, at most 200 characters.
pub(super) fn one_line(message: &str) -> String {
    let line = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no detail");
    line.trim_end_matches('.').chars().take(200).collect()
}
