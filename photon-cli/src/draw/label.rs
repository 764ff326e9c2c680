//! Labels: dark text on a plate of the mark's color.
//!
//! A label lies inside the picture whatever happens: it moves in, shrinks, loses its end to an
//! ellipsis, and on a picture too small to read anything on it is left out.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};

use super::brush::Brush;
use super::{Canvas, Rect};

/// Hack, an open typeface made for screens.
static FONT: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(epaint_default_fonts::HACK_REGULAR).expect("the embedded font is good")
});

const TEXT_COLOR: [u8; 3] = [16, 16, 20];
const PLATE_OPACITY: f32 = 0.92;
const RIM_COLOR: [u8; 3] = [12, 12, 16];
const RIM_OPACITY: f32 = 0.45;

/// Below this many pixels a line of text cannot be read.
const SMALLEST_TEXT: f32 = 7.0;

/// Longest label drawn; what a model says can be any length.
const MAX_CHARS: usize = 60;

/// Writes a line of text; what is outside the picture is cut off.
pub(super) fn text(
    canvas: &mut Canvas<'_>,
    text: &str,
    (mut x, baseline): (f32, f32),
    size: f32,
    color: [u8; 3],
) {
    let (width, height) = (canvas.width as f32, canvas.height as f32);
    let scale = PxScale::from(size);
    let font = FONT.as_scaled(scale);
    for c in text.chars() {
        let glyph = font.glyph_id(c).with_scale_and_position(scale, point(x, baseline.round()));
        x += font.h_advance(glyph.id);
        let Some(outline) = FONT.outline_glyph(glyph) else { continue };
        let corner = outline.px_bounds().min;
        outline.draw(|dx, dy, covered| {
            let (px, py) = (corner.x + dx as f32, corner.y + dy as f32);
            if (0.0..width).contains(&px) && (0.0..height).contains(&py) {
                canvas.blend(px as usize, py as usize, color, covered);
            }
        });
    }
}

/// The labels of one picture, so that they can keep off each other.
pub(super) struct Labels {
    /// Height of a line of text in pixels.
    text_size: f32,
    /// Room between a shape and its label.
    gap: f32,
    placed: Vec<Rect>,
}

impl Labels {
    /// For a picture whose width and height have the geometric mean `size`.
    pub(super) fn for_size(size: f32, brush: &Brush) -> Self {
        Self {
            text_size: (size / 40.0).clamp(13.0, 200.0),
            gap: brush.thickness / 2.0,
            placed: Vec::new(),
        }
    }

    /// Draws the label of a shape that spans `bounds`.
    pub(super) fn draw(
        &mut self,
        canvas: &mut Canvas<'_>,
        text: &str,
        color: [u8; 3],
        bounds: Rect,
    ) {
        let text = clean(text);
        let (width, height) = (canvas.width as f32, canvas.height as f32);
        // The plate is 1.35 lines high and pads the text by 0.35 lines on both sides.
        let text_size = self.text_size.min(height / 1.35);
        if text.is_empty() || text_size < SMALLEST_TEXT {
            return;
        }
        let padding = text_size * 0.35;
        let Some((text, text_width)) = fit(&text, text_size, width - 2.0 * padding) else { return };
        let size = ((text_width + 2.0 * padding).ceil(), (text_size * 1.35).ceil().min(height));
        let plate = self.place(size, bounds, (width, height));
        self.placed.push(plate);

        let rim = (text_size / 16.0).max(1.0);
        let round = text_size * 0.25;
        canvas.plate(plate.grown(rim), round + rim, RIM_COLOR, RIM_OPACITY);
        canvas.plate(plate, round, color, PLATE_OPACITY);
        let scale = PxScale::from(text_size);
        let font = FONT.as_scaled(scale);
        let baseline = plate.top + (size.1 - font.ascent() + font.descent()) / 2.0 + font.ascent();
        self::text(canvas, &text, (plate.left + padding, baseline), text_size, TEXT_COLOR);
    }

    /// Where a plate of that size goes: the first place near the shape that is inside the picture
    /// and off other labels, or else the first that is inside when moved there.
    fn place(&self, (width, height): (f32, f32), bounds: Rect, picture: (f32, f32)) -> Rect {
        let (gap, step) = (self.gap, height + self.gap);
        let (above, below) = (bounds.top - gap - height, bounds.bottom + gap);
        let (left, right) = (bounds.left - gap, bounds.right + gap - width);
        let middle = (bounds.top + bounds.bottom - height) / 2.0;
        let inside = [
            (bounds.left + gap, bounds.top + gap),
            (bounds.left + gap, bounds.bottom - gap - height),
        ];
        // In a large shape a label hides little, and is nearer its corner than one underneath.
        let roomy =
            bounds.right - bounds.left > 2.0 * width && bounds.bottom - bounds.top > 3.0 * height;
        let under = [(left, below), (right, below)];
        let candidates = [(left, above), (right, above)]
            .into_iter()
            .chain(if roomy { [inside, under] } else { [under, inside] }.into_iter().flatten())
            .chain([(bounds.right + gap, middle), (bounds.left - gap - width, middle)])
            .chain((1..6).flat_map(|i| {
                let away = i as f32 * step;
                [(left, above - away), (left, below + away)]
            }));
        let clamped = |(left, top): (f32, f32)| {
            let left = left.min(picture.0 - width).max(0.0).round();
            let top = top.min(picture.1 - height).max(0.0).round();
            Rect { left, top, right: left + width, bottom: top + height }
        };
        let free = |rect: &Rect| !self.placed.iter().any(|other| rect.overlaps(*other));
        // Moving sideways is fine; moving up or down would cover what the label is about.
        let fits = |&(_, top): &(f32, f32)| top >= 0.0 && top + height <= picture.1;
        let mut fitting = candidates.filter(fits).map(clamped);
        let first = fitting.clone().next().unwrap_or_else(|| clamped(inside[0]));
        fitting.find(free).unwrap_or(first)
    }
}

/// One line of printable characters.
fn clean(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).collect()
}

/// As much of `text` as is at most `room` wide, and its width; none if not even one letter is.
fn fit(text: &str, text_size: f32, room: f32) -> Option<(String, f32)> {
    let font = FONT.as_scaled(PxScale::from(text_size));
    let width_of =
        |text: &str| -> f32 { text.chars().map(|c| font.h_advance(font.glyph_id(c))).sum() };
    if text.chars().count() <= MAX_CHARS && width_of(text) <= room {
        return Some((text.to_string(), width_of(text)));
    }
    let mut chars: Vec<char> = text.chars().take(MAX_CHARS).collect();
    while chars.pop().is_some() && !chars.is_empty() {
        let cut = format!("{}\u{2026}", String::from_iter(&chars).trim_end());
        if width_of(&cut) <= room {
            let width = width_of(&cut);
            return Some((cut, width));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_fit_or_end_in_an_ellipsis() {
        let check = |text: &str, room: f32, expected: Option<&str>| {
            let fitted = fit(&clean(text), 20.0, room);
            assert_eq!(fitted.as_ref().map(|(text, _)| text.as_str()), expected, "{text}");
            assert!(fitted.is_none_or(|(_, width)| width <= room));
        };
        check("cat", 100.0, Some("cat"));
        check("a very long description", 100.0, Some("a very l\u{2026}"));
        check("two\nlines\tand  gaps", 500.0, Some("two lines and gaps"));
        check("cat", 5.0, None);
        let long = "x".repeat(100);
        check(&long, 10_000.0, Some(&format!("{}\u{2026}", "x".repeat(MAX_CHARS - 1))));
    }

    #[test]
    fn a_label_is_inside_the_picture_and_off_the_others() {
        let brush = Brush::for_size(400.0);
        let mut labels = Labels::for_size(400.0, &brush);
        let corner = Rect { left: 390.0, top: 0.0, right: 400.0, bottom: 10.0 };
        let mut plates: Vec<Rect> = Vec::new();
        for _ in 0..4 {
            let plate = labels.place((120.0, 18.0), corner, (400.0, 400.0));
            assert!(plate.left >= 0.0 && plate.right <= 400.0);
            assert!(plate.top >= 0.0 && plate.bottom <= 400.0);
            labels.placed.push(plate);
            plates.push(plate);
        }
        for (i, plate) in plates.iter().enumerate() {
            assert!(plates[..i].iter().all(|other| !plate.overlaps(*other)), "label {i}");
        }
        // A shape that fills the picture leaves room only inside itself.
        let all = Rect { left: 0.0, top: 0.0, right: 400.0, bottom: 400.0 };
        let plate = Labels::for_size(400.0, &brush).place((120.0, 18.0), all, (400.0, 400.0));
        assert!(plate.top < 5.0 && plate.left < 5.0);
    }
}
