//! What Photon's own files say of themselves, in the metadata of their headers.
//!
//! A file that Photon wrote is safetensors with the names of Hugging Face. A matrix that is quantized lies
//! there as several tensors:
//!
//! | | `NAME` | `NAME.scales`, f32 | `NAME.offsets`, f32 |
//! |---|---|---|---|
//! | int8 | I8 `[.., n, k]` | `[.., n]` | |
//! | fp8 | F8_E4M3 `[.., n, k]` | `[.., n]` | |
//! | int4 | U8 `[.., n, k / 2]`, rounded up | `[.., n, groups]` | `[.., n, groups]` |
//!
//! What codes stand for is said at [`photon_core::WeightFormat`]. Of int4 the header says `group` and `columns`
//! (`k`) of each matrix, which shapes do not. Nothing in such a file depends on a processor.
//!
//! Metadata: `photon.version`, that of this format; `photon.source`, what was converted; `photon.formats`,
//! for people; `photon.int4`, a JSON object from names to `{"group", "columns"}`.
use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// The newest format that is read, and the one that is written.
pub(super) const VERSION: u32 = 1;

const VERSION_KEY: &str = "photon.version";
const SOURCE_KEY: &str = "photon.source";
const FORMATS_KEY: &str = "photon.formats";
const INT4_KEY: &str = "photon.int4";

/// Where a file that Photon wrote comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Of the format.
    pub version: u32,
    /// What was converted.
    pub source: String,
    /// How the matrices of each part are stored.
    pub formats: String,
}

/// What shapes do not say of a matrix in int4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grouped {
    pub(super) group: u32,
    pub(super) columns: usize,
}

/// The metadata of a file that Photon wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) origin: Origin,
    pub(super) int4: BTreeMap<String, Grouped>,
}

/// Why metadata cannot be used.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// A later Photon's.
    Newer(u32),
    Damaged(String),
}

impl Header {
    /// Of what is written now.
    pub(super) fn new(source: &str, formats: &str) -> Self {
        let origin =
            Origin { version: VERSION, source: source.to_owned(), formats: formats.to_owned() };
        Header { origin, int4: BTreeMap::new() }
    }

    /// Reads metadata; nothing if another program wrote it.
    pub(super) fn read(metadata: &HashMap<String, String>) -> Result<Option<Self>, Unreadable> {
        let Some(version) = metadata.get(VERSION_KEY) else { return Ok(None) };
        let version = match version.parse() {
            Ok(version @ 1..=VERSION) => version,
            Ok(version) if version > VERSION => return Err(Unreadable::Newer(version)),
            _ => return Err(Unreadable::Damaged(format!("{VERSION_KEY} is {version:?}"))),
        };
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let int4 = match metadata.get(INT4_KEY) {
            None => BTreeMap::new(),
            Some(json) => serde_json::from_str(json)
                .map_err(|error| Unreadable::Damaged(format!("{INT4_KEY}: {error}")))?,
        };
        let origin = Origin { version, source: text(SOURCE_KEY), formats: text(FORMATS_KEY) };
        Ok(Some(Header { origin, int4 }))
    }

    /// The metadata of one of the files.
    pub(super) fn write(&self) -> BTreeMap<&'static str, String> {
        let mut metadata = BTreeMap::from([
            // What other readers of safetensors look for.
            ("format", "pt".to_owned()),
            (VERSION_KEY, self.origin.version.to_string()),
            (SOURCE_KEY, self.origin.source.clone()),
        ]);
        if !self.origin.formats.is_empty() {
            metadata.insert(FORMATS_KEY, self.origin.formats.clone());
        }
        if !self.int4.is_empty() {
            let json = serde_json::to_string(&self.int4).expect("names and numbers are JSON");
            metadata.insert(INT4_KEY, json);
        }
        metadata
    }

    /// The next file of the same checkpoint.
    pub(super) fn join(&mut self, next: Header) -> Result<(), String> {
        if self.origin != next.origin {
            let of = |origin: &Origin| format!("{} ({})", origin.source, origin.formats);
            let (a, b) = (of(&self.origin), of(&next.origin));
            return Err(format!("it is of {b}, the files before it of {a}"));
        }
        self.int4.extend(next.int4);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metadata: &[(&str, &str)]) -> Result<Option<Header>, Unreadable> {
        Header::read(&metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut header = Header::new("moondream2", "text=int4,vision=int8");
        header.int4.insert("a.weight".into(), Grouped { group: 32, columns: 33 });
        let metadata = header.write();
        let pairs: Vec<_> = metadata.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(read(&pairs).unwrap(), Some(header));
        assert_eq!(read(&[("format", "pt")]).unwrap(), None);
    }

    #[test]
    fn a_newer_format_and_nonsense_are_told_apart() {
        assert!(matches!(read(&[(VERSION_KEY, "2")]), Err(Unreadable::Newer(2))));
        for version in ["0", "one", "-1", ""] {
            assert!(matches!(read(&[(VERSION_KEY, version)]), Err(Unreadable::Damaged(_))));
        }
        let json = [(VERSION_KEY, "1"), (INT4_KEY, "{\"a\": 3}")];
        assert!(matches!(read(&json), Err(Unreadable::Damaged(_))));
    }
}
