//! The models that can be named instead of given as a folder, each pinned to a revision.
//!
//! The tokenizer always comes from `moondream/starmie-v1`: the `tokenizer.json` in the Moondream 2
//! repository is an old GPT-2 one that encodes prompts wrongly.

use super::HubError;

const STARMIE: &str = "moondream/starmie-v1";
const STARMIE_COMMIT: &str = "35192e10a54e36eabe0a7cc57a2c1aab371cafc5";

/// A model that `photon pull` knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// What the user types.
    pub name: &'static str,
    /// `owner/name` on the hub.
    pub repo: &'static str,
    /// The tag, branch or commit that is pulled.
    pub revision: &'static str,
    /// Which files hold the weights.
    pub weights: WeightFiles,
    /// The repository that holds `tokenizer.json`.
    pub tokenizer_repo: &'static str,
    /// The tag, branch or commit of the tokenizer.
    pub tokenizer_revision: &'static str,
}

/// How a repository stores its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFiles {
    /// One safetensors file of this name.
    Single(&'static str),
    /// Several, listed in the index file of this name.
    Sharded(&'static str),
}

const MODELS: &[KnownModel] = &[
    KnownModel {
        name: "moondream2",
        repo: "vikhyatk/moondream2",
        revision: "2025-06-21",
        weights: WeightFiles::Single("model.safetensors"),
        tokenizer_repo: STARMIE,
        tokenizer_revision: STARMIE_COMMIT,
    },
    KnownModel {
        name: "moondream3-preview",
        repo: "moondream/moondream3-preview",
        revision: "5112966d1a723413b1c9a1e8bea272b72e647b35",
        weights: WeightFiles::Sharded("model.safetensors.index.json"),
        tokenizer_repo: STARMIE,
        tokenizer_revision: STARMIE_COMMIT,
    },
    KnownModel {
        name: "moondream3.1-9B-A2B",
        repo: "moondream/moondream3.1-9B-A2B",
        revision: "main",
        weights: WeightFiles::Single("model.safetensors"),
        tokenizer_repo: STARMIE,
        tokenizer_revision: STARMIE_COMMIT,
    },
];

/// Every model this version knows.
pub fn known_models() -> &'static [KnownModel] {
    MODELS
}

/// The model of this name or repository, whatever the case of the letters.
///
/// # Errors
/// [`HubError::UnknownModel`], which lists the names that exist.
pub fn known_model(name: &str) -> Result<&'static KnownModel, HubError> {
    let is_named =
        |m: &&KnownModel| m.name.eq_ignore_ascii_case(name) || m.repo.eq_ignore_ascii_case(name);
    MODELS.iter().find(is_named).ok_or_else(|| HubError::UnknownModel {
        name: super::shorten(name),
        known: MODELS.iter().map(|m| m.name).collect::<Vec<_>>().join(", "),
    })
}
