//! Charts for benchmarks: bars, lines or dots with axes, grid, labels and a legend, anti-aliased.
//!
//! They stand for the pictures of chart questions: large plain areas, thin lines, small text. The
//! same seed and size give the same pixels on every machine. What they say means nothing.

use super::{Canvas, PALETTE, Rect, brush, label};
use crate::rng::Rng;

const INK: [u8; 3] = [52, 52, 60];
const GRID: [u8; 3] = [214, 216, 222];

const WORDS: [&str; 16] = [
    "Revenue", "Export", "Rainfall", "Visitors", "Energy", "Income", "Births", "Harvest",
    "Traffic", "Tourism", "Steel", "Cotton", "Storage", "Demand", "Yield", "Output",
];

/// Draws a chart, `[height, width, 3]`.
pub(crate) fn chart(rng: &mut Rng, width: u32, height: u32) -> Vec<u8> {
    let mut pixels = vec![0; width as usize * height as usize * 3];
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.copy_from_slice(&[250, 250, 247]);
    }
    let mut chart = Chart::new(Canvas::new(width, height, &mut pixels), rng);
    chart.frame(rng);
    let series = rng.between(2, 5) as usize;
    match rng.between(0, 3) {
        0 => chart.bars(rng, series),
        1 => chart.lines(rng, series),
        _ => chart.dots(rng, series),
    }
    chart.legend(rng, series);
    pixels
}

struct Chart<'a> {
    canvas: Canvas<'a>,
    /// Where the data is.
    plot: Rect,
    /// Height of small text.
    text: f32,
    groups: usize,
    /// The number at the top of the axis.
    most: u32,
}

impl<'a> Chart<'a> {
    fn new(canvas: Canvas<'a>, rng: &mut Rng) -> Self {
        let (width, height) = (canvas.width as f32, canvas.height as f32);
        let text = (width.min(height) / 34.0).clamp(9.0, 18.0);
        let plot = Rect {
            left: text * 4.5,
            top: text * 3.5,
            right: width - text * 1.5,
            bottom: height - text * 4.5,
        };
        Chart { canvas, plot, text, groups: rng.between(5, 13) as usize, most: 0 }
    }

    fn write(&mut self, text: &str, left: f32, baseline: f32, size: f32) {
        label::text(&mut self.canvas, text, (left, baseline), size, INK);
    }

    /// The left edge of group `i`.
    fn group(&self, i: usize) -> f32 {
        self.plot.left + (self.plot.right - self.plot.left) * i as f32 / self.groups as f32
    }

    /// `value`, 0 to 1, as a height.
    fn level(&self, value: f32) -> f32 {
        self.plot.bottom - (self.plot.bottom - self.plot.top) * value
    }

    /// Title, grid, axes and their numbers.
    fn frame(&mut self, rng: &mut Rng) {
        let year = rng.between(1950, 2020);
        let title = format!("{} and {}, {year}", rng.pick(&WORDS), rng.pick(&WORDS).to_lowercase());
        self.write(&title, self.plot.left, self.text * 2.2, self.text * 1.4);
        let step = rng.pick(&[5, 10, 20, 25, 50, 100, 250]);
        let ticks = rng.between(4, 9);
        self.most = ticks * step;
        let plot = self.plot;
        for i in 0..=ticks {
            let y = self.level(i as f32 / ticks as f32).round() + 0.5;
            brush::line(&mut self.canvas, (plot.left, y), (plot.right, y), 1.0, GRID);
            let number = (i * step).to_string();
            // The typeface's letters are 0.53 of its size wide.
            let left = plot.left - self.text * (0.5 + 0.53 * number.len() as f32);
            self.write(&number, left, y + self.text * 0.35, self.text);
        }
        let corner = (plot.left, plot.bottom);
        brush::line(&mut self.canvas, (plot.left, plot.top), corner, 1.6, INK);
        brush::line(&mut self.canvas, corner, (plot.right, plot.bottom), 1.6, INK);
        for i in 0..self.groups {
            // Every second year where there is little room.
            if plot.right - plot.left > self.groups as f32 * self.text * 2.6 || i % 2 == 0 {
                let name = (year + i as u32).to_string();
                self.write(&name, self.group(i) + 2.0, plot.bottom + self.text * 1.3, self.text);
            }
        }
    }

    fn bars(&mut self, rng: &mut Rng, series: usize) {
        let width = (self.group(1) - self.group(0)) * 0.8 / series as f32;
        for i in 0..self.groups {
            for (j, color) in PALETTE.iter().take(series).enumerate() {
                let left = self.group(i) + width * (0.2 + j as f32);
                let value = 0.05 + 0.9 * rng.unit();
                let top = self.level(value);
                let bar = Rect { left, top, right: left + width * 0.92, bottom: self.plot.bottom };
                self.canvas.plate(bar, 1.5, *color, 1.0);
                if width > self.text {
                    let value = (value * self.most as f32).round().to_string();
                    self.write(&value, left, top - 2.0, self.text * 0.75);
                }
            }
        }
    }

    fn lines(&mut self, rng: &mut Rng, series: usize) {
        for color in PALETTE.iter().take(series) {
            let mut value = 0.1 + 0.8 * rng.unit();
            let mut last = None;
            for i in 0..self.groups * 3 {
                let along = self.group(1) - self.group(0);
                let x = self.plot.left + along * (i as f32 / 3.0 + 0.15);
                value = (value + 0.3 * (rng.unit() - 0.5)).clamp(0.02, 0.98);
                let at = (x, self.level(value));
                if let Some(last) = last {
                    brush::line(&mut self.canvas, last, at, 2.2, *color);
                }
                self.dot(at, 3.2, *color);
                last = Some(at);
            }
        }
    }

    fn dots(&mut self, rng: &mut Rng, series: usize) {
        for color in PALETTE.iter().take(series) {
            let (start, end) = (0.15 + 0.7 * rng.unit(), 0.15 + 0.7 * rng.unit());
            for _ in 0..rng.between(80, 200) {
                let x = rng.unit();
                let noise = rng.unit() + rng.unit() - 1.0;
                let value = start + (end - start) * x + 0.14 * noise;
                let at = self.plot.left + (self.plot.right - self.plot.left) * x;
                let size = 1.8 + 2.0 * rng.unit();
                self.dot((at, self.level(value)), size, *color);
            }
        }
    }

    fn dot(&mut self, (x, y): (f32, f32), radius: f32, color: [u8; 3]) {
        let around = Rect { left: x, top: y, right: x, bottom: y }.grown(radius);
        self.canvas.plate(around, radius, color, 0.9);
    }

    fn legend(&mut self, rng: &mut Rng, series: usize) {
        let room = (self.plot.right - self.plot.left) / series as f32;
        let y = self.canvas.height as f32 - self.text * 1.1;
        let first = rng.between(0, 16) as usize;
        for (i, color) in PALETTE.iter().take(series).enumerate() {
            let left = self.plot.left + room * i as f32;
            let size = self.text * 0.8;
            let key = Rect { left, top: y - size, right: left + size, bottom: y };
            self.canvas.plate(key, 2.0, *color, 1.0);
            self.write(WORDS[(first + 5 * i) % WORDS.len()], left + self.text * 1.2, y, self.text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_chart_at_any_size() {
        for (width, height) in [(800, 600), (310, 300), (60, 40), (1, 1), (2000, 30)] {
            let draw = |seed| chart(&mut Rng::new(seed, 0), width, height);
            assert_eq!(draw(1), draw(1));
            if width > 100 && height > 100 {
                assert_ne!(draw(1), draw(2));
            }
        }
    }
}
