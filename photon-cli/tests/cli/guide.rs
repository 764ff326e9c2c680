//! The guide (`docs/src`) and the README: what they tell people to type is done here, and does what they say.
//!
//! A page's blocks run in order, in a folder of the page's own with the sample pictures, `photo.jpg` and an adapter in it.
//! What stands behind a fence's language decides:
//! - ```` ```sh ````: bash runs it and stops at the first command that fails. If the next block is `text`, that is what it
//!   printed: `…` stands for anything, a line of it for any lines, and coordinates may differ a little, as they do from one
//!   processor to the next.
//! - ```` ```sh,fails ````: the same, and the last command fails.
//! - ```` ```sh,server ````: one command that serves until the page's next server or its end. It gets a free port, which the
//!   page's other blocks find where they say `localhost:2020`.
//! - ```` ```sh,no-run: WHY ````: only the program's own reading of its arguments is run; other programs are not.
//! - ```` ```json,file: NAME ````, of any language: a file for the blocks behind it.
//!
//! `cargo run ... -- ARGS` runs the program that is built already; of other cargo commands, features and tasks must exist. Rust and
//! Python are run elsewhere: as documentation tests of `photon`, by `photon-server/tests/contract` (clients) and `photon-py/tests`.
mod page;
mod picture;
mod text;

use std::path::{Path, PathBuf};

use page::{Kind, Page};

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn pages() -> Vec<Page> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root().join("docs/src"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    paths.sort();
    paths.push(root().join("README.md"));
    paths.iter().map(|path| Page::read(path)).collect()
}

#[test]
fn every_command_does_what_its_page_says() {
    let pages = pages();
    let commands = pages.iter().flat_map(|page| &page.blocks).filter(|block| block.is_command());
    assert!(commands.count() > 20, "the guide has commands");
    let failures: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = pages.iter().map(|page| scope.spawn(|| page::run(page))).collect();
        runs.into_iter().filter_map(|run| run.join().unwrap().err()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let summary = std::fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    for page in pages() {
        let listed = summary.contains(&format!("({})", page.name));
        assert!(listed || ["SUMMARY.md", "README.md"].contains(&&*page.name), "{}", page.name);
    }
}

#[test]
fn links_lead_to_files_and_headings() {
    for page in pages() {
        for link in text::links(&page.text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.path.clone(),
                file => page.path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", page.name);
            if !heading.is_empty() {
                let headings = text::headings(&text::with_includes(&target));
                assert!(headings.contains(heading), "{}: no heading for {link}", page.name);
            }
        }
    }
}

#[test]
fn a_page_is_read_into_blocks() {
    let text = "# T\n```sh,no-run: needs a GPU\nphoton a\n```\nx\n```json,file: a.json\n{}\n```\n";
    let blocks = page::blocks(text).unwrap();
    let [command, file] = &blocks[..] else { panic!("{blocks:?}") };
    assert_eq!((command.line, &*command.text), (2, "photon a\n"));
    assert!(matches!(&command.kind, Kind::NotRun(why) if why == "needs a GPU"));
    assert!(matches!(&file.kind, Kind::File(name) if name == "a.json"));
    assert!(page::blocks("```sh\nphoton\n").unwrap_err().contains("has no end"));
    assert!(page::blocks("```sh,norun\n```\n").unwrap_err().contains("sh,norun"));
    assert!(page::blocks("```sh,no-run: \n```\n").is_err(), "a reason is needed");
}

#[test]
fn what_is_printed_may_differ_by_a_little_and_where_a_page_leaves_it_open() {
    let same = text::same;
    assert!(same("1  0.430 (222,65 px)\n", "1  0.429 (223,65 px)\n"));
    assert!(!same("1  0.430\n", "1  0.450\n"));
    assert!(!same("3 ok, 0 failed\n", "2 ok, 1 failed\n"));
    assert!(!same("a blue star\n", "a red star\n"));
    assert!(same("first\n…\nlast … ms\n", "first\n1\n2\nlast 5.3 ms\n"));
    assert!(!same("first\n…\nlast\n", "first\n1\n2\n"));
}

/// What a page that is wrong is told, for this test of the test.
fn wrong(text: &str) -> String {
    let path = root().join("docs/src/wrong.md");
    let blocks = page::blocks(text).unwrap();
    let page = Page { name: "wrong.md".into(), path, text: text.into(), blocks };
    page::run(&page).unwrap_err()
}

#[test]
fn what_a_page_says_wrongly_is_found() {
    let why = wrong("```sh,no-run: needs a GPU\nls | photon caption a.jpg --lenght short\n```\n");
    assert!(why.contains("wrong.md:1") && why.contains("--lenght"), "{why}");
    let why = wrong("```sh,no-run: builds\ncargo install --path photon-cli --features warp\n```\n");
    assert!(why.contains("no feature warp"), "{why}");
    let why = wrong("```sh,no-run: long\ncargo xtask make-coffee\n```\n");
    assert!(why.contains("no task make-coffee"), "{why}");
    let why = wrong("```sh\nphoton caption assets/shapes.png\n```\n```text\nA cat.\n```\n");
    assert!(why.contains("A cat.") && why.contains("yellow triangle"), "{why}");
    let why = wrong("```sh,fails\nphoton models\n```\n");
    assert!(why.contains("does not fail"), "{why}");
    let why = wrong("```sh,server\nphoton serve\n```\n```sh\ncurl -sf localhost:2020/no\n```\n");
    assert!(why.contains("wrong.md:4"), "{why}");
}
