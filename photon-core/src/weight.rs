//! Weight matrices in the formats and layouts backends choose.
use std::ops::Range;

use crate::{DType, Device, Tensor};

/// How the elements of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// A float per element.
    Float(DType),
    /// `q * scale[row]`, `q` in two's complement, one byte per element.
    Int8,
    /// `q * scale[row, col / group] + offset[row, col / group]`, `q` from 0 to 15, two elements a byte,
    /// the first in the lower half; a row begins with a byte of its own.
    Int4 {
        /// Elements that share a scale and an offset, along a row; the last may be fewer.
        group: u32,
    },
    /// e4m3 `* scale[row]`, one byte per element.
    Fp8,
}

impl WeightFormat {
    /// Bytes of a row of `k` elements, scales aside.
    pub const fn row_bytes(self, k: usize) -> usize {
        match self {
            WeightFormat::Float(dtype) => k * dtype.size(),
            WeightFormat::Int8 | WeightFormat::Fp8 => k,
            WeightFormat::Int4 { .. } => k.div_ceil(2),
        }
    }

    /// Scales of a row of `k` elements, offsets counted too: for int4 a scale and an offset of each group.
    pub const fn row_scales(self, k: usize) -> usize {
        match self {
            WeightFormat::Float(_) => 0,
            WeightFormat::Int8 | WeightFormat::Fp8 => 1,
            WeightFormat::Int4 { group } => 2 * k.div_ceil(group as usize),
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WeightFormat::Float(dtype) => dtype.fmt(f),
            WeightFormat::Int8 => f.write_str("int8"),
            WeightFormat::Int4 { group } => write!(f, "int4 (groups of {group})"),
            WeightFormat::Fp8 => f.write_str("fp8 (e4m3)"),
        }
    }
}

/// Equal weight matrices on the host, row-major, before a backend packs them.
#[derive(Clone, Copy, Debug)]
pub struct WeightData<'a> {
    /// How many matrices: 1, or one per expert or adapter for [`GroupedLinear`](crate::GroupedLinear).
    pub count: usize,
    /// Output features: rows.
    pub n: usize,
    /// Input features: columns.
    pub k: usize,
    /// How `bytes` is to be read, and how the device shall hold it.
    pub format: WeightFormat,
    /// `[count, n]` rows of [`WeightFormat::row_bytes`], little-endian.
    pub bytes: &'a [u8],
    /// `[count, n]` rows of [`WeightFormat::row_scales`]; empty for floats.
    pub scales: &'a [f32],
}

/// `count` weight matrices `[n, k]` on a device. Only the backend that packed them knows the layout.
#[derive(Debug)]
pub struct Weight<D: Device> {
    count: usize,
    n: usize,
    k: usize,
    format: WeightFormat,
    buffer: D::Buffer,
    matrix_bytes: usize,
}

impl<D: Device> Weight<D> {
    /// For backends: wraps what they packed, one matrix after the other, each in `matrix_bytes` with its
    /// scales.
    pub fn new(data: &WeightData<'_>, buffer: D::Buffer, matrix_bytes: usize) -> Self {
        let WeightData { count, n, k, format, .. } = *data;
        Weight { count, n, k, format, buffer, matrix_bytes }
    }

    /// Some packed matrices as bytes, to be copied from one weight to another of the same `n`, `k`, format and
    /// [`Weight::matrix_bytes`], which int4 may have in two ways: the ends of its groups are bf16 or not.
    ///
    /// # Panics
    /// If there are not so many matrices.
    #[track_caller]
    pub fn matrices(&self, range: Range<usize>) -> Tensor<D> {
        assert!(range.start <= range.end && range.end <= self.count, "{range:?} of {}", self.count);
        let (at, bytes) = (range.start * self.matrix_bytes, range.len() * self.matrix_bytes);
        Tensor::new(self.buffer.clone(), at, [1, bytes], DType::U8)
    }

    /// Matrices.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The element format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The packed matrices.
    pub fn buffer(&self) -> &D::Buffer {
        &self.buffer
    }

    /// Bytes of one of them.
    pub fn matrix_bytes(&self) -> usize {
        self.matrix_bytes
    }

    /// The same memory seen by another device that shares this one's buffers and layouts.
    pub fn on<E: Device<Buffer = D::Buffer>>(&self) -> Weight<E> {
        Weight {
            count: self.count,
            n: self.n,
            k: self.k,
            format: self.format,
            buffer: self.buffer.clone(),
            matrix_bytes: self.matrix_bytes,
        }
    }
}
