//! Which model to run, and where its files are.
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use photon_models::{
    LoadError,
    checkpoint::{Checkpoint, CheckpointError},
    config::{Config, Family},
    expected_tensors,
    tokenizer::Tokenizer,
};

use crate::BuildError;

/// A model to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// The small model inside this library (with the feature `demo`), trained on drawn shapes.
    #[default]
    Demo,
    /// The same in the architecture of Moondream 3, with tau and experts; it can outline, too.
    Demo3,
    /// A folder with `config.json`, safetensors and `tokenizer.json`.
    Dir(PathBuf),
    /// Files in several places, as a hub's cache has them.
    Files {
        /// The folder of the weights, or their file.
        weights: PathBuf,
        /// `config.json`; the numbers of the published model without it.
        config: Option<PathBuf>,
        /// `tokenizer.json`.
        tokenizer: PathBuf,
    },
    /// Weights made from a rule, for tests and benchmarks. They are never zeros: some processors
    /// multiply those faster.
    Synthetic {
        /// The family, where there is no folder, and for what `config.json` leaves out.
        family: Family,
        /// A folder with `config.json` and, unless the demo model's words will do, `tokenizer.json`;
        /// the dimensions of the published model without it.
        dir: Option<PathBuf>,
        /// Seed of the weights.
        seed: u64,
    },
}

/// The parts of a model, opened.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) tokenizer: Tokenizer,
}

/// The files of a model inside this library, read where they lie in the program.
struct Embedded {
    /// What messages call it.
    name: &'static str,
    weights: &'static [u8],
    config: &'static [u8],
    tokenizer: &'static [u8],
}

impl Model {
    /// The models inside this library (with the feature `demo`), by the names users type.
    pub const BUILT_IN: [(&str, Model); 2] = [("demo", Model::Demo), ("demo3", Model::Demo3)];

    /// From what a user types: one of [`Model::BUILT_IN`], a folder, a file of weights with the others
    /// beside it, or (with the feature `hub`) the name of a model that was pulled.
    pub fn named(name: &str) -> Result<Self, BuildError> {
        let path = PathBuf::from(name);
        if let Some((_, model)) = Self::BUILT_IN.into_iter().find(|(known, _)| *known == name) {
            return Ok(model);
        }
        if path.is_dir() {
            return Ok(Model::Dir(path));
        }
        if path.is_file() {
            let (config, tokenizer) =
                (path.with_file_name("config.json"), path.with_file_name("tokenizer.json"));
            let config = config.is_file().then_some(config);
            return Ok(Model::Files { weights: path, config, tokenizer });
        }
        Model::pulled(name)
    }

    #[cfg(feature = "hub")]
    fn pulled(name: &str) -> Result<Self, BuildError> {
        use crate::hub::{Hub, known_model};
        let no_model = |why: String| Err(BuildError::NoModel(why));
        let Ok(known) = known_model(name) else {
            return no_model(format!(
                "{name:?} is neither a folder, a file nor a model Photon knows (see: photon models)"
            ));
        };
        let Some(files) = Hub::from_env().find(known) else {
            let name = known.name;
            return no_model(format!(
                "{name} is not on this machine; get it with: photon pull {name}"
            ));
        };
        let weights = files.weights.first().and_then(|file| file.parent());
        let weights = weights.expect("a pulled model has weights in a folder").to_path_buf();
        Ok(Model::Files { weights, config: files.config, tokenizer: files.tokenizer })
    }

    #[cfg(not(feature = "hub"))]
    fn pulled(name: &str) -> Result<Self, BuildError> {
        Err(BuildError::NoModel(format!("{name:?} is not a folder")))
    }

    /// The dimensions, of a model with weights of `family`.
    fn config(&self, family: Family) -> Result<Config, LoadError> {
        let json = match self {
            Model::Demo | Model::Demo3 => {
                return Ok(Config::from_json(self.embedded()?.config, family)?);
            }
            Model::Dir(dir) | Model::Synthetic { dir: Some(dir), .. } => need(dir, "config.json")?,
            Model::Files { config: Some(path), .. } => path.clone(),
            Model::Files { config: None, .. } | Model::Synthetic { dir: None, .. } => {
                return Ok(Config::of(family));
            }
        };
        Ok(Config::from_json(&read(&json)?, family)?)
    }

    /// The dimensions.
    pub(crate) fn dimensions(&self) -> Result<Config, LoadError> {
        Ok(self.checkpoint()?.0)
    }

    /// The file with the words; `None` if they are those inside this library.
    fn tokenizer_file(&self) -> Result<Option<PathBuf>, LoadError> {
        Ok(match self {
            Model::Demo | Model::Demo3 => None,
            Model::Dir(dir) => Some(need(dir, "tokenizer.json")?),
            Model::Files { weights, tokenizer, .. } if !tokenizer.is_file() => {
                let why = format!("{} has no tokenizer.json beside it", weights.display());
                return Err(LoadError::NoModel(why));
            }
            Model::Files { tokenizer, .. } => Some(tokenizer.clone()),
            Model::Synthetic { dir, .. } => {
                dir.as_ref().map(|dir| dir.join("tokenizer.json")).filter(|path| path.is_file())
            }
        })
    }

    /// The files inside this library: those of the model, or the demo model's, whose words serve where there is no
    /// file.
    #[cfg(feature = "demo")]
    fn embedded(&self) -> Result<Embedded, LoadError> {
        Ok(match self {
            Model::Demo3 => Embedded {
                name: "the second demo model",
                weights: photon_demo3::WEIGHTS,
                config: photon_demo3::CONFIG,
                tokenizer: photon_demo3::TOKENIZER,
            },
            _ => Embedded {
                name: "the demo model",
                weights: photon_demo::WEIGHTS,
                config: photon_demo::CONFIG,
                tokenizer: photon_demo::TOKENIZER,
            },
        })
    }

    #[cfg(not(feature = "demo"))]
    fn embedded(&self) -> Result<Embedded, LoadError> {
        let why = "the demo models are not in this build: name a model's folder, or enable photon's feature demo";
        Err(LoadError::NoModel(why.into()))
    }

    fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        Ok(match self.tokenizer_file()? {
            Some(path) => Tokenizer::from_file(&path)?,
            None => Tokenizer::from_json(self.embedded()?.tokenizer)?,
        })
    }

    /// `tokenizer.json` as it is.
    pub(crate) fn tokenizer_json(&self) -> Result<Cow<'static, [u8]>, LoadError> {
        Ok(match self.tokenizer_file()? {
            Some(path) => read(&path)?.into(),
            None => self.embedded()?.tokenizer.into(),
        })
    }

    /// Where its weights are, if they are files.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Model::Dir(dir) => Some(dir),
            Model::Files { weights, .. } => Some(weights),
            Model::Demo | Model::Demo3 | Model::Synthetic { .. } => None,
        }
    }

    /// What it is called where no path belongs: `vikhyatk/moondream2@4e6a7ee` for what was pulled, else the last
    /// part of its path.
    pub(crate) fn label(&self) -> String {
        let Some(folder) = self.folder() else {
            return match self {
                Model::Synthetic { family, seed, .. } => format!("synthetic {family}, seed {seed}"),
                Model::Demo3 => "demo3".into(),
                _ => "demo".into(),
            };
        };
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        let names: Vec<_> = folder.iter().map(|name| name.to_string_lossy()).collect();
        let pulled = names.windows(3).find_map(|names| match names {
            [repo, snapshots, commit] if snapshots == "snapshots" => {
                let repo = repo.strip_prefix("models--")?.replacen("--", "/", 1);
                Some(format!("{repo}@{}", commit.chars().take(7).collect::<String>()))
            }
            _ => None,
        });
        pulled.or_else(|| Some(names.last()?.to_string())).unwrap_or_default()
    }

    pub(crate) fn checkpoint(&self) -> Result<(Config, Checkpoint), LoadError> {
        let checkpoint = match self {
            Model::Demo | Model::Demo3 => {
                let Embedded { name, weights, .. } = self.embedded()?;
                Checkpoint::from_bytes(name, weights)?
            }
            Model::Dir(dir) => Checkpoint::open(dir)?,
            Model::Files { weights, .. } => Checkpoint::open(weights)?,
            Model::Synthetic { family, seed, .. } => {
                let config = self.config(*family)?;
                let checkpoint = Checkpoint::synthetic(*seed, expected_tensors(&config));
                return Ok((config, checkpoint));
            }
        };
        let family = Family::of(checkpoint.tensors().into_keys());
        Ok((self.config(family)?, checkpoint))
    }

    pub(crate) fn open(&self) -> Result<Parts, BuildError> {
        let load = || -> Result<Parts, LoadError> {
            let (config, checkpoint) = self.checkpoint()?;
            let tokenizer = self.tokenizer()?;
            checkpoint.check(&expected_tensors(&config))?;
            if tokenizer.vocab_size() > config.text.vocab_size {
                let (have, room) = (tokenizer.vocab_size(), config.text.vocab_size);
                let why = format!("tokenizer.json has {have} ids, the model's vocabulary {room}");
                return Err(LoadError::NoModel(why));
            }
            Ok(Parts { config, checkpoint, tokenizer })
        };
        Ok(load()?)
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let error = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    Ok(std::fs::read(path).map_err(error)?)
}

/// A file that a folder with a model has.
fn need(dir: &Path, name: &str) -> Result<PathBuf, LoadError> {
    let path = dir.join(name);
    let missing = || LoadError::NoModel(format!("{} has no {name}", dir.display()));
    path.is_file().then_some(path).ok_or_else(missing)
}
