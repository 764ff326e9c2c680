//! Painting results on pictures: labeled boxes, points and outlines.
//!
//! Coordinates are the model's, 0 to 1 of the picture's width and height. Lines are anti-aliased,
//! scale with the picture and carry a dark halo, so that they can be seen on any background. A
//! label always lies inside the picture, and off other labels where there is room. Nothing here
//! fails: coordinates outside the picture are clamped, marks that are no numbers are left out.

mod brush;
mod chart;
mod label;
mod path;

use std::path::{Path, PathBuf};

use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};

pub(crate) use chart::chart;
pub(crate) use path::rings;

use brush::Brush;
use label::Labels;

/// The picture being painted on.
#[derive(Debug)]
pub(crate) struct Canvas<'a> {
    width: u32,
    height: u32,
    /// `[height, width, 3]`.
    pixels: &'a mut [u8],
}

/// Where something is. Coordinates are 0 to 1 from the top left.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// A rectangle.
    Box { x_min: f32, y_min: f32, x_max: f32, y_max: f32 },
    /// A spot.
    Point { x: f32, y: f32 },
    /// Closed rings of (x, y), filled by the even-odd rule: a ring inside another is a hole.
    Outline(Vec<Vec<(f32, f32)>>),
}

/// One thing found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mark {
    pub(crate) shape: Shape,
    /// Empty for none.
    pub(crate) label: String,
    /// Which color of the palette; any number will do, equal numbers look alike.
    pub(crate) color: usize,
}

/// What to paint; the last mark lies on top.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overlay {
    pub(crate) marks: Vec<Mark>,
}

/// Colors that are told apart on each other and on photographs, light enough for dark text.
const PALETTE: [[u8; 3]; 8] = [
    [0, 214, 255],
    [255, 92, 92],
    [255, 214, 10],
    [94, 232, 122],
    [255, 149, 51],
    [200, 138, 255],
    [255, 128, 200],
    [64, 224, 190],
];

/// A picture that could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("cannot tell the format of `{}`: end its name in .png, .jpg or .webp", .0.display())]
    UnknownExtension(PathBuf),
    #[error("cannot write a {width}x{height} picture as {format}: {detail}; try .png")]
    Encode { format: &'static str, width: u32, height: u32, detail: String },
    #[error("cannot write `{}`: {error}", .path.display())]
    Write { path: PathBuf, error: std::io::Error },
}

impl<'a> Canvas<'a> {
    /// Wraps a picture, `[height, width, 3]`.
    ///
    /// # Panics
    /// If the number of bytes is not `height * width * 3`.
    pub(crate) fn new(width: u32, height: u32, pixels: &'a mut [u8]) -> Self {
        assert_eq!(pixels.len(), width as usize * height as usize * 3, "{width}x{height} RGB");
        Self { width, height, pixels }
    }
}

/// Paints every mark of `overlay`, all shapes first and all labels on top of them.
pub(crate) fn draw(canvas: &mut Canvas<'_>, overlay: &Overlay) {
    if canvas.width == 0 || canvas.height == 0 {
        return;
    }
    let size = ((f64::from(canvas.width) * f64::from(canvas.height)).sqrt()) as f32;
    let brush = Brush::for_size(size);
    let mut labels = Labels::for_size(size, &brush);
    let mut placed = Vec::new();
    for mark in &overlay.marks {
        let color = PALETTE[mark.color % PALETTE.len()];
        let Some(bounds) = draw_shape(canvas, &brush, &mark.shape, color) else { continue };
        placed.push((mark, color, bounds));
    }
    for (mark, color, bounds) in placed {
        labels.draw(canvas, &mark.label, color, bounds);
    }
}

/// Paints one shape; the pixels it spans, or `None` if it is left out.
fn draw_shape(
    canvas: &mut Canvas<'_>,
    brush: &Brush,
    shape: &Shape,
    color: [u8; 3],
) -> Option<Rect> {
    let (width, height) = (canvas.width as f32, canvas.height as f32);
    let to_pixels = |x: f32, y: f32| {
        (x.is_finite() && y.is_finite())
            .then(|| (x.clamp(0.0, 1.0) * width, y.clamp(0.0, 1.0) * height))
    };
    match shape {
        Shape::Box { x_min, y_min, x_max, y_max } => {
            let (x0, y0) = to_pixels(*x_min, *y_min)?;
            let (x1, y1) = to_pixels(*x_max, *y_max)?;
            let rect =
                Rect { left: x0.min(x1), top: y0.min(y1), right: x0.max(x1), bottom: y0.max(y1) };
            brush.rect(canvas, rect, color);
            Some(rect)
        }
        Shape::Point { x, y } => {
            let (x, y) = to_pixels(*x, *y)?;
            let radius = brush.point(canvas, x, y, color);
            Some(Rect { left: x - radius, top: y - radius, right: x + radius, bottom: y + radius })
        }
        Shape::Outline(rings) => {
            let rings: Vec<Vec<(f32, f32)>> = rings
                .iter()
                .map(|ring| ring.iter().filter_map(|(x, y)| to_pixels(*x, *y)).collect())
                .filter(|ring: &Vec<_>| !ring.is_empty())
                .collect();
            let bounds = Rect::around(rings.iter().flatten())?;
            brush.outline(canvas, &rings, bounds, color);
            Some(bounds)
        }
    }
}

/// The formats pictures are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Png,
    Jpeg,
    /// Lossless.
    WebP,
}

impl Format {
    /// By the extension of the file's name.
    pub(crate) fn of(path: &Path) -> Result<Self, SaveError> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match extension.as_str() {
            "png" => Ok(Format::Png),
            "jpg" | "jpeg" => Ok(Format::Jpeg),
            "webp" => Ok(Format::WebP),
            _ => Err(SaveError::UnknownExtension(path.to_path_buf())),
        }
    }
}

/// Writes a picture, `[height, width, 3]`, in the format of the name's extension.
pub(crate) fn save(path: &Path, width: u32, height: u32, pixels: &[u8]) -> Result<(), SaveError> {
    let mut file = Vec::new();
    let rgb = ExtendedColorType::Rgb8;
    let (format, encoded) = match Format::of(path)? {
        Format::Png => ("PNG", PngEncoder::new(&mut file).write_image(pixels, width, height, rgb)),
        Format::Jpeg => {
            let encoder = JpegEncoder::new_with_quality(&mut file, 92);
            ("JPEG", encoder.write_image(pixels, width, height, rgb))
        }
        Format::WebP => {
            ("WebP", WebPEncoder::new_lossless(&mut file).write_image(pixels, width, height, rgb))
        }
    };
    encoded.map_err(|error| SaveError::Encode {
        format,
        width,
        height,
        detail: error.to_string().lines().next().unwrap_or_default().to_string(),
    })?;
    std::fs::write(path, file).map_err(|error| SaveError::Write { path: path.to_path_buf(), error })
}

/// A rectangle in pixels; `right` and `bottom` are exclusive.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rect {
    left: f32,
    top: f32,
    right: f32,
    bottom: f32,
}

impl Rect {
    /// The smallest around the points, if there are any.
    fn around<'a>(points: impl IntoIterator<Item = &'a (f32, f32)>) -> Option<Self> {
        points.into_iter().fold(None, |rect, &(x, y)| {
            let Rect { left, top, right, bottom } =
                rect.unwrap_or(Self { left: x, top: y, right: x, bottom: y });
            Some(Self {
                left: left.min(x),
                top: top.min(y),
                right: right.max(x),
                bottom: bottom.max(y),
            })
        })
    }

    /// Grown by `by` on every side.
    fn grown(self, by: f32) -> Self {
        Self {
            left: self.left - by,
            top: self.top - by,
            right: self.right + by,
            bottom: self.bottom + by,
        }
    }

    fn overlaps(self, other: Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    /// Distance of a point to the edge of this rectangle with rounded corners, negative inside.
    fn signed_distance(self, radius: f32, x: f32, y: f32) -> f32 {
        let half = ((self.right - self.left) / 2.0, (self.bottom - self.top) / 2.0);
        let radius = radius.min(half.0).min(half.1);
        let dx = (x - (self.left + self.right) / 2.0).abs() - half.0 + radius;
        let dy = (y - (self.top + self.bottom) / 2.0).abs() - half.1 + radius;
        dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0) - radius
    }
}

#[cfg(test)]
mod tests;
