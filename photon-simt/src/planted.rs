//! Bugs planted in kernels, for tests: a folder's `planted.diff`.
//!
//! ```text
//! # What a line like this one says is for readers.
//! attention.cu!barrier
//!  for (;;) {
//! -  __syncthreads();
//! ```
//!
//! Below the name of a source and a bug, lines that begin with a blank or a minus are in the source, in this order and in
//! one place; those that begin with a minus are left out of it, and those with a plus put in. So the source stays as it is,
//! and a bug whose place is gone is an error and not a test that finds nothing.
use crate::source::Result;

/// One bug.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bug {
    /// Of the source.
    pub(crate) file: String,
    /// Its kernels with the bug are called `kernel!name`.
    pub(crate) name: String,
    before: Vec<String>,
    after: Vec<String>,
}

/// Reads a `planted.diff`.
pub(crate) fn bugs(text: &str) -> Result<Vec<Bug>> {
    let mut bugs: Vec<Bug> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (kind, rest) = line.split_at_checked(1).unwrap_or(("", line));
        match (kind, bugs.last_mut()) {
            (" " | "-" | "+", Some(bug)) => {
                if kind != "+" {
                    bug.before.push(rest.into());
                }
                if kind != "-" {
                    bug.after.push(rest.into());
                }
            }
            _ => {
                let (file, name) = line
                    .split_once('!')
                    .ok_or_else(|| format!("`{line}` is neither a line of a bug nor FILE!NAME"))?;
                let (before, after) = (Vec::new(), Vec::new());
                bugs.push(Bug { file: file.into(), name: name.into(), before, after });
            }
        }
    }
    Ok(bugs)
}

impl Bug {
    /// The source with the bug.
    pub(crate) fn plant(&self, source: &str) -> Result<String> {
        let Bug { file, name, before, after } = self;
        let lines: Vec<&str> = source.lines().collect();
        let is_here = |at: &usize| {
            let rest = lines[*at..].iter();
            before.len() <= rest.len() && rest.zip(before).all(|(line, before)| line == before)
        };
        let places: Vec<usize> = (0..lines.len()).filter(is_here).collect();
        let [at] = places[..] else {
            let count = places.len();
            return Err(format!("{file}!{name}: its lines are in {count} places of {file}"));
        };
        let (head, tail) = (&lines[..at], &lines[at + before.len()..]);
        Ok([head, &after.iter().map(String::as_str).collect::<Vec<_>>(), tail].concat().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "a();\nfor (;;) {\n  sync();\n  b();\n  sync();\n}";

    fn planted(text: &str) -> Result<String> {
        bugs(text)?[0].plant(SOURCE)
    }

    #[test]
    fn lines_are_replaced_where_they_stand() {
        let text = "# A barrier.\n\nk.cu!barrier\n   b();\n-  sync();\n+  c();\nk.cu!other\n-x\n";
        let found = bugs(text).unwrap();
        let names: Vec<_> = found.iter().map(|bug| (&*bug.file, &*bug.name)).collect();
        assert_eq!(names, [("k.cu", "barrier"), ("k.cu", "other")]);
        assert_eq!(planted(text).unwrap(), "a();\nfor (;;) {\n  sync();\n  b();\n  c();\n}");
    }

    #[test]
    fn a_place_that_is_gone_or_not_the_only_one_is_an_error() {
        let gone = planted("k.cu!bug\n-  d();\n").unwrap_err();
        assert_eq!(gone, "k.cu!bug: its lines are in 0 places of k.cu");
        assert!(planted("k.cu!bug\n-  sync();\n").unwrap_err().contains("in 2 places"));
        assert!(planted("k.cu!bug\n-sync();\n").unwrap_err().contains("in 0 places"));
        assert!(bugs("k.cu\n").unwrap_err().contains("`k.cu` is neither"));
    }
}
