//! `convert` and `quantize`.
use std::path::PathBuf;

use clap::Args as ClapArgs;
use photon::Quant;

use super::{DTypeArg, memory};

#[derive(Debug, ClapArgs)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    pub(crate) what: ConversionArgs,
    /// Quantize the matrices of both models, or of some parts, as in `--quant text=int4,vision=int8,head=int8`: `int8`,
    /// `int4` (a scale for 128 weights), `int4-32` or `fp8`
    #[arg(long, value_name = "FORMAT", default_value = "none")]
    pub(crate) quant: Quant,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    pub(crate) what: ConversionArgs,
    /// The formats: `int8`, `int4` (a scale for 128 weights), `int4-32` or `fp8` for both models, or for
    /// some parts, as in `text=int4,vision=int8,head=int8`
    #[arg(long, value_name = "FORMAT", required = true)]
    pub(crate) quant: Quant,
}

/// What is read, and where it goes.
#[derive(Debug, ClapArgs)]
pub(crate) struct ConversionArgs {
    /// What to read: a name, a folder, or a file with its tokenizer.json beside it; any layout and format that
    /// Photon loads
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// The folder to write: config.json, tokenizer.json and weights in safetensors
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Type of the weights that are not quantized; as they are by default
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeArg>,
    /// Another tokenizer.json than the model's
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Most bytes of a file of weights, such as 2GiB; 5 GB by default
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub(crate) shard_size: Option<u64>,
    /// Replace the model in OUT
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
