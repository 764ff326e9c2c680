//! C++ as tokens: enough to find declarations, brackets and statements, and to write the rest back unchanged.
//!
//! Sources come preprocessed: no comments, no macros but line markers (`# 12 "file"`) and pragmas, which stay whole lines.
//! Nothing here knows C++'s grammar; what is looked for is spelled one way only, and the generators say so where it is not.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or keyword.
    Word,
    /// A number, character or string.
    Literal,
    /// One character of punctuation, or `::`, `->`, `[[`, `]]`.
    Mark,
    /// A line that begins with `#`.
    Directive,
    /// Blanks and line ends.
    Space,
}

/// A piece of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    pub(crate) file: usize,
    pub(crate) line: u32,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.text == text && self.kind != Kind::Literal
    }
}

/// A preprocessed source, in tokens, each with the file and line it came from.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) tokens: Vec<Token>,
    pub(crate) files: Vec<String>,
}

/// What is wrong where, in the source's own terms.
pub(crate) type Result<T> = std::result::Result<T, String>;

impl Source {
    pub(crate) fn new(text: &str) -> Result<Self> {
        let mut source = Self { tokens: Vec::new(), files: vec!["?".into()] };
        let (mut at, mut line, mut file) = (0, 1, 0);
        while at < text.len() {
            let rest = &text[at..];
            let starts_line = at == 0 || text[..at].ends_with('\n');
            let (kind, len) = next(rest, starts_line).map_err(|e| format!("line {line}: {e}"))?;
            let piece = &rest[..len];
            source.tokens.push(Token { kind, text: piece.to_owned(), file, line });
            line += u32::try_from(piece.matches('\n').count()).expect("lines fit");
            if kind == Kind::Directive
                && let Some((number, name)) = marker(piece)
            {
                // The marker names the line after its own.
                line = number.saturating_sub(1);
                file = source.file(name);
            }
            at += len;
        }
        Ok(source)
    }

    fn file(&mut self, name: &str) -> usize {
        let known = self.files.iter().position(|f| f == name);
        known.unwrap_or_else(|| {
            self.files.push(name.to_owned());
            self.files.len() - 1
        })
    }

    /// `file:line` of a token.
    pub(crate) fn place(&self, at: usize) -> String {
        let token = &self.tokens[at.min(self.tokens.len() - 1)];
        format!("{}:{}", self.files[token.file], token.line)
    }

    /// The first token from `at` on that means something.
    pub(crate) fn skip(&self, mut at: usize) -> usize {
        while self.tokens.get(at).is_some_and(|t| matches!(t.kind, Kind::Space | Kind::Directive)) {
            at += 1;
        }
        at
    }

    /// The same, after `at`.
    pub(crate) fn after(&self, at: usize) -> usize {
        self.skip(at + 1)
    }

    /// The last token before `at` that means something.
    pub(crate) fn before(&self, at: usize) -> Option<usize> {
        (0..at).rev().find(|&i| !matches!(self.tokens[i].kind, Kind::Space | Kind::Directive))
    }

    pub(crate) fn is(&self, at: usize, text: &str) -> bool {
        self.tokens.get(at).is_some_and(|t| t.is(text))
    }

    pub(crate) fn word(&self, at: usize) -> Result<&str> {
        match self.tokens.get(at) {
            Some(token) if token.kind == Kind::Word => Ok(&token.text),
            _ => Err(format!("{}: expected a name", self.place(at))),
        }
    }

    /// The place of the bracket that closes the one at `open`.
    pub(crate) fn closing(&self, open: usize) -> Result<usize> {
        let (mut depth, mut at) = (0, open);
        while let Some(token) = self.tokens.get(at) {
            if token.kind == Kind::Mark {
                match token.text.as_str() {
                    "(" | "{" | "[" => depth += 1,
                    "[[" => depth += 2,
                    ")" | "}" | "]" => depth -= 1,
                    "]]" => depth -= 2,
                    _ => {}
                }
                if depth <= 0 {
                    return Ok(at);
                }
            }
            at += 1;
        }
        Err(format!("{}: a bracket that nothing closes", self.place(open)))
    }

    /// The place of `mark` from `at` on, outside of brackets.
    pub(crate) fn find(&self, mut at: usize, mark: &str) -> Result<usize> {
        let from = at;
        while at < self.tokens.len() {
            let token = &self.tokens[at];
            if token.is(mark) {
                return Ok(at);
            }
            let opens = token.kind == Kind::Mark && ["(", "{", "[", "[["].contains(&&*token.text);
            at = if opens { self.closing(at)? + 1 } else { at + 1 };
        }
        Err(format!("{}: no `{mark}` follows", self.place(from)))
    }

    /// The text of a range, on one line.
    pub(crate) fn text(&self, range: std::ops::Range<usize>) -> String {
        let mut out = String::new();
        for token in &self.tokens[range] {
            match token.kind {
                Kind::Directive => {}
                Kind::Space => {
                    if !out.is_empty() && !out.ends_with(' ') {
                        out.push(' ');
                    }
                }
                _ => out.push_str(&token.text),
            }
        }
        out.trim().to_owned()
    }

    /// Parts of a range between marks `by`, outside of brackets.
    pub(crate) fn split(
        &self,
        range: std::ops::Range<usize>,
        by: &str,
    ) -> Result<Vec<std::ops::Range<usize>>> {
        let (mut parts, mut begin, mut at) = (Vec::new(), range.start, range.start);
        let mut angles = 0;
        while at < range.end {
            let token = &self.tokens[at];
            if token.is(by) && angles == 0 {
                parts.push(begin..at);
                begin = at + 1;
            } else if token.is("<") {
                angles += 1;
            } else if token.is(">") {
                angles = (angles - 1).max(0);
            } else if token.kind == Kind::Mark && ["(", "{", "[", "[["].contains(&&*token.text) {
                at = self.closing(at)?;
            }
            at += 1;
        }
        parts.push(begin..range.end);
        Ok(parts.into_iter().filter(|part| self.skip(part.start) < part.end).collect())
    }
}

/// `# 12 "file" flags`: the number and the name.
fn marker(line: &str) -> Option<(u32, &str)> {
    let (number, rest) = line.strip_prefix("# ")?.split_once(" \"")?;
    Some((number.parse().ok()?, rest.split_once('"')?.0))
}

/// The kind and length of the token that a text begins with.
fn next(text: &str, starts_line: bool) -> std::result::Result<(Kind, usize), String> {
    let first = text.chars().next().expect("not empty");
    let until = |end: fn(char) -> bool| text.find(end).unwrap_or(text.len());
    if first.is_whitespace() {
        // A line's end is a token of its own: what begins a line is told by it.
        let len = if first == '\n' { 1 } else { until(|c| !c.is_whitespace() || c == '\n') };
        return Ok((Kind::Space, len));
    }
    if first == '#' && starts_line {
        return Ok((Kind::Directive, text.find('\n').unwrap_or(text.len())));
    }
    if first == '"' || first == '\'' {
        return Ok((Kind::Literal, quoted(text, first)?));
    }
    if first.is_ascii_digit() {
        return Ok((Kind::Literal, number(text)));
    }
    if first.is_alphabetic() || first == '_' {
        let len = until(|c| !c.is_alphanumeric() && c != '_');
        if text[len..].starts_with('"') && ["R", "u8R", "LR"].contains(&&text[..len]) {
            return Err("a raw string, which nothing here reads".into());
        }
        return Ok((Kind::Word, len));
    }
    let two = ["::", "->", "[[", "]]"].iter().any(|mark| text.starts_with(mark));
    Ok((Kind::Mark, if two { 2 } else { first.len_utf8() }))
}

fn quoted(text: &str, quote: char) -> std::result::Result<usize, String> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' => break,
            _ if c == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a string that does not end on its line".into())
}

/// `0x1p-3f`, `1'000`, `1e-5f`, `2ull`.
fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let hex = text.starts_with("0x") || text.starts_with("0X");
    let mut at = 1;
    while at < bytes.len() {
        let exponent = if hex { b"pP" } else { b"eE" };
        let sign = (bytes[at] == b'+' || bytes[at] == b'-') && exponent.contains(&bytes[at - 1]);
        if !(bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.' || bytes[at] == b'\'' || sign) {
            break;
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<String> {
        let source = Source::new(text).unwrap();
        let meant = source.tokens.iter().filter(|t| t.kind != Kind::Space);
        meant.map(|t| format!("{:?} {}", t.kind, t.text)).collect()
    }

    #[test]
    fn every_kind_of_token() {
        let text = "a->b1::c = 0x1p-3f + 1e-5f; \"x\\\"y\" '\\'' [[k]]\n#pragma unroll\n1'000";
        let expected = [
            "Word a",
            "Mark ->",
            "Word b1",
            "Mark ::",
            "Word c",
            "Mark =",
            "Literal 0x1p-3f",
            "Mark +",
            "Literal 1e-5f",
            "Mark ;",
            "Literal \"x\\\"y\"",
            "Literal '\\''",
            "Mark [[",
            "Word k",
            "Mark ]]",
            "Directive #pragma unroll",
            "Literal 1'000",
        ];
        assert_eq!(kinds(text), expected);
    }

    #[test]
    fn the_text_comes_back_unchanged() {
        let text = "# 1 \"k.cu\"\nint  f(int a) {\n\treturn a >> 2; // not here\n}\n";
        let back: String = Source::new(text).unwrap().tokens.iter().map(|t| &*t.text).collect();
        assert_eq!(back, text);
    }

    #[test]
    fn lines_are_those_of_the_markers() {
        let source = Source::new("# 7 \"k.cu\"\na\n\nb\n# 2 \"h.cuh\" 1\nc\n").unwrap();
        let place = |name| source.place(source.tokens.iter().position(|t| t.is(name)).unwrap());
        assert_eq!([place("a"), place("b"), place("c")], ["k.cu:7", "k.cu:9", "h.cuh:2"]);
    }

    #[test]
    fn brackets_are_matched_and_lists_split() {
        let source = Source::new("f(a, g(b, c), x<1, 2>[3, 4])").unwrap();
        let open = source.tokens.iter().position(|t| t.is("(")).unwrap();
        let close = source.closing(open).unwrap();
        let parts = source.split(open + 1..close, ",").unwrap();
        let parts: Vec<String> = parts.into_iter().map(|p| source.text(p)).collect();
        assert_eq!(parts, ["a", "g(b, c)", "x<1, 2>[3, 4]"]);
        let open = Source::new("(a").unwrap().closing(0).unwrap_err();
        assert_eq!(open, "?:1: a bracket that nothing closes");
    }

    #[test]
    fn strings_must_end() {
        let error = Source::new("a\n\"b\nc").unwrap_err();
        assert_eq!(error, "line 2: a string that does not end on its line");
    }
}
