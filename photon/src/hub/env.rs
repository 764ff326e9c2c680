//! Settings from environment variables, with the names and the order of Python's `huggingface_hub`.
//!
//! Values come through a lookup function, so that tests need no process-wide state.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::cache::read_limited;

pub(super) struct Vars<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
}

impl<'a> Vars<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self { lookup }
    }

    pub(super) fn endpoint(&self) -> Option<String> {
        self.text("HF_ENDPOINT")
    }

    /// `HF_HUB_CACHE`, else `hub` in the Hugging Face home.
    pub(super) fn cache_dir(&self) -> Option<PathBuf> {
        self.path("HF_HUB_CACHE")
            .or_else(|| self.path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(self.hf_home()?.join("hub")))
    }

    /// `HF_TOKEN`, else what the token file holds, unless that is switched off.
    pub(super) fn token(&self) -> Option<String> {
        if self.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        self.text("HF_TOKEN").or_else(|| self.text("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let file =
                self.path("HF_TOKEN_PATH").or_else(|| Some(self.hf_home()?.join("token")))?;
            let text = String::from_utf8(read_limited(&file, 4096).ok()?).ok()?;
            Some(text.trim().to_owned()).filter(|token| !token.is_empty())
        })
    }

    pub(super) fn offline(&self) -> bool {
        self.flag("HF_HUB_OFFLINE")
    }

    /// Where an organization keeps the certificates of its proxy.
    pub(super) fn ca_file(&self) -> Option<PathBuf> {
        self.path("SSL_CERT_FILE").or_else(|| self.path("REQUESTS_CA_BUNDLE"))
    }

    /// `HF_HOME`, else `huggingface` in the user's cache folder.
    fn hf_home(&self) -> Option<PathBuf> {
        self.path("HF_HOME")
            .or_else(|| Some(self.path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(self.home()?.join(".cache/huggingface")))
    }

    fn home(&self) -> Option<PathBuf> {
        (self.lookup)("HOME").filter(|v| !v.is_empty()).map(PathBuf::from)
    }

    /// A folder; a leading `~` is the home folder.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let value = PathBuf::from((self.lookup)(name).filter(|v| !v.is_empty())?);
        match value.strip_prefix(Path::new("~")) {
            Ok(rest) => Some(self.home()?.join(rest)),
            Err(_) => Some(value),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        let value = (self.lookup)(name)?.into_string().ok()?;
        Some(value.trim().to_owned()).filter(|v| !v.is_empty())
    }

    /// The values Python takes for true.
    fn flag(&self, name: &str) -> bool {
        self.text(name)
            .is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()))
    }
}
