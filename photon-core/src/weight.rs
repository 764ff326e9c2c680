//! Weight matrices in the formats and layouts backends choose.
use std::ops::Range;

use crate::{DType, Device, Tensor};

/// How the elements of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// A float per element.
    Float(DType),
    /// `q * scale[row]`, one byte per element.
    Int8,
    /// `(q - 8) * scale[row, col / group]`, two elements a byte.
    Int4 {
        /// Elements that share a scale, along a row.
        group: u32,
    },
    /// e4m3 `* scale[row]`, one byte per element.
    Fp8,
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
    /// `[count, n, k]` elements, little-endian.
    pub bytes: &'a [u8],
    /// Scales of a quantized format; empty for floats.
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
    scales: Option<D::Buffer>,
}

impl<D: Device> Weight<D> {
    /// For backends: wraps what they packed, one matrix after the other, each in `matrix_bytes`.
    pub fn new(
        data: &WeightData<'_>,
        buffer: D::Buffer,
        matrix_bytes: usize,
        scales: Option<D::Buffer>,
    ) -> Self {
        let WeightData { count, n, k, format, .. } = *data;
        Weight { count, n, k, format, buffer, matrix_bytes, scales }
    }

    /// The packed elements of some matrices as bytes, to be copied from one weight to another of the
    /// same `n`, `k` and format. Float formats only: others have scales elsewhere.
    ///
    /// # Panics
    /// If there are not so many matrices, or they have scales.
    #[track_caller]
    pub fn matrices(&self, range: Range<usize>) -> Tensor<D> {
        assert!(range.start <= range.end && range.end <= self.count, "{range:?} of {}", self.count);
        assert!(self.scales.is_none(), "a weight with scales is more than its elements");
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

    /// The packed elements.
    pub fn buffer(&self) -> &D::Buffer {
        &self.buffer
    }

    /// The scales of a quantized format, in the backend's layout.
    pub fn scales(&self) -> Option<&D::Buffer> {
        self.scales.as_ref()
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
            scales: self.scales.clone(),
        }
    }
}
