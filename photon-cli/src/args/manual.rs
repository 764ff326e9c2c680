//! What can be typed after `photon completions` and `photon man`.
use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap_complete::Shell;

pub(crate) const COMPLETIONS_HELP: &str = "\
Examples:
  photon completions bash > ~/.local/share/bash-completion/completions/photon
  photon completions zsh > \"${fpath[1]}/_photon\"
  photon completions fish > ~/.config/fish/completions/photon.fish
  photon completions powershell >> $PROFILE";

#[derive(Debug, ClapArgs)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ManArgs {
    /// The folder, which is created
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
}
