//! Layouts: what other programs call the tensors, and how they store them.
//!
//! Everything is brought to one set of names, that of the Hugging Face repositories; what differs in
//! form as well (a transposition, two matrices in one, codes with scales) is a [`Source`], made when its
//! bytes are asked for. Sources: the checkpoints of Moondream 3 as Moondream's own engine loads them, the
//! 4-bit files of Moondream 2, what Photon writes ([`super::own`]), and adapters as fine-tuning gives them.
use std::collections::{BTreeMap, BTreeSet};

use photon_core::{
    DType, WeightFormat, convert,
    quant::{Quantized, dequantize},
};

use super::{
    own::{Grouped, Header},
    raw::{Element, Raw},
};

/// Who laid a checkpoint out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The names of the Hugging Face repositories.
    HuggingFace,
    /// The names of Moondream's own engine.
    Kestrel,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Layout::HuggingFace => "Hugging Face",
            Layout::Kestrel => "Kestrel",
        })
    }
}

/// Weights of the published 4-bit files are grouped so.
const INT4_GROUP: usize = 128;

/// Sizes of groups that weights can have.
const INT4_GROUPS: [u32; 2] = [32, 128];

/// Where a tensor's elements come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// As they are.
    Floats(Raw),
    /// Rows and columns exchanged.
    Transposed(Raw),
    /// Codes `[.., rows, cols]` and scales `[.., rows]`, of int8 or e4m3.
    Rows { format: WeightFormat, codes: Raw, scales: Raw },
    /// int4 as Photon writes it: codes `[.., rows, cols / 2]`, scales and offsets `[.., rows, groups]`.
    Groups { codes: Raw, scales: Raw, offsets: Raw, layout: Grouped },
    /// Two codes to a byte: those of the first half of all groups in the upper halves. Element `i` is
    /// `(q[i] - zero[i / 128]) scale[i / 128]`.
    Int4 { packed: Raw, scales: Raw, zeros: Raw, shape: [usize; 2] },
}

impl Source {
    pub(super) fn shape(&self) -> Vec<usize> {
        match self {
            Source::Floats(raw) | Source::Rows { codes: raw, .. } => raw.shape.clone(),
            Source::Groups { codes, layout, .. } => {
                let mut shape = codes.shape.clone();
                shape.pop();
                shape.push(layout.columns);
                shape
            }
            Source::Transposed(raw) => raw.shape.iter().rev().copied().collect(),
            Source::Int4 { shape, .. } => shape.to_vec(),
        }
    }

    /// How the elements are stored, or can be had without loss.
    pub(super) fn format(&self) -> WeightFormat {
        match self {
            Source::Floats(raw) | Source::Transposed(raw) => {
                WeightFormat::Float(raw.element.float().unwrap_or(DType::F32))
            }
            Source::Rows { format, .. } => *format,
            Source::Groups { layout, .. } => WeightFormat::Int4 { group: layout.group },
            Source::Int4 { shape, .. } if shape[1].is_multiple_of(INT4_GROUP) => {
                WeightFormat::Int4 { group: INT4_GROUP as u32 }
            }
            // Groups that reach over rows are no format of ours.
            Source::Int4 { .. } => WeightFormat::Float(DType::F32),
        }
    }

    /// The codes and scales of a format that has them; `file` gives the bytes of a place.
    pub(super) fn coded<'a>(&self, file: impl Fn(&Raw) -> &'a [u8]) -> Option<Quantized<'a>> {
        match self {
            Source::Rows { codes, scales, .. } => {
                Some(Quantized { bytes: file(codes).into(), scales: floats(scales, file(scales)) })
            }
            Source::Groups { codes, scales, offsets, .. } => {
                let (scales, offsets) =
                    (floats(scales, file(scales)), floats(offsets, file(offsets)));
                let pairs = scales.into_iter().zip(offsets).flat_map(|(s, offset)| [s, offset]);
                Some(Quantized { bytes: file(codes).into(), scales: pairs.collect() })
            }
            Source::Int4 { packed, scales, zeros, .. }
                if matches!(self.format(), WeightFormat::Int4 { .. }) =>
            {
                let nibbles = nibbles(file(packed));
                let (scales, zeros) = (floats(scales, file(scales)), floats(zeros, file(zeros)));
                let pairs = scales.iter().zip(&zeros).flat_map(|(&s, &zero)| [s, -zero * s]);
                let bytes = nibbles.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4);
                Some(Quantized { bytes: bytes.collect(), scales: pairs.collect() })
            }
            _ => None,
        }
    }

    /// The elements as floats of the type that is returned.
    pub(super) fn floats<'a>(
        &self,
        file: impl Fn(&Raw) -> &'a [u8],
    ) -> (DType, std::borrow::Cow<'a, [u8]>) {
        let bytes = |values: Vec<f32>| {
            (DType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into())
        };
        match self {
            Source::Floats(raw) => (float_type(raw), file(raw).into()),
            Source::Transposed(raw) => {
                let values = floats(raw, file(raw));
                let [_, cols] = raw.shape[..] else { unreachable!("a matrix: see canonical") };
                let column = |j: usize| values.iter().skip(j).step_by(cols).copied();
                // A matrix without rows may claim any number of columns.
                let cols = if values.is_empty() { 0 } else { cols };
                bytes((0..cols).flat_map(column).collect())
            }
            Source::Rows { .. } | Source::Groups { .. } => {
                let coded = self.coded(file).expect("these have codes");
                let cols = *self.shape().last().expect("codes lie in rows");
                bytes(dequantize(self.format(), cols, &coded.bytes, &coded.scales))
            }
            Source::Int4 { packed, scales, zeros, .. } => {
                let (scales, zeros) = (floats(scales, file(scales)), floats(zeros, file(zeros)));
                let element = |(i, q): (usize, u8)| {
                    let group = i / INT4_GROUP;
                    (f32::from(q) - zeros[group]) * scales[group]
                };
                bytes(nibbles(file(packed)).into_iter().enumerate().map(element).collect())
            }
        }
    }
}

/// The codes in order.
fn nibbles(packed: &[u8]) -> Vec<u8> {
    packed.iter().map(|b| b >> 4).chain(packed.iter().map(|b| b & 15)).collect()
}

fn float_type(raw: &Raw) -> DType {
    raw.element.float().expect("only floats are asked for")
}

fn floats(raw: &Raw, bytes: &[u8]) -> Vec<f32> {
    let wide = convert(bytes, float_type(raw), DType::F32);
    wide.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Why tensors cannot be understood.
pub(super) struct Wrong {
    pub(super) name: String,
    pub(super) why: String,
}

/// Tensors by their usual names.
pub(super) struct Canonical {
    pub(super) layout: Layout,
    pub(super) sources: BTreeMap<String, Source>,
    /// What is in the files and of no use here: scales of keys and values, which ours carry themselves.
    pub(super) ignored: Vec<String>,
}

/// Gives every tensor its usual name; `own` is the header of a file that Photon wrote.
pub(super) fn canonical(
    raw: BTreeMap<String, Raw>,
    own: Option<&Header>,
) -> Result<Canonical, Wrong> {
    let is_kestrel = raw.keys().any(|name| name.starts_with("text_model.transformer."));
    let layout = if is_kestrel { Layout::Kestrel } else { Layout::HuggingFace };
    let named: BTreeMap<String, Raw> = match layout {
        Layout::HuggingFace => fine_tuned(raw),
        Layout::Kestrel => raw.into_iter().map(|(name, raw)| (kestrel(&name), raw)).collect(),
    };
    let (mut sources, mut ignored) = (BTreeMap::new(), Vec::new());
    for (name, tensor) in &named {
        let wrong = |why: String| Wrong { name: name.clone(), why };
        if [".k_scale", ".v_scale"].iter().any(|leaf| name.ends_with(leaf)) {
            ignored.push(name.clone());
        } else if let Some(coded) = companion_of(name) {
            let is_coded = |raw: &Raw| raw.element.float().is_none();
            if own.is_some() && !named.get(coded).is_some_and(is_coded) {
                return Err(wrong(format!("there are no codes in {coded}")));
            }
        } else if let Some(name) = name.strip_suffix(".packed") {
            let source = int4(name, &named).map_err(wrong)?;
            sources.insert(name.to_owned(), source);
        } else if let Element::F8 | Element::I8 = tensor.element {
            sources.insert(name.clone(), rows(name, tensor, &named).map_err(wrong)?);
        } else if let (Element::U8, Some(own)) = (tensor.element, own) {
            sources.insert(name.clone(), groups(name, tensor, &named, own).map_err(wrong)?);
        } else if tensor.element.float().is_none() {
            return Err(wrong(format!("it is {}; weights are floats", tensor.element.name())));
        } else if let Some(stem) = name.strip_suffix(".wqwv") {
            let half = tensor.shape.first().copied().unwrap_or(0) / 2;
            let parts = [("wq", 0..half), ("wv", half..2 * half)];
            for (leaf, rows) in parts {
                let part = tensor.rows(rows).ok_or_else(|| wrong("no rows".into()))?;
                sources.insert(format!("{stem}.{leaf}"), Source::Floats(part));
            }
        } else if layout == Layout::Kestrel && name.ends_with("_features") {
            if tensor.shape.len() != 2 {
                return Err(wrong(format!("it is {:?}, not a matrix", tensor.shape)));
            }
            sources.insert(name.clone(), Source::Transposed(tensor.clone()));
        } else {
            sources.insert(name.clone(), Source::Floats(tensor.clone()));
        }
    }
    Ok(Canonical { layout, sources, ignored })
}

/// The matrix whose scales or offsets this tensor is.
fn companion_of(name: &str) -> Option<&str> {
    let leaves = [".scales", ".offsets", ".scale", ".zero_point"];
    leaves.iter().find_map(|leaf| name.strip_suffix(leaf))
}

/// What fine-tuning gives: the state of a module that knows its adapter under two names, beside the
/// state of its optimizer.
fn fine_tuned(raw: BTreeMap<String, Raw>) -> BTreeMap<String, Raw> {
    const STATE: &str = "lora_state_dict.";
    if !raw.keys().any(|name| name.starts_with(STATE)) {
        return raw;
    }
    let inner =
        raw.into_iter().filter_map(|(name, raw)| Some((name.strip_prefix(STATE)?.to_owned(), raw)));
    let inner: BTreeMap<String, Raw> = inner.collect();
    let names: BTreeSet<String> = inner.keys().cloned().collect();
    let usual = |(name, raw): (String, Raw)| match name.strip_prefix("_text.") {
        None => Some((name, raw)),
        Some(rest) => {
            let usual = format!("text_lora.{rest}");
            (!names.contains(&usual)).then_some((usual, raw))
        }
    };
    inner.into_iter().filter_map(usual).collect()
}

/// Codes with a scale for each row.
fn rows(name: &str, codes: &Raw, named: &BTreeMap<String, Raw>) -> Result<Source, String> {
    let other = format!("{name}.scales");
    let scales = named.get(&other).ok_or_else(|| format!("there is no {other}"))?;
    let (Some((&columns, rows)), Some(_)) = (codes.shape.split_last(), scales.element.float())
    else {
        return Err("it has no rows, or scales that are no floats".into());
    };
    if columns == 0 || scales.shape != rows {
        return Err(format!("it is {:?}, its scales are {:?}", codes.shape, scales.shape));
    }
    let int8 = codes.element == Element::I8;
    let format = if int8 { WeightFormat::Int8 } else { WeightFormat::Fp8 };
    Ok(Source::Rows { format, codes: codes.clone(), scales: scales.clone() })
}

/// Codes with a scale and an offset for each group.
fn groups(
    name: &str,
    codes: &Raw,
    named: &BTreeMap<String, Raw>,
    own: &Header,
) -> Result<Source, String> {
    let layout = own.int4.get(name).ok_or("its header does not say how its 4-bit codes lie")?;
    let Grouped { group, columns } = *layout;
    if !INT4_GROUPS.contains(&group) {
        return Err(format!("it has groups of {group}; this Photon reads {INT4_GROUPS:?}"));
    }
    let get = |leaf: &str| {
        let other = format!("{name}{leaf}");
        let raw = named.get(&other).filter(|raw| raw.element.float().is_some());
        raw.ok_or_else(|| format!("there is no {other} of floats"))
    };
    let (scales, offsets) = (get(".scales")?, get(".offsets")?);
    let rows = codes.shape.split_last().map_or(&[][..], |(_, rows)| rows);
    let shape = |last: usize| [rows, &[last]].concat();
    let per_row = columns.div_ceil(group as usize);
    if columns == 0
        || codes.shape != shape(columns.div_ceil(2))
        || scales.shape != shape(per_row)
        || offsets.shape != shape(per_row)
    {
        return Err(format!(
            "{:?} codes, {:?} scales and {:?} offsets are not those of rows of {columns} in groups of {group}",
            codes.shape, scales.shape, offsets.shape
        ));
    }
    let (codes, scales, offsets) = (codes.clone(), scales.clone(), offsets.clone());
    Ok(Source::Groups { codes, scales, offsets, layout: *layout })
}

fn int4(name: &str, named: &BTreeMap<String, Raw>) -> Result<Source, String> {
    let get = |leaf: &str| named.get(&format!("{name}{leaf}")).ok_or(format!("no {name}{leaf}"));
    let (packed, scales, zeros) = (get(".packed")?, get(".scale")?, get(".zero_point")?);
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let bias =
        named.get(&format!("{stem}.bias")).ok_or("its bias, which says its rows, is missing")?;
    let (count, rows) = (2 * packed.bytes.len(), bias.shape.iter().product::<usize>());
    let groups = count / INT4_GROUP;
    let fits = packed.element == Element::U8
        && rows > 0
        && count.is_multiple_of(rows)
        && count.is_multiple_of(2 * INT4_GROUP);
    let has =
        |raw: &Raw| raw.element.float().is_some() && raw.shape.iter().product::<usize>() == groups;
    if !fits || !has(scales) || !has(zeros) {
        return Err(format!(
            "{:?} codes, {:?} scales and {:?} zeros do not fit {rows} rows",
            packed.shape, scales.shape, zeros.shape
        ));
    }
    let (packed, scales, zeros) = (packed.clone(), scales.clone(), zeros.clone());
    Ok(Source::Int4 { packed, scales, zeros, shape: [rows, count / rows] })
}

/// The usual name of a tensor of Moondream's engine; names it does not know stay, and are reported as
/// unknown.
fn kestrel(name: &str) -> String {
    const PREFIXES: [(&str, &str); 15] = [
        ("text_model.transformer.embd.wte.weight", "model.text.wte"),
        ("text_model.lm_head.ln.", "model.text.post_ln."),
        ("text_model.lm_head.linear.", "model.text.lm_head."),
        ("text_model.transformer.h.", "model.text.blocks."),
        ("vision_encoder.encoder.model.visual.patch_embed.linear.", "model.vision.patch_emb."),
        ("vision_encoder.encoder.model.visual.pos_embed", "model.vision.pos_emb"),
        ("vision_encoder.encoder.model.visual.norm.", "model.vision.post_ln."),
        ("vision_encoder.encoder.model.visual.blocks.", "model.vision.blocks."),
        ("vision_encoder.projection.mlp.", "model.vision.proj_mlp."),
        ("region_model.coordinate_encoder.", "model.region.coord_encoder."),
        ("region_model.coordinate_head.", "model.region.coord_decoder."),
        ("region_model.coordinate_features.weight", "model.region.coord_features"),
        ("region_model.size_head.", "model.region.size_decoder."),
        ("region_model.size_features.weight", "model.region.size_features"),
        ("region_model.", "model.region."),
    ];
    const TEXT: [(&str, &str); 13] = [
        ("mixer.Wqkv.", "attn.qkv."),
        ("mixer.out_proj.", "attn.proj."),
        ("mixer.tau_", "attn.tau."),
        ("tau_", "attn.tau."),
        ("gate.", "mlp.router."),
        ("mlp.gate.", "mlp.router."),
        ("mlp.experts.weight", "mlp.fc1.weight"),
        ("mlp.output_experts.weight", "mlp.fc2.weight"),
        ("moe_quant.up_scale", "mlp.fc1.weight.scales"),
        ("moe_quant.down_scale", "mlp.fc2.weight.scales"),
        ("mlp.moe_quant.up_scale", "mlp.fc1.weight.scales"),
        ("mlp.moe_quant.down_scale", "mlp.fc2.weight.scales"),
        ("", ""),
    ];
    const VISION: [(&str, &str); 3] = [("norm1.", "ln1."), ("norm2.", "ln2."), ("", "")];
    let swap = |name: &str, table: &[(&str, &str)]| {
        let found = table.iter().find_map(|(from, to)| Some((to, name.strip_prefix(from)?)));
        found.map(|(to, rest)| format!("{to}{rest}"))
    };
    let Some(usual) = swap(name, &PREFIXES) else { return name.to_owned() };
    for (blocks, table) in [("model.text.blocks.", &TEXT[..]), ("model.vision.blocks.", &VISION)] {
        let block = usual.strip_prefix(blocks).and_then(|rest| rest.split_once('.'));
        if let Some((index, rest)) = block {
            let rest = swap(rest, table).unwrap_or_else(|| rest.to_owned());
            // Tau's parameters may or may not be called weights.
            let rest = match rest.strip_prefix("attn.tau.").and_then(|r| r.strip_suffix(".weight"))
            {
                Some(leaf) => format!("attn.tau.{leaf}"),
                None => rest,
            };
            return format!("{blocks}{index}.{rest}");
        }
    }
    usual
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_engine_become_the_usual_ones() {
        for (name, usual) in [
            ("text_model.transformer.embd.wte.weight", "model.text.wte"),
            ("text_model.lm_head.ln.bias", "model.text.post_ln.bias"),
            ("text_model.transformer.h.3.mixer.Wqkv.weight", "model.text.blocks.3.attn.qkv.weight"),
            ("text_model.transformer.h.3.tau_wqwv", "model.text.blocks.3.attn.tau.wqwv"),
            ("text_model.transformer.h.3.mixer.tau_wq.weight", "model.text.blocks.3.attn.tau.wq"),
            ("text_model.transformer.h.3.tau_alpha", "model.text.blocks.3.attn.tau.alpha"),
            ("text_model.transformer.h.12.gate.bias", "model.text.blocks.12.mlp.router.bias"),
            ("text_model.transformer.h.12.ln.weight", "model.text.blocks.12.ln.weight"),
            (
                "text_model.transformer.h.12.mlp.experts.weight",
                "model.text.blocks.12.mlp.fc1.weight",
            ),
            (
                "text_model.transformer.h.12.moe_quant.down_scale",
                "model.text.blocks.12.mlp.fc2.weight.scales",
            ),
            (
                "vision_encoder.encoder.model.visual.blocks.5.norm2.weight",
                "model.vision.blocks.5.ln2.weight",
            ),
            ("vision_encoder.encoder.model.visual.pos_embed", "model.vision.pos_emb"),
            ("region_model.coordinate_features.weight", "model.region.coord_features"),
            ("region_model.size_encoder.bias", "model.region.size_encoder.bias"),
            ("region_model.ln.weight", "model.region.ln.weight"),
            ("something.else", "something.else"),
        ] {
            assert_eq!(kestrel(name), usual);
        }
    }

    #[test]
    fn four_bits_are_the_numbers_that_were_packed() {
        // 2 rows of 128, group 1 in the lower halves: codes 0..16 repeated.
        let codes: Vec<u8> = (0..256).map(|i| (i % 16) as u8 ^ (i / 128) as u8).collect();
        let packed: Vec<u8> = (0..128).map(|i| codes[i] << 4 | codes[128 + i]).collect();
        let (scales, zeros) = ([0.5f32, 2.0], [8.0f32, 3.0]);
        let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let file = [packed, bytes(&scales), bytes(&zeros)].concat();
        let raw = |element, shape: &[usize], range| Raw {
            element,
            shape: shape.to_vec(),
            file: 0,
            bytes: range,
        };
        let source = Source::Int4 {
            packed: raw(Element::U8, &[1, 128], 0..128),
            scales: raw(Element::F32, &[2, 1], 128..136),
            zeros: raw(Element::F32, &[2, 1], 136..144),
            shape: [2, 128],
        };
        let get = |raw: &Raw| &file[raw.bytes.clone()];
        let want = |i: usize| (f32::from(codes[i]) - zeros[i / 128]) * scales[i / 128];
        let (dtype, floats) = source.floats(get);
        assert_eq!(dtype, DType::F32);
        let coded = source.coded(get).unwrap();
        let back =
            photon_core::quant::dequantize(source.format(), 128, &coded.bytes, &coded.scales);
        for (i, b) in floats.chunks_exact(4).enumerate() {
            assert_eq!(f32::from_le_bytes([b[0], b[1], b[2], b[3]]), want(i));
            assert_eq!(back[i], want(i));
        }
    }
}
