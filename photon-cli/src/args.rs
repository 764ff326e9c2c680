//! Everything a user can type.
mod adapter;
mod bench;
mod convert;
mod manual;
mod serve;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use photon::{CaptionLength, DType, Device, Quant, ResizeOrder, Sampling};

pub(crate) use adapter::{
    AdapterArgs, AdapterCommand, AdapterConvertArgs, AdapterInspectArgs, AdapterListArgs,
};
pub(crate) use bench::{
    BenchAnswer, BenchArgs, BenchLoadArgs, BenchMode, BenchModelArgs, BenchWhat, BenchWorkloadArgs,
};
pub(crate) use convert::{ConversionArgs, ConvertArgs, QuantizeArgs};
pub(crate) use manual::{CompletionsArgs, ManArgs};
pub(crate) use serve::{AutoArg, HealthArgs, LogArgs, LogFormat, PrefixArg, ServeArgs};

/// Ask pictures: caption, answer, detect, point, outline - on this machine, offline.
#[derive(Debug, Parser)]
#[command(name = "photon", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    photon caption photo.jpg\n  \
    photon query photo.jpg \"what is on the table?\"\n  \
    photon query before.jpg after.jpg --together \"what has changed?\"\n  \
    photon chat photo.jpg\n  \
    photon detect photo.jpg \"red car\" --draw found.png\n  \
    photon batch --images 'photos/**/*.jpg' --skill caption -o captions.jsonl\n  \
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
    /// Talk about pictures, or without any
    #[command(after_long_help = CHAT_HELP)]
    Chat(ChatArgs),
    /// Describe pictures
    #[command(arg_required_else_help = true)]
    Caption(CaptionArgs),
    /// Find every instance of something, as boxes
    #[command(arg_required_else_help = true)]
    Detect(DetectArgs),
    /// Find every instance of something, as points
    #[command(arg_required_else_help = true)]
    Point(PointArgs),
    /// Outline something, as an SVG path (Moondream 3)
    #[command(arg_required_else_help = true)]
    Segment(SegmentArgs),
    /// Find what somebody looks at, given where their eyes are
    #[command(arg_required_else_help = true)]
    Gaze(GazeArgs),
    /// Answer many requests, from a file or for many pictures
    #[command(arg_required_else_help = true, after_long_help = BATCH_HELP)]
    Batch(BatchArgs),
    /// List the models Photon knows and which of them are on this machine
    Models(ModelsArgs),
    /// Download a model from the Hugging Face hub
    #[command(arg_required_else_help = true)]
    Pull(PullArgs),
    /// Say what is in a file of weights, and what a model lacks
    #[command(arg_required_else_help = true)]
    Inspect(InspectArgs),
    /// Write a model anew, in one layout: a folder that loads fast
    #[command(arg_required_else_help = true)]
    Convert(ConvertArgs),
    /// Write a model with quantized weights, so that loading need not quantize
    #[command(arg_required_else_help = true)]
    Quantize(QuantizeArgs),
    /// Convert, inspect and list adapters (LoRA)
    #[command(arg_required_else_help = true)]
    Adapter(AdapterArgs),
    /// Say what this machine has, what Photon would use, and what is wrong
    Doctor(DoctorArgs),
    /// Answer over HTTP, with a page to try everything
    #[command(after_long_help = serve::SERVE_HELP)]
    Serve(Box<ServeArgs>),
    /// Say whether a server on this machine takes requests: exit status 0 if it does
    Health(HealthArgs),
    /// Measure how fast this machine is
    Bench(BenchArgs),
    /// Print what a shell needs to complete commands and options
    #[command(arg_required_else_help = true, after_help = manual::COMPLETIONS_HELP)]
    Completions(CompletionsArgs),
    /// Write manual pages to a folder
    #[command(hide = true)]
    Man(ManArgs),
}

/// Which model, and where to run it.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Model and device")]
pub(crate) struct ModelArgs {
    /// `demo` or `demo3` (built in), a folder with config.json, safetensors and tokenizer.json, or the
    /// name of a model that was pulled; with /ID@STEP behind it an adapter in --adapters
    #[arg(long, default_value = "demo", value_name = "NAME|DIR", env = "PHOTON_MODEL")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// A file with an adapter (LoRA) to answer with, or the name of one in --adapters
    #[arg(long, value_name = "FILE|ID@STEP", env = "PHOTON_ADAPTER")]
    pub(crate) adapter: Option<PathBuf>,
    /// The folder of adapters that can be named: ID@STEP.safetensors, .pt or a folder
    #[arg(long, value_name = "DIR", env = "PHOTON_ADAPTERS")]
    pub(crate) adapters: Option<PathBuf>,
    /// Adapters that have room at the same time, where requests name them; 1 with --adapter, 8 with
    /// --adapters
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(..=256))]
    #[arg(env = "PHOTON_ADAPTER_SLOTS")]
    pub(crate) adapter_slots: Option<u16>,
    /// The largest rank there is room for; that of --adapter, or of what is in --adapters, or 16
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    #[arg(env = "PHOTON_ADAPTER_RANK")]
    pub(crate) adapter_rank: Option<u16>,
    /// Most tokens guessed ahead in a step, from what came before in the prompt and the answer: the same
    /// answers, in fewer steps where text repeats itself
    #[arg(long, value_name = "N", env = "PHOTON_SPECULATE", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u16).range(..=64))]
    pub(crate) speculate: u16,
    /// Which way pictures are resized first: `pil` as Pillow does, `kestrel` as libvips does
    #[arg(long, default_value = "pil", value_name = "ORDER", env = "PHOTON_PREPROCESS")]
    pub(crate) preprocess: ResizeOrder,
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct DeviceArgs {
    /// Where to run: `auto`, `cpu`, or in a build that has them `cuda`, `cuda:N` or `metal`
    #[arg(long, default_value = "auto", env = "PHOTON_DEVICE")]
    pub(crate) device: Device,
    /// Type of weights; the model's own by default (f16 for bf16 on Macs before M3)
    #[arg(long, value_enum, env = "PHOTON_DTYPE")]
    pub(crate) dtype: Option<DTypeArg>,
    /// Quantize the matrices of both models, or of some parts: `int8`, `int4` (a scale for 128 weights),
    /// `int4-32` or `fp8`, as in `--quant int8` or `--quant text=int4,vision=int8,head=int8`
    #[arg(long, value_name = "FORMAT", env = "PHOTON_QUANT", default_value = "none")]
    pub(crate) quant: Quant,
    /// Type of keys and values; that of the weights by default. 8 bits take half the memory
    #[arg(long, value_enum, env = "PHOTON_KV_DTYPE")]
    pub(crate) kv_dtype: Option<KvDTypeArg>,
    /// Threads of the processor; one per core by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[arg(env = "PHOTON_THREADS")]
    pub(crate) threads: Option<u16>,
    /// Memory for keys and values, such as 4GiB; by the device's memory by default
    #[arg(long, value_name = "SIZE", env = "PHOTON_KV_MEMORY", value_parser = memory)]
    pub(crate) kv_memory: Option<u64>,
}

/// A number of bytes: `4GiB`, `512M`, `1000000`. Units are powers of two, whoever says MB says MiB.
fn memory(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bad = || format!("{text:?} is not a size; write it like 4GiB or 512MiB");
    let number: f64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 1u64,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(bad()),
    };
    Ok((number * factor as f64) as u64)
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

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KvDTypeArg {
    F32,
    F16,
    Bf16,
    Fp8,
    Int8,
}

impl From<KvDTypeArg> for DType {
    fn from(dtype: KvDTypeArg) -> DType {
        match dtype {
            KvDTypeArg::F32 => DType::F32,
            KvDTypeArg::F16 => DType::F16,
            KvDTypeArg::Bf16 => DType::Bf16,
            KvDTypeArg::Fp8 => DType::Fp8,
            KvDTypeArg::Int8 => DType::Int8,
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

impl SamplingArgs {
    /// What was typed, over what is usual.
    pub(crate) fn over(&self, usual: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_p: self.top_p.unwrap_or(usual.top_p),
            top_k: self.top_k.unwrap_or(usual.top_k),
            min_p: self.min_p.unwrap_or(usual.min_p),
            seed: self.seed,
        }
    }
}

/// What an answer must be.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Form of the answer")]
pub(crate) struct GrammarArgs {
    /// Answer with JSON that this JSON schema describes, given as a file or as it is. Cut by
    /// --max-tokens it is not complete
    #[arg(long, value_name = "FILE|JSON", conflicts_with = "regex")]
    pub(crate) json_schema: Option<String>,
    /// Answer with a text that this regular expression matches as a whole, such as '(yes|no)'
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub(crate) regex: Option<String>,
}

/// What is printed.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Print one JSON object per answer: the result, finish_reason, tokens, metrics
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
    /// Ask about all pictures at once, not about each
    #[arg(long, conflicts_with = "draw")]
    pub(crate) together: bool,
    /// Think first, pointing at what the thoughts are about
    #[arg(long)]
    pub(crate) reasoning: bool,
    /// A place the question is about: x,y or x_min,y_min,x_max,y_max, as fractions of the picture
    #[arg(long = "spatial-ref", value_name = "x,y[,x,y]", value_parser = numbers)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) spatial_refs: Vec<Numbers>,
    /// End the answer where this text would appear; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
}

const CHAT_HELP: &str = "\
At a terminal, type questions; /help lists what else can be typed. Otherwise every --message,
or every line of standard input, is a turn, and every answer is printed.

Examples:
  photon chat photo.jpg
  photon chat photo.jpg --system \"Answer in one word.\" --reasoning
  photon chat a.jpg b.jpg --message \"what is in these?\" --message \"which is older?\" --json
  printf 'what is this?\\n/image b.jpg\\nand this?\\n' | photon chat a.jpg";

#[derive(Debug, ClapArgs)]
pub(crate) struct ChatArgs {
    /// Pictures to show with the first question
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// A turn; several are a conversation
    #[arg(long = "message", short, value_name = "TEXT")]
    pub(crate) messages: Vec<String>,
    /// How to answer: goes before the first question
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Think before each answer, pointing at what the thoughts are about
    #[arg(long)]
    pub(crate) reasoning: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
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

impl LengthArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            LengthArg::Short => "short",
            LengthArg::Normal => "normal",
            LengthArg::Long => "long",
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
    /// End the caption where this text would appear; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
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
pub(crate) struct SegmentArgs {
    /// Pictures, then what to outline. `-` reads a picture from standard input
    #[arg(required = true, value_name = "IMAGE... OBJECT")]
    pub(crate) words: Vec<String>,
    /// A place that says which one: x,y or x_min,y_min,x_max,y_max, as fractions of the picture
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

const BATCH_HELP: &str = "\
A line of the input is a JSON object:
  {\"id\": \"a\", \"skill\": \"query\", \"image\": \"<base64>\", \"question\": \"what is this?\"}
  {\"id\": \"b\", \"skill\": \"detect\", \"image_path\": \"cars/1.jpg\", \"object\": \"car\"}
with
  skill       query, chat, caption, detect, point, segment or gaze
  image       base64 or a data URI (images: a list of them, for query), or
  image_path  a file, relative to the input's folder (image_paths: a list); Photon's own keys
  question    for query, and reasoning (true where nothing is said)
  messages    for chat, with reasoning: a list of {\"role\": \"system\", \"user\" or \"assistant\",
              \"content\": a text or a list of {\"type\": \"text\", \"text\": ..},
              {\"type\": \"image\", \"image\" or \"image_path\": ..} and OpenAI's image_url}
  json_schema, or regex  for query and chat: what the answer must be, as a JSON schema or an
              expression
  length      short, normal or long, for caption
  object      for detect, point and segment
  spatial_refs  points [x, y] and boxes [x_min, y_min, x_max, y_max], for query, point and segment
  eye         [x, y], for gaze
  adapter     a file with an adapter (LoRA), like image_path, or ID@STEP in --adapters
  model       MODEL/ID@STEP names an adapter too; MODEL itself is that of --model
  settings    temperature, top_p, top_k, min_p, seed, max_tokens, max_objects, stop (a list of texts
              that end an answer or caption)

A line of the output, in the order in which they are done:
  {\"line_index\": 0, \"id\": \"a\", \"status\": \"ok\", \"result\": {\"answer\": ..},
   \"usage\": {\"input_tokens\": .., \"output_tokens\": ..}, \"input\": \"<digest>\"}
  {\"line_index\": 1, \"id\": \"b\", \"status\": \"error\",
   \"error\": {\"code\": \"image_decode_failed\", \"message\": ..}, ..}
Codes: image_decode_failed, invalid_request, unknown_skill, processing_error.

The same command again goes on where the last one ended, however it ended.

Exit status: 0 every line is answered, 1 some failed or the batch could not go on,
2 wrong usage, 130 interrupted.

Examples:
  photon batch questions.jsonl -o answers.jsonl
  photon batch --images 'photos/**/*.jpg' --skill caption --length short -o captions.jsonl
  photon batch --images *.png --skill detect --object car -o cars.jsonl --json
  make-lines | photon batch - | jq .result
  photon batch questions.jsonl --dry-run";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BatchSkill {
    Caption,
    Query,
    Detect,
    Point,
    Segment,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BatchArgs {
    /// Requests, a JSON object per line (see --help); `-` reads standard input
    #[arg(value_name = "IN.jsonl", required_unless_present = "images", conflicts_with = "images")]
    pub(crate) input: Option<String>,
    /// Pictures to ask all the same, as files or patterns: 'photos/**/*.jpg'
    #[arg(long, value_name = "PATTERN", num_args = 1.., requires = "skill")]
    pub(crate) images: Vec<String>,
    /// What to do with --images
    #[arg(long, value_enum, requires = "images")]
    pub(crate) skill: Option<BatchSkill>,
    /// What to ask, for --skill query
    #[arg(long, requires = "images")]
    pub(crate) question: Option<String>,
    /// Think before answering, for --skill query
    #[arg(long, requires = "images")]
    pub(crate) reasoning: bool,
    /// What to find, for --skill detect, point and segment
    #[arg(long, requires = "images")]
    pub(crate) object: Option<String>,
    /// How much to say, for --skill caption
    #[arg(long, value_enum, default_value = "normal", requires = "images")]
    pub(crate) length: LengthArg,
    /// Where results go; standard output without it. A file with results is added to
    #[arg(short, long, value_name = "OUT.jsonl")]
    pub(crate) output: Option<String>,
    /// Write results in the order of the input
    #[arg(long)]
    pub(crate) ordered: bool,
    /// Lose the results that are in the file already
    #[arg(long, conflicts_with = "retry_failed")]
    pub(crate) overwrite: bool,
    /// Ask again what failed with processing_error
    #[arg(long)]
    pub(crate) retry_failed: bool,
    /// Check every line and picture, ask nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Most requests in flight
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = concurrency)]
    pub(crate) concurrency: usize,
    /// Answer without thinking first where a line does not say
    #[arg(long, conflicts_with = "images")]
    pub(crate) no_reasoning: bool,
    /// Print the summary as JSON, to standard output if results go to a file
    #[arg(long)]
    pub(crate) json: bool,
    /// Most objects of detect and point, where a line does not say
    #[arg(long, default_value_t = 150, value_parser = at_least_one)]
    pub(crate) max_objects: usize,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

fn concurrency(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        n if n <= 1024 => Ok(n),
        _ => Err("must be 1024 or less".into()),
    }
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
pub(crate) struct InspectArgs {
    /// A folder with a model, or a .safetensors or .pt file of a model or an adapter
    #[arg(value_name = "FILE|DIR")]
    pub(crate) path: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let sizes = [("4GiB", 4 << 30), ("512m", 512 << 20), ("1.5 GB", 3 << 29), ("1000", 1000)];
        for (text, bytes) in sizes {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "4 apples", "-1", "1.2.3"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }
}
