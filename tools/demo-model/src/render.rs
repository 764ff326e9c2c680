//! From a scene to pixels, at any size.
//!
//! A picture of another aspect is the scene squeezed, as the engine's resize would do.
//! Edges are smooth: each row of pixels is cut into [`SUBROWS`] lines, on which a shape is one or two
//! spans whose cover of each pixel is exact.

use crate::font;
use crate::rng::splitmix64;
use crate::scene::{
    Background, CROSS_HALF_ARM, Object, Pattern, Rect, SQUARE_HALF_SIDE, STAR_COS_18, STAR_COS_36,
    Scene, Shape, TRIANGLE_CIRCUMRADIUS, Text,
};

const SUBROWS: usize = 8;
/// Width of an outline, as a part of the radius.
const OUTLINE: f64 = 0.13;
/// Radius of a star's inner corners; above the regular star's 0.38, which is too thin at 22 pixels.
const STAR_INNER: f64 = 0.44;
/// The sine of 36 degrees; the cosines are the scene's.
const SIN_36: f64 = 0.587_785_252_292_473_1;
const SIN_18: f64 = 0.309_016_994_374_947_4;

impl Scene {
    /// The picture at `width` x `height`, RGB, rows from the top: `3 * width * height` bytes.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn render(&self, width: u32, height: u32) -> Vec<u8> {
        assert!(0 < width && 0 < height, "a picture needs pixels");
        let (width, height) = (width as usize, height as usize);
        let mut canvas = Canvas {
            width,
            height,
            scale: [width as f64 / f64::from(self.width), height as f64 / f64::from(self.height)],
            pixels: vec![0; 3 * width * height],
            cover: Vec::new(),
        };
        let aspect = f64::from(self.width) / f64::from(self.height);
        canvas.fill_background(&self.background, aspect as f32);
        for object in &self.objects {
            canvas.draw_object(object);
        }
        if let Some(text) = &self.text {
            canvas.draw_text(text);
        }
        canvas.pixels
    }
}

struct Canvas {
    width: usize,
    height: usize,
    /// Pixels of the canvas per native pixel, along x and y.
    scale: [f64; 2],
    pixels: Vec<u8>,
    /// Cover of the row being drawn, by pixel, kept to spare allocations.
    cover: Vec<f32>,
}

impl Canvas {
    fn fill_background(&mut self, background: &Background, aspect: f32) {
        let [a, b] = background.colors.map(|rgb| rgb.map(f32::from));
        let (across, down) = if aspect > 1.0 { (aspect, 1.0) } else { (1.0, 1.0 / aspect) };
        for (y, row) in self.pixels.chunks_exact_mut(3 * self.width).enumerate() {
            let v = (y as f32 + 0.5) / self.height as f32;
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                let u = (x as f32 + 0.5) / self.width as f32;
                let mix = mix(background.pattern, u, v, across, down);
                for (i, channel) in pixel.iter_mut().enumerate() {
                    *channel = (a[i] + (b[i] - a[i]) * mix + 0.5) as u8;
                }
            }
        }
    }

    fn draw_object(&mut self, object: &Object) {
        let rim = object.outline.map_or(0.0, |_| OUTLINE * object.radius);
        if let Some(outline) = object.outline {
            self.draw_shape(object, 0.0, outline);
        }
        self.draw_shape(object, rim, object.rgb);
    }

    /// Fills `object`'s shape, its edge moved inward by `inset` native pixels.
    fn draw_shape(&mut self, object: &Object, inset: f64, rgb: [u8; 3]) {
        let [x, y] = object.center;
        self.fill(object.bounds(), rgb, |line, add| {
            for (x0, x1) in spans(object.shape, object.radius, inset, line - y) {
                add(x + x0, x + x1);
            }
        });
    }

    fn draw_text(&mut self, text: &Text) {
        let runs = font::runs(&text.value);
        let [x, y] = text.origin;
        self.fill(text.bounds(), text.rgb, |line, add| {
            let row = ((line - y) / text.cell).floor();
            for &(_, first, end) in runs.iter().filter(|run| run.0 as f64 == row) {
                add(x + first as f64 * text.cell, x + end as f64 * text.cell);
            }
        });
    }

    /// Blends `rgb` over what the spans cover; `spans(y, add)` adds those on line `y`, in native
    /// pixels.
    fn fill(&mut self, bounds: Rect, rgb: [u8; 3], spans: impl Fn(f64, &mut dyn FnMut(f64, f64))) {
        let [scale_x, scale_y] = self.scale;
        let left = (bounds[0] * scale_x).floor().max(0.0) as usize;
        let right = ((bounds[2] * scale_x).ceil().max(0.0) as usize).min(self.width);
        let top = (bounds[1] * scale_y).floor().max(0.0) as usize;
        let bottom = ((bounds[3] * scale_y).ceil().max(0.0) as usize).min(self.height);
        if right <= left {
            return;
        }
        for row in top..bottom {
            self.cover.clear();
            self.cover.resize(right - left, 0.0);
            for sub in 0..SUBROWS {
                let line = (row as f64 + (sub as f64 + 0.5) / SUBROWS as f64) / scale_y;
                let cover = &mut self.cover;
                spans(line, &mut |x0, x1| {
                    add_span(cover, x0 * scale_x - left as f64, x1 * scale_x - left as f64);
                });
            }
            let at = 3 * (row * self.width + left);
            let pixels = self.pixels[at..].chunks_exact_mut(3);
            for (pixel, cover) in pixels.zip(&self.cover) {
                let cover = (cover / SUBROWS as f32).min(1.0);
                for (channel, ink) in pixel.iter_mut().zip(rgb) {
                    let old = f32::from(*channel);
                    *channel = (old + (f32::from(ink) - old) * cover + 0.5) as u8;
                }
            }
        }
    }
}

/// Adds to each pixel the part of it that `[x0, x1]` covers.
fn add_span(cover: &mut [f32], x0: f64, x1: f64) {
    let (x0, x1) = (x0.max(0.0), x1.min(cover.len() as f64));
    if x1 <= x0 {
        return;
    }
    let (first, last) = (x0 as usize, (x1.ceil() as usize).min(cover.len()) - 1);
    if first == last {
        cover[first] += (x1 - x0) as f32;
        return;
    }
    cover[first] += (first as f64 + 1.0 - x0) as f32;
    cover[last] += (x1 - last as f64) as f32;
    for pixel in &mut cover[first + 1..last] {
        *pixel += 1.0;
    }
}

/// A span that covers nothing.
const NONE: (f64, f64) = (0.0, 0.0);

/// Where the line `dy` below the box's center crosses a shape, as spans relative to that center.
pub(crate) fn spans(shape: Shape, radius: f64, inset: f64, dy: f64) -> [(f64, f64); 2] {
    let symmetric = |half: f64| [(-half, half), NONE];
    match shape {
        Shape::Circle => {
            let radius = radius - inset;
            symmetric((radius * radius - dy * dy).max(0.0).sqrt())
        }
        Shape::Square => {
            let half = SQUARE_HALF_SIDE * radius - inset;
            symmetric(if dy.abs() <= half { half } else { 0.0 })
        }
        Shape::Cross => {
            let (arm, reach) = (CROSS_HALF_ARM * radius - inset, radius - inset);
            symmetric(match dy.abs() {
                at if at <= arm => reach,
                at if at <= reach => arm,
                _ => 0.0,
            })
        }
        Shape::Triangle => {
            // The inradius is half the circumradius, and the box's center a quarter above the
            // triangle's own.
            let outer = TRIANGLE_CIRCUMRADIUS * radius;
            let inner = outer - 2.0 * inset;
            let from_top = dy - outer / 4.0 + inner;
            let height = 1.5 * inner;
            let inside = 0.0 <= from_top && from_top <= height;
            symmetric(if inside { from_top * inner / outer * radius / height } else { 0.0 })
        }
        Shape::Star => star_spans(radius, inset, dy),
    }
}

/// The star's outer and inner corners in turn, clockwise from the top, around its own center.
pub(crate) const STAR: [(f64, f64); 10] = [
    (0.0, -1.0),
    (SIN_36 * STAR_INNER, -STAR_COS_36 * STAR_INNER),
    (STAR_COS_18, -SIN_18),
    (STAR_COS_18 * STAR_INNER, SIN_18 * STAR_INNER),
    (SIN_36, STAR_COS_36),
    (0.0, STAR_INNER),
    (-SIN_36, STAR_COS_36),
    (-STAR_COS_18 * STAR_INNER, SIN_18 * STAR_INNER),
    (-STAR_COS_18, -SIN_18),
    (-SIN_36 * STAR_INNER, -STAR_COS_36 * STAR_INNER),
];

fn star_spans(radius: f64, inset: f64, dy: f64) -> [(f64, f64); 2] {
    // All edges are equally far from the center, so moving them inward is a scaling.
    let (ax, ay) = (STAR[1].0 - STAR[0].0, STAR[1].1 - STAR[0].1);
    let edge_distance = ax.abs() / (ax * ax + ay * ay).sqrt();
    let scale = radius - inset / edge_distance;
    // The tips reach 1 up but only cos 36 degrees down, so the star's center is below the box's.
    let y = (dy - radius * (1.0 - STAR_COS_36) / 2.0) / scale;
    let mut crossings = [0.0; 4];
    let mut found = 0;
    for (at, &(x0, y0)) in STAR.iter().enumerate() {
        let (x1, y1) = STAR[(at + 1) % STAR.len()];
        if (y0 <= y) != (y1 <= y) && found < crossings.len() {
            crossings[found] = scale * (x0 + (x1 - x0) * (y - y0) / (y1 - y0));
            found += 1;
        }
    }
    let crossings = &mut crossings[..found];
    crossings.sort_by(f64::total_cmp);
    match *crossings {
        [a, b] => [(a, b), NONE],
        [a, b, c, d] => [(a, b), (c, d)],
        _ => [NONE, NONE],
    }
}

/// How much of the second color there is at `(u, v)` of the picture; `across` and `down` are its
/// sides, the shorter being 1.
fn mix(pattern: Pattern, u: f32, v: f32, across: f32, down: f32) -> f32 {
    match pattern {
        Pattern::Solid => 0.0,
        Pattern::Horizontal => u,
        Pattern::Vertical => v,
        Pattern::Diagonal { falling: true } => (u + v) / 2.0,
        Pattern::Diagonal { falling: false } => (1.0 - u + v) / 2.0,
        Pattern::Stripes { count, phase, tilt, along_x } => {
            let (main, other) = if along_x { (u, v) } else { (v, u) };
            soft_edges(wave((main + tilt as f32 * other) * count as f32 + phase as f32))
        }
        Pattern::Checker { count, phase } => {
            let (count, phase) = (count as f32 / 2.0, phase as f32);
            let (a, b) = (wave(u * across * count + phase), wave(v * down * count + phase));
            // Both high or both low make one color: the sign of the product.
            soft_edges(0.5 + 2.0 * (a - 0.5) * (b - 0.5))
        }
        Pattern::Noise { seed, cells } => {
            noise(seed, u * across * cells as f32, v * down * cells as f32)
        }
    }
}

/// A smooth wave of period 1 between 0 and 1, made of parabolas: a sine differs between machines.
fn wave(t: f32) -> f32 {
    let t = t - t.floor();
    if t < 0.5 {
        let s = 2.0 * t;
        0.5 + 2.0 * s * (1.0 - s)
    } else {
        let s = 2.0 * t - 1.0;
        0.5 - 2.0 * s * (1.0 - s)
    }
}

/// Flattens the tops and the bottoms of a wave.
fn soft_edges(t: f32) -> f32 {
    (0.5 + (t - 0.5) * 2.5).clamp(0.0, 1.0)
}

/// Value noise: random at the corners of a unit grid, bilinear between.
fn noise(seed: u64, x: f32, y: f32) -> f32 {
    let corner = |cx: u64, cy: u64| {
        let mut state = seed ^ cx.wrapping_mul(0x9e37_79b1) ^ (cy.wrapping_mul(0x85eb_ca77) << 32);
        (splitmix64(&mut state) >> 40) as f32 / (1u64 << 24) as f32
    };
    let (cx, cy) = (x.floor(), y.floor());
    let (fx, fy) = (x - cx, y - cy);
    let (cx, cy) = (cx as u64, cy as u64);
    let top = corner(cx, cy) * (1.0 - fx) + corner(cx + 1, cy) * fx;
    let bottom = corner(cx, cy + 1) * (1.0 - fx) + corner(cx + 1, cy + 1) * fx;
    top * (1.0 - fy) + bottom * fy
}
