//! Everything that can be set about a server, with its defaults.
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// How a server behaves. [`Config::default`] is safe to put on a local network: it listens on this
/// machine only, fetches nothing, and every size and time has a limit.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// If the port is taken, how many of the following ones to try.
    pub port_tries: u16,
    /// Where else to listen, for Ollama's clients, who expect port 11434.
    pub ollama: Option<SocketAddr>,
    /// Where to listen for KServe's clients over gRPC.
    #[cfg(feature = "grpc")]
    pub grpc: Option<SocketAddr>,
    /// Where to publish what enters and leaves the key-value cache; replays have the next port. The engine
    /// must keep account of it: [`photon::Builder::cache_events`].
    #[cfg(feature = "kv-events")]
    pub kv_events: Option<SocketAddr>,
    /// The model's name in answers and lists.
    pub model_name: String,
    /// The file of the adapter that requests get that name none.
    pub adapter: Option<PathBuf>,
    /// Further names that requests may use for it.
    pub aliases: Vec<String>,
    /// Keys of which a request must show one; without any, everybody may ask.
    pub api_keys: Vec<String>,
    /// Origins of web pages that may ask, `*` for all; without any, only pages of this server.
    pub cors_origins: Vec<String>,
    /// Hosts that pictures may be fetched from, `*` for all public ones; without any, none.
    pub fetch_hosts: Vec<String>,
    /// How long a fetch may take.
    pub fetch_timeout: Duration,
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// Most bytes of an encoded picture.
    pub max_image_bytes: usize,
    /// Most pictures of a request.
    pub max_images: usize,
    /// Most bytes of a question or the name of an object.
    pub max_text_bytes: usize,
    /// Most objects that a request may ask for.
    pub max_objects: usize,
    /// Most spatial references of a request.
    pub max_spatial_refs: usize,
    /// Time from a request's arrival after which it is given up.
    pub deadline: Duration,
    /// Time for the head of a request, from its first byte.
    pub header_timeout: Duration,
    /// Time between two pieces of a request's body, and of an answer that nobody reads.
    pub stall_timeout: Duration,
    /// Time that a connection may be idle.
    pub idle_timeout: Duration,
    /// Time between two signs of life on a stream without news.
    pub ping_interval: Duration,
    /// Most connections at once; others wait.
    pub max_connections: usize,
    /// How long requests may go on after the server was told to stop.
    pub drain: Duration,
    /// How metrics are named.
    pub metrics_prefix: MetricsPrefix,
    /// Whether chat thinks before it answers unless the request says otherwise.
    pub chat_reasoning: bool,
    /// Whether pictures may be fetched from private addresses too, as those of cameras.
    pub fetch_private: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 2020)),
            port_tries: 0,
            ollama: None,
            #[cfg(feature = "grpc")]
            grpc: None,
            #[cfg(feature = "kv-events")]
            kv_events: None,
            model_name: "demo".into(),
            adapter: None,
            aliases: Vec::new(),
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            fetch_hosts: Vec::new(),
            fetch_timeout: Duration::from_secs(5),
            max_body_bytes: 20 << 20,
            max_image_bytes: 10 << 20,
            max_images: 16,
            max_text_bytes: 8 << 10,
            max_objects: 1000,
            max_spatial_refs: 64,
            deadline: Duration::from_secs(120),
            header_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            ping_interval: Duration::from_secs(10),
            max_connections: 8192,
            drain: Duration::from_secs(30),
            metrics_prefix: MetricsPrefix::Photon,
            chat_reasoning: false,
            fetch_private: false,
        }
    }
}

/// Whose names metrics have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsPrefix {
    /// `photon_…`.
    #[default]
    Photon,
    /// `vllm:…`, for gateways that read vLLM's.
    Vllm,
}
