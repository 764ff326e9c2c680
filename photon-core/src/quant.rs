//! How weights are quantized: from f32 to the codes and scales of a [`WeightFormat`], and back.
//!
//! Everything is by rows, so any rows of a matrix can be done apart. What a code stands for is said at
//! [`WeightFormat`]; here is how codes are chosen:
//! - int8: `scale = max |w| / 127` of the row, the code nearest to `w / scale`;
//! - e4m3: `scale = max |w| / 448` of the row, the code nearest to `w / scale`;
//! - int4: `scale = (max w - min w) / 15` and `offset = min w` of the group, the code nearest to
//!   `(w - offset) / scale`.
//!
//! Ties go to even. A row or group without differences has scale 0. What is not finite is refused: see
//! [`quantize`].
use crate::{WeightFormat, kv};

/// Codes and scales.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized {
    /// `format.row_bytes(k)` for each row.
    pub bytes: Vec<u8>,
    /// `format.row_scales(k)` for each row.
    pub scales: Vec<f32>,
}

/// Quantizes rows of `k` elements; `None` if one of them is not finite.
///
/// # Panics
/// If `format` is one of floats, or `values` is not whole rows.
pub fn quantize(format: WeightFormat, k: usize, values: &[f32]) -> Option<Quantized> {
    assert!(k > 0 && values.len().is_multiple_of(k), "{} values in rows of {k}", values.len());
    let mut out = Quantized::default();
    out.bytes.reserve(values.len() / k * format.row_bytes(k));
    out.scales.reserve(values.len() / k * format.row_scales(k));
    for row in values.chunks_exact(k) {
        if !row.iter().all(|w| w.is_finite()) {
            return None;
        }
        match format {
            WeightFormat::Float(dtype) => panic!("{dtype} is not quantized"),
            WeightFormat::Int8 => {
                let scale = kv::scale_of(row, kv::INT8_MAX);
                out.bytes.extend(row.iter().map(|w| kv::to_int8(w / scale).cast_unsigned()));
                out.scales.push(scale);
            }
            WeightFormat::Fp8 => {
                let scale = kv::scale_of(row, kv::FP8_MAX);
                out.bytes.extend(row.iter().map(|w| kv::to_fp8(w / scale)));
                out.scales.push(scale);
            }
            WeightFormat::Int4 { group } => {
                let mut codes = Vec::with_capacity(k + 1);
                for group in row.chunks(group as usize) {
                    let ends = |(low, high): (f32, f32), &w: &f32| (low.min(w), high.max(w));
                    let (low, high) = group.iter().fold((f32::MAX, f32::MIN), ends);
                    // Divided first: the difference of two large numbers may not be finite.
                    let scale = (high / 15.0 - low / 15.0).max(0.0);
                    let code = |w: &f32| match scale {
                        0.0 => 0,
                        scale => (w / scale - low / scale).round_ties_even().clamp(0.0, 15.0) as u8,
                    };
                    codes.extend(group.iter().map(code));
                    out.scales.extend([scale, low]);
                }
                codes.resize(k.next_multiple_of(2), 0);
                out.bytes.extend(codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
            }
        }
    }
    Some(out)
}

/// What rows of codes stand for.
///
/// # Panics
/// If `format` is one of floats, or there are not as many codes and scales as rows need.
pub fn dequantize(format: WeightFormat, k: usize, bytes: &[u8], scales: &[f32]) -> Vec<f32> {
    let rows = bytes.len() / format.row_bytes(k);
    assert_eq!(bytes.len(), rows * format.row_bytes(k), "bytes in rows of {k}");
    assert_eq!(scales.len(), rows * format.row_scales(k), "scales of rows of {k}");
    let codes = bytes.chunks_exact(format.row_bytes(k));
    let mut out = Vec::with_capacity(rows * k);
    for (codes, scales) in codes.zip(scales.chunks_exact(format.row_scales(k))) {
        match format {
            WeightFormat::Float(dtype) => panic!("{dtype} is not quantized"),
            WeightFormat::Int8 => {
                out.extend(codes.iter().map(|&q| f32::from(q.cast_signed()) * scales[0]));
            }
            WeightFormat::Fp8 => out.extend(codes.iter().map(|&q| kv::from_fp8(q) * scales[0])),
            WeightFormat::Int4 { group } => out.extend((0..k).map(|i| {
                let q = codes[i / 2] >> (4 * (i % 2)) & 15;
                let at = 2 * (i / group as usize);
                f32::from(q) * scales[at] + scales[at + 1]
            })),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [WeightFormat; 4] = [
        WeightFormat::Int8,
        WeightFormat::Fp8,
        WeightFormat::Int4 { group: 32 },
        WeightFormat::Int4 { group: 128 },
    ];

    fn noise(len: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..len).map(|i| next() * 4f32.powi(i as i32 % 5)).collect()
    }

    #[test]
    fn what_comes_back_is_near() {
        for format in FORMATS {
            for (rows, k) in [(1, 1), (3, 33), (7, 128), (2, 300)] {
                let values = noise(rows * k);
                let coded = quantize(format, k, &values).unwrap();
                assert_eq!(coded.bytes.len(), rows * format.row_bytes(k));
                let back = dequantize(format, k, &coded.bytes, &coded.scales);
                for (i, (w, back)) in values.iter().zip(&back).enumerate() {
                    let scales = &coded.scales[i / k * format.row_scales(k)..];
                    let bound = match format {
                        WeightFormat::Int8 => scales[0] / 2.0,
                        // Half of the last of four bits, or of the smallest step.
                        WeightFormat::Fp8 => (w.abs() / 16.0).max(scales[0] / 1024.0),
                        WeightFormat::Int4 { group } => scales[2 * (i % k / group as usize)] / 2.0,
                        WeightFormat::Float(_) => unreachable!(),
                    };
                    let error = (w - back).abs();
                    assert!(error <= bound * 1.001 + 1e-6, "{format}: {w} came back as {back}");
                }
            }
        }
    }

    #[test]
    fn what_a_code_stands_for_keeps_its_code() {
        for format in FORMATS {
            let coded = quantize(format, 64, &noise(256)).unwrap();
            let back = dequantize(format, 64, &coded.bytes, &coded.scales);
            let again = quantize(format, 64, &back).unwrap();
            assert_eq!(again.bytes, coded.bytes, "{format}");
        }
    }

    #[test]
    fn rows_of_one_value_are_exact() {
        for format in FORMATS {
            for value in [0.0, 1.0, -2.5] {
                let coded = quantize(format, 33, &[value; 33]).unwrap();
                let back = dequantize(format, 33, &coded.bytes, &coded.scales);
                assert!(back.iter().all(|w| (w - value).abs() < 1e-6), "{format}: {back:?}");
            }
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for format in FORMATS {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(quantize(format, 2, &[1.0, 2.0, bad, 0.0]), None, "{format}");
            }
            assert!(quantize(format, 2, &[f32::MAX, f32::MIN]).is_some());
        }
    }
}
