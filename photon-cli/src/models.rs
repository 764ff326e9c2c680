//! `models`, `pull` and `doctor`: what is here and what is not.
use std::path::Path;

use photon::Model;
use photon::hub::{Hub, KnownModel, ModelFiles, Progress, Step, known_model, known_models};
use serde_json::json;

use crate::{
    Failure,
    args::{DoctorArgs, ModelsArgs, PullArgs},
    output::{self, line},
    run::progress_bar,
};

fn state(hub: &Hub, model: &KnownModel) -> &'static str {
    if hub.find(model).is_some() { "ready" } else { "not pulled" }
}

fn built_in() -> impl Iterator<Item = &'static str> {
    Model::BUILT_IN.into_iter().map(|(name, _)| name)
}

pub(crate) fn list(args: &ModelsArgs) -> Result<(), Failure> {
    let hub = Hub::from_env();
    let known = known_models().iter().map(|m| (m.name, m.repo, state(&hub, m)));
    let rows: Vec<_> =
        built_in().map(|name| (name, "inside photon", "ready")).chain(known).collect();
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, source, state)| json!({"name": name, "source": source, "state": state}))
            .collect();
        line(&json!({ "models": rows }).to_string())?;
        return Ok(());
    }
    for (name, source, state) in rows {
        line(&format!("{name:<22} {state:<18} {source}"))?;
    }
    Ok(())
}

pub(crate) fn pull(args: &PullArgs) -> Result<(), Failure> {
    if built_in().any(|name| name == args.model) {
        output::note(&format!("{} is inside photon; nothing to download", args.model));
        return Ok(());
    }
    let model = known_model(&args.model).map_err(|error| Failure::Usage(error.to_string()))?;
    let mut hub = Hub::from_env();
    if args.offline {
        hub = hub.with_offline(true);
    }
    let bar = progress_bar("pulling");
    let mut shown = String::new();
    let files = hub.pull(model, &mut |progress: Progress<'_>| {
        let Progress { file, step, done, total } = progress;
        let what = match step {
            Step::Waiting => format!("{file}: another photon is downloading it"),
            Step::Resuming => format!("{file}: checking what is there"),
            Step::Downloading | Step::Done => file.to_owned(),
        };
        if what != shown {
            bar.set_message(what.clone());
            bar.reset_eta();
            shown = what;
        }
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let files = files?;
    match args.json {
        true => line(&paths(&files).to_string())?,
        false => {
            let folder = files.weights.first().and_then(|w| w.parent()).unwrap_or(Path::new(""));
            line(&format!("{} is ready in {}", model.name, folder.display()))?;
        }
    }
    Ok(())
}

fn paths(files: &ModelFiles) -> serde_json::Value {
    json!({
        "weights": files.weights,
        "config": files.config,
        "tokenizer": files.tokenizer,
        "revision": files.revision,
    })
}

pub(crate) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let (hub, devices) = (Hub::from_env(), photon::doctor());
    let cache = hub.cache_dir().map(|dir| dir.display().to_string());
    let models: Vec<_> = known_models().iter().map(|m| (m.name, state(&hub, m))).collect();
    let wrong: Vec<String> = devices
        .iter()
        .filter_map(|d| d.found.as_ref().err().map(|why| format!("{}: {why}", d.device)))
        .collect();
    if args.json {
        let devices: Vec<_> = devices
            .iter()
            .map(|d| {
                json!({"device": d.device, "ok": d.found.is_ok(),
                "found": d.found.as_ref().map_or_else(Clone::clone, Clone::clone)})
            })
            .collect();
        let models: Vec<_> =
            models.iter().map(|(name, state)| json!({"name": name, "state": state})).collect();
        line(
            &json!({
                "version": env!("CARGO_PKG_VERSION"),
                "devices": devices,
                "cache": cache,
                "offline": hub.is_offline(),
                "models": models,
                "problems": wrong,
            })
            .to_string(),
        )?;
    } else {
        line(&format!("photon {}", env!("CARGO_PKG_VERSION")))?;
        for device in &devices {
            line(&format!("\n{}", device.device))?;
            let (Ok(text) | Err(text)) = &device.found;
            text.lines().try_for_each(|text| line(&format!("  {text}")))?;
        }
        line(&format!("\nmodels, cached in {}", cache.as_deref().unwrap_or("(no home folder)")))?;
        let ready = built_in().map(|name| (name, "ready"));
        let mut rows = ready.chain(models.iter().copied());
        rows.try_for_each(|(name, state)| line(&format!("  {name:<21} {state}")))?;
        if hub.is_offline() {
            line("  HF_HUB_OFFLINE is set: nothing will be downloaded")?;
        }
        match wrong.is_empty() {
            true => line("\nno problems found")?,
            false => wrong.iter().try_for_each(|why| line(&format!("\nproblem: {why}")))?,
        }
    }
    // A build for GPUs is of use on a machine that has none.
    match devices.iter().any(|device| device.found.is_ok()) {
        true => Ok(()),
        false => Err(anyhow::anyhow!("no device can be used").into()),
    }
}
