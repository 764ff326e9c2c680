//! Of pages as texts: what is printed beside what a page shows, links and headings.
use std::{collections::BTreeSet, path::Path};

/// Whether what was printed is what a page shows.
pub(super) fn same(shown: &str, printed: &str) -> bool {
    let [shown, printed] =
        [shown, printed].map(|text| text.trim_end().lines().map(str::trim_end).collect::<Vec<_>>());
    lines_are_same(&shown, &printed)
}

fn lines_are_same(shown: &[&str], printed: &[&str]) -> bool {
    match shown {
        [] => printed.is_empty(),
        ["…", rest @ ..] => (0..=printed.len()).any(|at| lines_are_same(rest, &printed[at..])),
        [line, rest @ ..] => printed.split_first().is_some_and(|(first, printed)| {
            line_is_same(line, first) && lines_are_same(rest, printed)
        }),
    }
}

fn line_is_same(shown: &str, printed: &str) -> bool {
    let mut parts = shown.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(last) = parts.next_back() else {
        let (shown, printed) = (pieces(shown), pieces(printed));
        let pairs = shown.iter().zip(&printed);
        return shown.len() == printed.len() && pairs.into_iter().all(|(a, b)| is_close(a, b));
    };
    let middle = printed.strip_prefix(first).and_then(|rest| rest.strip_suffix(last));
    let Some(mut rest) = middle else { return false };
    parts.all(|part| match rest.split_once(part) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}

/// A line as numbers and what is between them.
fn pieces(line: &str) -> Vec<&str> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut pieces = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let number = is_number(first);
        let end = rest.find(|c| is_number(c) != number).unwrap_or(rest.len());
        pieces.push(&rest[..end]);
        rest = &rest[end..];
    }
    pieces
}

/// Coordinates may differ by a hundredth, pixels and other large numbers by 2 %; what is counted may not.
fn is_close(shown: &str, printed: &str) -> bool {
    let (Ok(a), Ok(b)) = (shown.parse::<f64>(), printed.parse::<f64>()) else {
        return shown == printed;
    };
    let tolerance = match shown.contains('.') {
        true => 0.01 * a.max(1.0),
        false if a >= 20.0 => (0.02 * a).max(1.0),
        false => 0.0,
    };
    (a - b).abs() <= tolerance
}

/// Where a page's links lead, but for those to other sites.
pub(super) fn links(text: &str) -> Vec<&str> {
    let behind = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    behind.filter(|link| !link.contains("://") && !link.contains(char::is_whitespace)).collect()
}

/// A page, or what it stands for: some pages of the book are files outside of it.
pub(super) fn with_includes(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    match text.trim().strip_prefix("{{#include ").and_then(|rest| rest.strip_suffix("}}")) {
        Some(file) => std::fs::read_to_string(path.with_file_name("").join(file)).unwrap(),
        None => text,
    }
}

/// What links call a page's headings.
pub(super) fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    let name = |title: &str| {
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let title = title.trim_start_matches('#').trim().to_lowercase();
        title.chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    titles.map(name).collect()
}
