//! `adapter`.
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::DTypeArg;

#[derive(Debug, ClapArgs)]
pub(crate) struct AdapterArgs {
    #[command(subcommand)]
    pub(crate) what: AdapterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Write an adapter of any supported format as safetensors
    #[command(arg_required_else_help = true)]
    Convert(AdapterConvertArgs),
    /// Say what is in a file with an adapter
    #[command(arg_required_else_help = true)]
    Inspect(AdapterInspectArgs),
    /// List the adapters that can be named: MODEL/ID@STEP
    List(AdapterListArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AdapterConvertArgs {
    /// What to read: .pt as fine-tuning gives it, .safetensors, or a folder
    #[arg(value_name = "IN")]
    pub(crate) from: PathBuf,
    /// The file to write; ID@STEP.safetensors makes it one that can be named
    #[arg(value_name = "OUT")]
    pub(crate) to: PathBuf,
    /// A model that it must fit: a name, a folder or a file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Type of its matrices; as they are by default
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeArg>,
    /// Replace the file OUT
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AdapterInspectArgs {
    /// A .pt or .safetensors file, or a folder
    #[arg(value_name = "FILE|DIR")]
    pub(crate) path: PathBuf,
    /// A model that it must fit: a name, a folder or a file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AdapterListArgs {
    /// The folder of adapters
    #[arg(long, value_name = "DIR", env = "PHOTON_ADAPTERS")]
    pub(crate) adapters: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
