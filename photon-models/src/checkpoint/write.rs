//! Writes a safetensors file one tensor at a time, in any order, never holding more than one.
//!
//! Where everything lies is fixed by the header, which is written first; elements of four bytes come before
//! those of two and one, so that each tensor is aligned for whoever maps the file.
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::raw::Element;

/// A tensor of a file to be written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
}

impl Entry {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element.bytes()
    }
}

/// A file being written.
#[derive(Debug)]
pub(super) struct Writer {
    file: File,
    /// Where a tensor begins, and its bytes, until it is written.
    left: HashMap<String, (u64, usize)>,
}

impl Writer {
    /// Writes the header.
    pub(super) fn create(
        path: &Path,
        mut entries: Vec<Entry>,
        metadata: &BTreeMap<&'static str, String>,
    ) -> io::Result<Self> {
        entries.sort_by(|a, b| {
            b.element.bytes().cmp(&a.element.bytes()).then_with(|| a.name.cmp(&b.name))
        });
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!(metadata));
        let (mut at, mut places) = (0, Vec::new());
        for entry in &entries {
            let end = at + entry.bytes();
            let place = json!({
                "dtype": entry.element.tag(), "shape": entry.shape, "data_offsets": [at, end],
            });
            header.insert(entry.name.clone(), place);
            places.push((entry.name.clone(), at, entry.bytes()));
            at = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = File::create_new(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let base = 8 + header.len() as u64;
        let place = |(name, at, bytes): (String, usize, usize)| (name, (base + at as u64, bytes));
        Ok(Writer { file, left: places.into_iter().map(place).collect() })
    }

    /// Writes a tensor's elements.
    ///
    /// # Panics
    /// If the header has no such tensor, or one of another size, or it was written before.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let place = self.left.remove(name);
        let (at, len) = place.unwrap_or_else(|| panic!("{name} is not to be written"));
        assert_eq!(bytes.len(), len, "{name}");
        self.file.seek(SeekFrom::Start(at))?;
        self.file.write_all(bytes)
    }

    /// Waits until all of it is on the disk.
    ///
    /// # Panics
    /// If a tensor was not written.
    pub(super) fn finish(self) -> io::Result<()> {
        assert!(self.left.is_empty(), "not written: {:?}", self.left);
        self.file.sync_all()
    }
}
