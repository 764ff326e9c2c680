//! x86-64: AVX2 with FMA and F16C, and AVX-512.
//!
//! Every method wraps one or a few intrinsics. `self` proves that they exist: the tokens are made
//! only by `new`, which asks the processor.
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "an intrinsic is unsafe here only because of the instructions it needs, which `self` proves"
)]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{BYTES, Fp8, MAX_LANES, Op, PAIRS, PLAIN, Simd, quads_without_instruction};
use crate::isa::Isa;

/// [`BYTES`] for vectors of 256 bits where they are instructions of AVX-512. AVX2 only.
pub(crate) const BYTES_OF_AVX512: u8 = 4;

/// The processor has AVX2, FMA and F16C, and the dot products `DOTS`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2<const DOTS: u8>(());

impl<const DOTS: u8> Avx2<DOTS> {
    pub(crate) fn new() -> Option<Self> {
        let dots = match DOTS {
            PLAIN => true,
            BYTES => is_x86_feature_detected!("avxvnni"),
            BYTES_OF_AVX512 => Isa::Avx512Vnni.is_available(),
            _ => false,
        };
        (dots && Isa::Avx2.is_available()).then_some(Avx2(()))
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn enter<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
    unsafe fn enter_vnni<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx512vnni,avx512vl,avx512f,avx2,fma,f16c")]
    unsafe fn enter_avx512<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }
}

impl<const DOTS: u8> Simd for Avx2<DOTS> {
    type V = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const DOTS: u8 = if DOTS == BYTES_OF_AVX512 { BYTES } else { DOTS };

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        match DOTS {
            // SAFETY: `self` proves that the processor has the instructions.
            BYTES => unsafe { self.enter_vnni(op) },
            // SAFETY: as above.
            BYTES_OF_AVX512 => unsafe { self.enter_avx512(op) },
            // SAFETY: as above.
            _ => unsafe { self.enter(op) },
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn shift_exponent(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n))
        }
    }
    #[inline(always)]
    fn upper(self, x: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000))) }
    }
    #[inline(always)]
    fn lower(self, x: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x))) }
    }
    #[inline(always)]
    fn pair(self, first: __m256, second: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instructions.
        let first =
            unsafe { _mm256_castsi256_ps(_mm256_srli_epi32::<16>(_mm256_castps_si256(first))) };
        // SAFETY: as above.
        unsafe { _mm256_or_ps(first, second) }
    }
    #[inline(always)]
    fn dot_quads(self, acc: __m256, a: __m256, b: __m256) -> __m256 {
        let bits = |x| {
            // SAFETY: `self` proves that the processor has the instruction.
            unsafe { _mm256_castps_si256(x) }
        };
        let sum = match DOTS {
            // SAFETY: `self` proves that the processor has the instruction.
            BYTES => unsafe { _mm256_dpbusd_avx_epi32(bits(acc), bits(b), bits(a)) },
            // SAFETY: as above.
            BYTES_OF_AVX512 => unsafe { _mm256_dpbusd_epi32(bits(acc), bits(b), bits(a)) },
            _ => return quads_without_instruction(self, acc, a, b),
        };
        // SAFETY: as above.
        unsafe { _mm256_castsi256_ps(sum) }
    }
    #[inline(always)]
    fn quads(self, rows: [__m256; 4]) -> [__m256; 4] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (a, b) = (_mm256_castps_si256(rows[0]), _mm256_castps_si256(rows[1]));
            let (c, d) = (_mm256_castps_si256(rows[2]), _mm256_castps_si256(rows[3]));
            let first = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let second = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            // Of each 16 columns the first four, those after them, ...
            [
                _mm256_castsi256_ps(_mm256_unpacklo_epi16(first.0, second.0)),
                _mm256_castsi256_ps(_mm256_unpackhi_epi16(first.0, second.0)),
                _mm256_castsi256_ps(_mm256_unpacklo_epi16(first.1, second.1)),
                _mm256_castsi256_ps(_mm256_unpackhi_epi16(first.1, second.1)),
            ]
        }
    }
    #[inline(always)]
    fn quads_in_order(self, columns: [__m256; 4]) -> [__m256; 4] {
        let [a, b, c, d] = columns;
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe {
            [
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x20>(c, d),
                _mm256_permute2f128_ps::<0x31>(a, b),
                _mm256_permute2f128_ps::<0x31>(c, d),
            ]
        }
    }
    #[inline(always)]
    fn nibbles(self, x: __m256) -> [__m256; 2] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (x, low) = (_mm256_castps_si256(x), _mm256_set1_epi8(15));
            let high = _mm256_and_si256(_mm256_srli_epi32::<4>(x), low);
            [_mm256_castsi256_ps(_mm256_and_si256(x, low)), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    fn to_float(self, x: __m256) -> __m256 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(x)) }
    }
    #[inline(always)]
    fn transpose(self, rows: [__m256; MAX_LANES]) -> [__m256; MAX_LANES] {
        let (mut pairs, mut quads, mut columns) = (rows, rows, rows);
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            for i in [0, 4] {
                quads[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
                quads[i + 1] = _mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
                quads[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
                quads[i + 3] = _mm256_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
            }
            // Half `h` of `quads[4 g + c]` is column `4 h + c` of rows `4 g ..`.
            for c in 0..4 {
                columns[c] = _mm256_permute2f128_ps::<0x20>(quads[c], quads[c + 4]);
                columns[c + 4] = _mm256_permute2f128_ps::<0x31>(quads[c], quads[c + 4]);
            }
        }
        columns
    }
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: prefetching never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_second<T>(self, p: *const T) {
        // SAFETY: prefetching never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn read_f32(self, p: *const f32) -> __m256 {
        // SAFETY: `self` proves the instruction, the caller vouches for eight elements.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn read_f16(self, p: *const f16) -> __m256 {
        // SAFETY: `self` proves the instructions, the caller vouches for eight elements.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn read_bf16(self, p: *const bf16) -> __m256 {
        // SAFETY: `self` proves the instructions, the caller vouches for eight elements.
        unsafe {
            let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
        }
    }
    #[inline(always)]
    unsafe fn read_int8(self, p: *const i8) -> __m256 {
        // SAFETY: `self` proves the instructions, the caller vouches for eight elements.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn read_quads(self, p: *const i8) -> __m256 {
        // SAFETY: `self` proves the instructions, the caller vouches for 32 bytes.
        unsafe {
            let codes = _mm256_loadu_si256(p.cast());
            let biased = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            _mm256_castsi256_ps(biased)
        }
    }
    #[inline(always)]
    unsafe fn read_nibbles(self, p: *const u8) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions, the caller vouches for eight bytes.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn read_fp8(self, p: *const Fp8) -> __m256 {
        // A code moved to f16's place, sign apart, is short by 2^8, the difference of the biases.
        // SAFETY: `self` proves the instructions, the caller vouches for eight elements.
        unsafe {
            let code = _mm_cvtepu8_epi16(_mm_loadl_epi64(p.cast()));
            let sign = _mm_slli_epi16::<8>(_mm_and_si128(code, _mm_set1_epi16(0x80)));
            let size = _mm_slli_epi16::<7>(_mm_and_si128(code, _mm_set1_epi16(0x7f)));
            _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, size)), _mm256_set1_ps(256.0))
        }
    }
    #[inline(always)]
    unsafe fn write_f32(self, p: *mut f32, x: __m256) {
        // SAFETY: `self` proves the instruction, the caller vouches for eight elements.
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn write_f16(self, p: *mut f16, x: __m256) {
        // SAFETY: `self` proves the instructions, the caller vouches for eight elements.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn write_bf16(self, p: *mut bf16, x: __m256) {
        // SAFETY: `self` proves the instructions, the caller vouches for eight elements.
        unsafe {
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_add_epi32(bits, bias);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
            let chosen = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
            let top = _mm256_srli_epi32::<16>(chosen);
            let (low, high) = (_mm256_castsi256_si128(top), _mm256_extracti128_si256::<1>(top));
            _mm_storeu_si128(p.cast(), _mm_packus_epi32(low, high));
        }
    }
    #[inline(always)]
    unsafe fn write_low_bytes(self, p: *mut u8, x: __m256) {
        // SAFETY: `self` proves the instructions, the caller vouches for eight bytes.
        unsafe {
            let low = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0xff));
            let words =
                _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(words, words));
        }
    }
}

/// The processor has AVX-512 F, BW, DQ and VL, and the dot products `DOTS`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const DOTS: u8>(());

impl<const DOTS: u8> Avx512<DOTS> {
    pub(crate) fn new() -> Option<Self> {
        let isa = match DOTS {
            PLAIN => Isa::Avx512,
            BYTES => Isa::Avx512Vnni,
            PAIRS => Isa::Avx512Bf16,
            _ => return None,
        };
        isa.is_available().then_some(Avx512(()))
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
    unsafe fn enter<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
    unsafe fn enter_vnni<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
    unsafe fn enter_bf16<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }
}

/// Where the upper halves of all elements are, in halves.
const UPPER_HALVES: [u16; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < places.len() {
        places[i] = 2 * i as u16 + 1;
        i += 1;
    }
    places
};

impl<const DOTS: u8> Simd for Avx512<DOTS> {
    type V = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const DOTS: u8 = DOTS;

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        match DOTS {
            // SAFETY: `self` proves that the processor has the instructions.
            PAIRS => unsafe { self.enter_bf16(op) },
            // SAFETY: as above.
            BYTES => unsafe { self.enter_vnni(op) },
            // SAFETY: as above.
            _ => unsafe { self.enter(op) },
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn shift_exponent(self, x: __m512, n: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n))
        }
    }
    #[inline(always)]
    fn upper(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(-0x1_0000))) }
    }
    #[inline(always)]
    fn lower(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(x))) }
    }
    #[inline(always)]
    fn pair(self, first: __m512, second: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        let first =
            unsafe { _mm512_castsi512_ps(_mm512_srli_epi32::<16>(_mm512_castps_si512(first))) };
        // SAFETY: as above.
        unsafe { _mm512_or_ps(first, second) }
    }
    #[inline(always)]
    fn neighbors(self, first: __m512, second: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let odd = _mm512_loadu_si512(UPPER_HALVES.as_ptr().cast());
            let (first, second) = (_mm512_castps_si512(first), _mm512_castps_si512(second));
            _mm512_castsi512_ps(_mm512_permutex2var_epi16(first, odd, second))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        if DOTS == PAIRS {
            // SAFETY: both types are 64 bytes that any bits are valid for.
            let pairs = |v: __m512| unsafe { std::mem::transmute::<__m512, __m512bh>(v) };
            // SAFETY: `self` proves that the processor has the instruction.
            unsafe { _mm512_dpbf16_ps(acc, pairs(a), pairs(b)) }
        } else {
            let acc = self.fma(self.upper(a), self.upper(b), acc);
            self.fma(self.lower(a), self.lower(b), acc)
        }
    }
    #[inline(always)]
    fn dot_quads(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        if DOTS == PLAIN {
            return quads_without_instruction(self, acc, a, b);
        }
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (acc, a, b) =
                (_mm512_castps_si512(acc), _mm512_castps_si512(a), _mm512_castps_si512(b));
            _mm512_castsi512_ps(_mm512_dpbusd_epi32(acc, b, a))
        }
    }
    #[inline(always)]
    fn quads(self, rows: [__m512; 4]) -> [__m512; 4] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (a, b) = (_mm512_castps_si512(rows[0]), _mm512_castps_si512(rows[1]));
            let (c, d) = (_mm512_castps_si512(rows[2]), _mm512_castps_si512(rows[3]));
            let first = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let second = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            // Of each 16 columns the first four, those after them, ...
            [
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(first.0, second.0)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(first.0, second.0)),
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(first.1, second.1)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(first.1, second.1)),
            ]
        }
    }
    #[inline(always)]
    fn quads_in_order(self, columns: [__m512; 4]) -> [__m512; 4] {
        let [a, b, c, d] = columns;
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let low = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
            let high = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
            [
                _mm512_shuffle_f32x4::<0x88>(low.0, low.1),
                _mm512_shuffle_f32x4::<0xdd>(low.0, low.1),
                _mm512_shuffle_f32x4::<0x88>(high.0, high.1),
                _mm512_shuffle_f32x4::<0xdd>(high.0, high.1),
            ]
        }
    }
    #[inline(always)]
    fn nibbles(self, x: __m512) -> [__m512; 2] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (x, low) = (_mm512_castps_si512(x), _mm512_set1_epi8(15));
            let high = _mm512_and_si512(_mm512_srli_epi32::<4>(x), low);
            [_mm512_castsi512_ps(_mm512_and_si512(x, low)), _mm512_castsi512_ps(high)]
        }
    }
    #[inline(always)]
    fn to_float(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(x)) }
    }
    #[inline(always)]
    fn transpose(self, rows: [__m512; MAX_LANES]) -> [__m512; MAX_LANES] {
        let (mut pairs, mut quads, mut columns) = (rows, rows, rows);
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            for i in [0, 4, 8, 12] {
                quads[i] = _mm512_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
                quads[i + 1] = _mm512_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
                quads[i + 2] = _mm512_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
                quads[i + 3] = _mm512_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
            }
            // Quarter `h` of `quads[4 g + c]` is column `4 h + c` of rows `4 g ..`.
            for c in 0..4 {
                let even = |a, b| _mm512_shuffle_f32x4::<0x88>(a, b);
                let odd = |a, b| _mm512_shuffle_f32x4::<0xdd>(a, b);
                let low = even(quads[c], quads[c + 4]);
                let high = even(quads[c + 8], quads[c + 12]);
                columns[c] = even(low, high);
                columns[c + 8] = odd(low, high);
                let low = odd(quads[c], quads[c + 4]);
                let high = odd(quads[c + 8], quads[c + 12]);
                columns[c + 4] = even(low, high);
                columns[c + 12] = odd(low, high);
            }
        }
        columns
    }
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: prefetching never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_second<T>(self, p: *const T) {
        // SAFETY: prefetching never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn read_f32(self, p: *const f32) -> __m512 {
        // SAFETY: `self` proves the instruction, the caller vouches for sixteen elements.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn read_f16(self, p: *const f16) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn read_bf16(self, p: *const bf16) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen elements.
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
    }
    #[inline(always)]
    unsafe fn read_int8(self, p: *const i8) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen elements.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn read_quads(self, p: *const i8) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller vouches for 64 bytes.
        unsafe {
            let codes = _mm512_loadu_si512(p.cast());
            let biased = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
            _mm512_castsi512_ps(biased)
        }
    }
    #[inline(always)]
    unsafe fn read_nibbles(self, p: *const u8) -> [__m512; 2] {
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn read_fp8(self, p: *const Fp8) -> __m512 {
        // A code moved to f16's place, sign apart, is short by 2^8, the difference of the biases.
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen elements.
        unsafe {
            let code = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(code, _mm256_set1_epi16(0x80)));
            let size = _mm256_slli_epi16::<7>(_mm256_and_si256(code, _mm256_set1_epi16(0x7f)));
            _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, size)), _mm512_set1_ps(256.0))
        }
    }
    #[inline(always)]
    unsafe fn write_f32(self, p: *mut f32, x: __m512) {
        // SAFETY: `self` proves the instruction, the caller vouches for sixteen elements.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn write_f16(self, p: *mut f16, x: __m512) {
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen elements.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn write_bf16(self, p: *mut bf16, x: __m512) {
        if DOTS == PAIRS {
            // Subnormals become zero, which they are in products of pairs anyhow.
            // SAFETY: `self` proves that the processor has the instruction.
            let x = unsafe { _mm512_cvtneps_pbh(x) };
            // SAFETY: both types are 32 bytes that any bits are valid for.
            let x = unsafe { std::mem::transmute::<__m256bh, __m256i>(x) };
            // SAFETY: `self` proves the instruction, the caller vouches for sixteen elements.
            return unsafe { _mm256_storeu_si256(p.cast(), x) };
        }
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen elements.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, bias);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let top = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, is_nan, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(top));
        }
    }
    #[inline(always)]
    unsafe fn write_low_bytes(self, p: *mut u8, x: __m512) {
        // SAFETY: `self` proves the instructions, the caller vouches for sixteen bytes.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(x))) };
    }
}
