//! Which matrices of a model are quantized, and how that is written down.
use std::{fmt, str::FromStr};

use photon_core::WeightFormat;

/// Formats of the matrices inside of blocks, experts included, of the projector, and of the language model's head.
/// Everything else is kept: embeddings, norms, the heads of places, routers and what tau is made by are small, and
/// sensitive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quant {
    /// Of the language model.
    pub text: Option<WeightFormat>,
    /// Of the vision encoder and the projector.
    pub vision: Option<WeightFormat>,
    /// Of the language model's head, which makes logits: a part by itself, since it is the most sensitive matrix, and a
    /// tenth to a fifth of what a decoded token reads.
    pub head: Option<WeightFormat>,
}

/// The parts that are quantized apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The language model's blocks.
    Text,
    /// The vision encoder and the projector.
    Vision,
    /// The language model's head.
    Head,
}

impl Quant {
    /// Nothing is quantized.
    pub const NONE: Quant = Quant { text: None, vision: None, head: None };

    /// The format of a part, if it is quantized.
    pub fn of(self, part: Part) -> Option<WeightFormat> {
        match part {
            Part::Text => self.text,
            Part::Vision => self.vision,
            Part::Head => self.head,
        }
    }
}

/// As [`Quant::from_str`] reads it.
impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |format: Option<WeightFormat>| format.map_or("none".into(), format_name);
        if self.text == self.vision && self.head.is_none() {
            return f.write_str(&name(self.text));
        }
        write!(f, "text={},vision={}", name(self.text), name(self.vision))?;
        self.head.map_or(Ok(()), |head| write!(f, ",head={}", format_name(head)))
    }
}

/// `int8`, `int4` (groups of 128), `int4-32`, `fp8` or `none`, for all but the head; or for some parts, as in
/// `text=int4,vision=int8,head=int8`.
impl FromStr for Quant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let format = |name: &str| match name {
            "none" => Ok(None),
            "int8" => Ok(Some(WeightFormat::Int8)),
            "fp8" => Ok(Some(WeightFormat::Fp8)),
            "int4" | "int4-128" => Ok(Some(WeightFormat::Int4 { group: 128 })),
            "int4-32" => Ok(Some(WeightFormat::Int4 { group: 32 })),
            other => Err(format!("no format {other:?}; there are int8, int4, int4-32, fp8, none")),
        };
        if !text.contains('=') {
            let both = format(text)?;
            return Ok(Quant { text: both, vision: both, head: None });
        }
        let mut quant = Quant::NONE;
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("text", name)) => quant.text = format(name)?,
                Some(("vision", name)) => quant.vision = format(name)?,
                Some(("head", name)) => quant.head = format(name)?,
                _ => {
                    let parts = "text=FORMAT, vision=FORMAT or head=FORMAT";
                    return Err(format!("{part:?} is none of {parts}"));
                }
            }
        }
        Ok(quant)
    }
}

/// A format as a user types it.
pub fn format_name(format: WeightFormat) -> String {
    match format {
        WeightFormat::Int8 => "int8".into(),
        WeightFormat::Fp8 => "fp8".into(),
        WeightFormat::Int4 { group: 128 } => "int4".into(),
        WeightFormat::Int4 { group } => format!("int4-{group}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_for_both_models_or_each() {
        let int4 = Some(WeightFormat::Int4 { group: 128 });
        assert_eq!("int4".parse(), Ok(Quant { text: int4, vision: int4, head: None }));
        assert_eq!("text=int4".parse(), Ok(Quant { text: int4, ..Quant::NONE }));
        let mixed = Quant { text: int4, vision: Some(WeightFormat::Int8), head: None };
        assert_eq!("vision=int8,text=int4-128".parse(), Ok(mixed));
        assert_eq!("none".parse(), Ok(Quant::NONE));
        for text in ["int5", "text=", "region=int8", "int8,int4", ""] {
            assert!(text.parse::<Quant>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["none", "int8", "int4-32", "text=int4,vision=none", "text=fp8,vision=int8"] {
            assert_eq!(text.parse::<Quant>().unwrap().to_string(), text);
        }
    }
}
