//! How keys and values lie in the rows of a paged cache.
//!
//! A row holds the heads of one token side by side. In a cache of floats that is all. In an 8-bit cache
//! ([`DType::Int8`], [`DType::Fp8`]) one little-endian f32 per head follows, its scale, and an element
//! counts `code * scale`. A scale of each token's own needs no calibration, and a row stays one piece
//! that is copied as it is.
//!
//! A head is stored with `scale = max(largest |x| / largest code, 2^-126)` and the code nearest to
//! `x / scale`, ties to even. If any `x` is infinite or a NaN, so is the scale, and no element of the
//! head reads as a finite number; codes are always finite.
use crate::DType;

/// Bytes of a head's scale in an 8-bit cache.
pub const SCALE_BYTES: usize = size_of::<f32>();

/// The largest code of e4m3: `1.75 * 2^8`.
pub const FP8_MAX: f32 = 448.0;
/// The largest code of int8; -128 is not used.
pub const INT8_MAX: f32 = 127.0;

/// Whether rows of this type carry scales.
pub const fn is_scaled(dtype: DType) -> bool {
    matches!(dtype, DType::Int8 | DType::Fp8)
}

/// Whether a cache can be of this type.
pub const fn is_cache(dtype: DType) -> bool {
    dtype.is_float() || is_scaled(dtype)
}

/// Elements of a cache row: the values and, in an 8-bit cache, the bytes of the scales.
pub const fn row_len(dtype: DType, kv_heads: usize, head_dim: usize) -> usize {
    let scales = if is_scaled(dtype) { kv_heads * SCALE_BYTES } else { 0 };
    kv_heads * head_dim + scales
}

/// The scale of a head whose codes go up to `largest`.
#[inline(always)]
pub fn scale_of(x: &[f32], largest: f32) -> f32 {
    // As integers, infinity is above every number and NaN above infinity.
    let top = x.iter().fold(0, |top, x| i32::max(top, x.to_bits().cast_signed() & i32::MAX));
    let scale = f32::from_bits(top.cast_unsigned()) / largest;
    if scale < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { scale }
}

/// The int8 nearest to `x`, ties to even, at most [`INT8_MAX`] in size; 0 for NaN.
#[inline(always)]
pub fn to_int8(x: f32) -> i8 {
    x.clamp(-INT8_MAX, INT8_MAX).round_ties_even() as i8
}

/// The e4m3 nearest to `x`, ties to even, at most [`FP8_MAX`] in size; some finite code for NaN.
#[inline(always)]
pub fn to_fp8(x: f32) -> u8 {
    // Codes below 2^-6 are multiples of 2^-9, the last place of numbers from 2^14 on.
    const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
    const ROUND: f32 = 16_384.0;
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let size = x.abs().min(FP8_MAX);
    let bits = size.to_bits();
    // 20 bits go: half of the last place kept, less where that is even, carries into it.
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    let normal = (rounded >> 20).wrapping_sub((127 - 7) << 3);
    let subnormal = (size + ROUND).to_bits() - ROUND.to_bits();
    sign | if size < SMALLEST_NORMAL { subnormal } else { normal } as u8
}

/// The number that a code of e4m3 stands for; the NaN codes, which nobody stores, as 480.
#[inline(always)]
pub fn from_fp8(code: u8) -> f32 {
    // Moved to f32's place the exponent is short by the difference of the biases, subnormals included.
    const BIAS: f32 = f32::from_bits((127 + 120) << 23);
    let sign = u32::from(code & 0x80) << 24;
    f32::from_bits(sign | u32::from(code & 0x7f) << 20) * BIAS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the definition: `S.EEEE.MMM`, bias 7.
    fn defined(code: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
        let size = match exponent {
            0 => mantissa * 2f32.powi(-6),
            _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
        };
        if code & 0x80 == 0 { size } else { -size }
    }

    #[test]
    fn fp8_codes_are_what_the_format_says() {
        for code in 0..=255u8 {
            assert_eq!(from_fp8(code).to_bits(), defined(code).to_bits(), "{code:#x}");
            if code & 0x7f != 0x7f {
                assert_eq!(to_fp8(from_fp8(code)), code, "{code:#x}");
            }
        }
    }

    #[test]
    fn fp8_rounds_to_the_nearest_code_ties_to_even() {
        for code in 0..0x7e_u8 {
            let (low, high) = (defined(code), defined(code + 1));
            let middle = (low + high) / 2.0;
            let even = code + (code & 1);
            assert_eq!(to_fp8(middle), even, "between {low} and {high}");
            assert_eq!(to_fp8(-middle), even | 0x80, "between -{low} and -{high}");
            assert_eq!(to_fp8(middle.next_down()), code);
            assert_eq!(to_fp8(middle.next_up()), code + 1);
        }
        for x in [448.0, 449.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!((to_fp8(x), to_fp8(-x)), (0x7e, 0xfe));
        }
        assert_eq!((to_fp8(0.0), to_fp8(-0.0), to_fp8(1e-30)), (0, 0x80, 0));
        assert_ne!(to_fp8(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn int8_rounds_and_saturates() {
        let x = [0.5, 1.5, -2.5, 126.5, 127.4, 500.0, -500.0, -128.0, f32::NAN];
        assert_eq!(x.map(to_int8), [0, 2, -2, 126, 127, 127, -127, -127, 0]);
    }

    #[test]
    fn a_scale_makes_the_largest_element_the_largest_code() {
        assert_eq!(scale_of(&[1.0, -254.0, 3.0], INT8_MAX), 2.0);
        assert_eq!(scale_of(&[0.0, -0.0], FP8_MAX), f32::MIN_POSITIVE);
        assert_eq!(scale_of(&[1e-45], FP8_MAX), f32::MIN_POSITIVE);
        assert_eq!(scale_of(&[1.0, f32::NEG_INFINITY], FP8_MAX), f32::INFINITY);
        assert!(scale_of(&[f32::INFINITY, -f32::NAN, 1.0], FP8_MAX).is_nan());
        assert_eq!(row_len(DType::Fp8, 2, 64), 136);
        assert_eq!(row_len(DType::Bf16, 2, 64), 128);
    }
}
