//! AArch64: NEON, which every such processor has, and dot products that newer ones add.
//!
//! `self` proves that the instructions exist: the tokens are made only by `new`, which asks the processor.
//! Those that have no stable intrinsic are written out.
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "an intrinsic is unsafe here only because of the instructions it needs, which `self` proves"
)]
use std::arch::{aarch64::*, asm};

use half::{bf16, f16};

use super::{BLOCKS, BYTES, Fp8, MAX_LANES, Op, PAIRS, PLAIN, Simd, quads_without_instruction};
use crate::isa::Isa;

/// The processor has NEON and the dot products `DOTS`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon<const DOTS: u8>(());

impl<const DOTS: u8> Neon<DOTS> {
    pub(crate) fn new() -> Option<Self> {
        let isa = match DOTS {
            PLAIN => Isa::Neon,
            BYTES => Isa::NeonDot,
            PAIRS => Isa::NeonBf16,
            BLOCKS => Isa::NeonI8mm,
            _ => return None,
        };
        isa.is_available().then_some(Neon(()))
    }

    /// A function for each operation, as where instructions must be switched on: inlined into all its callers it
    /// would be compiled as often.
    #[inline(never)]
    fn enter<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }
}

/// `acc` plus the products that an instruction of an extension makes of `a` and `b`, which are vectors of such lanes.
macro_rules! accumulate {
    ($extension:literal, $instruction:literal, $lanes:literal, $acc:expr, $a:expr, $b:expr) => {{
        let mut sum: float32x4_t = $acc;
        // SAFETY: the caller's `self` proves that the processor has the instruction, which touches registers alone.
        unsafe {
            asm!(
                concat!(".arch_extension ", $extension),
                concat!($instruction, " {sum:v}.4s, {a:v}.", $lanes, ", {b:v}.", $lanes),
                sum = inout(vreg) sum,
                a = in(vreg) $a,
                b = in(vreg) $b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }};
}

impl<const DOTS: u8> Simd for Neon<DOTS> {
    type V = float32x4_t;
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const DOTS: u8 = DOTS;

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        self.enter(op)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // `fmin` would give NaN if either is.
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn shift_exponent(self, x: float32x4_t, n: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let n = vshlq_n_u32::<23>(vreinterpretq_u32_f32(n));
            vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(x), n))
        }
    }
    #[inline(always)]
    fn upper(self, x: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let high = vdupq_n_u32(0xffff_0000);
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), high))
        }
    }
    #[inline(always)]
    fn lower(self, x: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(x))) }
    }
    #[inline(always)]
    fn pair(self, first: float32x4_t, second: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let first = vshrq_n_u32::<16>(vreinterpretq_u32_f32(first));
            vreinterpretq_f32_u32(vorrq_u32(first, vreinterpretq_u32_f32(second)))
        }
    }
    #[inline(always)]
    fn neighbors(self, first: float32x4_t, second: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe {
            let (first, second) = (vreinterpretq_u16_f32(first), vreinterpretq_u16_f32(second));
            vreinterpretq_f32_u16(vuzp2q_u16(first, second))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        if DOTS < PAIRS {
            let acc = self.fma(self.upper(a), self.upper(b), acc);
            return self.fma(self.lower(a), self.lower(b), acc);
        }
        accumulate!("bf16", "bfdot", "8h", acc, a, b)
    }
    #[inline(always)]
    fn dot_quads(self, acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        if DOTS == PLAIN {
            return quads_without_instruction(self, acc, a, b);
        }
        accumulate!("dotprod", "sdot", "16b", acc, a, b)
    }
    #[inline(always)]
    fn multiply_blocks(self, acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        assert!(DOTS == BLOCKS, "no products of two rows with two columns");
        accumulate!("bf16", "bfmmla", "8h", acc, a, b)
    }
    #[inline(always)]
    fn multiply_byte_blocks(self, acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        assert!(DOTS == BLOCKS, "no products of two rows with two columns");
        accumulate!("i8mm", "smmla", "16b", acc, a, b)
    }
    #[inline(always)]
    fn halves(self, x: float32x4_t, y: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (x, y) = (vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y));
            let [first, second] = [vzip1q_f64(x, y), vzip2q_f64(x, y)];
            [vreinterpretq_f32_f64(first), vreinterpretq_f32_f64(second)]
        }
    }
    #[inline(always)]
    fn quads(self, rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (a, b) = (vreinterpretq_u8_f32(rows[0]), vreinterpretq_u8_f32(rows[1]));
            let (c, d) = (vreinterpretq_u8_f32(rows[2]), vreinterpretq_u8_f32(rows[3]));
            let first = (vzip1q_u8(a, b), vzip2q_u8(a, b));
            let second = (vzip1q_u8(c, d), vzip2q_u8(c, d));
            let half = |x| vreinterpretq_u16_u8(x);
            [
                vreinterpretq_f32_u16(vzip1q_u16(half(first.0), half(second.0))),
                vreinterpretq_f32_u16(vzip2q_u16(half(first.0), half(second.0))),
                vreinterpretq_f32_u16(vzip1q_u16(half(first.1), half(second.1))),
                vreinterpretq_f32_u16(vzip2q_u16(half(first.1), half(second.1))),
            ]
        }
    }
    #[inline(always)]
    fn quads_in_order(self, columns: [float32x4_t; 4]) -> [float32x4_t; 4] {
        columns
    }
    #[inline(always)]
    fn nibbles(self, x: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let x = vreinterpretq_u8_f32(x);
            let low = vandq_u8(x, vdupq_n_u8(15));
            [vreinterpretq_f32_u8(low), vreinterpretq_f32_u8(vshrq_n_u8::<4>(x))]
        }
    }
    #[inline(always)]
    fn to_float(self, x: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_f32(x)) }
    }
    #[inline(always)]
    fn transpose(self, rows: [float32x4_t; MAX_LANES]) -> [float32x4_t; MAX_LANES] {
        let mut columns = rows;
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let even = vtrnq_f32(rows[0], rows[1]);
            let odd = vtrnq_f32(rows[2], rows[3]);
            columns[0] = vcombine_f32(vget_low_f32(even.0), vget_low_f32(odd.0));
            columns[1] = vcombine_f32(vget_low_f32(even.1), vget_low_f32(odd.1));
            columns[2] = vcombine_f32(vget_high_f32(even.0), vget_high_f32(odd.0));
            columns[3] = vcombine_f32(vget_high_f32(even.1), vget_high_f32(odd.1));
        }
        columns
    }
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: a hint: it reads nothing and may name any address.
        unsafe {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
    }
    #[inline(always)]
    fn prefetch_second<T>(self, p: *const T) {
        // SAFETY: as above.
        unsafe {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    unsafe fn read_f32(self, p: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for four elements; unaligned is allowed.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn read_halves(self, first: *const f32, second: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for two elements each; unaligned is allowed.
        unsafe { vcombine_f32(vld1_f32(first), vld1_f32(second)) }
    }
    #[inline(always)]
    unsafe fn read_f16(self, p: *const f16) -> float32x4_t {
        let wide: float32x4_t;
        // SAFETY: the caller vouches for four elements; the instruction is part of NEON and touches
        // registers alone.
        unsafe {
            let halves = vld1_u16(p.cast());
            asm!(
                "fcvtl {wide:v}.4s, {halves:v}.4h",
                wide = lateout(vreg) wide,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        wide
    }
    #[inline(always)]
    unsafe fn read_bf16(self, p: *const bf16) -> float32x4_t {
        // SAFETY: the caller vouches for four elements.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn read_int8(self, p: *const i8) -> float32x4_t {
        // SAFETY: the caller vouches for four bytes, which need not be aligned.
        unsafe {
            let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn read_quads(self, p: *const i8) -> float32x4_t {
        // SAFETY: `self` proves the instruction, the caller vouches for sixteen bytes.
        unsafe { vreinterpretq_f32_s8(vld1q_s8(p)) }
    }
    #[inline(always)]
    unsafe fn read_nibbles(self, p: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller vouches for four bytes, which need not be aligned.
        unsafe {
            let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned()));
            let words = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
            let low = vandq_u32(words, vdupq_n_u32(15));
            [vcvtq_f32_u32(low), vcvtq_f32_u32(vshrq_n_u32::<4>(words))]
        }
    }
    #[inline(always)]
    unsafe fn read_fp8(self, p: *const Fp8) -> float32x4_t {
        // As `photon_core::kv::from_fp8`: moved to f32's place the exponent is short by 2^120.
        // SAFETY: the caller vouches for four bytes, which need not be aligned.
        unsafe {
            let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned()));
            let codes = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
            let sign = vshlq_n_u32::<24>(vandq_u32(codes, vdupq_n_u32(0x80)));
            let size = vshlq_n_u32::<20>(vandq_u32(codes, vdupq_n_u32(0x7f)));
            let bias = vdupq_n_f32(f32::from_bits((127 + 120) << 23));
            vmulq_f32(vreinterpretq_f32_u32(vorrq_u32(sign, size)), bias)
        }
    }
    #[inline(always)]
    unsafe fn write_f32(self, p: *mut f32, x: float32x4_t) {
        // SAFETY: the caller vouches for four elements; unaligned is allowed.
        unsafe { vst1q_f32(p, x) };
    }
    #[inline(always)]
    unsafe fn write_f16(self, p: *mut f16, x: float32x4_t) {
        // SAFETY: the caller vouches for four elements; the instruction is part of NEON and touches
        // registers alone.
        unsafe {
            let halves: uint16x4_t;
            asm!(
                "fcvtn {halves:v}.4h, {x:v}.4s",
                halves = lateout(vreg) halves,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
            vst1_u16(p.cast(), halves);
        }
    }
    #[inline(always)]
    unsafe fn write_bf16(self, p: *mut bf16, x: float32x4_t) {
        // SAFETY: `self` proves the instructions, the caller vouches for four elements.
        unsafe {
            let bits = vreinterpretq_u32_f32(x);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
            let chosen = vbslq_u32(vceqq_f32(x, x), rounded, quiet);
            vst1_u16(p.cast(), vshrn_n_u32::<16>(chosen));
        }
    }
    #[inline(always)]
    unsafe fn write_low_bytes(self, p: *mut u8, x: float32x4_t) {
        // SAFETY: `self` proves the instructions, the caller vouches for four bytes, which need not be aligned.
        unsafe {
            let words = vmovn_u32(vreinterpretq_u32_f32(x));
            let bytes = vmovn_u16(vcombine_u16(words, words));
            p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)));
        }
    }
}
