//! `completions` and `man`: what packages carry beside the program, made by the program itself.
use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Context;
use clap::CommandFactory;

use crate::{
    Failure,
    args::{Args, CompletionsArgs, ManArgs},
};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "photon", &mut text);
    Ok(io::stdout().lock().write_all(&text)?)
}

/// A page for every command and one for them all.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let folder = args.folder.display();
    std::fs::create_dir_all(&args.folder).with_context(|| format!("cannot create {folder}"))?;
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let source = format!("photon {}", env!("CARGO_PKG_VERSION"));
    pages(&command, &source, &args.folder)
        .with_context(|| format!("cannot write a page to {folder}"))?;
    Ok(())
}

fn pages(command: &clap::Command, source: &str, folder: &Path) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        pages(command, source, folder)?;
    }
    let page = clap_mangen::Man::new(command.clone()).source(source).manual("Photon");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    std::fs::write(folder.join(page.get_filename()), unfilled(&text))
}

/// A page on which the lines of what stands behind the options, examples and tables, stay as they are.
fn unfilled(page: &str) -> String {
    let Some((head, rest)) = page.split_once(".SH EXTRA\n") else { return page.to_owned() };
    let (text, tail) = rest.split_at(rest.find("\n.SH ").map_or(rest.len(), |at| at + 1));
    let (title, text) = match text.strip_prefix("Examples:\n") {
        Some(examples) => ("EXAMPLES", examples),
        None => ("NOTES", text),
    };
    format!("{head}.SH {title}\n.nf\n{text}.fi\n{tail}")
}
