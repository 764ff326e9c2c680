//! Pictures: from encoded bytes to the u8 crops the vision encoder reads.
//!
//! `decode` turns a file into an [`RgbImage`], [`CropConfig::crops`] turns that into [`Crops`], and
//! [`ImageDigest`] names either form for the caches. Every size is checked against [`Limits`] from
//! the file's header, before anything is allocated for it, and bad bytes give an [`ImageError`],
//! never a panic. No float leaves this module: normalizing to [-1, 1] and cutting into patches is
//! the device's work.

mod crops;
mod decode;
mod digest;
mod error;
mod jpeg;
mod orientation;
mod resize;

pub use crops::{CropConfig, Crops, Tiling};
pub use decode::{Limits, decode};
pub use digest::ImageDigest;
pub use error::{ImageError, ImageFormat};
pub use resize::ResizeOrder;

/// A decoded picture: 8-bit RGB rows from the top left, without padding.
///
/// Neither side is zero and `pixels` always holds `height * width * 3` bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// Wraps `pixels`, `[height, width, 3]`; fails where a side is zero or the length is wrong.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize { width, height });
        }
        let expected = u64::from(width) * u64::from(height) * 3;
        if pixels.len() as u64 != expected {
            return Err(ImageError::PixelCount {
                width,
                height,
                expected,
                got: pixels.len() as u64,
            });
        }
        Ok(Self { width, height, pixels })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// `[height, width, 3]`, for painting on.
    pub fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// Gives up the pixels, `[height, width, 3]`.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage({}x{})", self.width, self.height)
    }
}
