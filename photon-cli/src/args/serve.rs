//! What can be typed after `photon serve`, or written in its file.
use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args as ClapArgs, ValueEnum};

use super::{ModelArgs, memory};

pub(crate) const SERVE_HELP: &str = "\
Dialects: Moondream (POST /v1/query, caption, detect, point, segment, gaze), OpenAI
(/v1/chat/completions), Ollama (/api/chat, /api/generate), KServe v2 (/v2/models/...).
A page to try everything is at /, the server's state at /status, numbers for Prometheus
at /metrics, a description of all routes at /openapi.json.

Every option is also a PHOTON_... variable, and a line of the file given with --config:
the option's name, and its value: `port = 8080`, `api-key = [\"a\", \"b\"]`. What is typed
comes before variables, variables before the file; --print-config shows what comes of it.

Examples:
  photon serve
  photon serve --model moondream2 --host 0.0.0.0 --api-key \"$KEY\"
  photon serve --ollama
  curl -F image=@photo.jpg -F question='what is it?' localhost:2020/v1/query";

/// A number of seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seconds(pub(crate) Duration);

fn seconds(text: &str) -> Result<Seconds, String> {
    let number = text.trim().trim_end_matches('s').trim_end();
    match number.parse::<f64>() {
        Ok(number) if (0.001..=86_400.0).contains(&number) => {
            Ok(Seconds(Duration::from_secs_f64(number)))
        }
        _ => Err("must be a number of seconds, 0.001 to 86400".into()),
    }
}

/// A size that fits memory.
fn bytes(text: &str) -> Result<usize, String> {
    match usize::try_from(memory(text)?) {
        Ok(0) | Err(_) => Err("must be 1 byte or more".into()),
        Ok(bytes) => Ok(bytes),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Human,
    /// A JSON object per line
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PrefixArg {
    Photon,
    Vllm,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// A TOML file with any of the options below
    #[arg(long, value_name = "FILE", env = "PHOTON_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Print the options that hold, as a file for --config, and stop
    #[arg(long)]
    pub(crate) print_config: bool,
    /// What that prints.
    #[arg(skip)]
    pub(crate) settings: String,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Who may ask")]
pub(crate) struct ListenArgs {
    /// Address to listen on; 0.0.0.0 lets other machines ask
    #[arg(long, value_name = "ADDRESS", env = "PHOTON_HOST")]
    #[arg(default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes any that is free
    #[arg(long, env = "PHOTON_PORT", default_value_t = 2020)]
    pub(crate) port: u16,
    /// If the port is taken, how many of the following ones to try
    #[arg(long, value_name = "N", env = "PHOTON_PORT_TRIES", default_value_t = 0)]
    pub(crate) port_tries: u16,
    /// Listen on Ollama's port, 11434, too
    #[arg(long, env = "PHOTON_OLLAMA")]
    pub(crate) ollama: bool,
    /// Port for KServe v2 over gRPC, as Triton's clients speak it (to port 8001, mostly)
    #[cfg(feature = "grpc")]
    #[arg(long, value_name = "PORT", env = "PHOTON_GRPC_PORT")]
    pub(crate) grpc_port: Option<u16>,
    /// Publish what enters and leaves the key-value cache to routers, as vLLM does over ZeroMQ, on this
    /// port; replays have the next one
    #[cfg(feature = "kv-events")]
    #[arg(long, value_name = "PORT", env = "PHOTON_KV_EVENTS", num_args = 0..=1)]
    #[arg(require_equals = true, default_missing_value = "5557")]
    pub(crate) kv_events: Option<u16>,
    /// A key of which requests must show one; may be given several times
    #[arg(long, value_name = "KEY", env = "PHOTON_API_KEY", value_delimiter = ',')]
    #[arg(hide_env_values = true)]
    pub(crate) api_key: Vec<String>,
    /// Web pages that may ask, as https://app.example, or `*`
    #[arg(long, value_name = "ORIGIN", env = "PHOTON_CORS", value_delimiter = ',')]
    pub(crate) cors: Vec<String>,
    /// Hosts that pictures may be fetched from, or `*`; without it none are fetched
    #[arg(long, value_name = "HOST", env = "PHOTON_FETCH", value_delimiter = ',')]
    pub(crate) fetch: Vec<String>,
    /// Fetch from private networks too, as from cameras
    #[arg(long, env = "PHOTON_FETCH_PRIVATE")]
    pub(crate) fetch_private: bool,
    /// Further names that requests may use for the model
    #[arg(long, value_name = "NAME", env = "PHOTON_ALIAS", value_delimiter = ',')]
    pub(crate) alias: Vec<String>,
    /// Whether chat thinks before it answers, where a request does not say: `auto` does with
    /// Moondream 3
    #[arg(long, value_enum, env = "PHOTON_CHAT_REASONING", default_value = "auto")]
    pub(crate) chat_reasoning: AutoArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AutoArg {
    Auto,
    On,
    Off,
}

/// Which server to ask: the options and variables that it was started with.
#[derive(Debug, ClapArgs)]
pub(crate) struct HealthArgs {
    /// The address it listens on
    #[arg(long, value_name = "ADDRESS", env = "PHOTON_HOST")]
    #[arg(default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) host: IpAddr,
    /// The port it listens on
    #[arg(long, env = "PHOTON_PORT", default_value_t = 2020)]
    pub(crate) port: u16,
    /// Seconds to wait
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "3")]
    pub(crate) timeout: Seconds,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Most bytes of a request
    #[arg(long, value_name = "SIZE", env = "PHOTON_MAX_BODY", value_parser = bytes)]
    #[arg(default_value = "20MiB")]
    pub(crate) max_body: usize,
    /// Most bytes of an encoded picture
    #[arg(long, value_name = "SIZE", env = "PHOTON_MAX_IMAGE", value_parser = bytes)]
    #[arg(default_value = "10MiB")]
    pub(crate) max_image: usize,
    /// Most pictures of a request
    #[arg(long, value_name = "N", env = "PHOTON_MAX_IMAGES", default_value_t = 16)]
    pub(crate) max_images: usize,
    /// Most bytes of a question or the name of an object
    #[arg(long, value_name = "SIZE", env = "PHOTON_MAX_TEXT", value_parser = bytes)]
    #[arg(default_value = "8KiB")]
    pub(crate) max_text: usize,
    /// Most objects that a request may ask for
    #[arg(long, value_name = "N", env = "PHOTON_MAX_OBJECTS", default_value_t = 1000)]
    pub(crate) max_objects: usize,
    /// Most requests computed at once
    #[arg(long, value_name = "N", env = "PHOTON_MAX_SEQS", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) max_seqs: u16,
    /// Most requests waiting; what comes beyond is told to come again
    #[arg(long, value_name = "N", env = "PHOTON_MAX_WAITING", default_value_t = 512)]
    pub(crate) max_waiting: usize,
    /// Seconds after which a request is given up
    #[arg(long, value_name = "SECONDS", env = "PHOTON_DEADLINE", value_parser = seconds)]
    #[arg(default_value = "120")]
    pub(crate) deadline: Seconds,
    /// Seconds for the head of a request
    #[arg(long, value_name = "SECONDS", env = "PHOTON_HEADER_TIMEOUT", value_parser = seconds)]
    #[arg(default_value = "10")]
    pub(crate) header_timeout: Seconds,
    /// Seconds without a piece of a request's body, or without anybody reading the answer
    #[arg(long, value_name = "SECONDS", env = "PHOTON_STALL_TIMEOUT", value_parser = seconds)]
    #[arg(default_value = "15")]
    pub(crate) stall_timeout: Seconds,
    /// Seconds that a connection may be idle
    #[arg(long, value_name = "SECONDS", env = "PHOTON_IDLE_TIMEOUT", value_parser = seconds)]
    #[arg(default_value = "75")]
    pub(crate) idle_timeout: Seconds,
    /// Most connections at once
    #[arg(long, value_name = "N", env = "PHOTON_MAX_CONNECTIONS", default_value_t = 8192)]
    pub(crate) max_connections: usize,
    /// Seconds that requests may go on after the server was told to stop
    #[arg(long, value_name = "SECONDS", env = "PHOTON_DRAIN", value_parser = seconds)]
    #[arg(default_value = "30")]
    pub(crate) drain: Seconds,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Logs and metrics")]
pub(crate) struct LogArgs {
    /// How log lines look
    #[arg(long, value_enum, env = "PHOTON_LOG_FORMAT", default_value = "human")]
    pub(crate) log_format: LogFormat,
    /// The least important lines that are shown: error, warn, info, debug or off. `info` has a line
    /// per request
    #[arg(long, value_name = "LEVEL", env = "PHOTON_LOG", default_value = "warn")]
    pub(crate) log: tracing_subscriber::filter::LevelFilter,
    /// Names of metrics: `photon_...`, or `vllm:...` for gateways that read vLLM's
    #[arg(long, value_enum, env = "PHOTON_METRICS_PREFIX", default_value = "photon")]
    pub(crate) metrics_prefix: PrefixArg,
}
