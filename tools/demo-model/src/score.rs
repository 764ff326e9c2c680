//! How well a model's answers agree with the truth.
//!
//! Everything is counted, nothing averaged before the end: [`Scores`] of parts of a run can be
//! merged. An answer of the wrong sort, such as text where boxes were asked for, is a wrong answer.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::outline::Outline;
use crate::scene::{Color, Shape};
use crate::tasks::{QueryKind, SceneRecord, Task};

/// Least overlap (intersection over union) for a box to count as found, and for an outline as right.
pub const MIN_IOU: f64 = 0.5;

/// What a model said to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A caption or the answer to a question.
    Text(String),
    /// Boxes `[x_min, y_min, x_max, y_max]`, normalized.
    Boxes(Vec<[f64; 4]>),
    /// Points `[x, y]`, normalized.
    Points(Vec<[f64; 2]>),
    /// An outline: an SVG path in parts of a box, and the box `[x_min, y_min, x_max, y_max]`,
    /// normalized. A path that cannot be read covers nothing.
    Path {
        /// The path.
        path: String,
        /// The box.
        bounds: [f64; 4],
    },
}

/// So many right out of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Right ones.
    pub right: usize,
    /// All.
    pub total: usize,
}

impl Tally {
    /// The part that is right, `None` of nothing.
    pub fn rate(self) -> Option<f64> {
        (self.total != 0).then(|| self.right as f64 / self.total as f64)
    }

    fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.total += 1;
    }

    fn merge(&mut self, other: Self) {
        self.right += other.right;
        self.total += other.total;
    }
}

/// Things found against things that are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Pairs of an answer and a true object that match, each used once.
    pub matched: usize,
    /// Boxes or points the model gave.
    pub given: usize,
    /// Objects there are.
    pub actual: usize,
    /// The sum over tasks of the larger of the two.
    pub larger: usize,
    /// Tasks.
    pub tasks: usize,
}

impl Found {
    fn add(&mut self, matched: usize, given: usize, actual: usize) -> bool {
        self.merge(Self { matched, given, actual, larger: given.max(actual), tasks: 1 });
        matched == given && matched == actual
    }

    fn merge(&mut self, other: Self) {
        self.matched += other.matched;
        self.given += other.given;
        self.actual += other.actual;
        self.larger += other.larger;
        self.tasks += other.tasks;
    }

    /// The part of what was given that is right; 1 when nothing was given.
    pub fn precision(self) -> f64 {
        ratio(self.matched, self.given)
    }

    /// The part of what is there that was found; 1 when nothing is there.
    pub fn recall(self) -> f64 {
        ratio(self.matched, self.actual)
    }

    /// `2 matched / (given + actual)`; 1 when nothing is there and nothing was given.
    pub fn f1(self) -> f64 {
        ratio(2 * self.matched, self.given + self.actual)
    }

    /// `matched / max(given, actual)`, summed over the tasks: missing and surplus points both count.
    pub fn count_matched_rate(self) -> f64 {
        ratio(self.matched, self.larger)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// How much outlines cover of what they should.
///
/// The sum is in millionths, so that parts of a run merge to the same number in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Covered {
    /// The sum over tasks of intersection over union, in millionths.
    pub iou_millionths: u64,
    /// Tasks.
    pub tasks: usize,
}

impl Covered {
    fn add(&mut self, iou: f64) -> bool {
        self.merge(Self { iou_millionths: (iou * 1e6).round() as u64, tasks: 1 });
        iou >= MIN_IOU
    }

    fn merge(&mut self, other: Self) {
        self.iou_millionths += other.iou_millionths;
        self.tasks += other.tasks;
    }

    /// The mean of intersection over union, `None` of nothing.
    pub fn mean_iou(self) -> Option<f64> {
        (self.tasks != 0).then(|| self.iou_millionths as f64 / 1e6 / self.tasks as f64)
    }
}

/// The score of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Scores {
    /// Answers that are exactly right but for case and punctuation, by kind of question.
    pub questions: BTreeMap<QueryKind, Tally>,
    /// Captions that name every object, no other, and what is written.
    pub captions: Tally,
    /// Boxes at an overlap of [`MIN_IOU`].
    pub detect: Found,
    /// Points inside their objects' boxes.
    pub point: Found,
    /// Outlines.
    pub segment: Covered,
}

impl Scores {
    /// Counts one answer and says whether it is wholly right.
    pub fn add(&mut self, truth: &SceneRecord, task: &Task, answer: &Answer) -> bool {
        match task {
            Task::Caption { .. } => {
                let right = matches!(answer, Answer::Text(said) if caption_is_right(truth, said));
                self.captions.add(right);
                right
            }
            Task::Query { kind, answer: expected, .. } => {
                let right = matches!(answer, Answer::Text(said) if same_answer(expected, said));
                self.questions.entry(*kind).or_default().add(right);
                right
            }
            Task::Detect { boxes, .. } => match answer {
                Answer::Boxes(given) => {
                    self.detect.add(match_boxes(given, boxes), given.len(), boxes.len())
                }
                _ => self.detect.add(0, 1, boxes.len()),
            },
            Task::Point { boxes, .. } => match answer {
                Answer::Points(given) => {
                    self.point.add(match_points(given, boxes), given.len(), boxes.len())
                }
                _ => self.point.add(0, 1, boxes.len()),
            },
            Task::Segment { path, bounds, .. } => self.segment.add(match answer {
                Answer::Path { path: given, bounds: within } => {
                    let outline =
                        |path: &str, bounds| Outline::parse(path, bounds).unwrap_or_default();
                    outline(given, *within).iou(&outline(path, *bounds))
                }
                _ => 0.0,
            }),
        }
    }

    /// Adds the counts of another part of the run.
    pub fn merge(&mut self, other: &Self) {
        for (kind, tally) in &other.questions {
            self.questions.entry(*kind).or_default().merge(*tally);
        }
        self.captions.merge(other.captions);
        self.detect.merge(other.detect);
        self.point.merge(other.point);
        self.segment.merge(other.segment);
    }

    /// The questions of all kinds together.
    pub fn all_questions(&self) -> Tally {
        let mut all = Tally::default();
        self.questions.values().for_each(|tally| all.merge(*tally));
        all
    }
}

/// Whether two answers have the same letters and digits in the same words, whatever their case.
pub fn same_answer(expected: &str, said: &str) -> bool {
    words(expected).eq(words(said))
}

/// Lower-case runs of letters and digits.
fn words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|letter: char| !letter.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// What a caption claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Every `color shape` it names, sorted.
    pub objects: Vec<(Color, Shape)>,
    /// The word after `word` or `number`, in lower case.
    pub text: Option<String>,
}

impl Claims {
    /// Reads a caption.
    pub fn of(caption: &str) -> Self {
        let words: Vec<String> = words(caption).collect();
        let mut claims = Self::default();
        for pair in words.windows(2) {
            let color = Color::ALL.into_iter().find(|color| color.name() == pair[0]);
            let shape = Shape::ALL.into_iter().find(|shape| shape.name() == pair[1]);
            claims.objects.extend(color.zip(shape));
            if pair[0] == "word" || pair[0] == "number" {
                claims.text = Some(pair[1].clone());
            }
        }
        claims.objects.sort_unstable();
        claims
    }
}

/// Whether a caption names every object as often as it is there, no other, and what is written.
pub fn caption_is_right(truth: &SceneRecord, caption: &str) -> bool {
    let mut objects: Vec<_> = truth.objects.iter().map(|o| (o.color, o.shape)).collect();
    objects.sort_unstable();
    let text = truth.text.as_ref().map(|text| text.value.to_lowercase());
    Claims::of(caption) == Claims { objects, text }
}

/// How many pairs of a given and a true box overlap enough, the best pairs first, each box once.
pub fn match_boxes(given: &[[f64; 4]], actual: &[[f64; 4]]) -> usize {
    let mut pairs = Vec::new();
    for (i, a) in given.iter().enumerate() {
        for (j, b) in actual.iter().enumerate() {
            let overlap = iou(a, b);
            if overlap >= MIN_IOU {
                pairs.push((overlap, i, j));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut given_used, mut actual_used) = (vec![false; given.len()], vec![false; actual.len()]);
    let mut matched = 0;
    for (_, i, j) in pairs {
        if !given_used[i] && !actual_used[j] {
            (given_used[i], actual_used[j]) = (true, true);
            matched += 1;
        }
    }
    matched
}

/// How many true boxes have a point of their own inside. Boxes do not overlap, so no point can
/// serve two of them.
pub fn match_points(given: &[[f64; 2]], actual: &[[f64; 4]]) -> usize {
    let hit = |b: &&[f64; 4]| {
        given.iter().any(|[x, y]| (b[0]..=b[2]).contains(x) && (b[1]..=b[3]).contains(y))
    };
    actual.iter().filter(hit).count()
}

/// Intersection over union; 0 for boxes without area.
pub fn iou(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let area = |r: &[f64; 4]| (r[2] - r[0]).max(0.0) * (r[3] - r[1]).max(0.0);
    let common = area(&[a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let union = area(a) + area(b) - common;
    if common > 0.0 { common / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Length, ObjectRecord, TextRecord};

    const LEFT: [f64; 4] = [0.1, 0.1, 0.3, 0.3];
    const RIGHT: [f64; 4] = [0.6, 0.5, 0.9, 0.8];

    fn truth(objects: &[(Color, Shape)], text: Option<&str>) -> SceneRecord {
        let object = |&(color, shape): &_| ObjectRecord { shape, color, bounds: LEFT };
        let text = text.map(|value| TextRecord { value: value.to_owned(), bounds: RIGHT });
        let objects = objects.iter().map(object).collect();
        SceneRecord { seed: 0, width: 300, height: 300, objects, text, tasks: Vec::new() }
    }

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    }

    #[test]
    fn answers_are_compared_without_case_and_punctuation() {
        for (expected, said, same) in [
            ("Red", "red.", true),
            ("Yes", " YES", true),
            ("42", "42.", true),
            ("Red", "Red and blue", false),
            ("4", "42", false),
            ("Nothing", "", false),
            ("STOP", "STO P", false),
        ] {
            assert_eq!(same_answer(expected, said), same, "{expected:?} and {said:?}");
        }
    }

    #[test]
    fn a_caption_must_name_each_object_as_often_as_it_is_there() {
        use Color::{Blue, Red};
        use Shape::{Circle, Star};
        let two = truth(&[(Red, Circle), (Blue, Star)], None);
        let twins = truth(&[(Red, Circle), (Red, Circle)], Some("STOP"));
        for (truth, caption, right) in [
            (&two, "A red circle and a blue star.", true),
            (&two, "A blue star on the left, and a large red circle.", true),
            (&two, "A blue circle and a red star.", false),
            (&two, "A red circle.", false),
            (&two, "A red circle, a blue star and another blue star.", false),
            (&two, "A red circle, a blue star and the word STOP.", false),
            (&twins, "A red circle, another red circle and the word STOP.", true),
            (&twins, "A red circle and the word STOP.", false),
            (&twins, "A red circle, another red circle and the word SHOP.", false),
            (&twins, "A red circle and another red circle.", false),
        ] {
            assert_eq!(caption_is_right(truth, caption), right, "{caption}");
        }
    }

    #[test]
    fn the_generators_own_captions_are_right() {
        for seed in 0..500 {
            let record = crate::Scene::from_seed(seed).record();
            let mut scores = Scores::default();
            for task in &record.tasks {
                let answer = match task {
                    Task::Caption { answer, .. } | Task::Query { answer, .. } => {
                        Answer::Text(answer.clone())
                    }
                    Task::Detect { boxes, .. } => Answer::Boxes(boxes.clone()),
                    Task::Point { points, .. } => Answer::Points(points.clone()),
                    Task::Segment { path, bounds, .. } => {
                        Answer::Path { path: path.clone(), bounds: *bounds }
                    }
                };
                assert!(scores.add(&record, task, &answer), "seed {seed}: {task:?}");
            }
            assert_eq!(scores.captions, Tally { right: 3, total: 3 });
            close(scores.detect.f1(), 1.0);
            close(scores.point.count_matched_rate(), 1.0);
            assert!(scores.segment.mean_iou().is_none_or(|mean| mean == 1.0), "seed {seed}");
        }
    }

    #[test]
    fn overlap_is_intersection_over_union() {
        close(iou(&LEFT, &LEFT), 1.0);
        close(iou(&LEFT, &RIGHT), 0.0);
        close(iou(&[0.0, 0.0, 1.0, 1.0], &[0.0, 0.5, 1.0, 1.5]), 1.0 / 3.0);
        close(iou(&[0.2, 0.2, 0.2, 0.2], &[0.2, 0.2, 0.2, 0.2]), 0.0);
    }

    #[test]
    fn each_box_is_found_once_and_the_best_pair_wins() {
        let near = [0.1, 0.1, 0.3, 0.32];
        assert_eq!(match_boxes(&[LEFT, near], &[LEFT]), 1);
        assert_eq!(match_boxes(&[near, RIGHT], &[RIGHT, LEFT]), 2);
        assert_eq!(match_boxes(&[[0.1, 0.1, 0.3, 0.19]], &[LEFT]), 0);
        assert_eq!(match_boxes(&[], &[LEFT]), 0);
    }

    #[test]
    fn detection_counts_misses_and_inventions() {
        let truth = truth(&[], None);
        let mut scores = Scores::default();
        let task =
            |boxes: &[[f64; 4]]| Task::Detect { object: "shape".into(), boxes: boxes.into() };
        let mut add = |actual: &[[f64; 4]], given: &[[f64; 4]]| {
            scores.add(&truth, &task(actual), &Answer::Boxes(given.into()))
        };
        assert!(add(&[LEFT, RIGHT], &[LEFT, RIGHT]));
        assert!(add(&[], &[]));
        assert!(!add(&[LEFT, RIGHT], &[RIGHT]));
        assert!(!add(&[], &[LEFT]));
        close(scores.detect.precision(), 3.0 / 4.0);
        close(scores.detect.recall(), 3.0 / 4.0);
        close(scores.detect.f1(), 3.0 / 4.0);
        assert_eq!(scores.detect.tasks, 4);
    }

    #[test]
    fn points_must_lie_in_different_objects_and_be_as_many() {
        let truth = truth(&[], None);
        let mut scores = Scores::default();
        let task = Task::Point { object: "shape".into(), points: vec![], boxes: vec![LEFT, RIGHT] };
        let mut add = |given: &[[f64; 2]]| scores.add(&truth, &task, &Answer::Points(given.into()));
        assert!(add(&[[0.7, 0.6], [0.2, 0.2]]));
        assert!(!add(&[[0.2, 0.2], [0.21, 0.2]])); // Both in the same object: one counts.
        assert!(!add(&[[0.2, 0.2], [0.7, 0.6], [0.5, 0.5]]));
        close(scores.point.recall(), 5.0 / 6.0);
        close(scores.point.precision(), 5.0 / 7.0);
        close(scores.point.count_matched_rate(), 5.0 / 7.0);
    }

    #[test]
    fn an_outline_counts_by_what_it_covers() {
        let truth = truth(&[], None);
        let mut scores = Scores::default();
        let square = "M 0 0 L 1 0 1 1 0 1 Z";
        let task = Task::Segment { object: "square".into(), path: square.into(), bounds: LEFT };
        let mut add = |path: &str, bounds| {
            scores.add(&truth, &task, &Answer::Path { path: path.into(), bounds })
        };
        assert!(add(square, LEFT));
        assert!(add("M 0 0 L 1 0 1 1 0.5 1 Z", LEFT)); // Three quarters of it.
        assert!(!add(square, RIGHT));
        assert!(!add("M 0 0 L nonsense", LEFT));
        assert!(!scores.add(&truth, &task, &Answer::Boxes(vec![LEFT])));
        let mean = scores.segment.mean_iou().unwrap();
        assert!((mean - 1.75 / 5.0).abs() < 1e-3, "{mean}");
    }

    #[test]
    fn an_answer_of_the_wrong_sort_is_wrong() {
        let truth = truth(&[], None);
        let mut scores = Scores::default();
        let text = Answer::Text("red".into());
        let caption = Task::Caption { length: Length::Short, answer: "A red star.".into() };
        assert!(!scores.add(&truth, &caption, &Answer::Points(vec![])));
        assert!(!scores.add(&truth, &Task::Detect { object: "x".into(), boxes: vec![] }, &text));
        assert_eq!(scores.captions, Tally { right: 0, total: 1 });
        close(scores.detect.f1(), 0.0);
    }

    #[test]
    fn parts_of_a_run_merge() {
        let truth = truth(&[], None);
        let task = |kind| Task::Query { kind, question: "?".into(), answer: "Red".into() };
        let answer = |said: &str| Answer::Text(said.to_owned());
        let (mut a, mut b) = (Scores::default(), Scores::default());
        a.add(&truth, &task(QueryKind::Color), &answer("red"));
        b.add(&truth, &task(QueryKind::Color), &answer("blue"));
        b.add(&truth, &task(QueryKind::Text), &answer("Red"));
        a.merge(&b);
        assert_eq!(a.questions[&QueryKind::Color], Tally { right: 1, total: 2 });
        assert_eq!(a.all_questions(), Tally { right: 2, total: 3 });
        close(a.all_questions().rate().unwrap(), 2.0 / 3.0);
        assert_eq!(Tally::default().rate(), None);
    }
}
