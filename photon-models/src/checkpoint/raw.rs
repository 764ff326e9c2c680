//! Tensors as files hold them, before anything is made of their names.
use std::ops::Range;

use photon_core::DType;

/// How a file stores an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
    /// e4m3, without infinities.
    F8,
    U8,
    I8,
    /// Something no weight is stored as; its bytes are never read.
    Other,
}

impl Element {
    pub(super) fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
            Element::F8 | Element::U8 | Element::I8 | Element::Other => 1,
        }
    }

    /// # Panics
    /// If it is not a float.
    pub(super) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Element::F32,
            DType::F16 => Element::F16,
            DType::Bf16 => Element::Bf16,
            other => panic!("{other} is no float"),
        }
    }

    pub(super) fn float(self) -> Option<DType> {
        match self {
            Element::F32 => Some(DType::F32),
            Element::F16 => Some(DType::F16),
            Element::Bf16 => Some(DType::Bf16),
            _ => None,
        }
    }

    /// As safetensors calls it.
    ///
    /// # Panics
    /// If it is none that is written.
    pub(super) fn tag(self) -> &'static str {
        match self {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
            Element::F8 => "F8_E4M3",
            Element::U8 => "U8",
            Element::I8 => "I8",
            Element::Other => panic!("nothing is written so"),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::F8 => "fp8",
            Element::U8 => "u8",
            Element::I8 => "int8",
            Element::Other => "of another type",
        }
    }
}

/// A tensor's elements, row-major and without gaps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raw {
    pub(super) element: Element,
    pub(super) shape: Vec<usize>,
    /// Which of the files, and where in it.
    pub(super) file: usize,
    pub(super) bytes: Range<usize>,
}

impl Raw {
    /// Rows of the first dimension.
    pub(super) fn rows(&self, range: Range<usize>) -> Option<Raw> {
        let rows = *self.shape.first()?;
        let row = self.bytes.len().checked_div(rows)?;
        if range.start > range.end || range.end > rows {
            return None;
        }
        let start = self.bytes.start + range.start * row;
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        Some(Raw { shape, bytes: start..start + range.len() * row, ..self.clone() })
    }
}
