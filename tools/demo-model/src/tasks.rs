//! What is asked about a scene, and the true answers.
//!
//! Tasks have random numbers of their own, so that a new way of asking changes no picture.
//! Questions are asked only where they have one answer: the color of the circle, when there is one
//! circle.

use serde::{Deserialize, Serialize};

use crate::rng::Rng;
use crate::scene::{Color, Object, Scene, Shape};

/// How long a caption is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// The objects and the text.
    Short,
    /// And where they are.
    Normal,
    /// And how large, and what lies behind.
    Long,
}

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueryKind {
    /// The color of the only object of a shape.
    Color,
    /// The shape of the only object of a color.
    Shape,
    /// How many, of all or of some kind.
    Count,
    /// Whether one object is left of, right of, above or below another.
    Relation,
    /// What is written.
    Text,
}

/// Something to ask of a model, and the truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "skill", rename_all = "lowercase")]
pub enum Task {
    /// Describe the picture.
    Caption {
        /// How long.
        length: Length,
        /// The model caption.
        answer: String,
    },
    /// Answer a question.
    Query {
        /// What it is about.
        kind: QueryKind,
        /// The question.
        question: String,
        /// The answer: a word, a number, `Yes` or `No`.
        answer: String,
    },
    /// Find the boxes of all objects of a kind.
    Detect {
        /// What to look for.
        object: String,
        /// `[x_min, y_min, x_max, y_max]`, normalized, by the x of their centers.
        boxes: Vec<[f64; 4]>,
    },
    /// Point at all objects of a kind.
    Point {
        /// What to look for.
        object: String,
        /// The centers `[x, y]`, normalized, by x.
        points: Vec<[f64; 2]>,
        /// The boxes of the same objects, in the same order.
        boxes: Vec<[f64; 4]>,
    },
    /// Outline the only object of a kind.
    Segment {
        /// What to outline.
        object: String,
        /// Its whole outline as an SVG path, in parts of its box.
        path: String,
        /// Its tight box `[x_min, y_min, x_max, y_max]`, normalized.
        #[serde(rename = "box")]
        bounds: [f64; 4],
    },
}

/// An object as the records tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// What it is.
    pub shape: Shape,
    /// What its color is called.
    pub color: Color,
    /// Its tight box `[x_min, y_min, x_max, y_max]`, normalized.
    #[serde(rename = "box")]
    pub bounds: [f64; 4],
}

/// A text as the records tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextRecord {
    /// What is written.
    pub value: String,
    /// The tight box of its ink, normalized.
    #[serde(rename = "box")]
    pub bounds: [f64; 4],
}

/// All the truth about one picture, as `demo-pictures` writes it in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SceneRecord {
    /// The seed.
    pub seed: u64,
    /// Native width in pixels.
    pub width: u32,
    /// Native height in pixels.
    pub height: u32,
    /// What is in it, from left to right.
    pub objects: Vec<ObjectRecord>,
    /// What is written, if anything.
    pub text: Option<TextRecord>,
    /// What to ask.
    pub tasks: Vec<Task>,
}

/// Keeps the tasks' random numbers apart from the picture's.
const TASK_STREAM: u64 = 0x7461_736b_735f_7631;
/// Keeps those of outlines apart from the other tasks', which were there before them.
const SEGMENT_STREAM: u64 = 0x7365_676d_656e_7431;
const QUESTIONS_PER_KIND: usize = 2;
const DETECTS: usize = 3;
const POINTS: usize = 2;
const SEGMENTS: usize = 2;
/// Part of the questions whose honest answer is "nothing" or "none".
const ABSENT: f64 = 0.2;
/// Least difference of centers, normalized, for one object to be left of or above another.
const CLEARLY_APART: f64 = 0.12;

impl Scene {
    /// The scene, its truth and its tasks.
    pub fn record(&self) -> SceneRecord {
        let boxes = (0..self.objects.len()).map(|at| self.object_box(at));
        let objects = self.objects.iter().zip(boxes);
        let text = self.text.as_ref().zip(self.text_box());
        SceneRecord {
            seed: self.seed,
            width: self.width,
            height: self.height,
            objects: objects
                .map(|(o, bounds)| ObjectRecord { shape: o.shape, color: o.color, bounds })
                .collect(),
            text: text.map(|(text, bounds)| TextRecord { value: text.value.clone(), bounds }),
            tasks: self.tasks(),
        }
    }

    /// Three captions, up to two questions of each kind that applies, three detects, two points and up
    /// to two outlines.
    pub fn tasks(&self) -> Vec<Task> {
        let mut rng = Rng::new(self.seed ^ TASK_STREAM);
        let lengths = [Length::Short, Length::Normal, Length::Long];
        let mut tasks: Vec<Task> = lengths
            .into_iter()
            .map(|length| Task::Caption { length, answer: self.caption(length) })
            .collect();
        tasks.extend(self.queries(&mut rng));
        for object in self.phrases(&mut rng, DETECTS) {
            let (wanted, phrase) = object;
            let boxes = self.matching(wanted).map(|at| self.object_box(at)).collect();
            tasks.push(Task::Detect { object: phrase, boxes });
        }
        for (wanted, object) in self.phrases(&mut rng, POINTS) {
            let boxes: Vec<[f64; 4]> =
                self.matching(wanted).map(|at| self.object_box(at)).collect();
            tasks.push(Task::Point { object, points: boxes.iter().map(center).collect(), boxes });
        }
        tasks.extend(self.segments());
        tasks
    }

    /// Outlines of objects that a color, a shape or both single out.
    fn segments(&self) -> Vec<Task> {
        let mut rng = Rng::new(self.seed ^ SEGMENT_STREAM);
        let mut single: Vec<(usize, Wanted)> = Vec::new();
        for (at, object) in self.objects.iter().enumerate() {
            let (color, shape) = (object.color, object.shape);
            let mut names = vec![Wanted::Both(color, shape); 2];
            names.extend([Wanted::Shape(shape), Wanted::Color(color)]);
            names.retain(|name| self.count(*name) == 1);
            if !names.is_empty() {
                single.push((at, *rng.pick(&names)));
            }
        }
        rng.shuffle(&mut single);
        let asked = single.into_iter().take(SEGMENTS);
        asked
            .map(|(at, wanted)| {
                let phrase = wanted.phrase(&mut rng, false);
                let object = if rng.chance(0.1) { capitalized(&phrase) } else { phrase };
                let path = self.objects[at].shape.outline();
                Task::Segment { object, path, bounds: self.object_box(at) }
            })
            .collect()
    }

    /// The model caption.
    pub fn caption(&self, length: Length) -> String {
        let long = length == Length::Long;
        let mut named: Vec<(Shape, Color)> = Vec::new();
        let mut parts: Vec<String> = Vec::new();
        for (at, object) in self.objects.iter().enumerate() {
            let pair = (object.shape, object.color);
            let size = match (long, object.large) {
                (false, _) => "",
                (true, true) => "large ",
                (true, false) => "small ",
            };
            let noun = format!("{size}{} {}", object.color, object.shape);
            let article = if named.contains(&pair) { "another" } else { article(&noun) };
            named.push(pair);
            let place = match length {
                Length::Short => String::new(),
                _ => format!(" {}", place(center(&self.object_box(at)))),
            };
            parts.push(format!("{article} {noun}{place}"));
        }
        let written = self.text.as_ref().map(|text| {
            format!("the {} {}", if text.is_number() { "number" } else { "word" }, text.value)
        });
        if length == Length::Short {
            parts.extend(written);
            return format!("{}.", capitalized(&list(&parts)));
        }
        let count = ["no", "one", "two", "three", "four"][parts.len()];
        let noun = if parts.len() == 1 { "shape" } else { "shapes" };
        let background = self.background.color_name();
        let behind = match long {
            true => format!(" on {} {background} background", article(background)),
            false => String::new(),
        };
        let sentence = match written.zip(self.text_box()) {
            Some((text, bounds)) => {
                format!(" {} is written {}.", capitalized(&text), place(center(&bounds)))
            }
            None => String::new(),
        };
        format!("A picture of {count} {noun}{behind}: {}.{sentence}", list(&parts))
    }

    fn queries(&self, rng: &mut Rng) -> Vec<Task> {
        let mut found: Vec<(QueryKind, String, String)> = Vec::new();
        let mut add = |kind, asked: Vec<(String, String)>| {
            found.extend(asked.into_iter().map(|(question, answer)| (kind, question, answer)));
        };
        add(QueryKind::Color, self.color_questions(rng));
        add(QueryKind::Shape, self.shape_questions(rng));
        add(QueryKind::Count, self.count_questions(rng));
        add(QueryKind::Relation, self.relation_questions(rng));
        add(QueryKind::Text, self.text_questions(rng));
        let vary = |(kind, question, answer): (QueryKind, String, String)| Task::Query {
            kind,
            question: reworded(rng, question),
            answer,
        };
        found.into_iter().map(vary).collect()
    }

    fn color_questions(&self, rng: &mut Rng) -> Vec<(String, String)> {
        let mut unique: Vec<&Object> =
            self.objects.iter().filter(|o| self.count(Wanted::Shape(o.shape)) == 1).collect();
        rng.shuffle(&mut unique);
        let asked = unique.into_iter().take(QUESTIONS_PER_KIND);
        asked
            .map(|object| {
                let shape = object.shape;
                let question = match rng.below(4) {
                    0 => format!("What is the color of the {shape}?"),
                    1 => format!("Which color is the {shape}?"),
                    2 => format!("What color does the {shape} have?"),
                    _ => format!("What color is the {shape}?"),
                };
                (question, capitalized(object.color.name()))
            })
            .collect()
    }

    fn shape_questions(&self, rng: &mut Rng) -> Vec<(String, String)> {
        let mut unique: Vec<&Object> =
            self.objects.iter().filter(|o| self.count(Wanted::Color(o.color)) == 1).collect();
        rng.shuffle(&mut unique);
        let asked = unique.into_iter().take(QUESTIONS_PER_KIND);
        asked
            .map(|object| {
                let color = object.color;
                let question = match rng.below(4) {
                    0 => format!("What is the shape of the {color} object?"),
                    1 => format!("Which shape is {color}?"),
                    2 => format!("What is the {color} object?"),
                    _ => format!("What shape is the {color} object?"),
                };
                (question, capitalized(object.shape.name()))
            })
            .collect()
    }

    fn count_questions(&self, rng: &mut Rng) -> Vec<(String, String)> {
        // One question about all shapes or about one kind, the other always about one kind.
        let all = Wanted::All;
        let wanted = [if rng.chance(0.5) { all } else { self.wanted(rng) }, self.wanted(rng)];
        wanted
            .into_iter()
            .map(|wanted| {
                let things = wanted.phrase(rng, true);
                let question = match rng.below(4) {
                    0 => format!("How many {things} can you see?"),
                    1 => format!("How many {things} are in the picture?"),
                    2 => format!("Count the {things}."),
                    _ => format!("How many {things} are there?"),
                };
                (question, self.count(wanted).to_string())
            })
            .collect()
    }

    fn relation_questions(&self, rng: &mut Rng) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for (a, first) in self.objects.iter().enumerate() {
            for (b, second) in self.objects.iter().enumerate() {
                let named = [first, second].map(|o| self.count(Wanted::Both(o.color, o.shape)));
                let ([ax, ay], [bx, by]) =
                    (center(&self.object_box(a)), center(&self.object_box(b)));
                if a == b || named != [1, 1] {
                    continue;
                }
                if (ax - bx).abs() > CLEARLY_APART {
                    pairs.push((first, second, ["left", "right"], ax < bx));
                }
                if (ay - by).abs() > CLEARLY_APART {
                    pairs.push((first, second, ["above", "below"], ay < by));
                }
            }
        }
        rng.shuffle(&mut pairs);
        let asked = pairs.into_iter().take(QUESTIONS_PER_KIND);
        asked
            .map(|(first, second, words, first_holds)| {
                // The answer is drawn first, so that it cannot be guessed from the wording.
                let yes = rng.chance(0.5);
                let word = if yes == first_holds { words[0] } else { words[1] };
                let relation = match (word, rng.chance(0.6)) {
                    ("left" | "right", true) => format!("to the {word} of"),
                    ("left" | "right", false) => format!("{word} of"),
                    (_, true) => word.to_owned(),
                    ("above", false) => "higher than".to_owned(),
                    (_, false) => "lower than".to_owned(),
                };
                let [first, second] = [first, second].map(|object| self.short_name(rng, object));
                let question = format!("Is the {first} {relation} the {second}?");
                (question, if yes { "Yes" } else { "No" }.to_owned())
            })
            .collect()
    }

    fn text_questions(&self, rng: &mut Rng) -> Vec<(String, String)> {
        let answer = self.text.as_ref().map_or("Nothing", |text| text.value.as_str());
        let mut ways = [
            "What is written?",
            "What does the text say?",
            "What is written in the picture?",
            "Read the text.",
        ];
        rng.shuffle(&mut ways);
        let asked = ways.iter().take(QUESTIONS_PER_KIND);
        asked.map(|question| ((*question).to_owned(), answer.to_owned())).collect()
    }

    /// `red circle`, or now and then `circle` where that is enough.
    fn short_name(&self, rng: &mut Rng, object: &Object) -> String {
        if self.count(Wanted::Shape(object.shape)) == 1 && rng.chance(0.3) {
            object.shape.to_string()
        } else {
            format!("{} {}", object.color, object.shape)
        }
    }

    /// `most` different things to look for, with a phrase for each.
    fn phrases(&self, rng: &mut Rng, most: usize) -> Vec<(Wanted, String)> {
        let mut chosen: Vec<(Wanted, String)> = Vec::new();
        while chosen.len() < most {
            let wanted = if rng.chance(0.12) { Wanted::All } else { self.wanted(rng) };
            if chosen.iter().any(|(other, _)| *other == wanted) {
                continue;
            }
            let plural = rng.chance(0.2);
            let phrase = wanted.phrase(rng, plural);
            chosen.push((wanted, if rng.chance(0.1) { capitalized(&phrase) } else { phrase }));
        }
        chosen
    }

    /// Some kind of object: one that is there, or, one time in five, one that is not.
    fn wanted(&self, rng: &mut Rng) -> Wanted {
        let absent = rng.chance(ABSENT);
        loop {
            let mut object = || rng.below(self.objects.len());
            // An absent pair is mostly made of a color and a shape that are both there.
            let (mut color, mut shape) = (self.objects[object()].color, {
                let at = object();
                self.objects[at].shape
            });
            if absent && rng.chance(0.5) {
                color = *rng.pick(&Color::ALL);
            }
            if absent && rng.chance(0.5) {
                shape = *rng.pick(&Shape::ALL);
            }
            let wanted = match rng.below(10) {
                0..=3 => Wanted::Shape(shape),
                4..=7 => Wanted::Both(color, shape),
                _ => Wanted::Color(color),
            };
            if (self.count(wanted) == 0) == absent {
                return wanted;
            }
        }
    }

    fn matching(&self, wanted: Wanted) -> impl Iterator<Item = usize> {
        let holds = move |at: &usize| wanted.holds(&self.objects[*at]);
        (0..self.objects.len()).filter(holds)
    }

    fn count(&self, wanted: Wanted) -> usize {
        self.matching(wanted).count()
    }
}

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Shape(Shape),
    Color(Color),
    Both(Color, Shape),
}

impl Wanted {
    fn holds(self, object: &Object) -> bool {
        match self {
            Self::All => true,
            Self::Shape(shape) => object.shape == shape,
            Self::Color(color) => object.color == color,
            Self::Both(color, shape) => (object.color, object.shape) == (color, shape),
        }
    }

    fn phrase(self, rng: &mut Rng, plural: bool) -> String {
        let noun = |shape: Shape| if plural { shape.plural() } else { shape.name() };
        let thing = match (rng.chance(0.3), plural) {
            (false, false) => "shape",
            (false, true) => "shapes",
            (true, false) => "object",
            (true, true) => "objects",
        };
        match self {
            Self::All => thing.to_owned(),
            Self::Shape(shape) => noun(shape).to_owned(),
            Self::Color(color) => format!("{color} {thing}"),
            Self::Both(color, shape) => format!("{color} {}", noun(shape)),
        }
    }
}

/// The same question as another person would type it.
fn reworded(rng: &mut Rng, question: String) -> String {
    let mut question = question;
    if rng.chance(0.25) {
        question = question.replace("color", "colour");
    }
    if rng.chance(0.15) {
        question.pop();
    }
    if rng.chance(0.2) { question.to_lowercase() } else { question }
}

fn center(bounds: &[f64; 4]) -> [f64; 2] {
    let middle = |low: f64, high: f64| ((low + high) / 2.0 * 1e5).round() / 1e5;
    [middle(bounds[0], bounds[2]), middle(bounds[1], bounds[3])]
}

/// The ninth of the picture a point lies in, in words.
fn place([x, y]: [f64; 2]) -> &'static str {
    let third = |at: f64| if at < 1.0 / 3.0 { 0 } else { 1 + usize::from(at > 2.0 / 3.0) };
    [
        ["at the top left", "at the top", "at the top right"],
        ["on the left", "in the center", "on the right"],
        ["at the bottom left", "at the bottom", "at the bottom right"],
    ][third(y)][third(x)]
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// `a, b and c`.
fn list(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}
