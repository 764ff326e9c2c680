//! Anti-aliased strokes and fills.
//!
//! A stroke is the set of pixels nearer to a line than half its width; how much of a pixel it
//! covers is taken from the distance at the pixel's center. Only pixels near the line are visited.

use super::{Canvas, Rect};

/// How wide strokes are on a picture of some size.
pub(super) struct Brush {
    /// Width of a line in pixels.
    pub(super) thickness: f32,
    /// Width of the dark rim on each side of it.
    pub(super) halo: f32,
}

const HALO_COLOR: [u8; 3] = [12, 12, 16];
const HALO_OPACITY: f32 = 0.6;
const FILL_OPACITY: f32 = 0.3;

/// Scan lines per pixel row of a fill; across a line coverage is exact.
const FILL_LINES: usize = 4;

impl Brush {
    /// For a picture whose width and height have the geometric mean `size`.
    pub(super) fn for_size(size: f32) -> Self {
        let thickness = (size / 260.0).clamp(1.5, 32.0);
        Self { thickness, halo: (thickness * 0.4).max(1.0) }
    }

    /// The edge of a rectangle, centered on its sides, corners a little round.
    pub(super) fn rect(&self, canvas: &mut Canvas<'_>, rect: Rect, color: [u8; 3]) {
        // At the picture's rim half the line would be outside: move it in.
        let inset = self.thickness / 2.0;
        let within = |v: f32, size: u32| v.min(size as f32 - inset).max(inset);
        let rect = Rect {
            left: within(rect.left, canvas.width),
            top: within(rect.top, canvas.height),
            right: within(rect.right, canvas.width),
            bottom: within(rect.bottom, canvas.height),
        };
        let radius = self.thickness * 1.5;
        let reach = self.thickness / 2.0 + self.halo + 1.0;
        let distance = |x: f32, y: f32| rect.signed_distance(radius, x, y).abs();
        let inner = rect.grown(-(reach + radius));
        for y in rows(canvas, rect.top - reach, rect.bottom + reach) {
            let center = y as f32 + 0.5;
            // Between the horizontal sides only the two vertical ones are near.
            let spans = if center > inner.top && center < inner.bottom && inner.left < inner.right {
                [
                    columns(canvas, rect.left - reach, inner.left),
                    columns(canvas, inner.right, rect.right + reach),
                ]
            } else {
                [columns(canvas, rect.left - reach, rect.right + reach), 0..0]
            };
            for x in spans.into_iter().flatten() {
                self.stroke_pixel(canvas, x, y, distance(x as f32 + 0.5, center), color);
            }
        }
    }

    /// A dot with a white ring; its radius with the rim.
    pub(super) fn point(&self, canvas: &mut Canvas<'_>, x: f32, y: f32, color: [u8; 3]) -> f32 {
        let dot = self.thickness * 1.9;
        let ring = dot + self.thickness * 0.7;
        let rim = ring + self.halo;
        let bounds = Rect { left: x, top: y, right: x, bottom: y }.grown(rim + 1.0);
        for py in rows(canvas, bounds.top, bounds.bottom) {
            for px in columns(canvas, bounds.left, bounds.right) {
                let distance = (px as f32 + 0.5 - x).hypot(py as f32 + 0.5 - y);
                canvas.blend(px, py, HALO_COLOR, coverage(distance - rim) * HALO_OPACITY);
                canvas.blend(px, py, [255; 3], coverage(distance - ring));
                canvas.blend(px, py, color, coverage(distance - dot));
            }
        }
        rim
    }

    /// Rings of points, tinted inside and stroked along.
    pub(super) fn outline(
        &self,
        canvas: &mut Canvas<'_>,
        rings: &[Vec<(f32, f32)>],
        bounds: Rect,
        color: [u8; 3],
    ) {
        fill(canvas, rings, bounds, color);
        let reach = self.thickness / 2.0 + self.halo + 1.0;
        let around = bounds.grown(reach);
        let (rows_near, columns_near) =
            (rows(canvas, around.top, around.bottom), columns(canvas, around.left, around.right));
        let (top, left, width) = (rows_near.start, columns_near.start, columns_near.len());
        // The distance of each pixel to its nearest segment, so that joints are painted once.
        let mut nearest = vec![f32::INFINITY; rows_near.len() * width];
        for (from, to) in rings.iter().flat_map(|ring| segments(ring)) {
            let near = Rect {
                left: from.0.min(to.0),
                top: from.1.min(to.1),
                right: from.0.max(to.0),
                bottom: from.1.max(to.1),
            }
            .grown(reach);
            for y in rows(canvas, near.top, near.bottom) {
                let line = &mut nearest[(y - top) * width..(y - top + 1) * width];
                for x in columns(canvas, near.left, near.right) {
                    let distance = to_segment((x as f32 + 0.5, y as f32 + 0.5), from, to);
                    line[x - left] = line[x - left].min(distance);
                }
            }
        }
        for (i, distance) in nearest.into_iter().enumerate() {
            if distance < reach {
                self.stroke_pixel(canvas, left + i % width, top + i / width, distance, color);
            }
        }
    }

    /// Paints the line and its halo at a pixel that far from the line's middle.
    fn stroke_pixel(
        &self,
        canvas: &mut Canvas<'_>,
        x: usize,
        y: usize,
        distance: f32,
        color: [u8; 3],
    ) {
        let half = self.thickness / 2.0;
        canvas.blend(x, y, HALO_COLOR, coverage(distance - half - self.halo) * HALO_OPACITY);
        canvas.blend(x, y, color, coverage(distance - half));
    }
}

impl Canvas<'_> {
    /// Mixes `color` into a pixel of the picture; 1 replaces it.
    pub(super) fn blend(&mut self, x: usize, y: usize, color: [u8; 3], opacity: f32) {
        if opacity <= 0.0 {
            return;
        }
        let at = (y * self.width as usize + x) * 3;
        for (to, from) in self.pixels[at..at + 3].iter_mut().zip(color) {
            let mixed = f32::from(*to) + (f32::from(from) - f32::from(*to)) * opacity.min(1.0);
            *to = mixed.round() as u8;
        }
    }

    /// A filled rectangle with round corners.
    pub(super) fn plate(&mut self, rect: Rect, radius: f32, color: [u8; 3], opacity: f32) {
        for y in rows(self, rect.top - 1.0, rect.bottom + 1.0) {
            for x in columns(self, rect.left - 1.0, rect.right + 1.0) {
                let distance = rect.signed_distance(radius, x as f32 + 0.5, y as f32 + 0.5);
                self.blend(x, y, color, coverage(distance) * opacity);
            }
        }
    }
}

/// A plain line with flat coverage at its ends.
pub(super) fn line(
    canvas: &mut Canvas<'_>,
    from: (f32, f32),
    to: (f32, f32),
    width: f32,
    color: [u8; 3],
) {
    let near = Rect {
        left: from.0.min(to.0),
        top: from.1.min(to.1),
        right: from.0.max(to.0),
        bottom: from.1.max(to.1),
    }
    .grown(width / 2.0 + 1.0);
    for y in rows(canvas, near.top, near.bottom) {
        for x in columns(canvas, near.left, near.right) {
            let distance = to_segment((x as f32 + 0.5, y as f32 + 0.5), from, to);
            canvas.blend(x, y, color, coverage(distance - width / 2.0));
        }
    }
}

/// Rows of the picture that touch `from..to`.
fn rows(canvas: &Canvas<'_>, from: f32, to: f32) -> std::ops::Range<usize> {
    span(from, to, canvas.height)
}

/// Columns of the picture that touch `from..to`.
fn columns(canvas: &Canvas<'_>, from: f32, to: f32) -> std::ops::Range<usize> {
    span(from, to, canvas.width)
}

/// Pixels that touch `from..to`, of `size`. Casts of floats saturate, so what is negative is 0.
fn span(from: f32, to: f32, size: u32) -> std::ops::Range<usize> {
    let end = (to.ceil() as usize).min(size as usize);
    (from.floor() as usize).min(end)..end
}

/// How much of a pixel lies inside an edge this far from its center, outward positive.
fn coverage(distance: f32) -> f32 {
    (0.5 - distance).clamp(0.0, 1.0)
}

/// The sides of a closed ring; a single point has one, of no length.
fn segments(ring: &[(f32, f32)]) -> impl Iterator<Item = ((f32, f32), (f32, f32))> {
    ring.iter().zip(ring.iter().cycle().skip(1)).map(|(from, to)| (*from, *to))
}

/// Distance of `p` to the segment from `a` to `b`.
fn to_segment(p: (f32, f32), a: (f32, f32), b: (f32, f32)) -> f32 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let (px, py) = (p.0 - a.0, p.1 - a.1);
    let length = dx * dx + dy * dy;
    let along = if length > 0.0 { ((px * dx + py * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    (px - along * dx).hypot(py - along * dy)
}

/// Tints the inside of the rings, even-odd.
fn fill(canvas: &mut Canvas<'_>, rings: &[Vec<(f32, f32)>], bounds: Rect, color: [u8; 3]) {
    let columns = columns(canvas, bounds.left, bounds.right);
    let mut covered = vec![0.0_f32; columns.len()];
    let mut crossings = Vec::new();
    for y in rows(canvas, bounds.top, bounds.bottom) {
        covered.fill(0.0);
        for line in 0..FILL_LINES {
            let at = y as f32 + (line as f32 + 0.5) / FILL_LINES as f32;
            crossings.clear();
            for (from, to) in rings.iter().flat_map(|ring| segments(ring)) {
                if (from.1 <= at) != (to.1 <= at) {
                    let along = (at - from.1) / (to.1 - from.1);
                    crossings.push(from.0 + along * (to.0 - from.0) - columns.start as f32);
                }
            }
            crossings.sort_by(f32::total_cmp);
            for pair in crossings.chunks_exact(2) {
                let (from, to) = (pair[0], pair[1]);
                let last = (to.ceil() as usize).min(covered.len());
                let first = (from as usize).min(last);
                for (x, covered) in (first..).zip(&mut covered[first..last]) {
                    let inside = to.min(x as f32 + 1.0) - from.max(x as f32);
                    *covered += inside.max(0.0) / FILL_LINES as f32;
                }
            }
        }
        for (x, inside) in columns.clone().zip(&covered) {
            canvas.blend(x, y, color, inside * FILL_OPACITY);
        }
    }
}
