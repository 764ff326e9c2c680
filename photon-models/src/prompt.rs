//! What a caller asks for, and the prompt it becomes.
//!
//! A prompt is BOS, the positions of the pictures, and the marks and words of the skill; in a chat the
//! pictures stand at the start of their turns. Sources: Moondream 2's `moondream.py` for the order of
//! marks, `config.json` for their ids, Kestrel's chat skill for conversations, which neither model was
//! trained on: every turn is a question and its answer, and nothing ends the answer.
use std::ops::Range;

use crate::{
    config::{Config, Family},
    tokenizer::{Tokenizer, TokenizerError},
};

/// Most pictures of a request.
pub const MAX_IMAGES: usize = 16;

/// What to do with the picture, or the pictures.
#[derive(Clone, Debug, PartialEq)]
pub enum Skill {
    /// Answer a question, with any number of pictures.
    Query {
        /// The question.
        question: String,
        /// Whether to reason first, pointing at what the reasoning speaks of.
        reasoning: bool,
        /// Places in the picture the question is about.
        spatial_refs: Vec<SpatialRef>,
    },
    /// Go on with a conversation, in which any turn of the user may have pictures.
    Chat {
        /// The conversation so far; the last word is the user's.
        messages: Vec<Message>,
        /// Whether to reason before the answer, pointing at what the reasoning speaks of.
        reasoning: bool,
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

/// A part of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
    /// How many of the request's pictures, after those of earlier messages, are shown with it.
    pub images: usize,
}

impl Message {
    /// Words alone.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Message { role, text: text.into(), images: 0 }
    }

    /// The user's words and pictures.
    pub fn with_images(text: impl Into<String>, images: usize) -> Self {
        Message { role: Role::User, text: text.into(), images }
    }
}

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nobody: how to answer. Such texts, wherever they stand, go before what the user says first.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
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
    /// A row of the projected features of the request's pictures, one after the other.
    Image(u32),
    /// A coordinate, encoded.
    Coord(f32),
    /// A width and a height, encoded.
    Size([f32; 2]),
}

/// The positions of each picture that begins among `inputs`, the first of which stands at `start`: they
/// attend both ways. BOS, if a picture follows it, belongs to that picture.
///
/// Source: Moondream 2, `moondream.py`: attends both ways over the first 730 positions.
pub fn spans(inputs: &[Input], start: usize, patches: usize) -> impl Iterator<Item = Range<usize>> {
    let begins = move |input: &Input| matches!(*input, Input::Image(i) if (i as usize).is_multiple_of(patches));
    let begins = inputs.iter().enumerate().filter(move |(_, input)| begins(input));
    begins.map(move |(i, _)| {
        let first = start + i;
        (if first == 1 { 0 } else { first })..first + patches
    })
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
        "segment needs Moondream 3, such as --model demo3 or moondream3-preview; this model's config.json \
         has no templates.segment"
    )]
    CannotSegment,
    /// A skill that looks at a picture, without one.
    #[error("{0} needs an image")]
    NeedsImage(&'static str),
    /// A skill that looks at one picture, with several.
    #[error("{skill} looks at one image, and {given} were given")]
    OneImage {
        /// The skill.
        skill: &'static str,
        /// How many came.
        given: usize,
    },
    /// More pictures than a request may have.
    #[error("a request can have {MAX_IMAGES} images at most, and {0} were given")]
    TooManyImages(usize),
    /// A message that cannot stand where it does.
    #[error("messages[{index}] {why}")]
    Message {
        /// Which.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A conversation of nothing.
    #[error("there are no messages")]
    NoMessages,
    /// Pictures that belong to no message, or the other way round.
    #[error("the messages speak of {named} images, and {given} were given")]
    ImagesOfMessages {
        /// Those of the messages.
        named: usize,
        /// How many came.
        given: usize,
    },
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
    #[error("the prompt takes {tokens} positions with its images, the model has {max}: shorten it")]
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
            Skill::Chat { .. } => "chat",
            Skill::Caption { .. } => "caption",
            Skill::Detect { .. } => "detect",
            Skill::Point { .. } => "point",
            Skill::Segment { .. } => "segment",
            Skill::Gaze { .. } => "gaze",
        }
    }

    /// The inputs, from BOS on. Checks everything about the request but its length.
    pub fn prompt(
        &self,
        config: &Config,
        tokenizer: &Tokenizer,
        num_images: usize,
    ) -> Result<Vec<Input>, Rejected> {
        self.check_images(num_images)?;
        let templates = &config.tokenizer.templates;
        let mut prompt = Prompt { config, inputs: Vec::new(), images: 0 };
        prompt.ids(&[config.tokenizer.bos_id]);
        if !matches!(self, Skill::Chat { .. }) {
            prompt.images(num_images);
        }
        match self {
            Skill::Query { question, reasoning, spatial_refs } => {
                if question.trim().is_empty() {
                    return Err(Rejected::EmptyQuestion);
                }
                prompt.ids(&templates.query.prefix);
                prompt.spatial_refs(spatial_refs);
                prompt.ids(&tokenizer.encode(question)?);
                prompt.open(*reasoning);
            }
            Skill::Chat { messages, reasoning } => {
                prompt.conversation(messages, tokenizer)?;
                prompt.open(*reasoning);
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
                prompt.inputs.extend(eye.map(Input::Coord));
                prompt.ids(&tokenizer.encode(" gaze\n\n")?);
            }
        }
        Ok(prompt.inputs)
    }

    /// Checks that so many pictures are what it is about.
    pub fn check_images(&self, given: usize) -> Result<(), Rejected> {
        if given > MAX_IMAGES {
            return Err(Rejected::TooManyImages(given));
        }
        match self {
            Skill::Query { spatial_refs, .. } if given == 0 && !spatial_refs.is_empty() => {
                Err(Rejected::NeedsImage("a question with spatial references"))
            }
            Skill::Query { .. } => Ok(()),
            Skill::Chat { messages, .. } => check_messages(messages, given),
            _ if given == 0 => Err(Rejected::NeedsImage(self.name())),
            _ if given > 1 => Err(Rejected::OneImage { skill: self.name(), given }),
            _ => Ok(()),
        }
    }
}

fn check_messages(messages: &[Message], given: usize) -> Result<(), Rejected> {
    for (index, message) in messages.iter().enumerate() {
        let wrong = |why| Err(Rejected::Message { index, why });
        let is_user = message.role == Role::User;
        if message.images > 0 && !is_user {
            return wrong("has images, which only messages of the user can have");
        }
        if is_user && message.images == 0 && message.text.trim().is_empty() {
            return wrong("is empty");
        }
    }
    match messages.last() {
        None => return Err(Rejected::NoMessages),
        Some(Message { role: Role::User, .. }) => {}
        Some(_) => {
            let (index, why) = (messages.len() - 1, "is the last and must be of the user");
            return Err(Rejected::Message { index, why });
        }
    }
    let named = messages.iter().fold(0, |sum: usize, m| sum.saturating_add(m.images));
    if named == given { Ok(()) } else { Err(Rejected::ImagesOfMessages { named, given }) }
}

/// What to look for, which must be something.
fn named(object: &str) -> Result<&str, Rejected> {
    match object.trim() {
        "" => Err(Rejected::EmptyObject),
        object => Ok(object),
    }
}

struct Prompt<'a> {
    config: &'a Config,
    inputs: Vec<Input>,
    /// Pictures so far.
    images: usize,
}

impl Prompt<'_> {
    fn ids(&mut self, ids: &[u32]) {
        self.inputs.extend(ids.iter().map(|&id| Input::Token(id)));
    }

    /// The next pictures.
    fn images(&mut self, count: usize) {
        let patches = self.config.vision.patches();
        let rows = self.images * patches..(self.images + count) * patches;
        self.inputs.extend(rows.map(|row| Input::Image(row as u32)));
        self.images += count;
    }

    /// What stands between a question and its answer, or the reasoning before it.
    fn open(&mut self, reasoning: bool) {
        let ids = &self.config.tokenizer;
        // Moondream 2 closes the question and opens the answer with the same marks; Moondream 3 only
        // opens.
        if self.config.family() == Family::Moondream2 {
            self.ids(&ids.templates.query.suffix);
        }
        match reasoning {
            true => self.ids(&[ids.thinking_id]),
            false => self.ids(&ids.templates.query.suffix),
        }
    }

    /// All of a conversation but what opens its next answer. Messages of one speaker in a row are one
    /// turn, so that a picture and the question about it may come one after the other.
    fn conversation(
        &mut self,
        messages: &[Message],
        tokenizer: &Tokenizer,
    ) -> Result<(), Rejected> {
        let texts = |messages: &[&Message]| -> Vec<String> {
            let texts = messages.iter().map(|message| &message.text);
            texts.filter(|text| !text.trim().is_empty()).cloned().collect()
        };
        let (system, said): (Vec<_>, Vec<_>) =
            messages.iter().partition(|message| message.role == Role::System);
        let mut system = texts(&system);
        for turn in said.chunk_by(|a, b| a.role == b.role) {
            let mut text = texts(turn);
            if turn[0].role == Role::User {
                self.images(turn.iter().map(|message| message.images).sum());
                self.ids(&self.config.tokenizer.templates.query.prefix);
                text.splice(0..0, system.drain(..));
            } else {
                self.open(false);
            }
            self.ids(&tokenizer.encode(&text.join("\n\n"))?);
        }
        Ok(())
    }

    fn spatial_refs(&mut self, refs: &[SpatialRef]) {
        for r in refs {
            match *r {
                SpatialRef::Point(xy) => self.inputs.extend(xy.map(Input::Coord)),
                SpatialRef::Box([x0, y0, x1, y1]) => self.inputs.extend([
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
            Skill::Query { .. } | Skill::Chat { .. } | Skill::Caption { .. } => {
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

    fn of(family: Family, skill: &Skill, num_images: usize) -> Result<Vec<Input>, Rejected> {
        let mut config = Config::of(family);
        config.tokenizer.templates.query.prefix = vec![1, 36, 2];
        // Pictures of 4 patches.
        config.vision.crop_size = 2 * config.vision.enc_patch_size;
        let json = include_bytes!("../tests/data/tokenizer.json");
        skill.prompt(&config, &Tokenizer::from_json(json).unwrap(), num_images)
    }

    /// What follows BOS and the picture, if there is one.
    fn prompt(skill: &Skill, has_image: bool) -> Result<Vec<Input>, Rejected> {
        let inputs = of(Family::Moondream2, skill, usize::from(has_image))?;
        Ok(inputs[if has_image { 5 } else { 1 }..].to_vec())
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

    fn pictures(rows: Range<u32>) -> Vec<Input> {
        rows.map(Input::Image).collect()
    }

    #[test]
    fn the_pictures_of_a_question_stand_after_bos() {
        let want = [&tokens(&[0])[..], &pictures(0..12), &tokens(&[1, 36, 2, 108, 3])].concat();
        let got = of(Family::Moondream3, &query("x", false, vec![]), 3).unwrap();
        assert_eq!(got, want);
        assert_eq!(spans(&got, 0, 4).collect::<Vec<_>>(), [0..5, 5..9, 9..13]);
        assert_eq!(spans(&got[5..9], 5, 4).next(), Some(5..9));
    }

    #[test]
    fn turns_are_questions_with_their_pictures_in_front_and_answers_without_an_end() {
        let messages = vec![
            Message::new(Role::System, "a"),
            Message::with_images("x", 1),
            Message::new(Role::Assistant, "y"),
            Message::with_images("z", 2),
        ];
        let ids = |text: &str| {
            let json = include_bytes!("../tests/data/tokenizer.json");
            Tokenizer::from_json(json).unwrap().encode(text).unwrap()
        };
        let (first, x, y, z) = (ids("a\n\nx"), ids("x"), ids("y"), ids("z"));
        for (family, answer, thought) in
            [(Family::Moondream2, &[3, 3][..], &[3, 4][..]), (Family::Moondream3, &[3], &[4])]
        {
            for (reasoning, open) in [(false, answer), (true, thought)] {
                let skill = Skill::Chat { messages: messages.clone(), reasoning };
                let want = [
                    tokens(&[0]),
                    pictures(0..4),
                    tokens(&[&[1, 36, 2], &first[..], answer, &y].concat()),
                    pictures(4..12),
                    tokens(&[&[1, 36, 2], &z[..], open].concat()),
                ];
                let got = of(family, &skill, 3).unwrap();
                assert_eq!(got, want.concat());
                let second = 5 + 3 + first.len() + answer.len() + y.len();
                let spans: Vec<_> = spans(&got, 0, 4).collect();
                assert_eq!(spans, [0..5, second..second + 4, second + 4..second + 8]);
            }
        }
        // A chat of one question is that question.
        let messages = vec![Message::with_images("x", 1)];
        let chat = of(Family::Moondream2, &Skill::Chat { messages, reasoning: false }, 1).unwrap();
        assert_eq!(chat, of(Family::Moondream2, &query("x", false, vec![]), 1).unwrap());
        assert_eq!(chat[8..8 + x.len()], tokens(&x));
    }

    #[test]
    fn messages_of_one_speaker_in_a_row_are_one_turn() {
        let chat = |messages: &[Message]| {
            let skill = Skill::Chat { messages: messages.to_vec(), reasoning: false };
            of(Family::Moondream3, &skill, messages.iter().map(|m| m.images).sum()).unwrap()
        };
        let user = |text: &str| Message::new(Role::User, text);
        let apart =
            [user("x"), Message::new(Role::System, "a"), Message::with_images("", 1), user("y")];
        let joined = [Message::with_images("a\n\nx\n\ny", 1)];
        assert_eq!(chat(&apart), chat(&joined));
        // The model may have spoken first, or said nothing.
        let greeted = chat(&[Message::new(Role::Assistant, " "), user("x")]);
        assert_eq!(greeted, tokens(&[0, 3, 1, 36, 2, 108, 3]));
    }

    #[test]
    fn conversations_that_make_no_sense_are_rejected_with_the_reason() {
        let message = |messages: &[Message], given: usize| {
            let skill = Skill::Chat { messages: messages.to_vec(), reasoning: false };
            of(Family::Moondream2, &skill, given).unwrap_err().to_string()
        };
        let (user, model) = (Message::new(Role::User, "x"), Message::new(Role::Assistant, "y"));
        assert_eq!(message(&[], 0), "there are no messages");
        let last = message(&[user.clone(), model.clone()], 0);
        assert_eq!(last, "messages[1] is the last and must be of the user");
        assert_eq!(
            message(&[user.clone(), Message::new(Role::User, " ")], 0),
            "messages[1] is empty"
        );
        let shown = Message { images: 1, ..model };
        let error = message(&[user.clone(), shown, user.clone()], 1);
        assert_eq!(error, "messages[1] has images, which only messages of the user can have");
        let error = message(&[Message::with_images("x", 2)], 1);
        assert_eq!(error, "the messages speak of 2 images, and 1 were given");
        let error = message(&[Message::with_images("x", 17)], 17);
        assert_eq!(error, "a request can have 16 images at most, and 17 were given");
        let detect = Skill::Detect { object: "x".into() };
        let error = of(Family::Moondream2, &detect, 2).unwrap_err().to_string();
        assert_eq!(error, "detect looks at one image, and 2 were given");
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
        let prompt3 = |skill: &Skill, num_images| of(Family::Moondream3, skill, num_images);
        let got = prompt3(&skill(" circle\n"), 1).unwrap();
        let tokenizer = include_bytes!("../tests/data/tokenizer.json");
        let words = Tokenizer::from_json(tokenizer).unwrap().encode("circle").unwrap();
        let refs = vec![Input::Coord(0.25), Input::Coord(0.5)];
        let parts = [tokens(&[1, 17374, 2]), refs, tokens(&words), tokens(&[3])];
        assert_eq!(got[5..], parts.concat());
        let message = |r: Result<Vec<Input>, Rejected>| r.unwrap_err().to_string();
        assert_eq!(message(prompt3(&skill("circle"), 0)), "segment needs an image");
        let empty = message(prompt3(&skill(" "), 1));
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
