//! Everything a user can type.
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use photon::{CaptionLength, DType, Device, ResizeOrder};

/// Ask pictures: caption, answer, detect, point - on this machine, offline.
#[derive(Debug, Parser)]
#[command(name = "photon", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    photon caption photo.jpg\n  \
    photon query photo.jpg \"what is on the table?\"\n  \
    photon detect photo.jpg \"red car\" --draw found.png\n  \
    cat photo.jpg | photon point - \"door handle\" --json")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer a question about pictures, or without one
    #[command(arg_required_else_help = true)]
    Query(QueryArgs),
    /// Describe pictures
    #[command(arg_required_else_help = true)]
    Caption(CaptionArgs),
    /// Find every instance of something, as boxes
    #[command(arg_required_else_help = true)]
    Detect(DetectArgs),
    /// Find every instance of something, as points
    #[command(arg_required_else_help = true)]
    Point(PointArgs),
    /// Find what somebody looks at, given where their eyes are
    #[command(arg_required_else_help = true)]
    Gaze(GazeArgs),
    /// List the models Photon knows and which of them are on this machine
    Models(ModelsArgs),
    /// Download a model from the Hugging Face hub
    #[command(arg_required_else_help = true)]
    Pull(PullArgs),
    /// Say what this machine has, what Photon would use, and what is wrong
    Doctor(DoctorArgs),
    /// Measure how fast this machine is
    Bench(BenchArgs),
}

/// Which model, and where to run it.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Model and device")]
pub(crate) struct ModelArgs {
    /// `demo` (built in), a folder with config.json, safetensors and tokenizer.json, or the name of a
    /// model that was pulled
    #[arg(long, default_value = "demo", value_name = "NAME|DIR", env = "PHOTON_MODEL")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Which way pictures are resized first: `pil` as Pillow does, `kestrel` as libvips does
    #[arg(long, default_value = "pil", value_name = "ORDER")]
    pub(crate) preprocess: ResizeOrder,
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct DeviceArgs {
    /// Where to run: `auto` or `cpu`
    #[arg(long, default_value = "auto", env = "PHOTON_DEVICE")]
    pub(crate) device: Device,
    /// Type of weights, keys and values; the model's own by default
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeArg>,
    /// Threads of the processor; one per core by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DTypeArg {
    F32,
    F16,
    Bf16,
}

impl From<DTypeArg> for DType {
    fn from(dtype: DTypeArg) -> DType {
        match dtype {
            DTypeArg::F32 => DType::F32,
            DTypeArg::F16 => DType::F16,
            DTypeArg::Bf16 => DType::Bf16,
        }
    }
}

/// How tokens are drawn.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token; higher is more varied. 0.2 for text, 0 for places
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Keep the likeliest tokens up to this share of the probability. 0.9 for text
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long)]
    pub(crate) top_k: Option<u32>,
    /// Drop tokens below this share of the likeliest one's probability
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Same seed, same request: same answer
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Most tokens of an answer (and of the reasoning before it)
    #[arg(long, default_value_t = 768, value_parser = at_least_one)]
    pub(crate) max_tokens: usize,
}

/// What is printed.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Print one JSON object per picture: the result, finish_reason, tokens, metrics
    #[arg(long)]
    pub(crate) json: bool,
    /// Print sizes and times to standard error
    #[arg(long)]
    pub(crate) stats: bool,
}

/// Drawing what was found.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Output")]
pub(crate) struct DrawArgs {
    /// Save the picture with what was found drawn on it (.png, .jpg or .webp); with several
    /// pictures, OUT-1.png, OUT-2.png and so on
    #[arg(long, value_name = "OUT")]
    pub(crate) draw: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

/// Numbers separated by commas.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(pub(crate) Vec<f32>);

fn numbers(text: &str) -> Result<Numbers, String> {
    let parse = |part: &str| part.trim().parse().map_err(|_| format!("{part:?} is not a number"));
    text.split(',').map(parse).collect::<Result<_, _>>().map(Numbers)
}

#[derive(Debug, ClapArgs)]
pub(crate) struct QueryArgs {
    /// Pictures, then the question. `-` reads a picture from standard input; without a picture the
    /// model answers from what it knows
    #[arg(required = true, value_name = "IMAGE... QUESTION")]
    pub(crate) words: Vec<String>,
    /// Think first, pointing at what the thoughts are about
    #[arg(long)]
    pub(crate) reasoning: bool,
    /// A place the question is about: x,y or x_min,y_min,x_max,y_max, as fractions of the picture
    #[arg(long = "spatial-ref", value_name = "x,y[,x,y]", value_parser = numbers)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) spatial_refs: Vec<Numbers>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LengthArg {
    Short,
    Normal,
    Long,
}

impl From<LengthArg> for CaptionLength {
    fn from(length: LengthArg) -> Self {
        match length {
            LengthArg::Short => CaptionLength::Short,
            LengthArg::Normal => CaptionLength::Normal,
            LengthArg::Long => CaptionLength::Long,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CaptionArgs {
    /// Pictures; `-` reads one from standard input
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// How much to say
    #[arg(long, value_enum, default_value = "normal")]
    pub(crate) length: LengthArg,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DetectArgs {
    /// Pictures, then what to find. `-` reads a picture from standard input
    #[arg(required = true, value_name = "IMAGE... OBJECT")]
    pub(crate) words: Vec<String>,
    /// Most objects to find
    #[arg(long, default_value_t = 50, value_parser = at_least_one)]
    pub(crate) max_objects: usize,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PointArgs {
    #[command(flatten)]
    pub(crate) find: DetectArgs,
    /// A place to look at: x,y or x_min,y_min,x_max,y_max, as fractions of the picture
    #[arg(long = "spatial-ref", value_name = "x,y[,x,y]", value_parser = numbers)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) spatial_refs: Vec<Numbers>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GazeArgs {
    /// Pictures; `-` reads one from standard input
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Where the eyes are: x,y as fractions of the picture
    #[arg(long, value_name = "x,y", value_parser = numbers, allow_hyphen_values = true)]
    pub(crate) eye: Numbers,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ModelsArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PullArgs {
    /// The model's name, as `photon models` lists it
    pub(crate) model: String,
    /// Use only what is on this machine: check that the model is complete
    #[arg(long)]
    pub(crate) offline: bool,
    /// Print the paths as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: BenchWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// The phases of a request, each by itself, on a model of random weights
    Model(BenchModelArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchModelArgs {
    /// Dimensions: `moondream2`, or a folder with a config.json
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
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}
