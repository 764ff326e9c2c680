//! Guesses how a sequence goes on: as it did the last time it, or its prompt, said the same.
//!
//! A guess costs a look into a table and may be wrong; the step that computes it finds out. What is
//! learned of that only decides how much is guessed next. There is no second model here, and nothing that
//! changes what is drawn: see [`photon_sched`].
use std::collections::HashMap;

use photon_models::prompt::Input;

/// The ids that must have come before, in order: three, or [`NONE`] and two.
type Gram = [u32; 3];

/// No id.
const NONE: u32 = u32::MAX;
/// Guesses in a row of which nothing was right before a rest.
const MISSES: u32 = 3;
/// The longest rest, in tokens: so often a sequence that begins to repeat itself late is noticed late.
const LONGEST_REST: u32 = 64;

/// What guesses one sequence.
#[derive(Debug, Default)]
pub(crate) struct Drafter {
    /// Where the token after these came last. No sequence of today's models has 2^32 positions.
    after: HashMap<Gram, u32>,
    /// Inputs that are in `after`.
    seen: usize,
    pace: Pace,
}

impl Drafter {
    /// At most `most` ids that may follow `inputs`, which were those of the call before and more.
    pub(crate) fn guess(&mut self, inputs: &[Input], most: usize) -> Vec<u32> {
        for end in self.seen..inputs.len() {
            for gram in grams(&inputs[..end]) {
                self.after.insert(gram, end as u32);
            }
        }
        self.seen = inputs.len();
        let num = self.pace.next(most);
        let from = grams(inputs).find_map(|gram| self.after.get(&gram));
        let mut draft = Vec::new();
        let Some(from) = from.map(|&from| from as usize) else { return draft };
        for i in (from..).take(num) {
            // Past the end it goes on with itself: "a b a b" with "a b a b".
            let id = match inputs.get(i) {
                Some(input) => id(input),
                None => Some(draft[i - inputs.len()]),
            };
            let Some(id) = id else { break };
            draft.push(id);
        }
        draft
    }

    /// Of `drafted` ids that were computed the first `accepted` were right.
    pub(crate) fn learn(&mut self, drafted: usize, accepted: usize) {
        self.pace.learn(drafted, accepted);
    }
}

fn id(input: &Input) -> Option<u32> {
    match input {
        Input::Token(id) => Some(*id),
        _ => None,
    }
}

/// The last three ids, then the last two, as far as they are ids.
fn grams(inputs: &[Input]) -> impl Iterator<Item = Gram> {
    let mut last = inputs.iter().rev().map_while(id);
    let ids = [(); 3].map(|()| last.next());
    let gram = move |n: usize| match (ids, n) {
        ([Some(c), Some(b), Some(a)], 3) => Some([a, b, c]),
        ([Some(c), Some(b), _], 2) => Some([NONE, b, c]),
        _ => None,
    };
    [3, 2].into_iter().filter_map(gram)
}

/// How much is worth guessing: twice as much after a guess that was right to its end, one id more than
/// was right after another, one after a guess that was wrong from its beginning; and after
/// [`MISSES`] of those in a row nothing for 8 tokens, 16 after another, and so on.
#[derive(Debug, Default)]
struct Pace {
    /// Ids of the next guess; 0 at the beginning: as many as may be.
    len: usize,
    misses: u32,
    rest: u32,
}

impl Pace {
    fn next(&mut self, most: usize) -> usize {
        if 0 < self.rest {
            self.rest -= 1;
            return 0;
        }
        if self.len == 0 { most } else { self.len.min(most) }
    }

    fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            return;
        }
        self.len = if accepted == drafted { 2 * drafted } else { accepted + 1 };
        self.misses = if accepted == 0 { self.misses + 1 } else { 0 };
        if MISSES <= self.misses {
            self.rest = (1 << self.misses.min(16)).min(LONGEST_REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(ids: &[u32]) -> Vec<Input> {
        ids.iter().map(|&id| Input::Token(id)).collect()
    }

    /// The guess for a sequence whose ids become known one after the other, and all at once.
    #[track_caller]
    fn check(ids: &[u32], most: usize, want: &[u32]) {
        let inputs = inputs(ids);
        assert_eq!(Drafter::default().guess(&inputs, most), want);
        let mut drafter = Drafter::default();
        let mut last = Vec::new();
        for end in 1..=inputs.len() {
            last = drafter.guess(&inputs[..end], most);
        }
        assert_eq!(last, want);
    }

    #[test]
    fn what_came_after_the_same_ids_comes_again() {
        check(&[1, 2, 3, 4, 5, 6, 2, 3], 3, &[4, 5, 6]);
        check(&[1, 2, 3], 3, &[]);
        check(&[], 3, &[]);
    }

    #[test]
    fn three_equal_ids_go_before_two_and_the_latest_before_others() {
        check(&[1, 2, 3, 4, 0, 2, 3, 5, 1, 2, 3], 1, &[4]);
        check(&[2, 3, 4, 0, 2, 3, 5, 1, 2, 3], 1, &[5]);
    }

    #[test]
    fn a_repetition_goes_on_past_what_is_known() {
        check(&[7, 8, 8, 8], 5, &[8, 8, 8, 8, 8]);
        check(&[1, 2, 9, 1, 2, 9, 1, 2], 5, &[9, 1, 2, 9, 1]);
    }

    #[test]
    fn pictures_and_places_end_what_is_compared_and_what_is_guessed() {
        let mut inputs = inputs(&[1, 2, 3]);
        inputs.extend([Input::Image(0), Input::Token(9), Input::Token(1), Input::Token(2)]);
        assert_eq!(Drafter::default().guess(&inputs, 4), [3]);
        inputs.push(Input::Coord(0.5));
        assert!(Drafter::default().guess(&inputs, 4).is_empty());
    }

    #[test]
    fn what_fails_is_tried_less_and_what_works_more() {
        let mut pace = Pace::default();
        let mut step = |accepted: usize| {
            let len = pace.next(8);
            pace.learn(len, accepted.min(len));
            len
        };
        assert_eq!([8, 2, 0, 1].map(&mut step), [8, 8, 3, 1]);
        assert_eq!([9; 4].map(&mut step), [2, 4, 8, 8]);
        // Three misses, eight tokens of rest, a fourth, sixteen.
        assert_eq!([0; 3].map(&mut step), [8, 1, 1]);
        assert_eq!([0; 9].map(&mut step), [0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!([0; 17].map(&mut step)[15..], [0, 1]);
        // One that is right ends that.
        assert_eq!([0; 32].map(&mut step), [0; 32]);
        assert_eq!([9, 9, 0].map(&mut step), [1, 2, 4]);
        assert_eq!([9, 9].map(&mut step), [1, 2]);
    }
}
