//! Skills as state machines: which ids may come next, and what a drawn id means.
//!
//! The engine asks [`SkillState::constraint`], draws an id, asks [`SkillState::head`] whether the id
//! stands for a number that a region head must supply, and hands the result to
//! [`SkillState::advance`], which returns what became certain and the next input. Nothing here runs a
//! model. Sources: Moondream 2, `moondream.py` (`_generate_answer`, `_generate_reasoning`,
//! `_generate_points`).
use serde::Serialize;

use crate::{
    config::{Config, Family, TokenConfig},
    prompt::{Input, Skill},
    stop::StopFilter,
    svg::PathReader,
    tokenizer::{TextStream, Tokenizer},
};

/// The ids that may be drawn next; -1 entries are empty, see [`photon_core::SampleParams`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// The only ids allowed, if any entry is set.
    pub allowed: [i32; 4],
    /// Ids not allowed.
    pub banned: [i32; 4],
}

/// The head that turns a hidden state into a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionHead {
    /// One coordinate.
    Coord,
    /// Width and height.
    Size,
}

/// What was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Drawn {
    /// An id, taken as it is.
    Token(u32),
    /// The coordinate id and its value.
    Coord(f32),
    /// The size id and width, height.
    Size([f32; 2]),
}

/// Something that became certain.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SkillEvent {
    /// More of the answer or caption.
    Text(String),
    /// More of the reasoning.
    Reasoning(String),
    /// A detected object.
    Object(BoundingBox),
    /// A point.
    Point(Point),
    /// The box of what is outlined; comes once, as a rule before its path.
    Box(BoundingBox),
    /// More of the path: a command with its arguments. Joined together they are the path.
    Path(String),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// The budget of tokens, objects or positions ended it.
    Length,
}

/// What follows a drawn id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// The input of the next step.
    Feed(Input),
    /// Nothing: the sequence is complete.
    Finish(FinishReason),
}

/// A box in fractions of the picture's width and height, clamped to the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BoundingBox {
    /// Left.
    pub x_min: f32,
    /// Top.
    pub y_min: f32,
    /// Right.
    pub x_max: f32,
    /// Bottom.
    pub y_max: f32,
}

impl BoundingBox {
    fn around([x, y]: [f32; 2], [w, h]: [f32; 2]) -> Self {
        let clamp = |v: f32| v.clamp(0.0, 1.0);
        BoundingBox {
            x_min: clamp(x - w / 2.0),
            y_min: clamp(y - h / 2.0),
            x_max: clamp(x + w / 2.0),
            y_max: clamp(y + h / 2.0),
        }
    }
}

/// A point in fractions of the picture's width and height.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// From the left.
    pub x: f32,
    /// From the top.
    pub y: f32,
}

/// What the model thought before it answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Reasoning {
    /// The thought.
    pub text: String,
    /// What its parts point at.
    pub grounding: Vec<Grounding>,
}

/// A part of the reasoning and the points it speaks of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grounding {
    /// First character.
    pub start_idx: usize,
    /// One past the last character.
    pub end_idx: usize,
    /// x, y.
    pub points: Vec<[f32; 2]>,
}

/// What a finished skill gives; its JSON is the wire format of Moondream's API.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of a query or a chat.
    Query {
        /// The answer.
        answer: String,
        /// The thought before it, if asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning: Option<Reasoning>,
    },
    /// Of a caption.
    Caption {
        /// The caption.
        caption: String,
    },
    /// Of detect.
    Detect {
        /// The boxes, in the order they were found.
        objects: Vec<BoundingBox>,
    },
    /// Of point.
    Point {
        /// The points, in the order they were found.
        points: Vec<Point>,
    },
    /// Of segment.
    Segment {
        /// An SVG path whose coordinates are parts of the box's width and height.
        path: String,
        /// Where in the picture the path is, if the model said so.
        bbox: Option<BoundingBox>,
        /// Why the path ends where it does, if the model wrote something else.
        #[serde(skip_serializing_if = "Option::is_none")]
        parse_error: Option<String>,
    },
    /// Of gaze.
    Gaze {
        /// The point looked at, if it is in the picture.
        gaze: Option<Point>,
    },
}

/// Most tokens and objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of the answer, and of the reasoning before it, each.
    pub max_tokens: usize,
    /// Of detect and point.
    pub max_objects: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { max_tokens: 768, max_objects: 50 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Reasoning,
    Text,
    X,
    Y { x: f32 },
    Size { x: f32, y: f32 },
    Outline,
}

/// A skill under way.
#[derive(Debug)]
pub struct SkillState {
    ids: TokenConfig,
    /// Whether an answer may hold the id that opens answers: in Moondream 2 it may not.
    bans_answer_id: bool,
    budget: Budget,
    phase: Phase,
    with_size: bool,
    /// Tokens drawn in this phase.
    drawn: usize,
    stream: TextStream,
    stop: StopFilter,
    ignore_eos: bool,
    chunk: Chunk,
    outline: Outline,
    answer: Answer,
}

/// The running part of the reasoning.
#[derive(Debug, Default)]
struct Chunk {
    /// Characters before the chunk.
    start: usize,
    /// Characters in it.
    chars: usize,
    coords: Vec<f32>,
}

/// What segment drew so far.
#[derive(Debug, Default)]
struct Outline {
    path: PathReader,
    /// The first two: the center of the box.
    coords: Vec<f32>,
    /// The first.
    size: Option<[f32; 2]>,
}

/// Ids up to here are control marks, no part of a path.
const LAST_CONTROL_ID: u32 = 20;

impl SkillState {
    /// At the start of an answer.
    pub fn new(skill: &Skill, config: &Config, budget: Budget) -> Self {
        let (phase, with_size, answer) = match skill {
            Skill::Query { reasoning: true, .. } | Skill::Chat { reasoning: true, .. } => (
                Phase::Reasoning,
                false,
                Answer::Query { answer: String::new(), reasoning: Some(Reasoning::default()) },
            ),
            Skill::Query { .. } | Skill::Chat { .. } => {
                (Phase::Text, false, Answer::Query { answer: String::new(), reasoning: None })
            }
            Skill::Caption { .. } => {
                (Phase::Text, false, Answer::Caption { caption: String::new() })
            }
            Skill::Detect { .. } => (Phase::X, true, Answer::Detect { objects: Vec::new() }),
            Skill::Point { .. } => (Phase::X, false, Answer::Point { points: Vec::new() }),
            Skill::Segment { .. } => {
                let (path, bbox, parse_error) = (String::new(), None, None);
                (Phase::Outline, false, Answer::Segment { path, bbox, parse_error })
            }
            Skill::Gaze { .. } => (Phase::X, false, Answer::Gaze { gaze: None }),
        };
        SkillState {
            ids: config.tokenizer.clone(),
            bans_answer_id: config.family() == Family::Moondream2,
            budget,
            phase,
            with_size,
            drawn: 0,
            stream: TextStream::default(),
            stop: StopFilter::default(),
            ignore_eos: false,
            chunk: Chunk::default(),
            outline: Outline::default(),
            answer,
        }
    }

    /// Ends the answer or caption before the first of these strings.
    pub fn with_stop(mut self, stops: impl IntoIterator<Item = String>) -> Self {
        self.stop = StopFilter::new(stops);
        self
    }

    /// Lets an answer end by its budget only, for benchmarks.
    pub fn ignoring_eos(mut self) -> Self {
        self.ignore_eos = true;
        self
    }

    /// Which ids may be drawn next.
    pub fn constraint(&self) -> Constraint {
        let list = |ids: &[u32]| {
            let mut list = [-1; 4];
            list.iter_mut().zip(ids).for_each(|(slot, &id)| *slot = id as i32);
            list
        };
        let ids = &self.ids;
        let (allowed, banned) = match self.phase {
            // The budget of thought is spent: on to the answer, as the reference does.
            Phase::Reasoning if self.drawn >= self.budget.max_tokens => {
                (list(&[ids.answer_id]), list(&[]))
            }
            Phase::Reasoning => (list(&[]), list(&[ids.eos_id, ids.size_id])),
            Phase::Text if self.ignore_eos => (list(&[]), list(&[ids.answer_id, ids.eos_id])),
            Phase::Text if self.bans_answer_id => (list(&[]), list(&[ids.answer_id])),
            Phase::Text => (list(&[]), list(&[])),
            Phase::X if self.ignore_eos => (list(&[ids.coord_id]), list(&[])),
            Phase::X => (list(&[ids.coord_id, ids.eos_id]), list(&[])),
            Phase::Y { .. } => (list(&[ids.coord_id]), list(&[])),
            Phase::Size { .. } => (list(&[ids.size_id]), list(&[])),
            Phase::Outline if self.ignore_eos => (list(&[]), list(&[ids.eos_id])),
            Phase::Outline => (list(&[]), list(&[])),
        };
        Constraint { allowed, banned }
    }

    /// The head that must supply a number for this id, if it stands for one here.
    pub fn head(&self, id: u32) -> Option<RegionHead> {
        match self.phase {
            Phase::Reasoning | Phase::X | Phase::Y { .. } | Phase::Outline
                if id == self.ids.coord_id =>
            {
                Some(RegionHead::Coord)
            }
            Phase::Size { .. } | Phase::Outline if id == self.ids.size_id => Some(RegionHead::Size),
            _ => None,
        }
    }

    /// How many first ids of `draft`, a guess of what is drawn next, can be drawn one after the other, each
    /// as a word and under today's constraint, with one more after them. 0 where places are found.
    pub fn draftable(&self, draft: &[u32]) -> usize {
        let turn = match self.phase {
            Phase::Reasoning => self.ids.answer_id,
            Phase::Text | Phase::Outline => self.ids.eos_id,
            Phase::X | Phase::Y { .. } | Phase::Size { .. } => return 0,
        };
        let banned = self.constraint().banned;
        let is_word =
            |id: u32| id != turn && !banned.contains(&(id as i32)) && self.head(id).is_none();
        let left = self.budget.max_tokens.saturating_sub(self.drawn + 1);
        draft.iter().take(left).take_while(|&&id| is_word(id)).count()
    }

    /// The most inputs that can follow the prompt.
    pub fn max_inputs(&self) -> usize {
        let Budget { max_tokens, max_objects } = self.budget;
        match &self.answer {
            // A thought and the id that ends it, then the answer.
            Answer::Query { reasoning: Some(_), .. } => {
                max_tokens.saturating_mul(2).saturating_add(1)
            }
            Answer::Query { .. } | Answer::Caption { .. } | Answer::Segment { .. } => max_tokens,
            Answer::Detect { .. } => max_objects.saturating_mul(3),
            Answer::Point { .. } => max_objects.saturating_mul(2),
            Answer::Gaze { .. } => 2,
        }
    }

    /// Whether the next id is part of an answer or caption, or ends it.
    pub fn is_answering(&self) -> bool {
        self.phase == Phase::Text
    }

    /// The heads that may be asked for the next id, whichever it is: coordinate, size.
    pub fn possible_heads(&self) -> [bool; 2] {
        match self.phase {
            Phase::Reasoning | Phase::X | Phase::Y { .. } => [true, false],
            Phase::Size { .. } => [false, true],
            Phase::Text => [false, false],
            Phase::Outline => [true, true],
        }
    }

    /// Takes what was drawn; adds what became certain to `events`.
    ///
    /// # Panics
    /// If the constraint was not obeyed.
    pub fn advance(
        &mut self,
        drawn: Drawn,
        tokenizer: &Tokenizer,
        events: &mut Vec<SkillEvent>,
    ) -> Next {
        self.drawn += 1;
        match (self.phase, drawn) {
            (Phase::Text, Drawn::Token(id)) => self.text(id, tokenizer, events),
            (Phase::Reasoning, Drawn::Token(id)) => self.reason(id, tokenizer, events),
            (Phase::Reasoning, Drawn::Coord(value)) => {
                self.chunk.coords.push(value);
                Next::Feed(Input::Coord(value))
            }
            (Phase::X, Drawn::Token(id)) if id == self.ids.eos_id => {
                Next::Finish(FinishReason::Stop)
            }
            (Phase::X, Drawn::Coord(x)) => {
                self.phase = Phase::Y { x };
                Next::Feed(Input::Coord(x))
            }
            (Phase::Y { x }, Drawn::Coord(y)) if self.with_size => {
                self.phase = Phase::Size { x, y };
                Next::Feed(Input::Coord(y))
            }
            (Phase::Y { x }, Drawn::Coord(y)) => {
                let found = self.point(Point { x, y }, events);
                self.found(found, Input::Coord(y))
            }
            (Phase::Size { x, y }, Drawn::Size([w, h])) => {
                let found = self.object([x, y, w, h], events);
                self.found(found, Input::Size([w, h]))
            }
            (Phase::Outline, drawn) => self.outline(drawn, tokenizer, events),
            (phase, drawn) => panic!("{drawn:?} was drawn in phase {phase:?}"),
        }
    }

    /// Ends a sequence from outside, as when the context is full: what is pending becomes certain.
    pub fn cut(&mut self, events: &mut Vec<SkillEvent>) {
        self.flush_text(events);
        match self.phase {
            Phase::Reasoning => self.close_chunk(),
            Phase::Outline => self.close_path(),
            _ => {}
        }
    }

    /// What the skill gave so far.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// What the skill gave.
    pub fn into_answer(self) -> Answer {
        self.answer
    }

    fn text(&mut self, id: u32, tokenizer: &Tokenizer, events: &mut Vec<SkillEvent>) -> Next {
        if id == self.ids.eos_id {
            self.flush_text(events);
            return Next::Finish(FinishReason::Stop);
        }
        let (text, stopped) = self.stop.push(self.stream.push(tokenizer, id));
        self.emit(text, events);
        if stopped {
            return Next::Finish(FinishReason::Stop);
        }
        if self.drawn >= self.budget.max_tokens {
            self.flush_text(events);
            return Next::Finish(FinishReason::Length);
        }
        Next::Feed(Input::Token(id))
    }

    fn reason(&mut self, id: u32, tokenizer: &Tokenizer, events: &mut Vec<SkillEvent>) -> Next {
        let ids = &self.ids;
        let ends_chunk =
            [ids.answer_id, ids.start_ground_points_id, ids.end_ground_id].contains(&id);
        if ends_chunk {
            self.flush_text(events);
            self.close_chunk();
        }
        let text = self.stream.push(tokenizer, id);
        self.emit(text, events);
        if id == self.ids.answer_id {
            self.phase = Phase::Text;
            self.drawn = 0;
        }
        Next::Feed(Input::Token(id))
    }

    fn flush_text(&mut self, events: &mut Vec<SkillEvent>) {
        let mut text = self.stream.finish();
        if self.phase == Phase::Text {
            let (certain, stopped) = self.stop.push(text);
            text = certain;
            if !stopped {
                text.push_str(&self.stop.finish());
            }
        }
        self.emit(text, events);
    }

    fn emit(&mut self, text: String, events: &mut Vec<SkillEvent>) {
        if text.is_empty() {
            return;
        }
        match (&mut self.answer, self.phase) {
            (Answer::Query { reasoning: Some(reasoning), .. }, Phase::Reasoning) => {
                self.chunk.chars += text.chars().count();
                reasoning.text.push_str(&text);
                events.push(SkillEvent::Reasoning(text));
            }
            (Answer::Query { answer, .. }, _) => {
                answer.push_str(&text);
                events.push(SkillEvent::Text(text));
            }
            (Answer::Caption { caption }, _) => {
                caption.push_str(&text);
                events.push(SkillEvent::Text(text));
            }
            (answer, phase) => panic!("text {text:?} for {answer:?} in phase {phase:?}"),
        }
    }

    /// Pairs the chunk's coordinates to points; an odd one left over is dropped.
    fn close_chunk(&mut self) {
        let Chunk { start, chars, coords } = std::mem::take(&mut self.chunk);
        self.chunk.start = start + chars;
        let Answer::Query { reasoning: Some(reasoning), .. } = &mut self.answer else { return };
        let points: Vec<[f32; 2]> = coords.chunks_exact(2).map(|c| [c[0], c[1]]).collect();
        if !points.is_empty() {
            let (start_idx, end_idx) = (start, start + chars);
            reasoning.grounding.push(Grounding { start_idx, end_idx, points });
        }
    }

    fn point(&mut self, point: Point, events: &mut Vec<SkillEvent>) -> usize {
        events.push(SkillEvent::Point(point));
        match &mut self.answer {
            Answer::Point { points } => {
                points.push(point);
                points.len()
            }
            // One point is all there is to a gaze.
            Answer::Gaze { gaze } => {
                *gaze = Some(point);
                usize::MAX
            }
            answer => panic!("a point for {answer:?}"),
        }
    }

    fn outline(
        &mut self,
        drawn: Drawn,
        tokenizer: &Tokenizer,
        events: &mut Vec<SkillEvent>,
    ) -> Next {
        let input = match drawn {
            Drawn::Token(id) if id == self.ids.eos_id => {
                self.close_path();
                return Next::Finish(FinishReason::Stop);
            }
            Drawn::Token(id) => {
                self.path(id, tokenizer, events);
                Input::Token(id)
            }
            Drawn::Coord(value) => {
                self.outline.coords.push(value);
                self.locate(events);
                Input::Coord(value)
            }
            Drawn::Size(size) => {
                self.outline.size.get_or_insert(size);
                self.locate(events);
                Input::Size(size)
            }
        };
        if self.drawn >= self.budget.max_tokens {
            self.close_path();
            return Next::Finish(FinishReason::Length);
        }
        Next::Feed(input)
    }

    /// A token of the path.
    fn path(&mut self, id: u32, tokenizer: &Tokenizer, events: &mut Vec<SkillEvent>) {
        let Answer::Segment { path, parse_error: parse_error @ None, .. } = &mut self.answer else {
            return;
        };
        if id <= LAST_CONTROL_ID {
            return;
        }
        // Each by itself: an id is one word of the path, with or without a space around it.
        let text = tokenizer.decode(&[id]);
        match text.trim() {
            "" => {}
            word => match self.outline.path.push(word) {
                Ok(None) => {}
                Ok(Some(piece)) => {
                    path.push_str(&piece);
                    events.push(SkillEvent::Path(piece));
                }
                Err(error) => *parse_error = Some(error.to_string()),
            },
        }
    }

    /// The box, once there is enough to know it.
    fn locate(&mut self, events: &mut Vec<SkillEvent>) {
        let Answer::Segment { bbox: bbox @ None, .. } = &mut self.answer else { return };
        let Outline { coords, size: Some([w, h]), .. } = &self.outline else { return };
        if let [x, y, ..] = coords[..] {
            let around = BoundingBox::around([x, y], [*w, *h]);
            *bbox = Some(around);
            events.push(SkillEvent::Box(around));
        }
    }

    /// Ends the path; what an unfinished command lacks is an error, unless there was one before.
    fn close_path(&mut self) {
        if let Answer::Segment { parse_error: parse_error @ None, .. } = &mut self.answer {
            *parse_error = self.outline.path.finish().err().map(|error| error.to_string());
        }
    }

    fn object(&mut self, [x, y, w, h]: [f32; 4], events: &mut Vec<SkillEvent>) -> usize {
        let object = BoundingBox::around([x, y], [w, h]);
        events.push(SkillEvent::Object(object));
        let Answer::Detect { objects } = &mut self.answer else {
            panic!("an object for {:?}", self.answer)
        };
        objects.push(object);
        objects.len()
    }

    fn found(&mut self, found: usize, last: Input) -> Next {
        if matches!(self.answer, Answer::Gaze { .. }) {
            return Next::Finish(FinishReason::Stop);
        }
        if found >= self.budget.max_objects {
            return Next::Finish(FinishReason::Length);
        }
        self.phase = Phase::X;
        Next::Feed(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(skill: &Skill, budget: Budget, drawn: &[Drawn]) -> (Answer, Vec<SkillEvent>, Next) {
        let json = include_bytes!("../tests/data/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let mut state = SkillState::new(skill, &Config::default(), budget);
        let mut events = Vec::new();
        let mut next = Next::Feed(Input::Token(0));
        for &d in drawn {
            assert!(matches!(next, Next::Feed(_)), "drawn after the end");
            next = state.advance(d, &tokenizer, &mut events);
        }
        (state.into_answer(), events, next)
    }

    fn detect() -> Skill {
        Skill::Detect { object: "x".into() }
    }

    fn reasoning() -> Skill {
        Skill::Query { question: "x".into(), reasoning: true, spatial_refs: vec![] }
    }

    #[test]
    fn detect_runs_x_y_size_until_the_end_id_and_clamps() {
        let found = [Drawn::Coord(0.25), Drawn::Coord(0.5), Drawn::Size([1.0, 0.5])];
        let drawn = [&found[..], &[Drawn::Token(0)]].concat();
        let (answer, events, next) = run(&detect(), Budget::default(), &drawn);
        let object = BoundingBox { x_min: 0.0, y_min: 0.25, x_max: 0.75, y_max: 0.75 };
        assert_eq!(answer, Answer::Detect { objects: vec![object] });
        assert_eq!(events, [SkillEvent::Object(object)]);
        assert_eq!(next, Next::Finish(FinishReason::Stop));
        let one = Budget { max_objects: 1, ..Budget::default() };
        assert_eq!(run(&detect(), one, &found).2, Next::Finish(FinishReason::Length));
    }

    #[test]
    fn each_spatial_state_allows_only_its_ids() {
        let allowed = |drawn: &[Drawn]| {
            let json = include_bytes!("../tests/data/tokenizer.json");
            let tokenizer = Tokenizer::from_json(json).unwrap();
            let mut state = SkillState::new(&detect(), &Config::default(), Budget::default());
            for &d in drawn {
                state.advance(d, &tokenizer, &mut Vec::new());
            }
            state.constraint().allowed
        };
        let (x, y, size) = (Drawn::Coord(0.1), Drawn::Coord(0.2), Drawn::Size([0.1, 0.1]));
        assert_eq!(allowed(&[]), [5, 0, -1, -1]);
        assert_eq!(allowed(&[x]), [5, -1, -1, -1]);
        assert_eq!(allowed(&[x, y]), [6, -1, -1, -1]);
        assert_eq!(allowed(&[x, y, size]), [5, 0, -1, -1]);
    }

    #[test]
    fn reasoning_grounds_its_chunks_and_ends_at_the_answer_mark() {
        // "abc" 7 "de" coord coord coord 9 "f" 3 "g" end; the third coordinate has no partner.
        let json = include_bytes!("../tests/data/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let words = |text: &str| -> Vec<Drawn> {
            tokenizer.encode(text).unwrap().into_iter().map(Drawn::Token).collect()
        };
        let coords = [Drawn::Coord(0.5), Drawn::Coord(0.25), Drawn::Coord(0.75)];
        let drawn = [
            words("abc"),
            vec![Drawn::Token(7)],
            words("de"),
            coords.to_vec(),
            vec![Drawn::Token(9)],
            words("f"),
            vec![Drawn::Token(3)],
            words("g"),
            vec![Drawn::Token(0)],
        ]
        .concat();
        let (answer, events, next) = run(&reasoning(), Budget::default(), &drawn);
        let grounding = Grounding { start_idx: 3, end_idx: 5, points: vec![[0.5, 0.25]] };
        let thought = Reasoning { text: "abcdef".into(), grounding: vec![grounding] };
        assert_eq!(answer, Answer::Query { answer: "g".into(), reasoning: Some(thought) });
        assert_eq!(events.last(), Some(&SkillEvent::Text("g".into())));
        assert_eq!(next, Next::Finish(FinishReason::Stop));
    }

    #[test]
    fn a_spent_reasoning_budget_forces_the_answer() {
        let budget = Budget { max_tokens: 1, ..Budget::default() };
        let json = include_bytes!("../tests/data/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let mut state = SkillState::new(&reasoning(), &Config::default(), budget);
        let id = tokenizer.encode("a").unwrap()[0];
        assert_eq!(state.constraint().banned, [0, 6, -1, -1]);
        state.advance(Drawn::Token(id), &tokenizer, &mut Vec::new());
        assert_eq!(state.constraint().allowed, [3, -1, -1, -1]);
        let next = state.advance(Drawn::Token(3), &tokenizer, &mut Vec::new());
        assert_eq!(next, Next::Feed(Input::Token(3)));
        assert_eq!(state.constraint(), Constraint { allowed: [-1; 4], banned: [3, -1, -1, -1] });
    }

    fn segment() -> Skill {
        Skill::Segment { object: "x".into(), spatial_refs: vec![] }
    }

    /// Words of a path as ids.
    fn spelled(path: &str) -> Vec<Drawn> {
        let json = include_bytes!("../tests/data/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let id = |text: &str| match tokenizer.encode(text).unwrap()[..] {
            [id] => Drawn::Token(id),
            ref ids => panic!("{text:?} is {ids:?}"),
        };
        path.split(' ').map(id).collect()
    }

    #[test]
    fn segment_streams_its_box_and_one_command_after_the_other() {
        let marks = [Drawn::Coord(0.5), Drawn::Token(9), Drawn::Coord(0.25)];
        let size = [Drawn::Size([0.5, 1.0])];
        // Numbers after the first two, and sizes after the first, are somebody else's.
        let later = [Drawn::Coord(0.75), Drawn::Size([0.1, 0.1])];
        let end = [Drawn::Token(0)];
        let path = spelled("M 0 9 L - 6 3 h 0 Z");
        let drawn = [&marks[..], &size, &path, &later, &end].concat();
        let (answer, events, next) = run(&segment(), Budget::default(), &drawn);
        let bbox = BoundingBox { x_min: 0.25, y_min: 0.0, x_max: 0.75, y_max: 0.75 };
        let path = "M 0 0.009 L -0.006 0.003 h 0 Z".to_owned();
        let whole = Answer::Segment { path, bbox: Some(bbox), parse_error: None };
        assert_eq!(answer, whole);
        let pieces = ["M 0 0.009", " L -0.006 0.003", " h 0", " Z"];
        let pieces = pieces.map(|piece| SkillEvent::Path(piece.into()));
        assert_eq!(events, [&[SkillEvent::Box(bbox)], &pieces[..]].concat());
        assert_eq!(next, Next::Finish(FinishReason::Stop));
        let json = serde_json::to_value(&answer).unwrap();
        let bbox = serde_json::json!({"x_min": 0.25, "y_min": 0.0, "x_max": 0.75, "y_max": 0.75});
        let path = "M 0 0.009 L -0.006 0.003 h 0 Z";
        assert_eq!(json, serde_json::json!({"path": path, "bbox": bbox}));
    }

    #[test]
    fn any_id_may_follow_in_an_outline_and_both_heads_may_be_asked() {
        let state = SkillState::new(&segment(), &Config::default(), Budget::default());
        assert_eq!(state.constraint(), Constraint { allowed: [-1; 4], banned: [-1; 4] });
        assert_eq!(state.possible_heads(), [true, true]);
        let heads = [5, 6, 9].map(|id| state.head(id));
        assert_eq!(heads, [Some(RegionHead::Coord), Some(RegionHead::Size), None]);
        assert_eq!(state.max_inputs(), 768);
        let forced = state.ignoring_eos();
        assert_eq!(forced.constraint().banned, [0, -1, -1, -1]);
    }

    #[test]
    fn what_is_no_path_costs_only_what_follows() {
        let check = |drawn: &[Drawn], path: &str, bbox: bool, error: Option<&str>, next| {
            let budget = Budget { max_tokens: 8, ..Budget::default() };
            let (answer, events, got) = run(&segment(), budget, drawn);
            let Answer::Segment { path: p, bbox: b, parse_error: e } = &answer else {
                panic!("{answer:?}")
            };
            assert_eq!((p.as_str(), b.is_some(), e.as_deref()), (path, bbox, error));
            let pieces = events.iter().filter_map(|event| match event {
                SkillEvent::Path(piece) => Some(piece.as_str()),
                _ => None,
            });
            assert_eq!((pieces.collect::<String>().as_str(), got), (path, next));
        };
        let (stop, length) = (Next::Finish(FinishReason::Stop), Next::Finish(FinishReason::Length));
        check(&[Drawn::Token(0)], "", false, None, stop);
        // The box may still come after a mistake; what would be path again does not.
        let wrong = [
            spelled("M 0 0 ? Z"),
            vec![Drawn::Coord(0.5), Drawn::Coord(0.5), Drawn::Size([0.5, 0.5])],
        ];
        check(&wrong.concat(), "M 0 0", true, Some("unexpected SVG token '?'"), length);
        let short = Some("incomplete SVG command L: 1 of 2 numbers");
        let cut = [spelled("M 0 0 L 3"), vec![Drawn::Token(0)]].concat();
        check(&cut, "M 0 0", false, short, stop);
        check(&spelled("M 0 0 L 0 0 L 3"), "M 0 0 L 0 0", false, short, length);
        // Cut from outside, as by a full context.
        let json = include_bytes!("../tests/data/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let mut state = SkillState::new(&segment(), &Config::default(), Budget::default());
        for drawn in spelled("M 0 0 L 3") {
            state.advance(drawn, &tokenizer, &mut Vec::new());
        }
        state.cut(&mut Vec::new());
        let Answer::Segment { parse_error, .. } = state.into_answer() else { panic!() };
        assert_eq!(parse_error.as_deref(), short);
    }

    #[test]
    fn a_draft_ends_where_its_words_end() {
        let json = include_bytes!("../tests/data/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let state = |skill: &Skill, max_tokens: usize, drawn: &[u32]| {
            let budget = Budget { max_tokens, ..Budget::default() };
            let mut state = SkillState::new(skill, &Config::default(), budget);
            for &id in drawn {
                state.advance(Drawn::Token(id), &tokenizer, &mut Vec::new());
            }
            state
        };
        let caption = Skill::Caption { length: Default::default() };
        assert_eq!(state(&caption, 9, &[]).draftable(&[97, 98, 0, 97]), 2, "the end");
        assert_eq!(state(&caption, 9, &[]).draftable(&[97, 3, 97]), 1, "what is banned");
        assert_eq!(state(&caption, 9, &[]).draftable(&[5, 6, 97]), 3, "plain tokens there");
        assert_eq!(state(&caption, 4, &[97]).draftable(&[97; 9]), 2, "the last is drawn, not fed");
        assert_eq!(state(&caption, 1, &[]).draftable(&[97; 9]), 0);
        assert_eq!(state(&reasoning(), 9, &[]).draftable(&[97, 7, 5, 97]), 2, "a place");
        assert_eq!(state(&reasoning(), 9, &[]).draftable(&[97, 3, 97]), 1, "the answer");
        assert_eq!(state(&reasoning(), 1, &[97]).draftable(&[97; 9]), 0, "the answer is forced");
        let segment = Skill::Segment { object: "x".into(), spatial_refs: vec![] };
        assert_eq!(state(&segment, 9, &[]).draftable(&[97, 98, 6, 97]), 2, "a size");
        assert_eq!(state(&detect(), 9, &[]).draftable(&[97; 9]), 0);
    }

    #[test]
    fn a_control_id_in_an_answer_is_a_plain_token() {
        let skill = Skill::Caption { length: Default::default() };
        let state = SkillState::new(&skill, &Config::default(), Budget::default());
        assert_eq!(state.head(5), None);
        let (answer, _, next) = run(&skill, Budget::default(), &[Drawn::Token(5)]);
        assert_eq!(answer, Answer::Caption { caption: String::new() });
        assert_eq!(next, Next::Feed(Input::Token(5)));
    }
}
