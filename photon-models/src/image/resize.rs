//! Lanczos resizing of RGB u8 pictures, in the order of passes the model was trained with.
//!
//! A two-dimensional resize is two one-dimensional ones with rounding to u8 between, and which
//! comes first changes the result by a few levels. The passes are separate calls here because the
//! library picks the order itself when asked for both (vertical first, for u8).

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::{ImageError, RgbImage};

/// Which pass of a resize comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResizeOrder {
    /// Horizontal first, as Pillow does: the golden vectors' order.
    #[default]
    Pil,
    /// Vertical first, as libvips and Kestrel do. The faster of the two.
    Kestrel,
}

impl ResizeOrder {
    /// The name used in options and cache keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pil => "pil",
            Self::Kestrel => "kestrel",
        }
    }
}

impl std::fmt::Display for ResizeOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ResizeOrder {
    type Err = ImageError;

    fn from_str(name: &str) -> Result<Self, ImageError> {
        match name {
            "pil" => Ok(Self::Pil),
            "kestrel" => Ok(Self::Kestrel),
            _ => Err(ImageError::UnknownResizeOrder(name.chars().take(40).collect())),
        }
    }
}

/// A resizer and the pixels between its passes, kept for the next picture.
///
/// Fresh memory costs more than the arithmetic: an 800x557 picture took 2,083 page faults and 6.7 of
/// 11 ms in the kernel (two Zen 3 cores in a virtual machine).
#[derive(Default)]
pub(super) struct Lanczos {
    resizer: Resizer,
    between: Vec<u8>,
}

/// Buffers larger than this are given back after the picture.
const KEEP_BYTES: usize = 16 << 20;

/// The first `len` bytes of a buffer that grows as needed; what they hold is left over.
pub(super) fn grown(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Frees a buffer too large to keep.
pub(super) fn give_back(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEEP_BYTES {
        *buffer = Vec::new();
    }
}

impl Lanczos {
    /// Resizes `src` into `out`, `[height, width, 3]`; the aspect is not kept.
    pub(super) fn resize(
        &mut self,
        src: &RgbImage,
        width: u32,
        height: u32,
        order: ResizeOrder,
        out: &mut [u8],
    ) {
        assert_eq!(out.len(), width as usize * height as usize * 3);
        let from = (src.pixels(), src.width(), src.height());
        if src.width() == width || src.height() == height {
            return pass(&mut self.resizer, from, (out, width, height));
        }
        let (mid_width, mid_height) = match order {
            ResizeOrder::Pil => (width, src.height()),
            ResizeOrder::Kestrel => (src.width(), height),
        };
        let len = mid_width as usize * mid_height as usize * 3;
        let between = grown(&mut self.between, len);
        pass(&mut self.resizer, from, (&mut *between, mid_width, mid_height));
        pass(&mut self.resizer, (between, mid_width, mid_height), (out, width, height));
        give_back(&mut self.between);
    }
}

/// One pass: at most one side differs between `from` and `to` (pixels, width, height).
fn pass(resizer: &mut Resizer, from: (&[u8], u32, u32), to: (&mut [u8], u32, u32)) {
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
        .use_alpha(false);
    let src = TypedImageRef::<U8x3>::from_buffer(from.1, from.2, from.0);
    let mut dst = TypedImage::<U8x3>::from_buffer(to.1, to.2, to.0).expect("length was checked");
    // The typed call: the other one compiles every pixel type there is, for minutes.
    let src = src.expect("length was checked");
    resizer.resize_typed(&src, &mut dst, &options).expect("nothing is cropped");
}
