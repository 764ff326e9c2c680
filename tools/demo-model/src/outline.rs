//! Outlines: the shapes as SVG paths, and how much two paths cover together.
//!
//! A path is read in parts of a box and lies in parts of the picture from then on. Curves become
//! `CURVE_STEPS` lines; what is inside is decided by winding, as SVG does unless told otherwise.

use crate::render::STAR;
use crate::scene::{CROSS_HALF_ARM, Shape};

/// A cubic curve with handles this long, in radii, is a quarter of a circle to 0.03 %.
const QUARTER_HANDLE: f64 = 0.552_284_749_830_793_4;
const CURVE_STEPS: usize = 24;
/// Lines on which two outlines are compared; along each the comparison is exact.
const LINES: usize = 512;

impl Shape {
    /// The outline as an SVG path in parts of the box: clockwise from the top, or the top left.
    pub fn outline(self) -> String {
        let polygon = |corners: &[(f64, f64)]| {
            let [first, rest @ ..] = corners else { return String::new() };
            let rest: Vec<String> = rest.iter().copied().map(pair).collect();
            format!("M {} L {} Z", pair(*first), rest.join(" "))
        };
        match self {
            Self::Circle => {
                let (low, high) =
                    ((1.0 - QUARTER_HANDLE) / 2.0, f64::midpoint(1.0, QUARTER_HANDLE));
                let curves = [
                    [(high, 0.0), (1.0, low), (1.0, 0.5)],
                    [(1.0, high), (high, 1.0), (0.5, 1.0)],
                    [(low, 1.0), (0.0, high), (0.0, 0.5)],
                    [(0.0, low), (low, 0.0), (0.5, 0.0)],
                ];
                let curves: Vec<String> = curves.into_iter().flatten().map(pair).collect();
                format!("M {} C {} Z", pair((0.5, 0.0)), curves.join(" "))
            }
            Self::Square => polygon(&[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]),
            Self::Triangle => polygon(&[(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]),
            Self::Star => {
                let [half_w, half_h] = self.half_extent();
                let corner =
                    |(x, y): (f64, f64)| (x / half_w / 2.0 + 0.5, (y + 1.0) / half_h / 2.0);
                polygon(&STAR.map(corner))
            }
            Self::Cross => {
                let (low, high) =
                    ((1.0 - CROSS_HALF_ARM) / 2.0, f64::midpoint(1.0, CROSS_HALF_ARM));
                polygon(&[
                    (low, 0.0),
                    (high, 0.0),
                    (high, low),
                    (1.0, low),
                    (1.0, high),
                    (high, high),
                    (high, 1.0),
                    (low, 1.0),
                    (low, high),
                    (0.0, high),
                    (0.0, low),
                    (low, low),
                ])
            }
        }
    }
}

fn pair((x, y): (f64, f64)) -> String {
    let short = |part: f64| (part * 1e5).round() / 1e5;
    format!("{} {}", short(x), short(y))
}

/// What a path encloses, as closed polygons in parts of the picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outline(Vec<Vec<[f64; 2]>>);

impl Outline {
    /// Reads an SVG path of the commands `M L H V C S Q T Z`, absolute or relative, in parts of `bounds`.
    pub fn parse(path: &str, bounds: [f64; 4]) -> Result<Self, String> {
        let mut reader = Reader { rest: path };
        let mut pen = Pen::default();
        let mut command = None;
        while let Some(word) = reader.word()? {
            let letter = match (word, command) {
                (Word::Command(letter), _) => letter,
                // Numbers that follow go on with the same command, those of a move as lines.
                (Word::Number(_), Some('M')) => 'L',
                (Word::Number(_), Some('m')) => 'l',
                (Word::Number(_), Some(letter)) if letter != 'Z' && letter != 'z' => letter,
                (Word::Number(value), _) => return Err(format!("{value} follows no command")),
            };
            let mut first = match word {
                Word::Command(_) => None,
                Word::Number(value) => Some(value),
            };
            pen.draw(letter, || match first.take() {
                Some(value) => Ok(value),
                None => reader.number(letter),
            })?;
            command = Some(letter);
        }
        let [x0, y0, x1, y1] = bounds;
        let place = |[x, y]: [f64; 2]| [x0 + x * (x1 - x0), y0 + y * (y1 - y0)];
        let polygons = pen.polygons.into_iter().map(|corners| corners.into_iter().map(place));
        Ok(Self(polygons.map(Iterator::collect).collect()))
    }

    /// Intersection over union; 0 of outlines without area.
    pub fn iou(&self, other: &Self) -> f64 {
        let corners = || self.0.iter().chain(&other.0).flatten().map(|corner| corner[1]);
        let top = corners().fold(f64::INFINITY, f64::min);
        let bottom = corners().fold(f64::NEG_INFINITY, f64::max);
        let (mut both, mut either) = (0.0, 0.0);
        for line in 0..LINES {
            let y = top + (bottom - top) * (line as f64 + 0.5) / LINES as f64;
            let (a, b) = (self.spans(y), other.spans(y));
            let common = common(&a, &b);
            both += common;
            either += length(&a) + length(&b) - common;
        }
        if both > 0.0 { both / either } else { 0.0 }
    }

    /// What is inside on line `y`, from left to right.
    fn spans(&self, y: f64) -> Vec<(f64, f64)> {
        let mut crossings: Vec<(f64, i32)> = Vec::new();
        for corners in &self.0 {
            for (at, &[x0, y0]) in corners.iter().enumerate() {
                let [x1, y1] = corners[(at + 1) % corners.len()];
                if (y0 <= y) != (y1 <= y) {
                    let x = x0 + (x1 - x0) * (y - y0) / (y1 - y0);
                    crossings.push((x, if y0 <= y { 1 } else { -1 }));
                }
            }
        }
        crossings.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut spans, mut winding, mut start) = (Vec::new(), 0, 0.0);
        for (x, turn) in crossings {
            if winding == 0 {
                start = x;
            }
            winding += turn;
            if winding == 0 {
                spans.push((start, x));
            }
        }
        spans
    }
}

fn length(spans: &[(f64, f64)]) -> f64 {
    spans.iter().map(|(start, end)| end - start).sum()
}

fn common(a: &[(f64, f64)], b: &[(f64, f64)]) -> f64 {
    let overlap = |p: &(f64, f64), q: &(f64, f64)| (p.1.min(q.1) - p.0.max(q.0)).max(0.0);
    a.iter().flat_map(|p| b.iter().map(move |q| overlap(p, q))).sum()
}

#[derive(Debug, Clone, Copy)]
enum Word {
    Command(char),
    Number(f64),
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn word(&mut self) -> Result<Option<Word>, String> {
        self.rest = self.rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        if first.is_alphabetic() {
            self.rest = &self.rest[first.len_utf8()..];
            return Ok(Some(Word::Command(first)));
        }
        let ends = |(at, c): &(usize, char)| {
            *at != 0 && !matches!(c, '0'..='9' | '.')
                || *at == 0 && !matches!(c, '0'..='9' | '.' | '-' | '+')
        };
        let end = self.rest.char_indices().find(ends).map_or(self.rest.len(), |(at, _)| at);
        let (number, rest) = self.rest.split_at(end);
        let value = number.parse().map_err(|_| format!("{first:?} begins no number"))?;
        self.rest = rest;
        Ok(Some(Word::Number(value)))
    }

    fn number(&mut self, command: char) -> Result<f64, String> {
        match self.word()? {
            Some(Word::Number(value)) => Ok(value),
            _ => Err(format!("{command} lacks a number")),
        }
    }
}

/// Draws a path.
#[derive(Default)]
struct Pen {
    polygons: Vec<Vec<[f64; 2]>>,
    at: [f64; 2],
    /// Where the running polygon began.
    start: [f64; 2],
    /// The last handle of a curve that was just drawn, and how many handles it has.
    handle: Option<(usize, [f64; 2])>,
}

impl Pen {
    fn draw(
        &mut self,
        command: char,
        mut number: impl FnMut() -> Result<f64, String>,
    ) -> Result<(), String> {
        let from = if command.is_ascii_lowercase() { self.at } else { [0.0; 2] };
        let mut point = || Ok::<_, String>([from[0] + number()?, from[1] + number()?]);
        let reflected = |pen: &Self, handles| match pen.handle {
            Some((of, [x, y])) if of == handles => [2.0 * pen.at[0] - x, 2.0 * pen.at[1] - y],
            _ => pen.at,
        };
        let mut handle = None;
        match command.to_ascii_uppercase() {
            'M' => {
                self.start = point()?;
                self.at = self.start;
                self.polygons.push(vec![self.start]);
            }
            'L' => {
                let to = point()?;
                self.line(to);
            }
            'H' => self.line([from[0] + number()?, self.at[1]]),
            'V' => self.line([self.at[0], from[1] + number()?]),
            'C' | 'S' => {
                let first =
                    if command.eq_ignore_ascii_case(&'C') { point()? } else { reflected(self, 2) };
                let second = point()?;
                let to = point()?;
                self.curve(&[first, second], to);
                handle = Some((2, second));
            }
            'Q' | 'T' => {
                let only =
                    if command.eq_ignore_ascii_case(&'Q') { point()? } else { reflected(self, 1) };
                let to = point()?;
                self.curve(&[only], to);
                handle = Some((1, only));
            }
            'Z' => self.at = self.start,
            _ => return Err(format!("{command:?} is no command that is read here")),
        }
        self.handle = handle;
        Ok(())
    }

    fn line(&mut self, to: [f64; 2]) {
        // After the end of a polygon, or with no beginning, the next one begins where the pen is.
        if self.polygons.is_empty() {
            self.polygons.push(vec![self.at]);
        }
        if let Some(polygon) = self.polygons.last_mut() {
            polygon.push(to);
        }
        self.at = to;
    }

    fn curve(&mut self, handles: &[[f64; 2]], to: [f64; 2]) {
        let control: Vec<[f64; 2]> =
            [self.at].iter().chain(handles).chain([&to]).copied().collect();
        for step in 1..=CURVE_STEPS {
            let t = step as f64 / CURVE_STEPS as f64;
            let mut points = control.clone();
            // De Casteljau: between neighbors again and again until one is left.
            while points.len() > 1 {
                let between = |w: &[[f64; 2]]| {
                    [w[0][0] + (w[1][0] - w[0][0]) * t, w[0][1] + (w[1][1] - w[0][1]) * t]
                };
                points = points.windows(2).map(between).collect();
            }
            self.line(points[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::spans;

    const UNIT: [f64; 4] = [0.0, 0.0, 1.0, 1.0];

    fn read(path: &str) -> Outline {
        Outline::parse(path, UNIT).unwrap()
    }

    #[test]
    fn outlines_enclose_what_is_drawn() {
        for shape in Shape::ALL {
            let outline = read(&shape.outline());
            let [half_w, half_h] = shape.half_extent();
            for line in 0..100 {
                let y = (f64::from(line) + 0.5) / 100.0;
                let drawn = spans(shape, 1.0, 0.0, (2.0 * y - 1.0) * half_h);
                let drawn = drawn.map(|(x0, x1)| (x0 / half_w + 1.0, x1 / half_w + 1.0));
                let drawn = drawn.map(|(x0, x1)| (x0 / 2.0, x1 / 2.0));
                let found = outline.spans(y);
                let (length, common) = (length(&drawn), common(&drawn, &found));
                let excess = self::length(&found) - common;
                assert!(
                    length - common < 4e-3 && excess < 4e-3,
                    "{shape}, {y}: {found:?} {drawn:?}"
                );
            }
        }
    }

    #[test]
    fn commands_draw_the_same_figure_in_other_words() {
        let square = read("M 0 0 L 1 0 1 1 0 1 Z");
        for path in ["M0 0H1V1H0Z", "m0,0 h1 v1 h-1 z", "M 0 0 1 0 1 1 0 1", "M1 1L0 1L0 0L1 0Z"] {
            assert!((read(path).iou(&square) - 1.0).abs() < 1e-9, "{path}");
        }
        let circle = read(&Shape::Circle.outline());
        let short = "M.5 0C.776 0 1 .224 1 .5S.776 1 .5 1 0 .776 0 .5 .224 0 .5 0Z";
        assert!(read(short).iou(&circle) > 0.999);
        let round = "M .5 0 Q 1 0 1 .5 T .5 1 T 0 .5 T .5 0 Z";
        assert!((0.85..0.999).contains(&read(round).iou(&circle)));
    }

    #[test]
    fn two_outlines_are_compared_by_area() {
        let square = read("M0 0H1V1H0Z");
        assert!((square.iou(&read("M0 0H1V.5H0Z")) - 0.5).abs() < 2e-3);
        assert!((square.iou(&read("M.5 0H1.5V1H.5Z")) - 1.0 / 3.0).abs() < 1e-9);
        let hole = "M0 0H1V1H0Z M.25 .25V.75H.75V.25Z"; // Wound the other way.
        assert!((square.iou(&read(hole)) - 0.75).abs() < 2e-3);
        let twice = "M0 0H1V1H0Z M.25 .25H.75V.75H.25Z";
        assert!((square.iou(&read(twice)) - 1.0).abs() < 1e-9);
        let apart = Outline::parse("M0 0H1V1H0Z", [2.0, 0.0, 3.0, 1.0]).unwrap();
        assert!(square.iou(&apart).abs() < 1e-9);
        assert!(Outline::default().iou(&Outline::default()).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_path_is_told() {
        for (path, why) in [
            ("1 2", "1 follows no command"),
            ("M 0 0 Z 1", "1 follows no command"),
            ("M 0 0 L 1", "L lacks a number"),
            ("M 0 0 L 1 M", "L lacks a number"),
            ("M 0 0 A 1 1 0 0 0 1 1", "'A' is no command"),
            ("M 0 0 L 1 ?", "'?' begins no number"),
        ] {
            let error = Outline::parse(path, UNIT).unwrap_err();
            assert!(error.contains(why), "{path}: {error}");
        }
    }
}
