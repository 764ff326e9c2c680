//! What both languages' sources need: replacing ranges of tokens, and arrays that a block shares.
use std::{collections::BTreeMap, fmt::Write, ops::Range};

use crate::source::{Kind, Result, Source};

/// Replacements of ranges of tokens: by where they begin, where they end and what is there instead.
pub(crate) type Edits = BTreeMap<usize, (usize, String)>;

/// The source with its replacements made.
pub(crate) fn apply(source: &Source, edits: &Edits) -> String {
    let (mut out, mut at) = (String::new(), 0);
    while at < source.tokens.len() {
        if let Some((end, text)) = edits.get(&at) {
            out.push_str(text);
            // Lines stay where they are, for messages and the debugger.
            let lost = source.tokens[at..*end].iter().filter(|t| t.text == "\n").count();
            out.extend(std::iter::repeat_n('\n', lost));
            at = *end;
        } else {
            out.push_str(&source.tokens[at].text);
            at += 1;
        }
    }
    out
}

/// `T name[N][M]`: the type, the name, the dimensions.
pub(crate) fn declarator(source: &Source, range: Range<usize>) -> Result<(String, String, String)> {
    let (mut name, mut at, mut angles) = (None, range.start, 0);
    let mut dimensions = range.end;
    while at < range.end {
        let token = &source.tokens[at];
        match token.text.as_str() {
            "<" => angles += 1,
            ">" => angles -= 1,
            "[" | "=" | "{" if angles == 0 => {
                dimensions = at;
                break;
            }
            "(" => at = source.closing(at)?,
            _ if token.kind == Kind::Word && angles == 0 => name = Some(at),
            _ => {}
        }
        at += 1;
    }
    let name = name.ok_or_else(|| format!("{}: a declaration without name", source.place(at)))?;
    let kind = source.text(range.start..name);
    let end = (dimensions..range.end).find(|&i| source.is(i, "=")).unwrap_or(range.end);
    Ok((kind, source.tokens[name].text.clone(), source.text(dimensions..end)))
}

/// `T a[N], b[M]` as references to what the arena has for each.
pub(crate) fn arena(source: &Source, range: Range<usize>, align: &str) -> Result<String> {
    let (mut out, mut of_all) = (String::new(), String::new());
    for (i, part) in source.split(range, ",")?.into_iter().enumerate() {
        if let Some(at) = part.clone().find(|&i| source.is(i, "=")) {
            let place = source.place(at);
            return Err(format!(
                "{place}: shared memory cannot be initialized where it is declared"
            ));
        }
        let (kind, name, dimensions) = declarator(source, part)?;
        if i == 0 {
            of_all = kind;
        }
        // The local struct tells instances of a template apart.
        write!(
            out,
            "using simt_type_{name} = {of_all} {dimensions}; struct simt_tag_{name} {{}}; auto& {name} = \
             ::simt::shared<simt_tag_{name}, ({align}), simt_type_{name}>(\"{name}\");"
        )
        .expect("a string grows");
    }
    Ok(out)
}

/// Types and names of a struct's fields.
pub(crate) fn fields(source: &Source, name: &str, place: &str) -> Result<Vec<(String, String)>> {
    let is_it = |&at: &usize| {
        source.is(at, "struct") && {
            let mut next = source.after(at);
            if source.is(next, "alignas") {
                next = source.closing(source.after(next)).map_or(next, |close| source.after(close));
            }
            source.is(next, name) && source.is(source.after(next), "{")
        }
    };
    let at = (0..source.tokens.len()).find(is_it);
    let at = at.ok_or_else(|| format!("{place}: the kernel's `struct {name} {{` is not found"))?;
    let open = source.find_open(at)?;
    let mut fields = Vec::new();
    for member in source.split(open + 1..source.closing(open)?, ";")? {
        let start = source.skip(member.start);
        if source.is(start, "static_assert") {
            continue;
        }
        if member.clone().any(|i| source.is(i, "(") || source.is(i, "{")) {
            let place = source.place(start);
            return Err(format!("{place}: {name} has more than fields, and travels as bytes"));
        }
        let declarators = source.split(member, ",")?;
        let mut of_all = String::new();
        for (i, one) in declarators.into_iter().enumerate() {
            let (kind, word, rest) = declarator(source, one)?;
            if i == 0 {
                of_all = kind;
            }
            fields.push((format!("{of_all}{rest}"), word));
        }
    }
    Ok(fields)
}

impl Source {
    fn find_open(&self, at: usize) -> Result<usize> {
        (at..self.tokens.len())
            .find(|&i| self.is(i, "{"))
            .ok_or_else(|| format!("{}: no `{{` follows", self.place(at)))
    }
}
