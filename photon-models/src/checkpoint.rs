//! Where weights come from: safetensors on disk or in memory, or the synthetic rule.
//!
//! A [`Checkpoint`] is a table of names, shapes and types, plus a way to the bytes. Coverage is
//! checked both ways before anything is loaded: a tensor the model needs and the checkpoint lacks is
//! an error, and so is one the model does not know.
mod mapped;
mod synthetic;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use photon_core::DType;
use safetensors::SafeTensors;

pub use synthetic::Synthetic;

/// Most bytes of an index or a configuration file.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No weights where they were looked for.
    #[error(
        "no weights in {}: expected model.safetensors, or model.safetensors.index.json and its shards",
        .0.display()
    )]
    NoWeights(PathBuf),
    /// Not a safetensors file, or one cut short.
    #[error("{name} is not a complete safetensors file ({why}): copy or download it again")]
    Damaged {
        /// The file.
        name: String,
        /// What the parser said.
        why: String,
    },
    /// The index of a sharded checkpoint is wrong.
    #[error("{}: {why}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A tensor of a type that is not a float.
    #[error("tensor {name} is {dtype}; weights must be f32, f16 or bf16")]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor that cannot be quantized.
    #[error("tensor {name} holds numbers that are not finite: the checkpoint is damaged")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("tensor {name} is {got:?} in the checkpoint, but config.json makes it {want:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// In the checkpoint.
        got: Vec<usize>,
        /// By the configuration.
        want: Vec<usize>,
    },
    /// The checkpoint and the model do not cover each other.
    #[error("the checkpoint does not fit the model: {0}")]
    Coverage(String),
}

/// Shape and element type of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost first.
    pub shape: Vec<usize>,
    /// How the checkpoint stores it.
    pub dtype: DType,
}

#[derive(Debug)]
enum Bytes {
    Static(&'static [u8]),
    Mapped(memmap2::Mmap),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Static(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

/// One tensor's place in a file.
#[derive(Clone, Debug)]
struct Entry {
    info: TensorInfo,
    file: usize,
    start: usize,
    end: usize,
}

/// A source of named tensors.
#[derive(Debug)]
pub enum Checkpoint {
    /// Safetensors.
    Files(Files),
    /// Values made from names.
    Synthetic(Synthetic),
}

/// One or several safetensors files.
#[derive(Debug)]
pub struct Files {
    files: Vec<Bytes>,
    entries: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Opens a model directory, or a `.safetensors` file. Files are mapped, not read.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut files = Files { files: Vec::new(), entries: BTreeMap::new() };
        for shard in shards(path)? {
            let name = shard.display().to_string();
            files.add(&name, Bytes::Mapped(mapped::map(&shard)?))?;
        }
        Ok(Checkpoint::Files(files))
    }

    /// A safetensors file that is part of the program.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, CheckpointError> {
        let mut files = Files { files: Vec::new(), entries: BTreeMap::new() };
        files.add(name, Bytes::Static(bytes))?;
        Ok(Checkpoint::Files(files))
    }

    /// Weights by the synthetic rule for exactly these tensors.
    pub fn synthetic(seed: u64, tensors: Vec<(String, Vec<usize>)>) -> Self {
        Checkpoint::Synthetic(Synthetic::new(seed, tensors))
    }

    /// Names, shapes and types, by name.
    pub fn tensors(&self) -> BTreeMap<&str, TensorInfo> {
        match self {
            Checkpoint::Files(f) => {
                f.entries.iter().map(|(name, e)| (name.as_str(), e.info.clone())).collect()
            }
            Checkpoint::Synthetic(s) => s.tensors().collect(),
        }
    }

    /// The little-endian elements of a tensor, or `None` if there is none of that name.
    pub fn bytes(&self, name: &str) -> Option<(TensorInfo, Cow<'_, [u8]>)> {
        match self {
            Checkpoint::Files(f) => {
                let entry = f.entries.get(name)?;
                let bytes = &f.files[entry.file].get()[entry.start..entry.end];
                Some((entry.info.clone(), Cow::Borrowed(bytes)))
            }
            Checkpoint::Synthetic(s) => {
                let (info, bytes) = s.bytes(name)?;
                Some((info, Cow::Owned(bytes)))
            }
        }
    }

    /// Checks that the checkpoint holds exactly these tensors, in these shapes.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<(), CheckpointError> {
        let mut have = self.tensors();
        let mut missing = Vec::new();
        for (name, want) in expected {
            match have.remove(name.as_str()) {
                None => missing.push(name.as_str()),
                Some(info) if info.shape != *want => {
                    return Err(CheckpointError::Shape {
                        name: name.clone(),
                        got: info.shape,
                        want: want.clone(),
                    });
                }
                Some(_) => {}
            }
        }
        let unknown: Vec<&str> = have.into_keys().collect();
        if missing.is_empty() && unknown.is_empty() {
            return Ok(());
        }
        let mut message = String::new();
        for (what, names) in [("missing", missing), ("unknown", unknown)] {
            let Some((first, rest)) = names.split_first() else { continue };
            let separator = if message.is_empty() { "" } else { "; " };
            let _ = write!(message, "{separator}{what} {first}");
            if !rest.is_empty() {
                let _ = write!(message, " and {} more", rest.len());
            }
        }
        Err(CheckpointError::Coverage(message))
    }
}

impl Files {
    fn add(&mut self, name: &str, bytes: Bytes) -> Result<(), CheckpointError> {
        let damaged = |why: String| CheckpointError::Damaged { name: name.into(), why };
        let data = bytes.get();
        let (header_bytes, metadata) =
            SafeTensors::read_metadata(data).map_err(|e| damaged(e.to_string()))?;
        let base = 8 + header_bytes;
        let file = self.files.len();
        for (tensor, info) in metadata.tensors() {
            let (start, end) = (base + info.data_offsets.0, base + info.data_offsets.1);
            if end > data.len() {
                let why = format!("{tensor} ends at byte {end}, the file has {}", data.len());
                return Err(damaged(why));
            }
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => DType::F32,
                safetensors::Dtype::F16 => DType::F16,
                safetensors::Dtype::BF16 => DType::Bf16,
                other => {
                    let dtype = format!("{other:?}");
                    return Err(CheckpointError::Type { name: tensor, dtype });
                }
            };
            // Left in the names by torch.compile.
            let tensor = tensor.replace("._orig_mod", "");
            let info = TensorInfo { shape: info.shape.clone(), dtype };
            let entry = Entry { info, file, start, end };
            if self.entries.insert(tensor.clone(), entry).is_some() {
                return Err(damaged(format!("{tensor} appears twice")));
            }
        }
        self.files.push(bytes);
        Ok(())
    }
}

/// The safetensors files of a model directory, or the file itself.
fn shards(path: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let single = path.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = path.join("model.safetensors.index.json");
    if !index.is_file() {
        return Err(CheckpointError::NoWeights(path.to_path_buf()));
    }
    let wrong = |why: String| CheckpointError::Index { path: index.clone(), why };
    let text = read_small(&index)?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
    let map = json.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| wrong("no weight_map object".into()))?;
    let mut names = std::collections::BTreeSet::new();
    for name in map.values() {
        let name = name.as_str().ok_or_else(|| wrong("weight_map: not a file name".into()))?;
        // A name with a path in it could reach outside the model's directory.
        if name.contains(['/', '\\']) || name == ".." || !name.ends_with(".safetensors") {
            return Err(wrong(format!("weight_map: {name:?} is not a safetensors file beside it")));
        }
        names.insert(name);
    }
    Ok(names.into_iter().map(|name| path.join(name)).collect())
}

/// Reads a file that ought to be small.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_JSON_BYTES {
        let why = format!("{bytes} bytes, more than the limit of {MAX_JSON_BYTES}");
        return Err(CheckpointError::Index { path: path.to_path_buf(), why });
    }
    std::fs::read(path).map_err(io)
}
