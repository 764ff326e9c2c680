//! A converted model is the model it was made from, quantized as `--quant` would at load: to the bit.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use photon_core::{DType, WeightFormat, convert};
use photon_cpu::{Cpu, CpuOptions};
use photon_models::{
    Moondream, Precision, Quant, Role,
    checkpoint::{Checkpoint, Conversion, ConvertOptions},
    config::{Config, Family},
    expected_tensors, tensor_specs,
};
use serde_json::{Value, json};

use crate::{
    formats::{config, open},
    golden::{Golden, PICTURES, Run, query_logits},
};

const INT4_32: Option<WeightFormat> = Some(WeightFormat::Int4 { group: 32 });
const INT4: Option<WeightFormat> = Some(WeightFormat::Int4 { group: 128 });

fn options(quant: Quant) -> ConvertOptions {
    ConvertOptions { quant, dtype: None, shard_bytes: u64::MAX, source: "a test".into() }
}

/// Writes a model to a new folder.
fn converted(checkpoint: &Checkpoint, config: &Config, options: &ConvertOptions) -> Folder {
    let dir = tempfile::tempdir().unwrap();
    let conversion = Conversion::plan(checkpoint, config, options).unwrap();
    let mut last = 0;
    let done = conversion.write(dir.path(), &mut |written, total| {
        assert_eq!(total, conversion.bytes());
        last = written;
        ControlFlow::Continue(())
    });
    assert_eq!(done.unwrap(), ControlFlow::Continue(()));
    assert_eq!(last, conversion.bytes());
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    names.sort();
    assert_eq!(names, conversion.files());
    Folder(dir)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn open(&self) -> Checkpoint {
        Checkpoint::open(self.0.path()).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("model.safetensors")
    }
}

/// Every tensor as loading with this type and these formats would make it: its bytes, and its scales'.
fn loaded(
    checkpoint: &Checkpoint,
    config: &Config,
    dtype: DType,
    quant: Quant,
) -> Vec<(String, Vec<u8>, Vec<u32>)> {
    let one = |spec: photon_models::Spec| {
        let (name, k) = (spec.name, *spec.shape.last().unwrap());
        if let Role::Inner(part) = spec.role
            && let Some((_, coded)) = checkpoint.quantized(&name, k, quant.of(part)).unwrap()
        {
            return (
                name,
                coded.bytes.into_owned(),
                coded.scales.into_iter().map(f32::to_bits).collect(),
            );
        }
        let (from, bytes) = checkpoint.floats(&name).unwrap();
        let to = if spec.role == Role::Exact { DType::F32 } else { dtype };
        (name, convert(&bytes, from, to).into_owned(), vec![])
    };
    tensor_specs(config).into_iter().map(one).collect()
}

/// The source with `quant`, and what is written with it, loads the same.
#[track_caller]
fn same(what: &str, source: &Checkpoint, config: &Config, options: &ConvertOptions) -> Folder {
    let folder = converted(source, config, options);
    let written = folder.open();
    written.check(&expected_tensors(config)).unwrap();
    assert_eq!(written.origin().unwrap().source, "a test");
    let dtypes = options.dtype.map_or(vec![DType::F32, DType::Bf16], |dtype| vec![dtype]);
    for dtype in dtypes {
        let want = loaded(source, config, dtype, options.quant);
        let got = loaded(&written, config, dtype, Quant::NONE);
        for (got, want) in got.iter().zip(&want) {
            assert!(got == want, "{what}, {}, {dtype}: {}", options.quant, want.0);
        }
    }
    folder
}

#[test]
fn every_layout_loads_the_same_after_it_was_converted() {
    let (md2, md3) =
        (config("md2.json", Family::Moondream2), config("md3.json", Family::Moondream3));
    let int8 = Some(WeightFormat::Int8);
    let all = |format| Quant { text: format, vision: format, head: None };
    let quants = [
        Quant::NONE,
        all(int8),
        all(Some(WeightFormat::Fp8)),
        all(INT4),
        all(INT4_32),
        Quant { text: INT4_32, vision: int8, head: None },
        Quant { text: None, vision: INT4, head: None },
        Quant { text: INT4, vision: None, head: int8 },
    ];
    for (name, config) in [("md2.safetensors", &md2), ("md3.safetensors", &md3)] {
        for quant in quants {
            same(name, &open(name), config, &options(quant));
            let dtype = Some(DType::F16);
            same(name, &open(name), config, &ConvertOptions { dtype, ..options(quant) });
        }
    }
    // Experts in fp8, or matrices in 4 bits: they stay as they are.
    let kept = [Quant::NONE, all(Some(WeightFormat::Fp8))];
    for quant in kept {
        same("kestrel.pt", &open("kestrel.pt"), &md3, &options(quant));
    }
    for quant in [Quant::NONE, Quant { text: None, vision: int8, head: None }] {
        same("int4.safetensors", &open("int4.safetensors"), &md2, &options(quant));
    }
    same("kestrel.safetensors", &open("kestrel.safetensors"), &md3, &options(all(int8)));
}

#[test]
fn what_was_converted_says_how_and_converts_again() {
    let config = config("md3.json", Family::Moondream3);
    let quant = Quant { text: INT4_32, vision: Some(WeightFormat::Int8), head: None };
    let folder = same("md3", &open("md3.safetensors"), &config, &options(quant));
    let written = folder.open();
    assert_eq!(written.origin().unwrap().formats, "text=int4-32,vision=int8,head=bf16");
    let again = same("again", &written, &config, &options(Quant::NONE));
    assert_eq!(std::fs::read(again.file()).unwrap(), std::fs::read(folder.file()).unwrap());
    same("the same formats", &written, &config, &options(quant));
    let other = options(Quant { text: INT4, ..Quant::NONE });
    let error = Conversion::plan(&written, &config, &other).unwrap_err().to_string();
    assert!(error.contains("quantized to int4 (groups of 32) already"), "{error}");
    let name = "model.text.blocks.0.mlp.fc1.weight";
    let error = written.quantized(name, 32, INT4).unwrap_err().to_string();
    assert!(error.contains("leave --quant out"), "{error}");
    let kestrel = open("kestrel.pt");
    assert_eq!(kestrel.ignored().len(), 2, "static scales of keys and values");
    assert!(kestrel.origin().is_none());
}

#[test]
fn large_models_are_several_files() {
    let config = config("md3.json", Family::Moondream3);
    let quant = Quant { text: INT4, vision: INT4, head: None };
    let source = open("md3.safetensors");
    let shards = ConvertOptions { shard_bytes: 6000, ..options(quant) };
    let folder = same("shards", &source, &config, &shards);
    let index = std::fs::read(folder.0.path().join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let whole = converted(&source, &config, &options(quant));
    let one = std::fs::read(whole.file()).unwrap();
    let (header, _) = header(&one);
    // The same tensors, by name, as in one file.
    let names = index["weight_map"].as_object().unwrap().keys();
    assert_eq!(names.len(), header.as_object().unwrap().len() - 1);
    names.for_each(|name| assert!(header[name].is_object(), "{name}"));
    let files = std::fs::read_dir(folder.0.path()).unwrap().count() - 1;
    assert!((4..20).contains(&files), "{files} files");
    // A file that is missing, and one of another model, are told.
    let file = folder.0.path().join(format!("model-00002-of-{files:05}.safetensors"));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let error = Checkpoint::open(folder.0.path()).unwrap_err().to_string();
    assert!(error.contains("model-00002-of"), "{error}");
    std::fs::write(
        &file,
        edited(&bytes, |header| {
            header["__metadata__"]["photon.source"] = "another model".into();
        }),
    )
    .unwrap();
    let error = Checkpoint::open(folder.0.path()).unwrap_err().to_string();
    assert!(error.contains("it is of another model"), "{error}");
}

#[test]
fn a_conversion_can_be_broken_off() {
    let config = config("md2.json", Family::Moondream2);
    let source = open("md2.safetensors");
    let conversion = Conversion::plan(&source, &config, &options(Quant::NONE)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut calls = 0;
    let done = conversion.write(dir.path(), &mut |_, _| {
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((done.unwrap(), calls), (ControlFlow::Break(()), 3));
}

/// The header of a safetensors file, and where the tensors begin.
fn header(file: &[u8]) -> (Value, usize) {
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + len]).unwrap(), 8 + len)
}

/// The file with another header.
fn edited(file: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (mut json, base) = header(file);
    edit(&mut json);
    let json = json.to_string().into_bytes();
    [&(json.len() as u64).to_le_bytes()[..], &json, &file[base..]].concat()
}

#[track_caller]
fn refuses(file: &Path, whole: &[u8], message: &str, edit: impl FnOnce(&mut Value)) {
    std::fs::write(file, edited(whole, edit)).unwrap();
    let error = Checkpoint::open(file).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

/// Gives a tensor another name.
fn rename(header: &mut Value, from: &str, to: &str) {
    let tensor = header.as_object_mut().unwrap().remove(from).unwrap();
    header[to] = tensor;
}

#[test]
fn files_that_contradict_themselves_are_refused_with_the_reason() {
    let config = config("md3.json", Family::Moondream3);
    let quant = Quant { text: INT4_32, vision: Some(WeightFormat::Int8), head: None };
    let folder = converted(&open("md3.safetensors"), &config, &options(quant));
    let (file, whole) = (folder.file(), std::fs::read(folder.file()).unwrap());
    let (text, vision) =
        ("model.text.blocks.1.mlp.fc2.weight", "model.vision.blocks.0.mlp.fc1.weight");
    let of = |name: &str, leaf: &str| format!("{name}{leaf}");
    let meta = "__metadata__";
    refuses(&file, &whole, "newer Photon (format 7, this one reads up to 1)", |h| {
        h[meta]["photon.version"] = "7".into();
    });
    refuses(&file, &whole, "photon.version is \"x\"", |h| h[meta]["photon.version"] = "x".into());
    refuses(&file, &whole, "photon.int4", |h| h[meta]["photon.int4"] = "[1]".into());
    refuses(&file, &whole, "does not say how its 4-bit codes lie", |h| {
        h[meta]["photon.int4"] = "{}".into();
    });
    refuses(&file, &whole, "weights are floats", |h| {
        h.as_object_mut().unwrap().remove(meta);
    });
    let layout = |group: u32, columns: usize| {
        move |h: &mut Value| {
            let json = h[meta]["photon.int4"].as_str().unwrap();
            let mut int4: Value = serde_json::from_str(json).unwrap();
            int4[text] = json!({ "group": group, "columns": columns });
            h[meta]["photon.int4"] = int4.to_string().into();
        }
    };
    refuses(&file, &whole, "groups of 64; this Photon reads [32, 128]", layout(64, 8));
    refuses(&file, &whole, "rows of 9 in groups of 32", layout(32, 9));
    refuses(&file, &whole, "rows of 0 in groups", layout(32, 0));
    for leaf in [".scales", ".offsets"] {
        let message = format!("there is no {text}{leaf}");
        refuses(&file, &whole, &message, |h| rename(h, &of(text, leaf), "model.other"));
    }
    let message = format!("there is no {vision}.scales");
    refuses(&file, &whole, &message, |h| rename(h, &of(vision, ".scales"), "model.other"));
    // Scales without codes, and in another shape.
    refuses(&file, &whole, "there are no codes in", |h| rename(h, vision, "model.other.scales"));
    let scales = of(vision, ".scales");
    refuses(&file, &whole, "its scales are", |h| {
        let rows = h[&scales]["shape"][0].clone();
        h[&scales]["shape"] = json!([1, rows]);
    });
    let scales = of(text, ".scales");
    refuses(&file, &whole, "are not those of rows of 8", |h| {
        let shape: Vec<u64> = serde_json::from_value(h[&scales]["shape"].clone()).unwrap();
        h[&scales]["shape"] = json!([shape.iter().product::<u64>()]);
    });
    for len in [7, 100, whole.len() - 1] {
        std::fs::write(&file, &whole[..len]).unwrap();
        let error = Checkpoint::open(&file).unwrap_err().to_string();
        assert!(error.contains("not a complete file of weights"), "{error}");
    }
    // A scale that is no number is found when the matrix is taken.
    let (json, base) = header(&whole);
    let at = base + json[&scales]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut damaged = whole.clone();
    damaged[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, damaged).unwrap();
    let error = Checkpoint::open(&file).unwrap().quantized(text, 8, None).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn what_f16_cannot_hold_is_refused_by_name() {
    let config = config("md2.json", Family::Moondream2);
    let folder = converted(&open("md2.safetensors"), &config, &options(Quant::NONE));
    let file = folder.file();
    let cpu = Cpu::open(CpuOptions::default()).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let (json, base) = header(&bytes);
    let at = base + json["model.text.wte"]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut with = |value: f32| {
        // bf16, the upper half of a float.
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes()[2..]);
        std::fs::write(&file, &bytes).unwrap();
        let checkpoint = Checkpoint::open(&file).unwrap();
        let dtype = Some(DType::F16);
        let options = ConvertOptions { dtype, ..options(Quant::NONE) };
        let conversion = Conversion::plan(&checkpoint, &config, &options).unwrap();
        let out = tempfile::tempdir().unwrap();
        let written = conversion.write(out.path(), &mut |_, _| ControlFlow::Continue(()));
        let precision = Precision::mixed(DType::F16);
        let loaded =
            Moondream::load(&cpu, &checkpoint, &config, precision, &mut |_, _| {}).map(drop);
        [written.map(drop).map_err(|e| e.to_string()), loaded.map_err(|e| e.to_string())]
    };
    for result in with(-131072.0) {
        let error = result.unwrap_err();
        assert!(error.contains("tensor model.text.wte holds -131072, and f16 ends at"), "{error}");
    }
    // What is infinite already stays so: it is not the type's fault.
    for value in [65280.0, f32::INFINITY] {
        for result in with(value) {
            result.unwrap();
        }
    }
}

/// Logits of the golden models, from what was written and from what was quantized at load.
#[test]
fn logits_are_the_same_to_the_bit() {
    let int8 = Some(WeightFormat::Int8);
    for (family, quant) in [
        (Family::Moondream2, Quant { text: INT4, vision: int8, head: None }),
        (Family::Moondream3, Quant { text: INT4_32, vision: Some(WeightFormat::Fp8), head: None }),
        (Family::Moondream3, Quant { text: int8, vision: None, head: None }),
    ] {
        let golden = Golden::open(family);
        let config = golden.config();
        let source = Checkpoint::synthetic(0, expected_tensors(&config));
        let written = converted(&source, &config, &options(quant)).open();
        let prompt = &golden.record("tanh", PICTURES[1])["query"]["prompt"];
        let logits = |checkpoint: &Checkpoint, quant: Quant| {
            let precision = Precision { quant, ..Precision::F32 };
            let mut run = Run::of(checkpoint, &config, precision);
            query_logits(&mut run, PICTURES[1], prompt)
        };
        let got = logits(&written, Quant::NONE);
        assert!(got == logits(&source, quant), "{family}, {quant}");
    }
}
