//! What a caller asks for, and the prompt it becomes.
//!
//! A sequence is BOS, the image's positions if there is an image, then the inputs made here. Sources:
//! Moondream 2's `moondream.py` for the order of marks, `config.json` for their ids.
use crate::{
    config::{Config, Family},
    tokenizer::{Tokenizer, TokenizerError},
};

/// What to do with the picture.
#[derive(Clone, Debug, PartialEq)]
pub enum Skill {
    /// Answer a question, with or without a picture.
    Query {
        /// The question.
        question: String,
        /// Whether to reason first, pointing at what the reasoning speaks of.
        reasoning: bool,
        /// Places in the picture the question is about.
        spatial_refs: Vec<SpatialRef>,
    },
    /// Describe the picture.
    Caption {
        /// How much to say.
        length: CaptionLength,
    },
    /// Find every instance of something, as boxes.
    Detect {
        /// What to find.
        object: String,
    },
    /// Find every instance of something, as points.
    Point {
        /// What to find.
        object: String,
        /// Places in the picture to look at.
        spatial_refs: Vec<SpatialRef>,
    },
    /// Outline something, as an SVG path inside of its box.
    Segment {
        /// What to outline.
        object: String,
        /// Places in the picture that say which one.
        spatial_refs: Vec<SpatialRef>,
    },
    /// Find what somebody looks at.
    Gaze {
        /// Where the eyes are: x, y, each in `[0, 1]`.
        eye: [f32; 2],
    },
}

/// How much a caption says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CaptionLength {
    /// A sentence.
    Short,
    /// A few sentences.
    #[default]
    Normal,
    /// Everything.
    Long,
}

/// A place in the picture, in fractions of its width and height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SpatialRef {
    /// x, y.
    Point([f32; 2]),
    /// x_min, y_min, x_max, y_max.
    Box([f32; 4]),
}

impl SpatialRef {
    /// From 2 or 4 numbers in `[0, 1]`, a box's ordered. `index` is only for the message.
    pub fn from_values(index: usize, values: &[f32]) -> Result<Self, Rejected> {
        let wrong = |why: &'static str| Rejected::SpatialRef { index, why };
        if values.iter().any(|v| !(0.0..=1.0).contains(v)) {
            return Err(wrong("values must be between 0 and 1"));
        }
        match *values {
            [x, y] => Ok(SpatialRef::Point([x, y])),
            [x0, y0, x1, y1] if x0 <= x1 && y0 <= y1 => Ok(SpatialRef::Box([x0, y0, x1, y1])),
            [_, _, _, _] => Err(wrong("must be ordered x_min,y_min,x_max,y_max")),
            _ => Err(wrong("must contain 2 (point) or 4 (bbox) values")),
        }
    }
}

/// One position of a sequence, before embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Input {
    /// A row of the token embedding.
    Token(u32),
    /// A row of the projected image features.
    Image(u32),
    /// A coordinate, encoded.
    Coord(f32),
    /// A width and a height, encoded.
    Size([f32; 2]),
}

/// Why a request cannot be run. Others are not affected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// An empty question.
    #[error("the question is empty")]
    EmptyQuestion,
    /// An empty object.
    #[error("the object to look for is empty")]
    EmptyObject,
    /// Segment, of a model that cannot.
    #[error(
        "segment needs Moondream 3, such as --model moondream3-preview; this model's config.json has no \
         templates.segment"
    )]
    CannotSegment,
    /// A skill that looks at a picture, without one.
    #[error("{0} needs an image")]
    NeedsImage(&'static str),
    /// A spatial reference that is none.
    #[error("spatial_refs[{index}] {why}")]
    SpatialRef {
        /// Which.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// Eyes outside of the picture.
    #[error("the eye position must be two numbers between 0 and 1")]
    Eye,
    /// A sampling setting out of range.
    #[error("{name} is {value}, but must be {range}")]
    Sampling {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What is allowed.
        range: &'static str,
    },
    /// A prompt that leaves no room for an answer.
    #[error("the prompt takes {tokens} positions with its image, the model has {max}: shorten it")]
    TooLong {
        /// Positions of the prompt.
        tokens: usize,
        /// Positions of the model.
        max: usize,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl Skill {
    /// The name used in messages, flags and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Skill::Query { .. } => "query",
            Skill::Caption { .. } => "caption",
            Skill::Detect { .. } => "detect",
            Skill::Point { .. } => "point",
            Skill::Segment { .. } => "segment",
            Skill::Gaze { .. } => "gaze",
        }
    }

    /// The inputs after BOS and the image. Checks everything about the request but its length.
    pub fn prompt(
        &self,
        config: &Config,
        tokenizer: &Tokenizer,
        has_image: bool,
    ) -> Result<Vec<Input>, Rejected> {
        let ids = &config.tokenizer;
        let templates = &ids.templates;
        let text_only =
            matches!(self, Skill::Query { spatial_refs, .. } if spatial_refs.is_empty());
        if !has_image && !text_only {
            return Err(Rejected::NeedsImage(match self {
                Skill::Query { .. } => "a question with spatial references",
                _ => self.name(),
            }));
        }
        let mut prompt = Prompt(Vec::new());
        match self {
            Skill::Query { question, reasoning, spatial_refs } => {
                if question.trim().is_empty() {
                    return Err(Rejected::EmptyQuestion);
                }
                prompt.ids(&templates.query.prefix);
                prompt.spatial_refs(spatial_refs);
                prompt.ids(&tokenizer.encode(question)?);
                // Moondream 2 closes the question and opens the answer with the same marks; Moondream
                // 3 only opens.
                let closes = config.family() == Family::Moondream2;
                if closes {
                    prompt.ids(&templates.query.suffix);
                }
                match reasoning {
                    true => prompt.ids(&[ids.thinking_id]),
                    false => prompt.ids(&templates.query.suffix),
                }
            }
            Skill::Caption { length } => prompt.ids(match length {
                CaptionLength::Short => &templates.caption.short,
                CaptionLength::Normal => &templates.caption.normal,
                CaptionLength::Long => &templates.caption.long,
            }),
            Skill::Detect { object } => {
                prompt.ids(&templates.detect.prefix);
                prompt.ids(&tokenizer.encode(&format!(" {}", named(object)?))?);
                prompt.ids(&templates.detect.suffix);
            }
            Skill::Point { object, spatial_refs } => {
                prompt.ids(&templates.point.prefix);
                prompt.spatial_refs(spatial_refs);
                prompt.ids(&tokenizer.encode(&format!(" {}", named(object)?))?);
                prompt.ids(&templates.point.suffix);
            }
            Skill::Segment { object, spatial_refs } => {
                let template = templates.segment.as_ref().ok_or(Rejected::CannotSegment)?;
                prompt.ids(&template.prefix);
                prompt.spatial_refs(spatial_refs);
                // Unlike the others, without a space before it.
                prompt.ids(&tokenizer.encode(named(object)?)?);
                prompt.ids(&template.suffix);
            }
            Skill::Gaze { eye } => {
                if eye.iter().any(|v| !(0.0..=1.0).contains(v)) {
                    return Err(Rejected::Eye);
                }
                prompt.ids(&tokenizer.encode("\n\nPoint:")?);
                prompt.0.extend(eye.map(Input::Coord));
                prompt.ids(&tokenizer.encode(" gaze\n\n")?);
            }
        }
        Ok(prompt.0)
    }
}

/// What to look for, which must be something.
fn named(object: &str) -> Result<&str, Rejected> {
    match object.trim() {
        "" => Err(Rejected::EmptyObject),
        object => Ok(object),
    }
}

struct Prompt(Vec<Input>);

impl Prompt {
    fn ids(&mut self, ids: &[u32]) {
        self.0.extend(ids.iter().map(|&id| Input::Token(id)));
    }

    fn spatial_refs(&mut self, refs: &[SpatialRef]) {
        for r in refs {
            match *r {
                SpatialRef::Point(xy) => self.0.extend(xy.map(Input::Coord)),
                SpatialRef::Box([x0, y0, x1, y1]) => self.0.extend([
                    Input::Coord((x0 + x1) / 2.0),
                    Input::Coord((y0 + y1) / 2.0),
                    Input::Size([x1 - x0, y1 - y0]),
                ]),
            }
        }
    }
}

/// How tokens are drawn; see [`photon_core::sampler`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the likeliest tokens up to this share of the probability.
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens below this share of the likeliest one's probability.
    pub min_p: f32,
    /// Same seed, same request: same answer.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 };

    /// What a skill uses if nothing is asked for: 0.2 and 0.9 for text, greedy for places.
    pub fn default_for(skill: &Skill) -> Sampling {
        match skill {
            Skill::Query { .. } | Skill::Caption { .. } => {
                Sampling { temperature: 0.2, top_p: 0.9, ..Sampling::GREEDY }
            }
            Skill::Detect { .. }
            | Skill::Point { .. }
            | Skill::Segment { .. }
            | Skill::Gaze { .. } => Sampling::GREEDY,
        }
    }

    /// Checks the ranges.
    pub fn check(&self) -> Result<(), Rejected> {
        let wrong = |name, value: f32, range| {
            Err(Rejected::Sampling { name, value: f64::from(value), range })
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("temperature", self.temperature, "0 (greedy) or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", self.top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("min_p", self.min_p, "between 0 and 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(skill: &Skill, has_image: bool) -> Result<Vec<Input>, Rejected> {
        let mut config = Config::default();
        config.tokenizer.templates.query.prefix = vec![1, 36, 2];
        prompt_of(&config, skill, has_image)
    }

    fn prompt_of(config: &Config, skill: &Skill, has_image: bool) -> Result<Vec<Input>, Rejected> {
        let json = include_bytes!("../tests/data/tokenizer.json");
        skill.prompt(config, &Tokenizer::from_json(json).unwrap(), has_image)
    }

    fn query(question: &str, reasoning: bool, spatial_refs: Vec<SpatialRef>) -> Skill {
        Skill::Query { question: question.into(), reasoning, spatial_refs }
    }

    fn tokens(ids: &[u32]) -> Vec<Input> {
        ids.iter().map(|&id| Input::Token(id)).collect()
    }

    #[test]
    fn a_question_is_closed_and_its_answer_or_reasoning_opened() {
        let question = "what colour is the large circle?";
        let words = [458, 334, 388, 419, 366, 431, 51];
        let with = |suffix: &[u32]| tokens(&[&[1, 36, 2], &words[..], suffix].concat());
        assert_eq!(prompt(&query(question, false, vec![]), true).unwrap(), with(&[3, 3]));
        assert_eq!(prompt(&query(question, true, vec![]), true).unwrap(), with(&[3, 4]));
        assert_eq!(prompt(&query(question, false, vec![]), false).unwrap(), with(&[3, 3]));
    }

    #[test]
    fn spatial_references_come_before_the_question() {
        let refs = vec![SpatialRef::Point([0.25, 0.5]), SpatialRef::Box([0.0, 0.25, 0.5, 0.75])];
        let got = prompt(&query("x", false, refs), true).unwrap();
        let expected = [
            Input::Coord(0.25),
            Input::Coord(0.5),
            Input::Coord(0.25),
            Input::Coord(0.5),
            Input::Size([0.5, 0.5]),
        ];
        assert_eq!(got[3..8], expected);
    }

    #[test]
    fn segment_names_the_object_without_a_space_and_needs_a_model_that_can() {
        let skill = |object: &str| Skill::Segment {
            object: object.into(),
            spatial_refs: vec![SpatialRef::Point([0.25, 0.5])],
        };
        let config = Config::of(Family::Moondream3);
        let got = prompt_of(&config, &skill(" circle\n"), true).unwrap();
        let tokenizer = include_bytes!("../tests/data/tokenizer.json");
        let words = Tokenizer::from_json(tokenizer).unwrap().encode("circle").unwrap();
        let refs = vec![Input::Coord(0.25), Input::Coord(0.5)];
        let parts = [tokens(&[1, 17374, 2]), refs, tokens(&words), tokens(&[3])];
        assert_eq!(got, parts.concat());
        let message = |r: Result<Vec<Input>, Rejected>| r.unwrap_err().to_string();
        assert_eq!(message(prompt_of(&config, &skill("circle"), false)), "segment needs an image");
        let empty = message(prompt_of(&config, &skill(" "), true));
        assert_eq!(empty, "the object to look for is empty");
        assert!(message(prompt(&skill("circle"), true)).starts_with("segment needs Moondream 3"));
    }

    #[test]
    fn requests_that_make_no_sense_are_rejected_with_the_reason() {
        let message = |r: Result<Vec<Input>, Rejected>| r.unwrap_err().to_string();
        assert_eq!(message(prompt(&query(" \n", false, vec![]), true)), "the question is empty");
        let caption = Skill::Caption { length: CaptionLength::Short };
        assert_eq!(message(prompt(&caption, false)), "caption needs an image");
        let detect = Skill::Detect { object: String::new() };
        assert_eq!(message(prompt(&detect, true)), "the object to look for is empty");
        let gaze = Skill::Gaze { eye: [0.5, f32::NAN] };
        assert!(message(prompt(&gaze, true)).contains("eye position"));
        let spatial = |v: &[f32]| SpatialRef::from_values(1, v).unwrap_err().to_string();
        assert!(spatial(&[0.1]).contains("spatial_refs[1] must contain 2 (point) or 4 (bbox)"));
        assert!(spatial(&[0.1, 1.1]).contains("between 0 and 1"));
        assert!(spatial(&[0.5, 0.5, 0.4, 0.6]).contains("ordered"));
        let hot = Sampling { temperature: -1.0, ..Sampling::GREEDY };
        let message = hot.check().unwrap_err().to_string();
        assert_eq!(message, "temperature is -1, but must be 0 (greedy) or more");
    }
}
