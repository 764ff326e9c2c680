//! `photon serve`: flags, variables and a file to a server; signals to its end.
use std::{ffi::OsString, net::SocketAddr, path::Path};

use anyhow::Context as _;
use clap::{Arg, ArgMatches, CommandFactory as _, FromArgMatches as _, parser::ValueSource};
use photon::Family;
use photon_server::{Config, Handle, MetricsPrefix, Server};

use crate::{
    Failure,
    args::{Args, AutoArg, Command, LogArgs, LogFormat, PrefixArg, ServeArgs},
    output,
    run::load,
};

/// Ollama's port.
const OLLAMA_PORT: u16 = 11434;

pub(crate) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    if args.print_config {
        return Ok(output::line(args.settings.trim_end())?);
    }
    start_log(&args.log);
    // Each connection is an open file, and many systems allow a process 1024 of them unless it asks for more. Where
    // it may not have more, connections wait.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let (listen, limits) = (&args.listen, &args.limits);
    let (photon, adapter) = load(&args.model, |builder| {
        let builder =
            builder.max_seqs(usize::from(limits.max_seqs)).max_waiting(limits.max_waiting);
        #[cfg(feature = "kv-events")]
        let builder = builder.cache_events(listen.kv_events.is_some());
        builder
    })?;
    let config = Config {
        listen: SocketAddr::new(listen.host, listen.port),
        port_tries: listen.port_tries,
        ollama: listen.ollama.then(|| SocketAddr::new(listen.host, OLLAMA_PORT)),
        #[cfg(feature = "grpc")]
        grpc: listen.grpc_port.map(|port| SocketAddr::new(listen.host, port)),
        #[cfg(feature = "kv-events")]
        kv_events: listen.kv_events.map(|port| SocketAddr::new(listen.host, port)),
        model_name: model_name(&args.model.model),
        adapter,
        aliases: listen.alias.clone(),
        api_keys: listen.api_key.clone(),
        cors_origins: listen.cors.clone(),
        fetch_hosts: listen.fetch.clone(),
        fetch_private: listen.fetch_private,
        chat_reasoning: match listen.chat_reasoning {
            AutoArg::Auto => photon.family() == Family::Moondream3 && args.model.model != "demo3",
            AutoArg::On => true,
            AutoArg::Off => false,
        },
        max_body_bytes: limits.max_body,
        max_image_bytes: limits.max_image,
        max_images: limits.max_images,
        max_text_bytes: limits.max_text,
        max_objects: limits.max_objects,
        deadline: limits.deadline.0,
        header_timeout: limits.header_timeout.0,
        stall_timeout: limits.stall_timeout.0,
        idle_timeout: limits.idle_timeout.0,
        max_connections: limits.max_connections,
        drain: limits.drain.0,
        metrics_prefix: match args.log.metrics_prefix {
            PrefixArg::Photon => MetricsPrefix::Photon,
            PrefixArg::Vllm => MetricsPrefix::Vllm,
        },
        ..Config::default()
    };
    let open_to_all = !listen.host.is_loopback() && listen.api_key.is_empty();
    let device = photon.device_name();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let name = config.model_name.clone();
        let server = Server::bind(photon, config).await?;
        for address in server.addresses() {
            output::note(&format!("serving {name} on http://{address} ({device})"));
        }
        #[cfg(feature = "grpc")]
        if let Some(address) = server.grpc_address() {
            output::note(&format!("serving {name} over gRPC on {address}"));
        }
        #[cfg(feature = "kv-events")]
        if let Some([events, replay]) = server.kv_events_addresses() {
            output::note(&format!("events of the cache on {events}, again on {replay}"));
        }
        if open_to_all {
            output::note("other machines may ask without a key; --api-key asks for one");
        }
        tokio::spawn(stop_on_signals(server.handle()));
        server.run().await;
        output::note("stopped");
        Ok::<(), Failure>(())
    })
}

/// What answers call the model: its name, or the last part of its folder's.
fn model_name(model: &str) -> String {
    let name = Path::new(model).file_name().and_then(|name| name.to_str());
    name.unwrap_or(model).to_owned()
}

/// The first signal drains, a second one gives up.
async fn stop_on_signals(server: Handle) {
    loop {
        if let Err(error) = signalled().await {
            tracing::error!(%error, "signals are not heard");
            return;
        }
        output::note("stopping; once more gives up what is under way");
        server.stop();
    }
}

#[cfg(unix)]
async fn signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        done = tokio::signal::ctrl_c() => done,
    }
}

/// Of Windows: keys, a closed window, the end of a session or of a container.
#[cfg(windows)]
async fn signalled() -> std::io::Result<()> {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
    let (mut c, mut break_) = (ctrl_c()?, ctrl_break()?);
    let (mut close, mut shutdown) = (ctrl_close()?, ctrl_shutdown()?);
    tokio::select! {
        _ = c.recv() => Ok(()),
        _ = break_.recv() => Ok(()),
        _ = close.recv() => Ok(()),
        _ = shutdown.recv() => Ok(()),
    }
}

fn start_log(args: &LogArgs) {
    let log = tracing_subscriber::fmt().with_max_level(args.log).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Human => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// What was typed, with the lines of the file that `photon serve --config` names put in where neither
/// the command line nor a variable says something.
pub(crate) fn with_file(typed: Vec<OsString>) -> Result<Args, Failure> {
    let matches = Args::command().get_matches_from(&typed);
    let lines = match matches.subcommand() {
        Some(("serve", serve)) => match serve.get_one::<std::path::PathBuf>("config") {
            Some(file) => options(file, serve)?,
            None => Vec::new(),
        },
        _ => Vec::new(),
    };
    let matches = match lines.is_empty() {
        true => matches,
        false => Args::command().get_matches_from(typed.into_iter().chain(lines)),
    };
    let mut args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let (Command::Serve(own), Some(("serve", matches))) =
        (&mut args.command, matches.subcommand())
    {
        own.settings = settings(matches);
    }
    Ok(args)
}

/// `photon serve` as a command, with all it takes.
fn command() -> clap::Command {
    let mut command = Args::command();
    command.build();
    command.find_subcommand("serve").expect("it is a command").clone()
}

/// Whether an option may stand in a file.
fn is_setting(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|name| !["config", "help", "print-config"].contains(&name))
}

/// What holds, as a file. Keys are counted, not told.
fn settings(matches: &ArgMatches) -> String {
    let line = |arg: &Arg| {
        let (name, id) = (arg.get_long().unwrap_or_default(), arg.get_id().as_str());
        if !arg.get_action().takes_values() {
            return format!("{name} = {}\n", matches.get_flag(id));
        }
        let values = matches.get_raw(id).into_iter().flatten();
        let values: Vec<_> = values
            .map(|value| toml::Value::from(value.to_string_lossy().into_owned()).to_string())
            .collect();
        match &values[..] {
            values if arg.is_hide_env_values_set() => format!("# {name}: {}\n", values.len()),
            [] => format!("# {name}\n"),
            [value] => format!("{name} = {value}\n"),
            values => format!("{name} = [{}]\n", values.join(", ")),
        }
    };
    command().get_arguments().filter(|arg| is_setting(arg)).map(line).collect()
}

/// The lines of a file as options.
fn options(file: &Path, typed: &ArgMatches) -> Result<Vec<OsString>, Failure> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let serve = command();
    let mut options = Vec::new();
    for (name, value) in table {
        let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(&name));
        let arg = arg.filter(|arg| is_setting(arg));
        let arg = arg.ok_or_else(|| wrong(format!("there is no option {name:?}")))?;
        let source = typed.value_source(arg.get_id().as_str());
        if matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        let is_switch = !arg.get_action().takes_values();
        let values = match value {
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                toml::Value::Boolean(on) if is_switch => {
                    options.extend(on.then(|| format!("--{name}")));
                }
                _ if is_switch => return Err(wrong(format!("{name} is true or false"))),
                toml::Value::String(text) => options.push(format!("--{name}={text}")),
                toml::Value::Integer(number) => options.push(format!("--{name}={number}")),
                toml::Value::Float(number) => options.push(format!("--{name}={number}")),
                _ => return Err(wrong(format!("{name} must be a text or a number"))),
            }
        }
    }
    Ok(options.into_iter().map(OsString::from).collect())
}
