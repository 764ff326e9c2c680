//! What can be typed after `photon bench`.
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::{DeviceArgs, ModelArgs, at_least_one, concurrency};

const WORKLOAD_HELP: &str = "\
Cells are measured round by round: each once, then each again. A cell begins with an engine
that has seen nothing but its warm-up; the median of the rounds is reported, and how far
they spread. Times include waiting.

Examples:
  photon bench workload --quick
  photon bench workload --concurrency 1,16 --modes closed --out before.jsonl
  photon bench --compare before.jsonl after.jsonl
  photon bench workload --synthetic moondream2 --images 3 --modes phases";

const LOAD_HELP: &str = "\
The first start reads files from the disk unless they were read before; the others find
them in memory, so `max s` of the weights shows the first one, and `--repeats 1` by itself
what a start after a reboot costs.

Examples:
  photon bench load --model moondream2
  photon bench load --model DIR --quant text=int4,vision=int8 --repeats 5";

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Option<BenchWhat>,
    /// Compare two files that `photon bench workload --out` wrote: B over A, cell by cell
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub(crate) compare: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// Questions about charts, many at once: requests per second, latencies, where the time goes
    #[command(after_long_help = WORKLOAD_HELP)]
    Workload(Box<BenchWorkloadArgs>),
    /// The phases of a request, each by itself, on a model of random weights
    Model(BenchModelArgs),
    /// How long a model takes to start, stage by stage
    #[command(after_long_help = LOAD_HELP)]
    Load(BenchLoadArgs),
}

/// A way to put a workload to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchMode {
    /// Every picture is decoded, one after the other, then everything is submitted
    Parity,
    /// Everything is submitted at once, as files
    Engine,
    /// As many clients as --concurrency, each asking when it has its answer
    Closed,
    /// A second question about a picture against the first
    Again,
    /// Vision, prefill and decode steps by themselves, with random weights of the model's dimensions
    Phases,
}

/// How much is drawn per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchAnswer {
    /// 39 tokens of prompt, 3 of answer
    Direct,
    /// 15 to 20 tokens of prompt, 30 of answer, as when a model thinks first
    Thought,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchWorkloadArgs {
    /// Pictures to draw
    #[arg(long, value_name = "N", default_value_t = 302, value_parser = at_least_one)]
    pub(crate) images: usize,
    /// Questions, at most two a picture; 500 per 302 pictures by default
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) questions: Option<usize>,
    /// Requests computed at once, a number per cell
    #[arg(long, value_name = "N,..", default_value = "1,4,16,64", value_delimiter = ',')]
    #[arg(value_parser = concurrency)]
    pub(crate) concurrency: Vec<usize>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_value = "parity,engine,closed,again,phases")]
    pub(crate) modes: Vec<BenchMode>,
    /// How much is drawn
    #[arg(long, value_enum, default_value = "direct,thought", value_delimiter = ',')]
    pub(crate) answers: Vec<BenchAnswer>,
    /// Rounds; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub(crate) repeats: usize,
    /// Seed of pictures and questions
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// A smaller workload, less than a minute with the demo model: 24 pictures, concurrency 1 and 16
    #[arg(long, conflicts_with_all = ["images", "questions", "concurrency"])]
    pub(crate) quick: bool,
    /// Print a JSON object per cell instead of tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a JSON object per cell to a file, too
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Write the pictures and a requests.jsonl for `photon batch` to a folder, measure nothing
    #[arg(long, value_name = "DIR")]
    pub(crate) save: Option<PathBuf>,
    /// Random weights instead of a model: `moondream2`, `moondream3`, or a folder with a config.json
    #[arg(long, value_name = "NAME|DIR", conflicts_with = "model")]
    pub(crate) synthetic: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchModelArgs {
    /// Dimensions: `moondream2`, `moondream3`, or a folder with a config.json
    #[arg(long, default_value = "moondream2", value_name = "NAME|DIR")]
    pub(crate) synthetic: String,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Runs of each phase after a warm-up
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    pub(crate) repeats: usize,
    /// Tokens to decode per run
    #[arg(long, default_value_t = 16, value_parser = at_least_one)]
    pub(crate) decode_tokens: usize,
    /// Numbers of sequences to decode together
    #[arg(long, value_name = "N,..", default_value = "1", value_delimiter = ',')]
    #[arg(value_parser = concurrency)]
    pub(crate) concurrency: Vec<usize>,
    /// Numbers of tokens guessed ahead in each step, as --speculate does; each is measured
    #[arg(long, value_name = "N,..", default_value = "0", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u16).range(..=64))]
    pub(crate) drafts: Vec<u16>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Run the phases that lines of standard input name, one at a time, for programs that take turns
    #[arg(long, hide = true, conflicts_with = "json")]
    pub(crate) by_name: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchLoadArgs {
    /// `demo` or `demo3` (built in), a folder with config.json, safetensors and tokenizer.json, or the
    /// name of a model that was pulled
    #[arg(long, default_value = "demo", value_name = "NAME|DIR", env = "PHOTON_MODEL")]
    pub(crate) model: String,
    /// Starts
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    pub(crate) repeats: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}
