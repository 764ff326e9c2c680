//! How kernels are told types, functions and alignment: the Rust side of `elements.h`.
use photon_core::{Activation, DType, Device, Tensor};

/// The number of a type.
pub(super) fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 2,
        DType::I32 => 3,
        DType::U8 => 4,
        DType::Int8 => 5,
        DType::Fp8 => 6,
    }
}

/// The number of a function.
pub(super) fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::None => 0,
        Activation::GeluTanh => 1,
        Activation::GeluErf => 2,
    }
}

/// Bytes that the beginning of every row is a multiple of, up to 16. Memory begins at a multiple of 256.
pub(super) fn alignment<D: Device>(t: &Tensor<D>) -> u32 {
    let bits = t.offset() | (t.row_stride() * t.dtype().size()) | 16;
    1 << bits.trailing_zeros()
}

/// A size that a kernel counts in 32 bits. Tensors are far smaller: what fits in memory has rows and columns
/// below that.
#[track_caller]
pub(super) fn u32_of(size: usize) -> u32 {
    u32::try_from(size).unwrap_or_else(|_| panic!("{size} is more than a kernel can count"))
}
