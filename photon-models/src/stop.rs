//! Ending an answer where a given string would appear in it.
//!
//! Text that may be the beginning of such a string is held back until it is known not to be, so what
//! was emitted never has to be taken back.

/// Watches text for stop strings.
#[derive(Clone, Debug, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// Ends at the first appearance of any of `stops`; empty ones are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        StopFilter { stops, held: String::new() }
    }

    /// Takes more text; gives what is certain not to be part of a stop string, and whether one came.
    pub fn push(&mut self, text: String) -> (String, bool) {
        if self.stops.is_empty() {
            return (text, false);
        }
        self.held.push_str(&text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let fits = |&n: &usize| stop.as_bytes()[..n] == text.as_bytes()[text.len() - n..];
    (1..=longest).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stops: &[&str], parts: &[&str], want: &[&str]) {
        let mut filter = StopFilter::new(stops.iter().map(ToString::to_string));
        let mut got = Vec::new();
        for part in parts {
            let (text, stopped) = filter.push(part.to_string());
            got.push(text);
            if stopped {
                assert_eq!(got, want);
                return;
            }
        }
        got.push(filter.finish());
        assert_eq!(got, want);
    }

    #[test]
    fn without_stop_strings_text_passes() {
        check(&[], &["a", "b"], &["a", "b", ""]);
        check(&[""], &["a"], &["a", ""]);
    }

    #[test]
    fn the_text_ends_before_the_first_of_them() {
        check(&["cd", "bc"], &["abcd"], &["a"]);
        check(&["END"], &["one E", "ND two"], &["one ", ""]);
    }

    #[test]
    fn a_beginning_that_leads_nowhere_is_given_back() {
        check(&["END"], &["EN", "EN", "E"], &["", "EN", "EN", "E"]);
        check(&["aab"], &["aa", "ab"], &["", "a"]);
    }

    #[test]
    fn characters_are_never_cut() {
        check(&["ä!"], &["ä", "ö"], &["", "äö", ""]);
        // U+00E4 and U+00E5 share their first byte.
        check(&["å"], &["ä"], &["ä", ""]);
    }
}
