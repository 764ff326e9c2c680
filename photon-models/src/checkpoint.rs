//! Where weights come from: safetensors or PyTorch's files on disk, or in memory, or the synthetic rule.
//!
//! A [`Checkpoint`] is a table of names, shapes and formats, plus a way to the bytes; the names are those
//! of the Hugging Face repositories, whoever wrote the files (`layout`). Coverage is
//! checked both ways before anything is loaded: a tensor the model needs and the checkpoint lacks is
//! an error, and so is one the model does not know.
mod convert;
mod layout;
mod mapped;
mod own;
mod quantize;
mod raw;
mod synthetic;
mod torch;
mod write;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use photon_core::{DType, WeightFormat, convert, quant::Quantized};
use safetensors::SafeTensors;

pub(crate) use convert::write_tensors;
pub use convert::{Conversion, ConvertOptions};
pub use layout::Layout;
pub use own::Origin;
pub use synthetic::Synthetic;

use layout::{Canonical, Source};
use own::{Header, Unreadable};
use raw::{Element, Raw};

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
        "no weights in {}: expected model.safetensors, or model.safetensors.index.json and its shards, or \
         one .pt file",
        .0.display()
    )]
    NoWeights(PathBuf),
    /// Not a file of weights, or one cut short.
    #[error("{name} is not a complete file of weights ({why}): copy or download it again")]
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
    /// A tensor that no weight is stored as.
    #[error("tensor {name} cannot be read: {why}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A file of a later Photon.
    #[error(
        "{name} was written by a newer Photon (format {version}, this one reads up to {newest}): update \
         Photon, or convert the model again with this one"
    )]
    Newer {
        /// The file.
        name: String,
        /// Its format.
        version: u32,
        /// The newest that is read.
        newest: u32,
    },
    /// A tensor that is quantized already, and in another way.
    #[error(
        "{name} is quantized to {stored} already and cannot be made {asked}: leave --quant out, or take \
         the model as it was before"
    )]
    Coded {
        /// The tensor.
        name: String,
        /// As it is.
        stored: WeightFormat,
        /// As it should be.
        asked: WeightFormat,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor that cannot be quantized.
    #[error("tensor {name} holds numbers that are not finite: the checkpoint is damaged")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// A number that f16 was asked to hold and cannot.
    #[error(
        "tensor {name} holds {value}, and f16 ends at 65504: choose another type (--dtype bf16 or f32)"
    )]
    TooLarge {
        /// The tensor.
        name: String,
        /// The number.
        value: f32,
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

/// Shape and format of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost first.
    pub shape: Vec<usize>,
    /// How the checkpoint stores it.
    pub format: WeightFormat,
}

impl TensorInfo {
    /// Bytes of its elements and scales.
    pub fn bytes(&self) -> u64 {
        let cols = self.shape.last().copied().unwrap_or(1).max(1);
        let rows = self.shape.iter().product::<usize>() / cols;
        (rows * (self.format.row_bytes(cols) + 4 * self.format.row_scales(cols))) as u64
    }
}

#[derive(Debug)]
enum Bytes {
    Memory(Cow<'static, [u8]>),
    Mapped(memmap2::Mmap),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Memory(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

/// A source of named tensors.
#[derive(Debug)]
pub enum Checkpoint {
    /// Files.
    Files(Files),
    /// Values made from names.
    Synthetic(Synthetic),
}

/// Files that were opened.
#[derive(Debug)]
pub struct Files {
    files: Vec<Bytes>,
    layout: Layout,
    tensors: BTreeMap<String, Source>,
    ignored: Vec<String>,
    origin: Option<Origin>,
}

impl Checkpoint {
    /// Opens a model directory, or a file of safetensors or of PyTorch. Files are mapped, not read.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut opened = Opened::default();
        for shard in weight_files(path)? {
            let name = shard.display().to_string();
            opened.add(&name, Bytes::Mapped(mapped::map(&shard)?))?;
        }
        opened.finish()
    }

    /// A file in memory, such as one that is part of the program; `name` is for messages.
    pub fn from_bytes(
        name: &str,
        bytes: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Self, CheckpointError> {
        let mut opened = Opened::default();
        opened.add(name, Bytes::Memory(bytes.into()))?;
        opened.finish()
    }

    /// Who laid the files out; nothing for weights that were made.
    pub fn layout(&self) -> Option<Layout> {
        match self {
            Checkpoint::Files(f) => Some(f.layout),
            Checkpoint::Synthetic(_) => None,
        }
    }

    /// What a checkpoint that Photon wrote was made from.
    pub fn origin(&self) -> Option<&Origin> {
        match self {
            Checkpoint::Files(f) => f.origin.as_ref(),
            Checkpoint::Synthetic(_) => None,
        }
    }

    /// Tensors that are there and never used: static scales of 8-bit keys and values, which Photon's keys
    /// and values carry themselves.
    pub fn ignored(&self) -> &[String] {
        match self {
            Checkpoint::Files(f) => &f.ignored,
            Checkpoint::Synthetic(_) => &[],
        }
    }

    /// Weights by the synthetic rule for exactly these tensors.
    pub fn synthetic(seed: u64, tensors: Vec<(String, Vec<usize>)>) -> Self {
        Checkpoint::Synthetic(Synthetic::new(seed, tensors))
    }

    /// Names, shapes and formats, by name.
    pub fn tensors(&self) -> BTreeMap<&str, TensorInfo> {
        match self {
            Checkpoint::Files(f) => {
                let info = |s: &Source| TensorInfo { shape: s.shape(), format: s.format() };
                f.tensors.iter().map(|(name, s)| (name.as_str(), info(s))).collect()
            }
            Checkpoint::Synthetic(s) => s.tensors().collect(),
        }
    }

    /// Shape and format of a tensor.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        match self {
            Checkpoint::Files(f) => {
                let source = f.tensors.get(name)?;
                Some(TensorInfo { shape: source.shape(), format: source.format() })
            }
            Checkpoint::Synthetic(s) => {
                s.tensors().find_map(|(n, info)| (n == name).then_some(info))
            }
        }
    }

    /// The elements of a tensor as little-endian floats of the type that is returned, or `None` if there
    /// is none of that name. Codes are made f32.
    pub fn floats(&self, name: &str) -> Option<(DType, Cow<'_, [u8]>)> {
        match self {
            Checkpoint::Files(f) => Some(f.tensors.get(name)?.floats(|raw| f.bytes(raw))),
            Checkpoint::Synthetic(s) => Some((DType::F32, s.bytes(name)?.into())),
        }
    }

    /// The codes and scales of a tensor whose format has them, as [`quant`](photon_core::quant) lays
    /// them out.
    pub fn coded(&self, name: &str) -> Option<Quantized<'_>> {
        match self {
            Checkpoint::Files(f) => f.tensors.get(name)?.coded(|raw| f.bytes(raw)),
            Checkpoint::Synthetic(_) => None,
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

/// The floats of a tensor as another type. Infinities stay, and nothing becomes one.
///
/// # Errors
/// If f16 cannot hold a number.
pub(crate) fn floats_as<'a>(
    name: &str,
    bytes: Cow<'a, [u8]>,
    from: DType,
    to: DType,
) -> Result<Cow<'a, [u8]>, CheckpointError> {
    const INFINITE: u16 = 0x7c00;
    if from == to {
        return Ok(bytes);
    }
    let made = convert(&bytes, from, to);
    if to == DType::F16 {
        let is_infinite = |two: &[u8]| u16::from_le_bytes([two[0], two[1]]) & 0x7fff == INFINITE;
        let infinite = made.chunks_exact(2).zip(bytes.chunks_exact(from.size()));
        for (_, was) in infinite.filter(|(two, _)| is_infinite(two)) {
            let wide = convert(was, from, DType::F32);
            let value = f32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]]);
            if value.is_finite() {
                return Err(CheckpointError::TooLarge { name: name.into(), value });
            }
        }
    }
    Ok(made.into_owned().into())
}

impl Files {
    fn bytes(&self, raw: &Raw) -> &[u8] {
        &self.files[raw.file].get()[raw.bytes.clone()]
    }
}

/// Files being opened.
#[derive(Default)]
struct Opened {
    files: Vec<Bytes>,
    raw: BTreeMap<String, Raw>,
    own: Option<Header>,
}

impl Opened {
    fn add(&mut self, name: &str, bytes: Bytes) -> Result<(), CheckpointError> {
        let damaged = |why: String| CheckpointError::Damaged { name: name.into(), why };
        let (data, file) = (bytes.get(), self.files.len());
        let tensors = match torch::is_zip(data) {
            true => torch::tensors(data, file).map_err(damaged)?,
            false => {
                let (metadata, tensors) = safetensors(data, file).map_err(damaged)?;
                self.add_header(Header::read(&metadata), name)?;
                tensors
            }
        };
        for (tensor, raw) in tensors {
            // Left in the names by torch.compile.
            let tensor = tensor.replace("._orig_mod", "");
            if self.raw.insert(tensor.clone(), raw).is_some() {
                return Err(damaged(format!("{tensor} appears twice")));
            }
        }
        self.files.push(bytes);
        Ok(())
    }

    fn finish(self) -> Result<Checkpoint, CheckpointError> {
        let wrong = |layout::Wrong { name, why }| CheckpointError::Tensor { name, why };
        let found = layout::canonical(self.raw, self.own.as_ref()).map_err(wrong)?;
        let Canonical { layout, sources: tensors, ignored } = found;
        let origin = self.own.map(|header| header.origin);
        Ok(Checkpoint::Files(Files { files: self.files, layout, tensors, ignored, origin }))
    }

    fn add_header(
        &mut self,
        header: Result<Option<Header>, Unreadable>,
        name: &str,
    ) -> Result<(), CheckpointError> {
        let damaged = |why: String| CheckpointError::Damaged { name: name.into(), why };
        let newest = own::VERSION;
        match (header, &mut self.own) {
            (Ok(None), _) => Ok(()),
            (Ok(Some(next)), Some(own)) => own.join(next).map_err(damaged),
            (Ok(next), own @ None) => {
                *own = next;
                Ok(())
            }
            (Err(Unreadable::Damaged(why)), _) => Err(damaged(why)),
            (Err(Unreadable::Newer(version)), _) => {
                Err(CheckpointError::Newer { name: name.into(), version, newest })
            }
        }
    }
}

/// The metadata and the tensors of a safetensors file.
fn safetensors(data: &[u8], file: usize) -> Result<SafeFile, String> {
    use safetensors::Dtype;
    let (header_bytes, metadata) = SafeTensors::read_metadata(data).map_err(|e| e.to_string())?;
    let base = 8 + header_bytes;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let bytes = base + info.data_offsets.0..base + info.data_offsets.1;
        if bytes.end > data.len() {
            let (end, len) = (bytes.end, data.len());
            return Err(format!("{name} ends at byte {end}, the file has {len}"));
        }
        let element = match info.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F8_E4M3 => Element::F8,
            Dtype::U8 => Element::U8,
            Dtype::I8 => Element::I8,
            _ => Element::Other,
        };
        let raw = Raw::new(element, info.shape.clone(), file, bytes);
        tensors.push((name.clone(), raw.map_err(|why| format!("{name}: {why}"))?));
    }
    Ok((metadata.metadata().clone().unwrap_or_default(), tensors))
}

/// Metadata, and tensors with where they are.
type SafeFile = (HashMap<String, String>, Vec<(String, Raw)>);

/// The files with the weights of a model directory, or the file itself.
///
/// # Errors
/// If there are none.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let single = path.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = path.join("model.safetensors.index.json");
    if !index.is_file() {
        return torch_file(path).map(|file| vec![file]);
    }
    let names = shard_names(&read_small(&index)?)
        .map_err(|why| CheckpointError::Index { path: index.clone(), why })?;
    Ok(names.into_iter().map(|name| path.join(name)).collect())
}

/// The files that a `model.safetensors.index.json` names.
pub(crate) fn shard_names(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|e| format!("no index: {e}"))?;
    // A name with a path in it could reach outside the model's directory.
    let beside = |name: &String| !name.contains(['/', '\\']) && name.ends_with(".safetensors");
    match index.weight_map.values().find(|name| !beside(name)) {
        Some(name) => Err(format!("weight_map: {name:?} is not a safetensors file beside it")),
        None => Ok(index.weight_map.into_values().collect()),
    }
}

/// The only `.pt` file of a folder.
fn torch_file(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let entries = std::fs::read_dir(folder)
        .map_err(|source| CheckpointError::Io { path: folder.to_path_buf(), source })?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = paths.filter(|path| path.extension().is_some_and(|e| e == "pt"));
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(file),
        _ => Err(CheckpointError::NoWeights(folder.to_path_buf())),
    }
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
