//! Random numbers and tensors for the unit tests.
use half::{bf16, f16};
use photon_core::{DType, Shape, Tensor};

use crate::{Buffer, Cpu};

/// SplitMix64: the same numbers for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0 .. limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Close enough to a standard normal: a sum of uniforms.
    pub(crate) fn normal(&mut self) -> f32 {
        let uniform = |r: &mut Self| (r.next() >> 40) as f32 / (1 << 24) as f32 - 0.5;
        (0..12).map(|_| uniform(self)).sum()
    }

    pub(crate) fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// The bytes of `values` as elements of a float type.
pub(crate) fn to_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    let f32_bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    photon_core::convert(&f32_bytes, DType::F32, dtype).into_owned()
}

/// A tensor that holds `values`, rounded to its type, with stale NaNs around it.
pub(crate) fn floats(shape: impl Into<Shape>, dtype: DType, values: &[f32]) -> Tensor<Cpu> {
    let shape = shape.into();
    assert_eq!(shape.elements(), values.len());
    let guard = 256;
    let bytes = to_bytes(values, dtype);
    let buffer = Buffer::new(bytes.len() + 2 * guard).unwrap();
    buffer.write(0, &vec![0xff; buffer.len()]);
    buffer.write(guard, &bytes);
    Tensor::new(buffer, guard, shape, dtype)
}

/// A tensor of i32.
pub(crate) fn ints(values: &[i32]) -> Tensor<Cpu> {
    let buffer = Buffer::new(values.len() * 4).unwrap();
    buffer.write(0, bytemuck::cast_slice(values));
    Tensor::new(buffer, 0, [values.len()], DType::I32)
}

/// What a tensor holds, as f32; column views too.
pub(crate) fn contents(tensor: &Tensor<Cpu>) -> Vec<f32> {
    let size = tensor.dtype().size();
    let mut values = Vec::new();
    for row in 0..tensor.rows() {
        let mut bytes = vec![0; tensor.cols() * size];
        tensor.buffer().read(tensor.offset() + row * tensor.row_stride() * size, &mut bytes);
        values.extend(bytes.chunks_exact(size).map(|b| match tensor.dtype() {
            DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        }));
    }
    values
}
