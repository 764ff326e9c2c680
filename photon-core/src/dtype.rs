//! Element types, and conversion between the floating ones on the host.
use std::borrow::Cow;

use half::{bf16, f16};

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    Bf16,
    /// 32-bit signed integer: indices and ids.
    I32,
    /// Unsigned byte: pixels and packed records.
    U8,
    /// Signed byte of a key or value, which counts with its head's scale: see [`crate::kv`].
    Int8,
    /// 8-bit float (e4m3) of a key or value, likewise.
    Fp8,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::U8 | DType::Int8 | DType::Fp8 => 1,
        }
    }

    /// Whether this is one of the three float types.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16)
    }

    /// The name used in flags, files and messages: `f32`, `f16`, `bf16`, `i32`, `u8`, `int8`, `fp8`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Int8 => "int8",
            DType::Fp8 => "fp8",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Little-endian float elements of type `from` as type `to`, rounding to nearest even; borrowed when
/// the types agree.
///
/// # Panics
/// If either type is not a float, or `bytes` is not a whole number of elements.
pub fn convert(bytes: &[u8], from: DType, to: DType) -> Cow<'_, [u8]> {
    assert!(from.is_float() && to.is_float(), "convert: {from} to {to} is not float to float");
    assert_eq!(bytes.len() % from.size(), 0, "convert: not a whole number of {from} elements");
    if from == to {
        return Cow::Borrowed(bytes);
    }
    let elements = bytes.chunks_exact(from.size()).map(|b| match from {
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    });
    let mut out = Vec::with_capacity(bytes.len() / from.size() * to.size());
    match to {
        DType::F16 => elements.for_each(|x| out.extend(f16::from_f32(x).to_le_bytes())),
        DType::Bf16 => elements.for_each(|x| out.extend(bf16::from_f32(x).to_le_bytes())),
        _ => elements.for_each(|x| out.extend(x.to_le_bytes())),
    }
    Cow::Owned(out)
}

/// Little-endian float elements of type `from` as f32.
///
/// # Panics
/// If it is no type of floats, or there are not as many elements as `out` has room for.
pub fn widen(bytes: &[u8], from: DType, out: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], wide: impl Fn([u8; N]) -> f32) {
        let (elements, rest) = bytes.as_chunks::<N>();
        assert!(elements.len() == out.len() && rest.is_empty(), "widen: {} elements", out.len());
        for (out, element) in out.iter_mut().zip(elements) {
            *out = wide(*element);
        }
    }
    match from {
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        other => panic!("widen: {other} is no float"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_rounds_to_nearest_even_and_keeps_exact_values() {
        let source: Vec<u8> =
            [1.0f32, -2.5, 1.0 + 1.0 / 256.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let narrow = convert(&source, DType::F32, DType::Bf16);
        let back = convert(&narrow, DType::Bf16, DType::F32);
        let values: Vec<f32> =
            back.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        // 1 + 2^-8 lies half-way between 1 and 1 + 2^-7; the even neighbor is 1.
        assert_eq!(values, [1.0, -2.5, 1.0]);
        assert!(matches!(convert(&source, DType::F32, DType::F32), Cow::Borrowed(_)));
        for (dtype, bytes) in [(DType::F32, &back), (DType::Bf16, &narrow)] {
            let mut wide = [0.0; 3];
            widen(bytes, dtype, &mut wide);
            assert_eq!(wide, [1.0, -2.5, 1.0], "{dtype}");
        }
    }
}
