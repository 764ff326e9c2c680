//! SVG paths to rings of points, for outlines.
//!
//! Curves and arcs become short lines. Every subpath is a ring: what a path leaves open is closed, as
//! filling it would. What is no path is skipped over.

type Point = (f32, f32);

/// Lines of a Bézier curve, and of an arc all around: an outline that spans 1000 pixels is off by less than
/// one.
const CURVE_LINES: usize = 48;
const TURN_LINES: f32 = 96.0;

/// The rings of a path whose coordinates are parts of a box, `[x_min, y_min, x_max, y_max]`.
pub(crate) fn rings(path: &str, [x_min, y_min, x_max, y_max]: [f32; 4]) -> Vec<Vec<(f32, f32)>> {
    let mut pen = Pen::default();
    let mut words = path.split_ascii_whitespace().peekable();
    while let Some(word) = words.next() {
        let mut numbers = Vec::new();
        while let Some(number) = words.peek().and_then(|word| word.parse().ok()) {
            numbers.push(number);
            words.next();
        }
        word.chars().for_each(|letter| pen.draw(letter, &numbers));
    }
    let place = |&(x, y): &Point| (x_min + x * (x_max - x_min), y_min + y * (y_max - y_min));
    pen.rings.iter().map(|ring| ring.iter().map(place).collect()).collect()
}

/// A path under way.
#[derive(Debug, Default)]
struct Pen {
    rings: Vec<Vec<Point>>,
    /// Where the subpath began.
    start: Point,
    at: Point,
    /// Whether the last ring is the subpath's.
    drawing: bool,
    /// The last control point of the curve just drawn, which a smooth one (S, T) mirrors.
    control: Option<(char, Point)>,
}

impl Pen {
    /// Draws a command as often as there are arguments for it.
    fn draw(&mut self, letter: char, mut numbers: &[f32]) {
        let mut command = letter.to_ascii_uppercase();
        if command == 'Z' {
            (self.at, self.drawing, self.control) = (self.start, false, None);
        }
        loop {
            let origin = if letter.is_ascii_lowercase() { self.at } else { (0.0, 0.0) };
            let to = |x, y| add(origin, (x, y));
            numbers = match (command, numbers) {
                ('M', &[x, y, ref rest @ ..]) => {
                    (self.at, self.drawing, self.control) = (to(x, y), false, None);
                    self.start = self.at;
                    // Where several points follow an M, those after the first are lines.
                    command = 'L';
                    rest
                }
                ('L', &[x, y, ref rest @ ..]) => {
                    self.line(to(x, y));
                    rest
                }
                ('H', &[x, ref rest @ ..]) => {
                    self.line((to(x, 0.0).0, self.at.1));
                    rest
                }
                ('V', &[y, ref rest @ ..]) => {
                    self.line((self.at.0, to(0.0, y).1));
                    rest
                }
                ('C', &[x1, y1, x2, y2, x, y, ref rest @ ..]) => {
                    self.cubic(to(x1, y1), to(x2, y2), to(x, y));
                    rest
                }
                ('S', &[x2, y2, x, y, ref rest @ ..]) => {
                    self.cubic(self.mirrored('C'), to(x2, y2), to(x, y));
                    rest
                }
                ('Q', &[x1, y1, x, y, ref rest @ ..]) => {
                    self.quadratic(to(x1, y1), to(x, y));
                    rest
                }
                ('T', &[x, y, ref rest @ ..]) => {
                    self.quadratic(self.mirrored('Q'), to(x, y));
                    rest
                }
                ('A', &[rx, ry, degrees, large, sweep, x, y, ref rest @ ..]) => {
                    self.arc((rx, ry), degrees, large != 0.0, sweep != 0.0, to(x, y));
                    rest
                }
                _ => return,
            };
        }
    }

    fn go(&mut self, to: Point) {
        if !self.drawing {
            self.rings.push(vec![self.at]);
            self.drawing = true;
        }
        self.rings.last_mut().expect("there is one while drawing").push(to);
        self.at = to;
    }

    fn line(&mut self, to: Point) {
        self.go(to);
        self.control = None;
    }

    fn cubic(&mut self, p1: Point, p2: Point, p3: Point) {
        let p0 = self.at;
        for i in 1..=CURVE_LINES {
            let t = i as f32 / CURVE_LINES as f32;
            let [p01, p12, p23] = [mix(p0, p1, t), mix(p1, p2, t), mix(p2, p3, t)];
            self.go(mix(mix(p01, p12, t), mix(p12, p23, t), t));
        }
        self.control = Some(('C', p2));
    }

    fn quadratic(&mut self, control: Point, to: Point) {
        self.cubic(mix(self.at, control, 2.0 / 3.0), mix(to, control, 2.0 / 3.0), to);
        self.control = Some(('Q', control));
    }

    /// The control point that makes a curve go on smoothly after one of its kind.
    fn mirrored(&self, kind: char) -> Point {
        match self.control {
            Some((last, control)) if last == kind => mix(control, self.at, 2.0),
            _ => self.at,
        }
    }

    /// SVG 1.1, appendix F.6, with the ellipse stretched to a circle of radius 1 first.
    fn arc(&mut self, radii: Point, degrees: f32, large: bool, sweep: bool, to: Point) {
        let (rx, ry) = (radii.0.abs(), radii.1.abs());
        if rx == 0.0 || ry == 0.0 {
            return self.line(to);
        }
        let (sin, cos) = degrees.to_radians().sin_cos();
        let stretched = |(x, y): Point| ((cos * x + sin * y) / rx, (cos * y - sin * x) / ry);
        let original = |(x, y): Point| {
            let (x, y) = (x * rx, y * ry);
            (cos * x - sin * y, sin * x + cos * y)
        };
        let (a, b) = (stretched(self.at), stretched(to));
        let half = mix(a, b, 0.5);
        let away = (a.0 - half.0, a.1 - half.1);
        let distance = away.0.hypot(away.1);
        if distance == 0.0 {
            return self.line(to);
        }
        // Radii too small to reach are too small by a factor.
        let radius = distance.max(1.0);
        let side = if large == sweep { -1.0 } else { 1.0 };
        let aside = side * (radius * radius - distance * distance).sqrt() / distance;
        let center = add(half, (aside * away.1, -aside * away.0));
        let angle = |p: Point| (p.1 - center.1).atan2(p.0 - center.0);
        let (from, turn) = (angle(a), std::f32::consts::TAU);
        let swept = (angle(b) - from).rem_euclid(turn) - if sweep { 0.0 } else { turn };
        let lines = (swept.abs() / turn * TURN_LINES).ceil().max(1.0);
        for i in 1..lines as usize {
            let (sin, cos) = (from + swept * i as f32 / lines).sin_cos();
            self.go(original(add(center, (radius * cos, radius * sin))));
        }
        self.line(to);
    }
}

fn add(a: Point, b: Point) -> Point {
    (a.0 + b.0, a.1 + b.1)
}

/// `a` at 0, `b` at 1.
fn mix(a: Point, b: Point, t: f32) -> Point {
    (a.0 + (b.0 - a.0) * t, a.1 + (b.1 - a.1) * t)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [f32; 4] = [0.0, 0.0, 1.0, 1.0];

    /// By the shoelace formula; positive if it turns clockwise on a screen.
    fn area(ring: &[Point]) -> f32 {
        let next = ring.iter().cycle().skip(1);
        ring.iter().zip(next).map(|(a, b)| a.0 * b.1 - b.0 * a.1).sum::<f32>() / 2.0
    }

    #[track_caller]
    fn area_is(path: &str, expected: f32) {
        let rings = rings(path, ALL);
        assert_eq!(rings.len(), 1, "{path}");
        let got = area(&rings[0]);
        assert!((got - expected).abs() < 2e-3, "{path}: {got}, expected {expected}");
    }

    #[test]
    fn lines_are_taken_as_they_are_and_put_into_the_box() {
        let square = vec![(0.2, 0.4), (0.4, 0.4), (0.4, 0.8), (0.2, 0.8)];
        for path in [
            "M 0 0 L 1 0 L 1 1 L 0 1 Z",
            "M 0 0 1 0 1 1 0 1",
            "M 0 0 H 1 V 1 H 0 Z",
            "m 0 0 h 1 v 1 h -1 z",
            "m 0 0 1 0 0 1 -1 0",
        ] {
            let got = rings(path, [0.2, 0.4, 0.4, 0.8]);
            assert_eq!(got.len(), 1, "{path}");
            for (got, want) in got[0].iter().zip(&square) {
                let apart = (got.0 - want.0).hypot(got.1 - want.1);
                assert!(apart < 1e-6 && got.0.is_finite(), "{path}: {got:?}, expected {want:?}");
            }
            assert_eq!(got[0].len(), 4, "{path}");
        }
    }

    #[test]
    fn after_a_subpath_is_closed_the_next_begins_where_it_began() {
        let two = rings("M 0 0 L 1 0 L 1 1 Z m 0.5 0 l 0.25 0 L 0.5 1 Z L 0 1", ALL);
        let starts: Vec<Point> = two.iter().map(|ring| ring[0]).collect();
        assert_eq!(starts, [(0.0, 0.0), (0.5, 0.0), (0.5, 0.0)]);
        assert_eq!(two[1], [(0.5, 0.0), (0.75, 0.0), (0.5, 1.0)]);
    }

    #[test]
    fn curves_enclose_what_they_should() {
        // Two thirds of the triangle of its points.
        area_is("M 0 1 Q 0.5 0 1 1 Z", 1.0 / 3.0);
        area_is("M 0 0.5 Q 0.25 0 0.5 0.5 T 1 0.5 Z", 0.0);
        // The usual approximation of a circle by four curves.
        let k = 0.2761;
        let circle = format!(
            "M 1 0.5 C 1 {a} {a} 1 0.5 1 S 0 {a} 0 0.5 S {b} 0 0.5 0 S 1 {b} 1 0.5 Z",
            a = 0.5 + k,
            b = 0.5 - k
        );
        area_is(&circle, std::f32::consts::PI / 4.0);
    }

    #[test]
    fn arcs_turn_the_right_way_around_the_right_center() {
        let pi = std::f32::consts::PI;
        let half = |flags: &str| format!("M 0 0.5 A 0.5 0.5 0 {flags} 1 0.5 Z");
        // Clockwise on a screen, over the top, encloses a positive area.
        area_is(&half("0 1"), pi / 8.0);
        area_is(&half("0 0"), -pi / 8.0);
        let quarter = |flags: &str| format!("M 0.5 0 A 0.5 0.5 0 {flags} 1 0.5 L 0.5 0.5 Z");
        area_is(&quarter("0 1"), pi / 16.0);
        // Three quarters of a circle around (1, 0), and the square that is missing.
        area_is(&quarter("1 1"), 0.75 * pi / 4.0 + 0.25);
        // An ellipse twice as wide as high, whole, and turned by a right angle.
        area_is("M 0 0.5 A 0.5 0.25 0 1 1 1 0.5 A 0.5 0.25 0 1 1 0 0.5 Z", pi / 8.0);
        area_is("M 0.5 0 A 0.5 0.25 90 1 1 0.5 1 A 0.5 0.25 90 1 1 0.5 0 Z", pi / 8.0);
        // Too small to reach is made as large as it must be; no radius is a line.
        area_is("M 0 0.5 A 0.1 0.1 0 0 1 1 0.5 Z", pi / 8.0);
        area_is("M 0 0 A 0 1 0 0 1 1 0 L 1 1 Z", 0.5);
    }

    #[test]
    fn nonsense_is_skipped_over() {
        for path in ["", "Z", "M", "M 1", "L 1", "x y", "M 0 0 A 0 0 0 0 0 0 0", "1 2 3", "M é 1 2"]
        {
            assert!(rings(path, ALL).iter().flatten().all(|(x, y)| x.is_finite() && y.is_finite()));
        }
        assert_eq!(rings("M 0.5 0.5", ALL), Vec::<Vec<Point>>::new());
        assert_eq!(rings("M 0 0 L 1 1 L 1", ALL), [[(0.0, 0.0), (1.0, 1.0)]]);
    }
}
