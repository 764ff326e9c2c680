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
    page.generate_to(folder).map(drop)
}
