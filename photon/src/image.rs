//! A decoded picture, as requests carry it.
use std::{path::Path, sync::Arc};

use photon_models::image::{ImageError, Limits, RgbImage, decode};

use crate::error::OpenError;

/// A picture: 8-bit RGB, upright. Cloning shares the pixels.
#[derive(Clone, Debug)]
pub struct Image {
    rgb: Arc<RgbImage>,
}

impl Image {
    /// Reads and decodes a file: JPEG, PNG, WebP, GIF (first frame), BMP or TIFF.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Image::from_bytes(&Image::read(path)?)?)
    }

    /// Reads a file that may be a picture, within the default limits.
    pub(crate) fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
        let io = |source| OpenError::Io { path: path.into(), source };
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        let max_bytes = Limits::default().max_bytes;
        if bytes > max_bytes {
            return Err(ImageError::TooManyBytes { bytes, max_bytes }.into());
        }
        std::fs::read(path).map_err(io)
    }

    /// Whether the engine has room for the tiles of so long a picture.
    pub(crate) fn check_side(&self) -> Result<(), ImageError> {
        let ((width, height), max_side) = (self.size(), Limits::default().max_side);
        match width.max(height) > max_side {
            true => Err(ImageError::TooLong { width, height, max_side }),
            false => Ok(()),
        }
    }

    /// Decodes an encoded picture within the default limits.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImageError> {
        Image::from_bytes_within(bytes, &Limits::default())
    }

    /// Decodes an encoded picture.
    pub fn from_bytes_within(bytes: &[u8], limits: &Limits) -> Result<Self, ImageError> {
        Ok(Image { rgb: Arc::new(decode(bytes, limits)?) })
    }

    /// Takes pixels as they are: `[height, width, 3]`, u8.
    pub fn from_rgb(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ImageError> {
        Ok(Image { rgb: Arc::new(RgbImage::new(width, height, pixels)?) })
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.rgb.width(), self.rgb.height())
    }

    /// `[height, width, 3]`, u8.
    pub fn pixels(&self) -> &[u8] {
        self.rgb.pixels()
    }

    pub(crate) fn rgb(&self) -> &RgbImage {
        &self.rgb
    }
}
