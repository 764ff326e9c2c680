//! Where the lines of a batch come from: a file, standard input, or pictures that match a pattern.
//!
//! Pictures become the line that a file would have for them, so everything after this knows lines
//! only. A line longer than [`MAX_LINE`] is read past without being held; nothing else is checked.
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::Failure;

/// Longest line, in bytes.
pub(super) const MAX_LINE: usize = 10 << 20;

/// A line of the input.
#[derive(Debug)]
pub(super) struct Item {
    /// Its number in the input, from 0; blank lines count.
    pub(super) index: u64,
    /// Its bytes, or as many as are allowed.
    pub(super) line: Vec<u8>,
    pub(super) too_long: bool,
    /// The picture, if the line was made for one.
    pub(super) image: Option<String>,
}

impl Item {
    pub(super) fn is_blank(&self) -> bool {
        self.line.iter().all(u8::is_ascii_whitespace)
    }

    /// What ties an answer to its request: changes with the line and with the options in `salt`.
    pub(super) fn digest(&self, salt: &str) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(&(salt.len() as u64).to_le_bytes());
        hash.update(salt.as_bytes());
        hash.update(self.line.trim_ascii());
        hash.finalize().to_hex()[..16].to_owned()
    }
}

/// A stream of lines; ends with the input or its first error.
pub(super) struct Source {
    lines: Lines,
    next: u64,
}

enum Lines {
    Reader(Box<dyn BufRead + Send>),
    Images { paths: std::vec::IntoIter<String>, template: Map<String, Value> },
}

impl Source {
    pub(super) fn file(path: &Path) -> io::Result<Source> {
        let reader = BufReader::with_capacity(1 << 18, File::open(path)?);
        Ok(Source { lines: Lines::Reader(Box::new(reader)), next: 0 })
    }

    pub(super) fn stdin() -> Source {
        Source { lines: Lines::Reader(Box::new(BufReader::new(io::stdin()))), next: 0 }
    }

    /// A line per picture: `template` with its path.
    pub(super) fn images(paths: Vec<String>, template: Map<String, Value>) -> Source {
        Source { lines: Lines::Images { paths: paths.into_iter(), template }, next: 0 }
    }

    fn read(&mut self) -> io::Result<Option<Item>> {
        let index = self.next;
        let item = match &mut self.lines {
            Lines::Reader(reader) => read_line(reader.as_mut(), MAX_LINE)?
                .map(|(line, too_long)| Item { index, line, too_long, image: None })
                .map(without_mark),
            Lines::Images { paths, template } => paths.next().map(|path| {
                template.insert("image_path".into(), Value::String(path.clone()));
                let line = serde_json::to_vec(template).expect("a map of strings is JSON");
                Item { index, line, too_long: false, image: Some(path) }
            }),
        };
        self.next += 1;
        Ok(item)
    }
}

/// Some editors begin a file with U+FEFF.
fn without_mark(mut item: Item) -> Item {
    if item.index == 0 && item.line.starts_with("\u{feff}".as_bytes()) {
        item.line.drain(.."\u{feff}".len());
    }
    item
}

impl Iterator for Source {
    type Item = io::Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// A line without its end, cut at `max` bytes, and whether it was longer; `None` after the last.
fn read_line(reader: &mut dyn BufRead, max: usize) -> io::Result<Option<(Vec<u8>, bool)>> {
    let mut line = Vec::new();
    if (&mut *reader).take(max as u64 + 1).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > max {
        line.truncate(max);
        skip_line(reader)?;
        return Ok(Some((line, true)));
    }
    Ok(Some((line, false)))
}

fn skip_line(reader: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let (len, end) = (buffer.len(), buffer.iter().position(|byte| *byte == b'\n'));
        reader.consume(end.map_or(len, |end| end + 1));
        if len == 0 || end.is_some() {
            return Ok(());
        }
    }
}

/// The files that match any of the patterns, sorted, each once.
pub(super) fn matching(patterns: &[String]) -> Result<Vec<String>, Failure> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for pattern in patterns {
        let before = paths.len();
        // A file's own name may look like a pattern: photo[1].jpg.
        if Path::new(pattern).is_file() {
            paths.push(pattern.into());
            continue;
        }
        if Path::new(pattern).is_dir() {
            let folder = pattern.trim_end_matches('/');
            return Err(Failure::Usage(format!(
                "{pattern} is a folder; say which files of it, such as '{folder}/**/*.jpg'"
            )));
        }
        let found = glob::glob(pattern).map_err(|error| {
            Failure::Usage(format!("--images {pattern:?} is not a pattern: {error}"))
        })?;
        for path in found {
            let path = path.map_err(|error| anyhow::anyhow!("--images {pattern:?}: {error}"))?;
            paths.extend(path.is_file().then_some(path));
        }
        if paths.len() == before {
            return Err(Failure::Usage(format!(
                "--images {pattern:?} matches no file; quote the pattern, and write ** for folders \
                 within folders"
            )));
        }
    }
    paths.sort();
    paths.dedup();
    Ok(paths.iter().map(|path| path.to_string_lossy().into_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_and_read_past() {
        let mut reader = io::Cursor::new(b"abc\n\nabcdef\r\nabcd\nxyz12345\nend".to_vec());
        let mut lines = Vec::new();
        while let Some((line, too_long)) = read_line(&mut reader, 4).unwrap() {
            lines.push((String::from_utf8(line).unwrap(), too_long));
        }
        let expected =
            [("abc", false), ("", false), ("abcd", true), ("abcd", false), ("xyz1", true)];
        let expected = expected.into_iter().chain([("end", false)]);
        assert_eq!(lines, expected.map(|(l, t)| (l.to_owned(), t)).collect::<Vec<_>>());
    }

    #[test]
    fn a_picture_becomes_the_line_a_file_would_have() {
        let template = Map::from_iter([("skill".to_owned(), "caption".into())]);
        let items = Source::images(vec!["a.png".into(), "b.png".into()], template);
        let items: Vec<Item> = items.map(Result::unwrap).collect();
        assert_eq!(items[1].index, 1);
        assert_eq!(items[1].line, br#"{"skill":"caption","image_path":"b.png"}"#);
        assert_eq!(items[1].image.as_deref(), Some("b.png"));
    }

    #[test]
    fn a_digest_depends_on_the_line_and_the_options() {
        let item = |line: &[u8]| Item { index: 0, line: line.into(), too_long: false, image: None };
        let (a, b) = (item(b" {\"x\":1}\r"), item(b"{\"x\":1}"));
        assert_eq!(a.digest("demo"), b.digest("demo"));
        assert_ne!(b.digest("demo"), b.digest("other"));
        assert_ne!(b.digest("demo"), item(b"{\"x\":2}").digest("demo"));
    }
}
