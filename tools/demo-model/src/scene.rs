//! What is in a picture, and how a seed decides it.
//!
//! Geometry is in native pixels (`f64`) of a picture of `width` x `height`; boxes leave this module
//! normalized to `[0, 1]` on each axis. Objects never overlap each other or the text, lie wholly
//! inside, are listed from left to right, and contrast with every color of the background.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::font;
use crate::rng::Rng;

/// A box `[x_min, y_min, x_max, y_max]`.
pub(crate) type Rect = [f64; 4];

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the variants are their own names")]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 5] =
        [Self::Circle, Self::Square, Self::Triangle, Self::Star, Self::Cross];

    /// The noun, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Cross => "cross",
        }
    }

    /// The noun for several, in lower case.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Star => "stars",
            Self::Cross => "crosses",
        }
    }

    /// Half width, and half height, of the box of a shape of radius 1.
    pub(crate) fn half_extent(self) -> [f64; 2] {
        match self {
            Self::Circle | Self::Cross => [1.0, 1.0],
            Self::Square => [SQUARE_HALF_SIDE, SQUARE_HALF_SIDE],
            Self::Triangle => [1.0, 0.75 * TRIANGLE_CIRCUMRADIUS],
            Self::Star => [STAR_COS_18, (1.0 + STAR_COS_36) / 2.0],
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Half the side of a square of radius 1: smaller than the circle's, so that the areas are alike.
pub(crate) const SQUARE_HALF_SIDE: f64 = 0.9;
/// Half the width of a cross's arm.
pub(crate) const CROSS_HALF_ARM: f64 = 0.34;
/// 2 / sqrt(3): the circumradius of the equilateral triangle that is 2 wide.
pub(crate) const TRIANGLE_CIRCUMRADIUS: f64 = 1.154_700_538_379_251_5;
pub(crate) const STAR_COS_18: f64 = 0.951_056_516_295_153_5;
pub(crate) const STAR_COS_36: f64 = 0.809_016_994_374_947_5;

/// The color an object is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the variants are their own names")]
pub enum Color {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Orange,
    Black,
    White,
}

impl Color {
    /// Every color.
    pub const ALL: [Self; 8] = [
        Self::Red,
        Self::Green,
        Self::Blue,
        Self::Yellow,
        Self::Purple,
        Self::Orange,
        Self::Black,
        Self::White,
    ];

    /// The adjective, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::Orange => "orange",
            Self::Black => "black",
            Self::White => "white",
        }
    }

    fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [216, 34, 38],
            Self::Green => [36, 158, 62],
            Self::Blue => [36, 84, 222],
            Self::Yellow => [244, 220, 36],
            Self::Purple => [138, 44, 176],
            Self::Orange => [244, 136, 22],
            Self::Black => [18, 18, 20],
            Self::White => [246, 246, 244],
        }
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One shape in the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// What it is.
    pub shape: Shape,
    /// What its color is called.
    pub color: Color,
    /// The very color it is filled with.
    pub rgb: [u8; 3],
    /// The color of a thin outline inside its edge, where it has one.
    pub outline: Option<[u8; 3]>,
    /// The center of its box, in native pixels.
    pub center: [f64; 2],
    /// Half its size, in native pixels.
    pub radius: f64,
    /// Whether captions call it large; the radii of small and large ones are well apart.
    pub large: bool,
}

impl Object {
    /// The tight box in native pixels.
    pub(crate) fn bounds(&self) -> Rect {
        let [half_w, half_h] = self.shape.half_extent().map(|half| half * self.radius);
        let [x, y] = self.center;
        [x - half_w, y - half_h, x + half_w, y + half_h]
    }
}

/// The word or number in the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// What is written: capital letters or digits.
    pub value: String,
    /// The color of the letters.
    pub rgb: [u8; 3],
    /// Top left corner of the first letter's 5 x 7 cells, in native pixels.
    pub origin: [f64; 2],
    /// The side of one cell, in native pixels; letters are seven cells high.
    pub cell: f64,
}

impl Text {
    /// Whether it is a number rather than a word.
    pub fn is_number(&self) -> bool {
        self.value.bytes().all(|byte| byte.is_ascii_digit())
    }

    /// The tight box of the ink in native pixels.
    pub(crate) fn bounds(&self) -> Rect {
        let runs = font::runs(&self.value);
        let first = runs.iter().map(|run| run.1).min().unwrap_or(0);
        let end = runs.iter().map(|run| run.2).max().unwrap_or(0);
        let [x, y] = self.origin;
        [
            x + first as f64 * self.cell,
            y,
            x + end as f64 * self.cell,
            y + font::GLYPH_HEIGHT as f64 * self.cell,
        ]
    }
}

/// How a background mixes its two colors.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the fields say how the pattern is laid out")]
pub enum Pattern {
    /// The first color only.
    Solid,
    /// From left to right.
    Horizontal,
    /// From top to bottom.
    Vertical,
    /// From one corner to the opposite one; `falling` starts at the top left.
    Diagonal { falling: bool },
    /// Soft stripes; `tilt` is how far they move along x, in pictures, from top to bottom.
    Stripes { count: f64, phase: f64, tilt: f64, along_x: bool },
    /// A soft chessboard of `count` squares along the shorter side.
    Checker { count: f64, phase: f64 },
    /// Smooth noise on a grid of `cells` squares per side.
    Noise { seed: u64, cells: u32 },
}

/// What lies behind the objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Background {
    /// How the two colors are laid out.
    pub pattern: Pattern,
    /// The two colors; every other color of the background lies between them.
    pub colors: [[u8; 3]; 2],
}

impl Background {
    /// What captions call its color: the nearest of a few names to the mean of the two colors.
    pub fn color_name(&self) -> &'static str {
        let [a, b] = self.colors;
        let mean = match self.pattern {
            Pattern::Solid => a,
            _ => std::array::from_fn(|i| u8::midpoint(a[i], b[i])),
        };
        let nearest = BACKGROUNDS.iter().min_by_key(|(_, rgb)| distance_squared(*rgb, mean));
        nearest.map_or("gray", |(name, _)| name)
    }
}

/// The muted colors backgrounds are made from.
const BACKGROUNDS: [(&str, [u8; 3]); 8] = [
    ("gray", [150, 150, 148]),
    ("dark gray", [70, 72, 76]),
    ("brown", [118, 84, 58]),
    ("beige", [214, 194, 160]),
    ("pink", [226, 176, 188]),
    ("teal", [76, 124, 126]),
    ("light blue", [164, 196, 222]),
    ("olive", [122, 122, 72]),
];

/// The words that can be written in a picture.
pub const WORDS: [&str; 16] = [
    "STOP", "OPEN", "SALE", "EXIT", "TAXI", "CAFE", "HOTEL", "BUS", "BANK", "MENU", "PARK", "FREE",
    "NEW", "HELLO", "PIZZA", "ZOO",
];

const MIN_SIDE: (usize, usize) = (240, 640);
/// Least distance of any object's color to any color of the background, in RGB.
const OBJECT_CONTRAST: u32 = 95;
const TEXT_CONTRAST: u32 = 140;
/// Radii as parts of the shorter side, small and large.
const RADII: [(f64, f64); 2] = [(0.10, 0.145), (0.165, 0.21)];
/// Least gap between boxes, and to the picture's edge, as a part of the shorter side.
const GAP: f64 = 0.025;
/// Least difference of any two objects' x, as a part of the width.
const MIN_X_APART: f64 = 0.03;
const JITTER: i32 = 14;

/// A picture before it has pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// The seed it was drawn from.
    pub seed: u64,
    /// Native width in pixels.
    pub width: u32,
    /// Native height in pixels.
    pub height: u32,
    /// What lies behind.
    pub background: Background,
    /// One to four objects, by the x of their centers.
    pub objects: Vec<Object>,
    /// What is written, if anything.
    pub text: Option<Text>,
}

impl Scene {
    /// The scene that `seed` stands for.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        loop {
            // A draw fails when its objects cannot be placed; about one in twenty does.
            if let Some(scene) = draw(seed, &mut rng) {
                return scene;
            }
        }
    }

    /// The tight box of object `at`, normalized.
    pub fn object_box(&self, at: usize) -> [f64; 4] {
        self.normalize(self.objects[at].bounds())
    }

    /// The tight box of the text's ink, normalized.
    pub fn text_box(&self) -> Option<[f64; 4]> {
        self.text.as_ref().map(|text| self.normalize(text.bounds()))
    }

    /// Native pixels to `[0, 1]`, rounded to 1e-5: shorter to write, and 0.01 pixels at most.
    fn normalize(&self, rect: Rect) -> [f64; 4] {
        let sides = [f64::from(self.width), f64::from(self.height)];
        std::array::from_fn(|i| (rect[i] / sides[i % 2] * 1e5).round() / 1e5)
    }
}

fn draw(seed: u64, rng: &mut Rng) -> Option<Scene> {
    let min_side = MIN_SIDE.0 + rng.below(MIN_SIDE.1 - MIN_SIDE.0 + 1);
    let long_side = (min_side as f64 * rng.range(1.0, 4.0 / 3.0)).round() as usize;
    let (width, height) =
        if rng.chance(0.5) { (long_side, min_side) } else { (min_side, long_side) };
    let (width, height) = (width as u32, height as u32);
    let background = draw_background(rng);
    let text =
        if rng.chance(0.4) { Some(draw_text(rng, &background, width, height)?) } else { None };
    let most = if text.is_some() { 3 } else { 4 };
    let num_objects = 1 + rng.below(most);
    let mut scene = Scene { seed, width, height, background, objects: Vec::new(), text };
    for _ in 0..num_objects {
        let object = (0..80).find_map(|_| draw_object(rng, &scene, num_objects))?;
        scene.objects.push(object);
    }
    scene.objects.sort_by(|a, b| a.center[0].total_cmp(&b.center[0]));
    Some(scene)
}

fn draw_background(rng: &mut Rng) -> Background {
    let (_, base) = *rng.pick(&BACKGROUNDS);
    let first = jitter(rng, base);
    let pattern = match rng.below(7) {
        0 => Pattern::Solid,
        1 => Pattern::Horizontal,
        2 => Pattern::Vertical,
        3 => Pattern::Diagonal { falling: rng.chance(0.5) },
        4 => Pattern::Stripes {
            count: rng.range(3.0, 9.0),
            phase: rng.range(0.0, 1.0),
            tilt: *rng.pick(&[0.0, 0.0, 1.0, -1.0, 0.5]),
            along_x: rng.chance(0.5),
        },
        5 => Pattern::Checker { count: rng.range(3.0, 8.0), phase: rng.range(0.0, 1.0) },
        _ => Pattern::Noise { seed: rng.next_u64(), cells: 12 + rng.below(36) as u32 },
    };
    // Patterns stay softer than gradients, so that their cells do not look like objects.
    let spread = match pattern {
        Pattern::Horizontal | Pattern::Vertical | Pattern::Diagonal { .. } => rng.range(20.0, 44.0),
        _ => rng.range(12.0, 26.0),
    };
    let spread = if rng.chance(0.5) { spread } else { -spread };
    let second = first.map(|channel| (f64::from(channel) + spread).clamp(0.0, 255.0) as u8);
    Background { pattern, colors: [first, second] }
}

fn draw_text(rng: &mut Rng, behind: &Background, width: u32, height: u32) -> Option<Text> {
    let value = match rng.below(4) {
        0 => rng.below(10).to_string(),
        1 => (10 + rng.below(90)).to_string(),
        _ => (*rng.pick(&WORDS)).to_owned(),
    };
    let inks = [[16, 16, 18], [248, 248, 248], [20, 28, 104]];
    let readable: Vec<[u8; 3]> =
        inks.into_iter().filter(|ink| contrasts(*ink, behind, TEXT_CONTRAST)).collect();
    if readable.is_empty() {
        return None;
    }
    let rgb = *rng.pick(&readable);
    let (width, height) = (f64::from(width), f64::from(height));
    let cells = (value.len() * font::ADVANCE - 1) as f64;
    let cell =
        (rng.range(0.15, 0.22) * height / font::GLYPH_HEIGHT as f64).min(0.6 * width / cells);
    let margin = GAP * width.min(height);
    let x = rng.range(margin, width - margin - cells * cell);
    let room = height - font::GLYPH_HEIGHT as f64 * cell - margin;
    // Signs are mostly at the top or the bottom, which also leaves more room for objects.
    let y = match rng.below(4) {
        0 => rng.range(margin, room),
        1 => rng.range(margin + 0.75 * (room - margin), room),
        _ => rng.range(margin, margin + 0.25 * (room - margin)),
    };
    Some(Text { value, rgb, origin: [x, y], cell })
}

/// One try; `None` when the object would touch another or could not be told from what is there.
fn draw_object(rng: &mut Rng, scene: &Scene, num_objects: usize) -> Option<Object> {
    let (width, height) = (f64::from(scene.width), f64::from(scene.height));
    let min_side = width.min(height);
    let shape = *rng.pick(&Shape::ALL);
    let color = *rng.pick(&Color::ALL);
    let rgb = jitter(rng, color.rgb());
    if !contrasts(rgb, &scene.background, OBJECT_CONTRAST) {
        return None;
    }
    // Many objects are rarely large together: the tries would be in vain.
    let large = rng.chance(if num_objects < 3 { 0.5 } else { 0.4 });
    let (low, high) = RADII[usize::from(large)];
    let radius = min_side * rng.range(low, high);
    let outline = (rng.chance(0.2) && color != Color::Black)
        .then(|| rgb.map(|channel| (f64::from(channel) * 0.55) as u8));
    let gap = GAP * min_side;
    let [half_w, half_h] = shape.half_extent().map(|half| half * radius);
    let center = [
        rng.range(half_w + gap, width - half_w - gap),
        rng.range(half_h + gap, height - half_h - gap),
    ];
    let object = Object { shape, color, rgb, outline, center, radius, large };

    let bounds = object.bounds();
    let blocked =
        scene.objects.iter().map(Object::bounds).chain(scene.text.iter().map(Text::bounds));
    if blocked.into_iter().any(|other| overlap(bounds, other, gap)) {
        return None;
    }
    let too_close = |other: &Object| (other.center[0] - center[0]).abs() < MIN_X_APART * width;
    (!scene.objects.iter().any(too_close)).then_some(object)
}

fn overlap(a: Rect, b: Rect, gap: f64) -> bool {
    a[0] < b[2] + gap && b[0] < a[2] + gap && a[1] < b[3] + gap && b[1] < a[3] + gap
}

fn jitter(rng: &mut Rng, rgb: [u8; 3]) -> [u8; 3] {
    rgb.map(|channel| {
        let by = rng.below(2 * JITTER as usize + 1) as i32 - JITTER;
        (i32::from(channel) + by).clamp(0, 255) as u8
    })
}

fn contrasts(rgb: [u8; 3], behind: &Background, least: u32) -> bool {
    behind.colors.iter().all(|other| distance_squared(rgb, *other) >= least * least)
}

fn distance_squared(a: [u8; 3], b: [u8; 3]) -> u32 {
    (0..3).map(|i| u32::from(a[i].abs_diff(b[i])).pow(2)).sum()
}
