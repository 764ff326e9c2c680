//! Adapters by name: in one folder, `ID@STEP` is the file or folder of that name.
//!
//! Names come from whoever asks. They hold letters, digits, `-`, `_` and `.`, and do not begin with a dot, so
//! none leads out of the folder. Loading is the engine's work (`engine/adapters`); here are names, places
//! and files.
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use photon_core::DType;
use photon_models::{
    LoadError,
    adapter::{AdapterError, convert_adapter},
};

pub use photon_models::adapter::AdapterSummary;

use crate::{BuildError, Model, convert::hidden};

/// Most characters of an id, and of a step.
const MAX_ID: usize = 128;
const MAX_STEP: usize = 20;

/// Which adapter: `ID@STEP`, the fine-tuning and how far it had come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterName {
    id: String,
    step: String,
}

impl FromStr for AdapterName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_id = |id: &str| {
            (1..=MAX_ID).contains(&id.len())
                && !id.starts_with('.')
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let is_step = |step: &str| {
            (1..=MAX_STEP).contains(&step.len()) && step.bytes().all(|b| b.is_ascii_digit())
        };
        match text.split_once('@') {
            Some((id, step)) if is_id(id) && is_step(step) => {
                Ok(AdapterName { id: id.to_owned(), step: step.to_owned() })
            }
            _ => Err(NameError::Name(text.chars().take(MAX_ID).collect())),
        }
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.step)
    }
}

/// What a client calls a model: `MODEL`, or `MODEL/ID@STEP` for one with an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// The model.
    pub base: String,
    /// Its adapter.
    pub adapter: Option<AdapterName>,
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.rsplit_once('/') {
            Some((base, name)) if name.contains('@') && !base.is_empty() => {
                Ok(ModelName { base: base.to_owned(), adapter: Some(name.parse()?) })
            }
            _ => Ok(ModelName { base: text.to_owned(), adapter: None }),
        }
    }
}

/// Why a name stands for no adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It cannot be one.
    #[error(
        "{0:?} is no name of an adapter: ID@STEP, letters, digits, -, _ and . in ID, digits in STEP"
    )]
    Name(String),
    /// Nobody said where adapters are.
    #[error("adapter {0} cannot be looked for; start with --adapters and the folder it is in")]
    NoFolder(AdapterName),
    /// It is not there.
    #[error("there is no adapter {name} in {}: no {name}.safetensors, {name}.pt or folder", folder.display())]
    Missing {
        /// The name.
        name: AdapterName,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The folder cannot be read.
    #[error("cannot read the adapters in {}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A folder with adapters, each under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFolder(PathBuf);

impl From<PathBuf> for AdapterFolder {
    fn from(path: PathBuf) -> Self {
        AdapterFolder(path)
    }
}

impl AdapterFolder {
    /// The file or folder of an adapter.
    ///
    /// # Errors
    /// If it is not there.
    pub fn find(&self, name: &AdapterName) -> Result<PathBuf, NameError> {
        let places = [".safetensors", ".pt", ""].map(|end| self.0.join(format!("{name}{end}")));
        let [safetensors, pt, folder] = places;
        let found = [safetensors, pt].into_iter().find(|path| path.is_file());
        let missing = || NameError::Missing { name: name.clone(), folder: self.0.clone() };
        found.or_else(|| folder.is_dir().then_some(folder)).ok_or_else(missing)
    }

    /// Every adapter, by name. What has no name of an adapter is left out.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<Vec<(AdapterName, PathBuf)>, NameError> {
        let error = |source| NameError::Folder { folder: self.0.clone(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(error)? {
            let entry = entry.map_err(error)?.file_name();
            let Some(file) = entry.to_str() else { continue };
            let ends = [".safetensors", ".pt"];
            let stem = ends.iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
            let Ok(name) = stem.parse::<AdapterName>() else { continue };
            // Of two files with one name, that which requests get.
            if let Ok(path) = self.find(&name) {
                found.push((name, path));
            }
        }
        found.sort_by_key(|(name, _)| (name.id.clone(), name.step.parse::<u128>().ok()));
        found.dedup();
        Ok(found)
    }
}

/// Why an adapter was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterConvertError {
    /// What is in the file, or writing it.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model that it shall fit.
    #[error(transparent)]
    Model(#[from] BuildError),
    /// Something is there.
    #[error("{} is there already; --force replaces it", .0.display())]
    Exists(PathBuf),
    /// The file.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Writes an adapter of any supported format as safetensors, with the names it is published under. With a
/// `model` it must fit that.
///
/// # Errors
/// As [`AdapterConvertError`] lists; then `to` is as it was.
pub fn convert(
    from: &Path,
    to: &Path,
    dtype: Option<DType>,
    model: Option<&Model>,
    force: bool,
) -> Result<AdapterSummary, AdapterConvertError> {
    let io = |source| AdapterConvertError::Io { path: to.to_path_buf(), source };
    let to = std::path::absolute(to).map_err(io)?;
    let io = |source| AdapterConvertError::Io { path: to.clone(), source };
    if to.is_dir() || (to.exists() && !force) {
        return Err(AdapterConvertError::Exists(to));
    }
    let config = model.map(Model::dimensions).transpose()?;
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let hidden = hidden(&to, "incomplete");
    let written = convert_adapter(from, &hidden, dtype, config.as_ref());
    let renamed = match &written {
        Ok(_) => std::fs::rename(&hidden, &to).map_err(io),
        Err(_) => Ok(()),
    };
    if written.is_err() || renamed.is_err() {
        // Best effort: it may never have been made.
        let _ = std::fs::remove_file(&hidden);
    }
    renamed?;
    Ok(written?)
}

/// Looks into a file with an adapter; with a `model` it must fit that.
///
/// # Errors
/// If it is no adapter, or not one to the model.
pub fn inspect(path: &Path, model: Option<&Model>) -> Result<AdapterSummary, BuildError> {
    if let Some(model) = model {
        let config = model.dimensions()?;
        photon_models::adapter::Adapter::open(path, &config)?;
    }
    Ok(AdapterSummary::open(path)?)
}

impl From<LoadError> for AdapterConvertError {
    fn from(error: LoadError) -> Self {
        AdapterConvertError::Model(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_may_end_in_an_adapter() {
        let parse = |text: &str| text.parse::<ModelName>();
        let name = parse("moondream3-preview/01HABC123@1000").unwrap();
        assert_eq!(name.base, "moondream3-preview");
        assert_eq!(name.adapter.unwrap().to_string(), "01HABC123@1000");
        let name = parse("models/mine/a_b-c.d@7").unwrap();
        assert_eq!((name.base.as_str(), name.adapter.is_some()), ("models/mine", true));
        for text in ["demo", "vikhyatk/moondream2", "/models/md2", "./a@b/c", ""] {
            let name = parse(text).unwrap();
            assert_eq!((name.base.as_str(), name.adapter), (text, None));
        }
    }

    #[test]
    fn names_that_could_lead_anywhere_else_are_none() {
        let long = format!("{}@1", "a".repeat(129));
        let hostile = [
            "..@1",
            ".@1",
            ".hidden@1",
            "a/b@1",
            "a\\b@1",
            "a@../1",
            "a@1/..",
            "a@",
            "@1",
            "a",
            "a@b",
            "a@1@2",
            "a b@1",
            "a\0@1",
            "ä@1",
            "a@1.pt",
            "~@1",
            "a@-1",
            "a@123456789012345678901",
            "",
            &long,
        ];
        for text in hostile {
            assert!(matches!(text.parse::<AdapterName>(), Err(NameError::Name(_))), "{text:?}");
        }
        assert!(
            "demo/../../etc@1".parse::<ModelName>().is_ok_and(|name| name.base == "demo/../..")
        );
        assert!("demo/..@1".parse::<ModelName>().is_err());
        assert!("demo/a@b".parse::<ModelName>().is_err());
    }

    #[test]
    fn a_name_is_a_file_or_a_folder_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = AdapterFolder::from(dir.path().to_path_buf());
        for file in ["b@2.pt", "a@1.safetensors", "a@1.pt", "notes.txt", "x@y.pt"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("c@3")).unwrap();
        let list = folder.list().unwrap();
        let names: Vec<_> = list
            .iter()
            .map(|(name, path)| (name.to_string(), path.file_name().unwrap().to_str().unwrap()))
            .collect();
        let want = [("a@1", "a@1.safetensors"), ("b@2", "b@2.pt"), ("c@3", "c@3")];
        assert_eq!(names, want.map(|(name, file)| (name.to_owned(), file)));
        let error = folder.find(&"d@4".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no d@4.safetensors, d@4.pt or folder"), "{error}");
    }
}
