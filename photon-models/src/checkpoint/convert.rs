//! Writes a checkpoint anew: the names of Hugging Face, in chosen formats, in files of a chosen size.
//!
//! What is written loads to the bit as the source does with the same type and formats. So only what loading
//! would round or quantize is rounded or quantized here ([`Role`]), by the same code, from the same numbers.
//! One tensor is in memory at a time.
use std::{borrow::Cow, collections::BTreeSet, ops::ControlFlow, path::Path};

use photon_core::{DType, WeightFormat, quant::Quantized};
use serde_json::json;

use super::{
    Checkpoint, CheckpointError, TensorInfo, floats_as,
    own::{Grouped, Header},
    raw::Element,
    write::{Entry, Writer},
};
use crate::{
    config::Config,
    moondream::tensor_specs,
    quant::{Part, Quant, format_name},
    spec::{Role, Spec},
};

/// What shall be written.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Matrices to quantize.
    pub quant: Quant,
    /// The type of other weights; as they are stored if `None`.
    pub dtype: Option<DType>,
    /// Most bytes of a file, unless one tensor alone has more.
    pub shard_bytes: u64,
    /// What the result shall say that it was made from.
    pub source: String,
}

/// A checkpoint to be written.
#[derive(Debug)]
pub struct Conversion<'a> {
    checkpoint: &'a Checkpoint,
    header: Header,
    /// The tensors of each file.
    shards: Vec<Vec<Target>>,
}

/// A tensor, and how it will be stored.
#[derive(Clone, Debug)]
struct Target {
    spec: Spec,
    format: WeightFormat,
}

impl Target {
    fn columns(&self) -> usize {
        self.spec.shape.last().copied().unwrap_or(1)
    }

    fn bytes(&self) -> u64 {
        TensorInfo { shape: self.spec.shape.clone(), format: self.format }.bytes()
    }

    /// What it is in the file: see [`super::own`].
    fn entries(&self) -> Vec<Entry> {
        let Spec { name, shape, .. } = &self.spec;
        let rows = &shape[..shape.len().saturating_sub(1)];
        let entry = |leaf: &str, element: Element, shape: Vec<usize>| Entry {
            name: format!("{name}{leaf}"),
            element,
            shape,
        };
        let scales = |shape: &[usize]| entry(".scales", Element::F32, shape.to_vec());
        match self.format {
            WeightFormat::Int8 => vec![entry("", Element::I8, shape.clone()), scales(rows)],
            WeightFormat::Fp8 => vec![entry("", Element::F8, shape.clone()), scales(rows)],
            WeightFormat::Int4 { .. } => {
                let k = self.columns();
                let row = |last: usize| [rows, &[last]].concat();
                let groups = row(self.format.row_scales(k) / 2);
                let codes = entry("", Element::U8, row(self.format.row_bytes(k)));
                vec![codes, scales(&groups), entry(".offsets", Element::F32, groups)]
            }
            WeightFormat::Float(dtype) => vec![entry("", Element::of(dtype), shape.clone())],
            format => panic!("nothing is written as {format}"),
        }
    }
}

/// The end of a name, and bytes.
type Written<'a> = (&'static str, Cow<'a, [u8]>);

impl<'a> Conversion<'a> {
    /// Decides how every tensor will be stored, and in which file.
    ///
    /// # Errors
    /// If the checkpoint is not that of a model of `config`, or is quantized already and in another way.
    pub fn plan(
        checkpoint: &'a Checkpoint,
        config: &Config,
        options: &ConvertOptions,
    ) -> Result<Self, CheckpointError> {
        let specs = tensor_specs(config);
        let expected: Vec<_> =
            specs.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
        checkpoint.check(&expected)?;
        let tensors = checkpoint.tensors();
        let mut shards: Vec<Vec<Target>> = vec![Vec::new()];
        let mut taken = 0;
        for spec in specs {
            let stored = tensors[spec.name.as_str()].format;
            let format = format_of(&spec, stored, options)?;
            let target = Target { spec, format };
            let bytes = target.bytes();
            if taken > 0 && taken + bytes > options.shard_bytes {
                shards.push(Vec::new());
                taken = 0;
            }
            taken += bytes;
            shards.last_mut().expect("there is always one").push(target);
        }
        let header = Header::new(&options.source, &formats(shards.iter().flatten()));
        Ok(Conversion { checkpoint, header, shards })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().flatten().map(Target::bytes).sum()
    }

    /// The formats of each part's matrices, for people.
    pub fn formats(&self) -> &str {
        &self.header.origin.formats
    }

    /// The names of the files with weights.
    pub fn files(&self) -> Vec<String> {
        match self.shards.len() {
            1 => vec!["model.safetensors".into()],
            n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
        }
    }

    /// Writes the files, and their index if they are several. `progress` is told bytes written and bytes in
    /// all, and may break off; then what is there is of no use.
    pub fn write(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, CheckpointError> {
        let (files, total) = (self.files(), self.bytes());
        let mut written = 0;
        for (file, targets) in files.iter().zip(&self.shards) {
            let path = folder.join(file);
            let error = |source| CheckpointError::Write { path: path.clone(), source };
            let mut writer = self.create(&path, targets).map_err(error)?;
            for target in targets {
                for (leaf, bytes) in self.tensor(target)? {
                    let name = format!("{}{leaf}", target.spec.name);
                    writer.put(&name, &bytes).map_err(error)?;
                }
                written += target.bytes();
                if progress(written, total).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            writer.finish().map_err(error)?;
        }
        if files.len() > 1 {
            let path = folder.join("model.safetensors.index.json");
            let index = serde_json::to_vec_pretty(&self.index(&files)).expect("it is JSON");
            std::fs::write(&path, index)
                .map_err(|source| CheckpointError::Write { path, source })?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn create(&self, path: &Path, targets: &[Target]) -> std::io::Result<Writer> {
        let mut header = self.header.clone();
        for target in targets {
            if let WeightFormat::Int4 { group } = target.format {
                let layout = Grouped { group, columns: target.columns() };
                header.int4.insert(target.spec.name.clone(), layout);
            }
        }
        Writer::create(path, targets.iter().flat_map(Target::entries).collect(), &header.write())
    }

    /// What a tensor is written as.
    fn tensor(&self, target: &Target) -> Result<Vec<Written<'_>>, CheckpointError> {
        let Target { spec: Spec { name, .. }, format } = target;
        if let WeightFormat::Float(to) = *format {
            let (from, bytes) = self.checkpoint.floats(name).expect("it was planned");
            return Ok(vec![("", floats_as(name, bytes, from, to)?)]);
        }
        let coded = self.checkpoint.quantized(name, target.columns(), Some(*format))?;
        let (_, Quantized { bytes, scales }) = coded.expect("a format was asked for");
        let le = |values: &mut dyn Iterator<Item = &f32>| {
            Cow::Owned(values.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
        };
        Ok(match format {
            WeightFormat::Int4 { .. } => vec![
                ("", bytes),
                (".scales", le(&mut scales.iter().step_by(2))),
                (".offsets", le(&mut scales.iter().skip(1).step_by(2))),
            ],
            _ => vec![("", bytes), (".scales", le(&mut scales.iter()))],
        })
    }

    fn index(&self, files: &[String]) -> serde_json::Value {
        let mut map = serde_json::Map::new();
        for (file, targets) in files.iter().zip(&self.shards) {
            let entries = targets.iter().flat_map(Target::entries);
            map.extend(entries.map(|entry| (entry.name, json!(file))));
        }
        json!({ "metadata": { "total_size": self.bytes() }, "weight_map": map })
    }
}

/// How a tensor will be stored.
fn format_of(
    spec: &Spec,
    stored: WeightFormat,
    options: &ConvertOptions,
) -> Result<WeightFormat, CheckpointError> {
    let is_float = matches!(stored, WeightFormat::Float(_));
    // Where loading knows floats only, codes become what they stand for.
    let own = match stored {
        WeightFormat::Float(dtype) => dtype,
        _ => DType::F32,
    };
    let asked = match spec.role {
        Role::Exact => return Ok(WeightFormat::Float(own)),
        Role::Weight => return Ok(WeightFormat::Float(options.dtype.unwrap_or(own))),
        Role::Inner(part) => options.quant.of(part),
    };
    match asked {
        Some(asked) if is_float || asked == stored => Ok(asked),
        Some(asked) => Err(CheckpointError::Coded { name: spec.name.clone(), stored, asked }),
        None if is_float => Ok(WeightFormat::Float(options.dtype.unwrap_or(own))),
        None => Ok(stored),
    }
}

/// What the matrices of each part are stored as: `text=int4,vision=bf16,head=bf16`.
fn formats<'a>(targets: impl Iterator<Item = &'a Target> + Clone) -> String {
    let of = |part: Part| {
        let inner = targets.clone().filter(|target| target.spec.role == Role::Inner(part));
        let names: BTreeSet<String> = inner.map(|target| format_name(target.format)).collect();
        names.into_iter().collect::<Vec<_>>().join("+")
    };
    format!("text={},vision={},head={}", of(Part::Text), of(Part::Vision), of(Part::Head))
}

/// Writes tensors of floats as they are, with what they were made from.
pub(crate) fn write_tensors(
    path: &Path,
    source: &str,
    tensors: &[(String, DType, Vec<usize>, Vec<u8>)],
) -> Result<(), CheckpointError> {
    let error = |source| CheckpointError::Write { path: path.to_path_buf(), source };
    let entries = tensors.iter().map(|(name, dtype, shape, _)| Entry {
        name: name.clone(),
        element: Element::of(*dtype),
        shape: shape.clone(),
    });
    let metadata = Header::new(source, "").write();
    let mut writer = Writer::create(path, entries.collect(), &metadata).map_err(error)?;
    for (name, _, _, bytes) in tensors {
        writer.put(name, bytes).map_err(error)?;
    }
    writer.finish().map_err(error)
}
