//! Vectors as arrays: loops over lanes that the compiler turns into whatever the target's baseline
//! offers.
use half::{bf16, f16};

use super::{Fp8, MAX_LANES, Op, QUAD_BIAS, Simd};

/// Needs nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

type V = [f32; 8];

#[inline(always)]
fn map(a: V, f: impl Fn(f32) -> f32) -> V {
    let mut out = a;
    for x in &mut out {
        *x = f(*x);
    }
    out
}

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    let mut out = a;
    for (x, y) in out.iter_mut().zip(b) {
        *x = f(*x, y);
    }
    out
}

/// Branch-free, so that it vectorizes.
#[inline(always)]
fn widen_f16(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    // The exponent's bias differs by 112; multiplying instead of adding makes subnormals come right.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 65536.0 { 0xff << 23 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

#[inline(always)]
fn narrow_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
}

impl Simd for Portable {
    type V = V;
    const LANES: usize = 8;
    // A vector takes two registers of 128 bits.
    const REGISTERS: usize = if cfg!(target_arch = "aarch64") { 16 } else { 8 };

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; 8]
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        let mut out = c;
        for (i, out) in out.iter_mut().enumerate() {
            // Without the instruction `mul_add` is a call into the C library.
            *out = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                a[i].mul_add(b[i], *out)
            } else {
                a[i] * b[i] + *out
            };
        }
        out
    }
    #[inline(always)]
    fn shift_exponent(self, x: V, n: V) -> V {
        zip(x, n, |x, n| f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    fn upper(self, x: V) -> V {
        map(x, |x| f32::from_bits(x.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    fn lower(self, x: V) -> V {
        map(x, |x| f32::from_bits(x.to_bits() << 16))
    }
    #[inline(always)]
    fn pair(self, first: V, second: V) -> V {
        zip(first, second, |a, b| f32::from_bits(a.to_bits() >> 16 | b.to_bits()))
    }
    #[inline(always)]
    fn quads(self, rows: [V; 4]) -> [V; 4] {
        let bytes = rows.map(|row| row.map(|x| x.to_bits().to_le_bytes()));
        let byte = |row: usize, column: usize| bytes[row][column / 4][column % 4];
        let word = |column| u32::from_le_bytes(std::array::from_fn(|row| byte(row, column)));
        let lanes = Self::LANES;
        std::array::from_fn(|j| std::array::from_fn(|i| f32::from_bits(word(j * lanes + i))))
    }
    #[inline(always)]
    fn quads_in_order(self, columns: [V; 4]) -> [V; 4] {
        columns
    }
    #[inline(always)]
    fn nibbles(self, x: V) -> [V; 2] {
        let low = |shift: u32| map(x, |x| f32::from_bits(x.to_bits() >> shift & 0x0f0f_0f0f));
        [low(0), low(4)]
    }
    #[inline(always)]
    fn to_float(self, x: V) -> V {
        map(x, |x| x.to_bits() as i32 as f32)
    }
    #[inline(always)]
    fn transpose(self, rows: [V; MAX_LANES]) -> [V; MAX_LANES] {
        let mut columns = rows;
        for (j, column) in columns.iter_mut().enumerate().take(8) {
            for (x, row) in column.iter_mut().zip(&rows) {
                *x = row[j];
            }
        }
        columns
    }
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
    #[inline(always)]
    fn prefetch_second<T>(self, _: *const T) {}

    #[inline(always)]
    unsafe fn read_f32(self, p: *const f32) -> V {
        // SAFETY: the caller vouches for `LANES` elements; unaligned is allowed.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn read_f16(self, p: *const f16) -> V {
        // SAFETY: the caller vouches for `LANES` elements; unaligned is allowed.
        let x = unsafe { p.cast::<[f16; 8]>().read_unaligned() };
        let mut out = [0.0; 8];
        for (out, x) in out.iter_mut().zip(x) {
            *out = widen_f16(x);
        }
        out
    }
    #[inline(always)]
    unsafe fn read_bf16(self, p: *const bf16) -> V {
        // SAFETY: the caller vouches for `LANES` elements; unaligned is allowed.
        let x = unsafe { p.cast::<[bf16; 8]>().read_unaligned() };
        let mut out = [0.0; 8];
        for (out, x) in out.iter_mut().zip(x) {
            *out = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
        out
    }
    #[inline(always)]
    unsafe fn read_int8(self, p: *const i8) -> V {
        // SAFETY: the caller vouches for `LANES` elements; bytes are always aligned.
        unsafe { p.cast::<[i8; 8]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn read_quads(self, p: *const i8) -> V {
        // SAFETY: the caller vouches for four times `LANES` bytes, which are always aligned.
        let codes = unsafe { p.cast::<[[u8; 4]; 8]>().read_unaligned() };
        let biased = |codes: [u8; 4]| codes.map(|code| code.wrapping_add(QUAD_BIAS));
        codes.map(|codes| f32::from_bits(u32::from_le_bytes(biased(codes))))
    }
    #[inline(always)]
    unsafe fn read_nibbles(self, p: *const u8) -> [V; 2] {
        // SAFETY: the caller vouches for `LANES` bytes, which are always aligned.
        let bytes = unsafe { p.cast::<[u8; 8]>().read_unaligned() };
        [bytes.map(|b| f32::from(b & 15)), bytes.map(|b| f32::from(b >> 4))]
    }
    #[inline(always)]
    unsafe fn read_fp8(self, p: *const Fp8) -> V {
        // SAFETY: the caller vouches for `LANES` elements; bytes are always aligned.
        unsafe { p.cast::<[u8; 8]>().read_unaligned() }.map(photon_core::kv::from_fp8)
    }
    #[inline(always)]
    unsafe fn write_f32(self, p: *mut f32, x: V) {
        // SAFETY: the caller vouches for `LANES` elements; unaligned is allowed.
        unsafe { p.cast::<V>().write_unaligned(x) };
    }
    #[inline(always)]
    unsafe fn write_f16(self, p: *mut f16, x: V) {
        let mut out = [f16::ZERO; 8];
        for (out, x) in out.iter_mut().zip(x) {
            *out = f16::from_f32(x);
        }
        // SAFETY: the caller vouches for `LANES` elements; unaligned is allowed.
        unsafe { p.cast::<[f16; 8]>().write_unaligned(out) };
    }
    #[inline(always)]
    unsafe fn write_bf16(self, p: *mut bf16, x: V) {
        let mut out = [bf16::ZERO; 8];
        for (out, x) in out.iter_mut().zip(x) {
            *out = narrow_bf16(x);
        }
        // SAFETY: the caller vouches for `LANES` elements; unaligned is allowed.
        unsafe { p.cast::<[bf16; 8]>().write_unaligned(out) };
    }
    #[inline(always)]
    unsafe fn write_low_bytes(self, p: *mut u8, x: V) {
        // SAFETY: the caller vouches for `LANES` bytes, which are always aligned.
        unsafe { p.cast::<[u8; 8]>().write_unaligned(x.map(|x| x.to_bits() as u8)) };
    }
}
