//! How weights are quantized: from f32 to the codes and scales of a [`WeightFormat`], and back.
//!
//! Everything is by rows, so any rows of a matrix can be done apart. What a code stands for is said at
//! [`WeightFormat`]; here is how codes are chosen:
//! - int8: `scale = max |w| / 127` of the row, the code nearest to `w / scale`;
//! - e4m3: `scale = max |w| / 448` of the row, the code nearest to `w / scale`;
//! - int4: the ends of the group are `min w` and `max w`, rounded away from each other to bf16,
//!   `scale = (high - low) / 15` and `offset = low`, the code nearest to `(w - offset) / scale`.
//!
//! Ends of 16 bits are what a backend can keep of a group instead of scale and offset of 32 ([`ends_of`]): 4.25 bits a
//! weight in groups of 128, not 4.5, and 5 in groups of 32, not 6. Weights of a checkpoint in bf16 have such ends as they
//! are; else a group's steps get longer, by less than 2^-9 of the larger end.
//!
//! Ties go to even. A row or group without differences has scale 0. What is not finite is refused: see
//! [`quantize`].
use std::borrow::Cow;

use half::bf16;

use crate::{WeightFormat, kv};

/// Codes and scales.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized<'a> {
    /// `format.row_bytes(k)` for each row.
    pub bytes: Cow<'a, [u8]>,
    /// `format.row_scales(k)` for each row.
    pub scales: Vec<f32>,
}

/// Quantizes rows of `k` elements; `None` if one of them is not finite.
///
/// # Panics
/// If `format` is one of floats, or `values` is not whole rows.
pub fn quantize(format: WeightFormat, k: usize, values: &[f32]) -> Option<Quantized<'static>> {
    assert!(k > 0 && values.len().is_multiple_of(k), "{} values in rows of {k}", values.len());
    let rows = values.len() / k;
    let (bytes, scales) = (rows * format.row_bytes(k), rows * format.row_scales(k));
    let (mut bytes, mut scales) = (vec![0; bytes], vec![0.0; scales]);
    for (i, row) in values.chunks_exact(k).enumerate() {
        let codes = &mut bytes[i * format.row_bytes(k)..][..format.row_bytes(k)];
        let scales = &mut scales[i * format.row_scales(k)..][..format.row_scales(k)];
        if !quantize_row(format, row, codes, scales) {
            return None;
        }
    }
    Some(Quantized { bytes: bytes.into(), scales })
}

/// Quantizes a row to where its codes and scales belong; says whether all of it is finite, and leaves
/// nothing of use if not.
///
/// # Panics
/// If `format` is one of floats or has groups of an odd number, or there is not just the room that a row takes.
pub fn quantize_row(
    format: WeightFormat,
    row: &[f32],
    codes: &mut [u8],
    scales: &mut [f32],
) -> bool {
    assert_eq!(codes.len(), format.row_bytes(row.len()), "codes of {} {format}", row.len());
    assert_eq!(scales.len(), format.row_scales(row.len()), "scales of {} {format}", row.len());
    let to_largest = |scales: &mut [f32], largest: f32| {
        scales[0] = kv::scale_of(row, largest);
        scales[0]
    };
    match format {
        WeightFormat::Float(dtype) => panic!("{dtype} is not quantized"),
        WeightFormat::Int8 => {
            let scale = to_largest(scales, kv::INT8_MAX);
            for (code, w) in codes.iter_mut().zip(row) {
                *code = nearest((w / scale).clamp(-kv::INT8_MAX, kv::INT8_MAX));
            }
        }
        WeightFormat::Fp8 => {
            let scale = to_largest(scales, kv::FP8_MAX);
            for (code, w) in codes.iter_mut().zip(row) {
                *code = kv::to_fp8(w / scale);
            }
        }
        WeightFormat::Int4 { group } => {
            let group = group as usize;
            assert!(group.is_multiple_of(2), "groups of {group}: two codes share a byte");
            let groups = row.chunks(group).zip(codes.chunks_mut(group / 2));
            for ((group, codes), scales) in groups.zip(scales.chunks_exact_mut(2)) {
                scales.copy_from_slice(&quantize_group(group, codes));
            }
        }
    }
    scales.iter().all(|scale| scale.is_finite())
}

/// Quantizes a group to int4; gives its scale and offset, of which one is not finite if an element is not.
fn quantize_group(group: &[f32], codes: &mut [u8]) -> [f32; 2] {
    let (low, high) = ends(group);
    let (low, high) = (below(low), -below(-high));
    // Divided first: the difference of two large numbers may not be finite.
    let scale = high / 15.0 - low / 15.0;
    if scale == 0.0 {
        codes.fill(0);
        return [scale, low];
    }
    let zero = low / scale;
    let code = |w: f32| nearest((w / scale - zero).clamp(0.0, 15.0));
    let (pairs, last) = group.as_chunks::<2>();
    for (byte, &[even, odd]) in codes.iter_mut().zip(pairs) {
        *byte = code(even) | code(odd) << 4;
    }
    if let (&[even], Some(byte)) = (last, codes.last_mut()) {
        *byte = code(even);
    }
    [scale, low]
}

/// The least and the largest: as integers, so that compilers make vectors of it, and what is no number is beyond
/// infinity.
fn ends(values: &[f32]) -> (f32, f32) {
    // Of two negative floats the larger integer is the smaller number.
    let turn = |bits: i32| bits ^ (bits >> 31 & i32::MAX);
    let ends = |(low, high): (i32, i32), w: &f32| {
        let w = turn(w.to_bits().cast_signed());
        (low.min(w), high.max(w))
    };
    let (low, high) = values.iter().fold((i32::MAX, i32::MIN), ends);
    let back = |bits: i32| f32::from_bits(turn(bits).cast_unsigned());
    (back(low), back(high))
}

/// The bf16 nearest to `x` of those that are not larger, if there is one, and else the least.
fn below(x: f32) -> f32 {
    // Towards zero: of what is negative, this may be larger.
    let short = f32::from_bits(x.to_bits() & 0xffff_0000);
    let is_larger = short > x && short > bf16::MIN.to_f32();
    if is_larger { f32::from_bits(short.to_bits() + 0x1_0000) } else { short }
}

/// The ends of a group of int4, the offset and the largest that it can hold, if they are bf16: `scale` is
/// `(high - low) / 15` then, however that is rounded. No weight moves by more than some roundings of the largest
/// in f32.
pub fn ends_of(scale: f32, offset: f32) -> Option<[bf16; 2]> {
    let ends = [offset, scale.mul_add(15.0, offset)].map(bf16::from_f32);
    let [low, high] = ends.map(bf16::to_f32);
    let moves = 15.0 * ((high - low) * (1.0 / 15.0) - scale).abs();
    (low == offset && moves <= 4.0 * low.abs().max(high.abs()) * f32::EPSILON).then_some(ends)
}

/// The integer nearest to `x`, ties to even, if that is small, of which this is the lowest byte. Adding `1.5 * 2^23`
/// leaves it in the mantissa's low bits; [`f32::round_ties_even`] is a call on x86-64 as it was at first.
#[inline(always)]
fn nearest(x: f32) -> u8 {
    (x + 12_582_912.0).to_bits() as u8
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
    fn ends_of_groups_are_of_16_bits() {
        let coarse: Vec<f32> = noise(256).iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
        for (values, exact) in [(noise(256), false), (coarse, true)] {
            let coded = quantize(WeightFormat::Int4 { group: 32 }, 256, &values).unwrap();
            for (group, scales) in values.chunks(32).zip(coded.scales.as_chunks::<2>().0) {
                let [low, high] = ends_of(scales[0], scales[1]).unwrap().map(bf16::to_f32);
                let (least, most) = ends(group);
                if exact {
                    assert_eq!((low, high), (least, most));
                }
                assert!(low <= least && most <= high, "{low} {least} {most} {high}");
                // Neighbors are 2^-7 of the lower power of two apart.
                assert!(least - low <= low.abs() / 128.0 && high - most <= high.abs() / 128.0);
            }
        }
        assert_eq!(ends_of(0.1, 0.1), None, "offset");
        assert_eq!(ends_of(0.11, 0.0), None, "scale");
        assert_eq!(ends_of(f32::NAN, 0.0), None);
    }

    #[test]
    fn codes_are_the_nearest_ties_to_even() {
        // Scales of 1: the largest of the first row is 127, the ends of the second are 15 apart.
        let row = [127.0, -126.5, 125.5, 0.5, -0.5, 1.5, 2.5, -2.51, 0.0, -127.0];
        let int8 = quantize(WeightFormat::Int8, row.len(), &row).unwrap();
        let codes: Vec<i8> = int8.bytes.iter().map(|code| code.cast_signed()).collect();
        assert_eq!((codes, int8.scales[0]), (vec![127, -126, 126, 0, 0, 2, 2, -3, 0, -127], 1.0));
        let row = [-3.0, 12.0, -2.5, -1.5, 0.49, 11.5, 9.5];
        let int4 = quantize(WeightFormat::Int4 { group: 32 }, row.len(), &row).unwrap();
        assert_eq!(int4.bytes[..], [0xf0, 0x20, 0xe3, 0x0c], "0 15, 0 2, 3 14, 12");
        assert_eq!(int4.scales, [1.0, -3.0]);
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
