//! The licenses of everything in a program, with their texts, as they ask for.
use std::{collections::BTreeMap, fmt::Write, path::Path};

use anyhow::{Context, Result, bail};

use super::crates::Crate;
use crate::root;

/// How names of files with licenses begin.
const NAMES: &[&str] =
    &["license", "licence", "copying", "copyright", "notice", "unlicense", "ofl", "ufl"];
/// A license is some ten thousand bytes.
const MAX_BYTES: u64 = 1 << 20;

/// For crates that name this license and carry no text of it.
const MIT: &str = "\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the \"Software\"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

/// One text: a list of the crates, then each license once, under the names of those it is of. `others` is what is in the
/// program and is no crate: its name, its license and its text.
pub(crate) fn text(crates: &[Crate], others: &[(&str, &str, String)]) -> Result<String> {
    let mut by_text = BTreeMap::<String, Vec<String>>::new();
    let mut list = String::new();
    for (name, license, text) in others {
        let _ = writeln!(list, "{name}: {license}");
        by_text.entry(normal(text)).or_default().push((*name).to_owned());
    }
    for a in crates.iter().filter(|a| !a.is_ours()) {
        let name = format!("{} {}", a.name, a.version);
        let _ = writeln!(list, "{name}: {}, {}", a.license, a.repository);
        for text in texts(a)? {
            by_text.entry(normal(&text)).or_default().push(name.clone());
        }
    }
    let mut out = format!("What Photon contains, beside itself:\n\n{list}");
    let mut texts: Vec<(Vec<String>, String)> =
        by_text.into_iter().map(|(text, names)| (names, text)).collect();
    texts.sort();
    for (names, text) in texts {
        let rule = "=".repeat(78);
        let _ = write!(out, "\n{rule}\n{}\n{rule}\n\n{text}\n", names.join(", "));
    }
    Ok(out)
}

/// The texts of a crate's licenses: its own files, or what its license is known to say.
fn texts(a: &Crate) -> Result<Vec<String>> {
    let mut files = files(&a.folder)?;
    // Fonts have licenses of their own beside them.
    let fonts = a.folder.join("fonts");
    if fonts.is_dir() {
        files.extend(list(&fonts, |name| name.ends_with(".txt"))?);
    }
    if !files.is_empty() {
        return Ok(files);
    }
    let known: Vec<&str> = a.license.split(" OR ").map(str::trim).collect();
    if known.contains(&"Apache-2.0") {
        return Ok(vec![std::fs::read_to_string(root().join("LICENSE")).context("LICENSE")?]);
    }
    if known.contains(&"MIT") {
        return Ok(vec![format!(
            "Copyright: the authors of {} ({})\n\n{MIT}",
            a.name, a.repository
        )]);
    }
    bail!("{} {} is under {} and carries no text of it", a.name, a.version, a.license)
}

fn files(folder: &Path) -> Result<Vec<String>> {
    list(folder, |name| NAMES.iter().any(|begin| name.starts_with(begin)) && !name.ends_with(".rs"))
}

/// Texts of a folder's files, in the order of their names; what is no text is left out.
fn list(folder: &Path, is_one: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
        let about = entry.path().metadata()?;
        if is_one(&name) && about.is_file() && about.len() <= MAX_BYTES {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect())
}

/// Texts that differ in their line ends and in blanks at them are the same.
fn normal(text: &str) -> String {
    let text = text.trim_start_matches('\u{feff}');
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(name: &str, license: &str) -> Crate {
        Crate {
            name: name.into(),
            version: "1.0.0".into(),
            license: license.into(),
            checksum: Some("ff".into()),
            folder: std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id())),
            ..Crate::default()
        }
    }

    #[test]
    fn a_text_is_there_once_for_all_who_have_it() {
        let crates = [a("one", "MIT"), a("two", "MIT"), a("three", "Apache-2.0 OR ISC")];
        for (a, text) in crates.iter().zip(["Do what you like.\r\n", "Do what you like. \n"]) {
            std::fs::create_dir_all(&a.folder).unwrap();
            std::fs::write(a.folder.join("LICENSE-MIT"), text).unwrap();
        }
        std::fs::create_dir_all(&crates[2].folder).unwrap();
        let text = text(&crates, &[("musl", "MIT", "Like, do what you.".into())]).unwrap();
        let unknown = super::text(&[Crate { license: "BSL-1.0".into(), ..crates[2].clone() }], &[]);
        for a in &crates {
            std::fs::remove_dir_all(&a.folder).unwrap();
        }
        assert_eq!(text.matches("Do what you like.").count(), 1, "{text}");
        assert!(text.contains("one 1.0.0, two 1.0.0\n"), "{text}");
        assert!(text.contains("Like, do what you."), "{text}");
        assert!(text.contains("three 1.0.0: Apache-2.0 OR ISC"), "{text}");
        assert!(text.contains("Version 2.0, January 2004"), "{text}");
        assert!(unknown.unwrap_err().to_string().contains("three 1.0.0 is under BSL-1.0"));
    }
}
