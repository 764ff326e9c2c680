//! Vectors of f32, one implementation per instruction set, and the functions written on them once.
//!
//! A value of a type that implements [`Simd`] is proof that the processor has the instructions, so
//! its methods are safe. They inline into whatever calls them, and only inside [`Simd::run`] does the
//! compiler know that it may use the instructions: hot loops live in the `call` of an [`Op`], marked
//! `#[inline(always)]`. A closure is a function of its own, which does not have that mark: unless it happens to be inlined, each
//! instruction in it is a call, so what a loop does to vectors is a trait's method.
//!
//! Deliberately absent: reductions, shuffles and arithmetic on integers but for what dot products take.
#![allow(unsafe_code, reason = "vector intrinsics, and loads and stores through pointers")]

use half::{bf16, f16};
use photon_core::Activation;

use crate::isa::Isa;

#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;

/// Elements of the longest vector.
pub(crate) const MAX_LANES: usize = 16;

/// A computation generic over the instruction set.
pub(crate) trait Op {
    /// What it yields.
    type Output;
    /// Does it. Implementations are `#[inline(always)]`.
    fn call<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `op` with the instructions of `isa` but its dot products.
///
/// # Panics
/// If this processor does not have them.
pub(crate) fn dispatch<O: Op>(isa: Isa, op: O) -> O::Output {
    match isa.base() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::Avx2::<{ PLAIN }>::new().expect(LACKING).run(op),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::Avx512::<{ PLAIN }>::new().expect(LACKING).run(op),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::Neon::<{ PLAIN }>::new().expect(LACKING).run(op),
        isa => {
            assert_eq!(isa, Isa::Portable, "{LACKING}");
            Portable.run(op)
        }
    }
}

/// Runs `op`, whose products are of what `isa` has, with all its instructions.
///
/// # Panics
/// If this processor does not have them.
pub(crate) fn dispatch_product<O: Op>(isa: Isa, op: O) -> O::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => match x86::Avx2::<{ BYTES }>::new() {
            Some(avx) => avx.run(op),
            None => x86::Avx2::<{ x86::BYTES_OF_AVX512 }>::new().expect(LACKING).run(op),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => x86::Avx512::<{ BYTES }>::new().expect(LACKING).run(op),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => x86::Avx512::<{ PAIRS }>::new().expect(LACKING).run(op),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => neon::Neon::<{ BYTES }>::new().expect(LACKING).run(op),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonBf16 => neon::Neon::<{ PAIRS }>::new().expect(LACKING).run(op),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm => neon::Neon::<{ BLOCKS }>::new().expect(LACKING).run(op),
        isa => dispatch(isa, op),
    }
}

/// What an instruction set has beside their ordinary instructions: no dot products.
pub(crate) const PLAIN: u8 = 0;
/// Dot products of bytes in fours.
pub(crate) const BYTES: u8 = 1;
/// [`BYTES`], and of pairs of bf16.
pub(crate) const PAIRS: u8 = 2;
/// [`PAIRS`], and products of two rows with two columns.
pub(crate) const BLOCKS: u8 = 3;

/// Runs `op` with the instructions of `isa`, which has dot products of pairs.
///
/// # Panics
/// If it has not, or this processor does not have them.
pub(crate) fn dispatch_pairs<O: Op>(isa: Isa, op: O) -> O::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => x86::Avx512::<{ PAIRS }>::new().expect(LACKING).run(op),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonBf16 | Isa::NeonI8mm => neon::Neon::<{ PAIRS }>::new().expect(LACKING).run(op),
        isa => unreachable!("{} has no dot products of pairs", isa.name()),
    }
}

const LACKING: &str = "an Isa that this processor does not have";

/// What one factor of [`Simd::dot_quads`] has on top: x86 multiplies signed bytes with unsigned ones, AArch64 signed
/// ones with each other.
pub(crate) const QUAD_BIAS: u8 = if cfg!(target_arch = "aarch64") { 0 } else { 128 };

/// An instruction set: arithmetic on vectors of [`Simd::LANES`] f32.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// Elements of a vector.
    const LANES: usize;
    /// Vectors that fit in registers.
    const REGISTERS: usize;
    /// What there is beside ordinary instructions: [`PLAIN`], [`BYTES`], [`PAIRS`] or [`BLOCKS`].
    const DOTS: u8 = PLAIN;

    /// Runs `op` where the compiler may use the instructions.
    fn run<O: Op>(self, op: O) -> O::Output;

    /// All elements `x`.
    fn splat(self, x: f32) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`: rounded once where the instruction set can, else twice.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Adds the low bits of `n` to the exponent of `x`.
    fn shift_exponent(self, x: Self::V, n: Self::V) -> Self::V;
    /// Each element's upper 16 bits, with zeros below: the second bf16 of a pair.
    fn upper(self, x: Self::V) -> Self::V;
    /// Each element's lower 16 bits moved up: the first bf16 of a pair.
    fn lower(self, x: Self::V) -> Self::V;
    /// Pairs of bf16, given as f32 that are some: `first` in the lower 16 bits.
    fn pair(self, first: Self::V, second: Self::V) -> Self::V;

    /// Pairs of bf16, given as f32 that are some: neighbors in `first` and then `second`.
    #[inline(always)]
    fn neighbors(self, first: Self::V, second: Self::V) -> Self::V {
        let mut all = [0.0; 2 * MAX_LANES];
        store(self, &mut all, first);
        store(self, &mut all[Self::LANES..], second);
        let every_other =
            |from: usize| -> [f32; MAX_LANES] { std::array::from_fn(|i| all[2 * i + from]) };
        self.pair(load(self, &every_other(0)), load(self, &every_other(1)))
    }

    /// `acc + a1 * b1 + a0 * b0` for pairs of bf16 `(a0, a1)`, `(b0, b1)`, in this order.
    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let acc = self.fma(self.upper(a), self.upper(b), acc);
        self.fma(self.lower(a), self.lower(b), acc)
    }

    /// `acc`, integers, plus products of bytes, four to an element: those of `a` signed, of `b` unsigned, or
    /// signed where [`QUAD_BIAS`] is 0.
    #[inline(always)]
    fn dot_quads(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        quads_without_instruction(self, acc, a, b)
    }

    /// `acc`, two rows of two sums, plus the products of two rows in `a` with two columns in `b`, four elements of
    /// bf16 each.
    #[inline(always)]
    fn multiply_blocks(self, _acc: Self::V, _a: Self::V, _b: Self::V) -> Self::V {
        unreachable!("no products of two rows with two columns")
    }
    /// As [`Simd::multiply_blocks`], sums of integers and eight elements of signed bytes each.
    #[inline(always)]
    fn multiply_byte_blocks(self, _acc: Self::V, _a: Self::V, _b: Self::V) -> Self::V {
        unreachable!("no products of two rows with two columns")
    }
    /// The first halves of both vectors, and the second halves: turns two blocks of two by two into two rows, and
    /// back.
    #[inline(always)]
    fn halves(self, _x: Self::V, _y: Self::V) -> [Self::V; 2] {
        unreachable!("no products of two rows with two columns")
    }

    /// From bytes of four rows, `4 * LANES` each, those of a column beside each other: four vectors, in an order of
    /// columns that [`Simd::quads_in_order`] undoes.
    fn quads(self, rows: [Self::V; 4]) -> [Self::V; 4];
    /// Elements that belong to the columns of [`Simd::quads`], in order.
    fn quads_in_order(self, columns: [Self::V; 4]) -> [Self::V; 4];
    /// The lower halves of all bytes, then the upper ones, as bytes.
    fn nibbles(self, x: Self::V) -> [Self::V; 2];
    /// Integers as floats.
    fn to_float(self, x: Self::V) -> Self::V;

    /// Turns rows into columns: element `j` of vector `i` becomes element `i` of vector `j`, among the
    /// first `LANES` vectors.
    fn transpose(self, rows: [Self::V; MAX_LANES]) -> [Self::V; MAX_LANES];

    /// Asks for the cache line at `p`, which may be any address.
    fn prefetch<T>(self, p: *const T);
    /// As [`Simd::prefetch`], but no nearer than the second-level cache.
    fn prefetch_second<T>(self, p: *const T);

    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn read_f32(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn read_f16(self, p: *const f16) -> Self::V;
    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn read_bf16(self, p: *const bf16) -> Self::V;
    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn read_int8(self, p: *const i8) -> Self::V;
    /// Half a vector from each pointer.
    ///
    /// # Safety
    /// `LANES / 2` elements can be read at both.
    #[inline(always)]
    unsafe fn read_halves(self, _first: *const f32, _second: *const f32) -> Self::V {
        unreachable!("no products of two rows with two columns")
    }
    /// Codes in fours, each plus [`QUAD_BIAS`]: the second factor of [`Simd::dot_quads`].
    ///
    /// # Safety
    /// `4 * LANES` bytes can be read at `p`.
    unsafe fn read_quads(self, p: *const i8) -> Self::V;
    /// Bytes as pairs of numbers from 0 to 15: the lower halves, then the upper ones.
    ///
    /// # Safety
    /// `LANES` bytes can be read at `p`.
    unsafe fn read_nibbles(self, p: *const u8) -> [Self::V; 2];
    /// As [`photon_core::kv::from_fp8`].
    ///
    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn read_fp8(self, p: *const Fp8) -> Self::V;
    /// # Safety
    /// `LANES` elements can be written at `p`.
    unsafe fn write_f32(self, p: *mut f32, x: Self::V);
    /// # Safety
    /// `LANES` elements can be written at `p`.
    unsafe fn write_f16(self, p: *mut f16, x: Self::V);
    /// # Safety
    /// `LANES` elements can be written at `p`.
    unsafe fn write_bf16(self, p: *mut bf16, x: Self::V);
    /// Writes the lowest byte of each element.
    ///
    /// # Safety
    /// `LANES` bytes can be written at `p`.
    unsafe fn write_low_bytes(self, p: *mut u8, x: Self::V);
}

/// [`Simd::dot_quads`] for levels without such an instruction, which store nothing as such bytes.
fn quads_without_instruction<S: Simd>(s: S, acc: S::V, a: S::V, b: S::V) -> S::V {
    let (mut sums, mut signed, mut unsigned) =
        ([0.0; MAX_LANES], [0.0; MAX_LANES], [0.0; MAX_LANES]);
    store(s, &mut sums, acc);
    store(s, &mut signed, a);
    store(s, &mut unsigned, b);
    for (sum, (a, b)) in sums.iter_mut().zip(signed.iter().zip(&unsigned)).take(S::LANES) {
        let bytes = |x: &f32| x.to_bits().to_le_bytes();
        let products = bytes(a).into_iter().zip(bytes(b));
        let second = |b: u8| if QUAD_BIAS == 0 { i32::from(b as i8) } else { i32::from(b) };
        let products = products.map(|(a, b)| i32::from(a as i8) * second(b));
        *sum = f32::from_bits(products.fold(sum.to_bits() as i32, i32::wrapping_add) as u32);
    }
    load(s, &sums)
}

/// A code of e4m3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Fp8(pub(crate) u8);

/// A type that vectors are read from.
pub(crate) trait Readable: Copy + Default + Send + Sync + 'static {
    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn read<S: Simd>(s: S, p: *const Self) -> S::V;
}

macro_rules! readable {
    ($type:ty, $read:ident) => {
        impl Readable for $type {
            #[inline(always)]
            unsafe fn read<S: Simd>(s: S, p: *const Self) -> S::V {
                // SAFETY: the same contract.
                unsafe { s.$read(p) }
            }
        }
    };
}
readable!(f32, read_f32);
readable!(f16, read_f16);
readable!(bf16, read_bf16);
readable!(i8, read_int8);
readable!(Fp8, read_fp8);

/// A float type that vectors are read from and, rounded to nearest even, written to. Where products of pairs of bf16 are
/// instructions, subnormals may become zero, as they do in those products.
pub(crate) trait Element: Readable {
    /// # Safety
    /// `LANES` elements can be written at `p`.
    unsafe fn write<S: Simd>(s: S, p: *mut Self, x: S::V);
}

macro_rules! element {
    ($type:ty, $write:ident) => {
        impl Element for $type {
            #[inline(always)]
            unsafe fn write<S: Simd>(s: S, p: *mut Self, x: S::V) {
                // SAFETY: the same contract.
                unsafe { s.$write(p, x) }
            }
        }
    };
}
element!(f32, write_f32);
element!(f16, write_f16);
element!(bf16, write_bf16);

/// The first elements of `x`.
#[inline(always)]
pub(crate) fn load<S: Simd, T: Readable>(s: S, x: &[T]) -> S::V {
    let x = &x[..S::LANES];
    // SAFETY: the slice has `LANES` elements.
    unsafe { T::read(s, x.as_ptr()) }
}

/// Overwrites the first elements of `out`.
#[inline(always)]
pub(crate) fn store<S: Simd, T: Element>(s: S, out: &mut [T], x: S::V) {
    let out = &mut out[..S::LANES];
    // SAFETY: the slice has `LANES` elements.
    unsafe { T::write(s, out.as_mut_ptr(), x) }
}

/// Folds lanes, half with half: as chains of scalars, sixteen take longer than some hundred elements before them.
macro_rules! fold_lanes {
    ($s:expr, $x:expr, $fold:expr) => {{
        let mut lanes = [0.0; MAX_LANES];
        store($s, &mut lanes, $x);
        let mut half = S::LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = $fold(lanes[i], lanes[i + half]);
            }
            half /= 2;
        }
        lanes[0]
    }};
}

/// The sum of all elements.
#[inline(always)]
pub(crate) fn sum_of_lanes<S: Simd>(s: S, x: S::V) -> f32 {
    fold_lanes!(s, x, |a: f32, b: f32| a + b)
}

/// The largest element.
#[inline(always)]
pub(crate) fn max_of_lanes<S: Simd>(s: S, x: S::V) -> f32 {
    fold_lanes!(s, x, f32::max)
}

/// The largest magnitude of whole vectors' elements, or NaN if one of them is not finite.
#[inline(always)]
pub(crate) fn magnitude<'a, S: Simd, T: Readable>(
    s: S,
    vectors: impl Iterator<Item = &'a [T]>,
) -> f32 {
    let (mut largest, mut poison) = (s.splat(0.0), s.splat(0.0));
    for x in vectors {
        let x = load(s, x);
        largest = s.max(s.max(x, s.sub(s.splat(0.0), x)), largest);
        poison = s.fma(x, s.splat(0.0), poison);
    }
    max_of_lanes(s, largest) + sum_of_lanes(s, poison)
}

/// `out[i] = x[i]`, converted.
pub(crate) struct Convert<'a, T, U> {
    pub(crate) out: &'a mut [T],
    pub(crate) x: &'a [U],
}

impl<T: Element, U: Readable> Op for Convert<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Convert { out, x } = self;
        assert_eq!(out.len(), x.len());
        // Longest vector: 16.
        let (mut tail_in, mut tail_out) = ([U::default(); 16], [T::default(); 16]);
        let mut out = out.chunks_exact_mut(S::LANES);
        let mut x = x.chunks_exact(S::LANES);
        for (out, x) in out.by_ref().zip(x.by_ref()) {
            store(s, out, load(s, x));
        }
        let (out, x) = (out.into_remainder(), x.remainder());
        tail_in[..x.len()].copy_from_slice(x);
        store(s, &mut tail_out, load(s, &tail_in));
        out.copy_from_slice(&tail_out[..out.len()]);
    }
}

/// `e^x` within 2 units in the last place; arguments are clamped to `-87.3 ..= 88.3`, so the result is
/// never zero, subnormal or infinite. NaN gives a number.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has so few bits that n times it is exact.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = s.max(s.min(x, s.splat(88.3)), s.splat(-87.3));
    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2.0), x);
    let r = s.fma(n, s.splat(-LN2.1), r);
    // Cephes `expf`: minimax for (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2.
    let mut p = s.splat(1.987_569_2e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(s.mul(r, r), p, s.add(r, s.splat(1.0)));
    s.shift_exponent(p, shifted)
}

/// GELU, tanh form: `0.5 x (1 + tanh(u)) = x / (1 + e^(-2u))`, `u = sqrt(2/pi) (x + 0.044715 x^3)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    const SCALE: f32 = -1.595_769; // -2 sqrt(2/pi)
    let inner = s.fma(s.mul(x, x), s.splat(0.044_715 * SCALE), s.splat(SCALE));
    let e = exp(s, s.mul(x, inner));
    s.div(x, s.add(s.splat(1.0), e))
}

/// GELU, exact form: `x / 2 (1 + erf(x / sqrt(2)))`.
///
/// With `z = |x| / sqrt(2)`, `1 + erf` is `2 - erfc(z)` or, for negative `x`, `erfc(z)`, and
/// `erfc(z) = e^(-z^2) t p(t)`, `t = 1 / (1 + 0.33 z)`: the form of Abramowitz and Stegun 7.1.26, refitted
/// to 9e-8 of the value for `z <= 9.2`, beyond which it is less than any normal f32.
#[inline(always)]
pub(crate) fn gelu_erf<S: Simd>(s: S, x: S::V) -> S::V {
    const P: f32 = 0.33;
    let zero = s.splat(0.0);
    let size = s.max(x, s.sub(zero, x));
    let z = s.mul(size, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(s.splat(1.0), s.fma(z, s.splat(P), s.splat(1.0)));
    let mut p = s.splat(ERFC[7]);
    for c in ERFC[..7].iter().rev() {
        p = s.fma(p, t, s.splat(*c));
    }
    let square = s.mul(x, s.mul(x, s.splat(-0.5)));
    let half = s.mul(s.mul(s.mul(p, t), s.splat(0.5)), exp(s, square));
    // x (1 - half) where x is positive, x half where it is not: the other part is zero in each.
    s.add(s.mul(s.max(x, zero), s.sub(s.splat(1.0), half)), s.mul(s.min(x, zero), half))
}

/// Coefficients of `p` in [`gelu_erf`], by least relative error.
const ERFC: [f32; 8] = [
    0.186_366_06,
    0.182_837_73,
    0.201_921_72,
    0.045_015_47,
    0.412_535_24,
    -0.355_434_1,
    0.462_686_26,
    -0.135_928_45,
];

/// See [`Activation`].
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::None => x,
        Activation::GeluTanh => gelu_tanh(s, x),
        Activation::GeluErf => gelu_erf(s, x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map<'a, F> {
        x: &'a [f32],
        f: F,
    }

    trait Function {
        fn apply<S: Simd>(&self, s: S, x: S::V) -> S::V;
    }

    impl<F: Function> Op for Map<'_, F> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn call<S: Simd>(self, s: S) -> Vec<f32> {
            assert_eq!(self.x.len() % S::LANES, 0);
            let mut out = vec![0.0; self.x.len()];
            for (out, x) in out.chunks_exact_mut(S::LANES).zip(self.x.chunks_exact(S::LANES)) {
                store(s, out, self.f.apply(s, load(s, x)));
            }
            out
        }
    }

    struct Exp;
    impl Function for Exp {
        #[inline(always)]
        fn apply<S: Simd>(&self, s: S, x: S::V) -> S::V {
            exp(s, x)
        }
    }

    impl Function for Activation {
        #[inline(always)]
        fn apply<S: Simd>(&self, s: S, x: S::V) -> S::V {
            activate(s, *self, x)
        }
    }

    fn grid(low: f32, high: f32) -> Vec<f32> {
        (0..160_000).map(|i| low + (high - low) * i as f32 / 159_999.0).collect()
    }

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        let x = grid(-87.0, 88.0);
        for isa in Isa::available() {
            for (&x, got) in x.iter().zip(dispatch(isa, Map { x: &x, f: Exp })) {
                let want = f64::from(x).exp();
                let err = (f64::from(got) - want).abs() / want;
                assert!(err < 1.5e-7, "{}: exp({x}) = {got}, want {want}", isa.name());
            }
        }
    }

    #[test]
    fn exp_saturates() {
        let x = [f32::NEG_INFINITY, -1e9, -88.0, 89.0, 1e9, f32::INFINITY, 0.0, 1.0].repeat(2);
        for isa in Isa::available() {
            let got = dispatch(isa, Map { x: &x, f: Exp });
            assert!(got[..3].iter().all(|&y| y > 0.0 && y < 2e-38), "{got:?}");
            assert!(got[3..6].iter().all(|&y| y > 2e38 && y.is_finite()), "{got:?}");
            assert_eq!(got[6], 1.0);
        }
    }

    #[test]
    fn gelu_is_close_to_its_definition() {
        let mut x = grid(-12.0, 12.0);
        x.extend(grid(-1e-3, 1e-3));
        for isa in Isa::available() {
            for (&x, got) in x.iter().zip(dispatch(isa, Map { x: &x, f: Activation::GeluTanh })) {
                let x = f64::from(x);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                // 1 + tanh u, without the cancellation.
                let want = x * 2.0 / (1.0 + (-2.0 * u).exp()) / 2.0;
                let err = (f64::from(got) - want).abs();
                // The argument of exp carries up to four roundings, where there is no fused
                // multiplication.
                let bound = want.abs() * (4e-7 + 2.0 * u.abs() * 2.4e-7) + 1e-36;
                assert!(err <= bound, "{}: gelu({x}) = {got}, want {want}", isa.name());
            }
        }
        let ends = [f32::INFINITY, 100.0, -100.0, 0.0].repeat(4);
        for isa in Isa::available() {
            let got = dispatch(isa, Map { x: &ends, f: Activation::GeluTanh });
            assert_eq!(got[..2], [f32::INFINITY, 100.0], "{}", isa.name());
            assert!(got[2].abs() < 1e-30 && got[3] == 0.0, "{}: {got:?}", isa.name());
        }
    }

    /// `erfc(z)` by its series, or for large `z` by its continued fraction.
    fn erfc(z: f64) -> f64 {
        let scale = std::f64::consts::FRAC_2_SQRT_PI * (-z * z).exp();
        if z < 2.5 {
            let mut term = z;
            let mut sum = 0.0;
            for n in 0..80 {
                sum += term;
                term *= 2.0 * z * z / f64::from(2 * n + 3);
            }
            return 1.0 - scale * sum;
        }
        let fraction = (1..120).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
        scale / 2.0 / fraction
    }

    #[test]
    fn exact_gelu_is_close_to_its_definition() {
        let mut x = grid(-12.9, 12.9);
        x.extend(grid(-1e-3, 1e-3));
        for isa in Isa::available() {
            for (&x, got) in x.iter().zip(dispatch(isa, Map { x: &x, f: Activation::GeluErf })) {
                let x = f64::from(x);
                let half = erfc(x.abs() / 2f64.sqrt()) / 2.0;
                let want = if x > 0.0 { x * (1.0 - half) } else { x * half };
                // The argument of exp is rounded: so much of it is lost in the tail.
                let bound = want.abs() * (5e-7 + x * x / 2.0 * 1.3e-7) + 1e-36;
                let err = (f64::from(got) - want).abs();
                assert!(err <= bound, "{}: gelu({x}) = {got}, want {want}", isa.name());
            }
        }
        let ends = [f32::INFINITY, 100.0, -100.0, 0.0, f32::NAN].repeat(16);
        for isa in Isa::available() {
            let got = dispatch(isa, Map { x: &ends, f: Activation::GeluErf });
            assert_eq!(got[..2], [f32::INFINITY, 100.0], "{}", isa.name());
            assert!(
                got[2].abs() < 1e-30 && got[3] == 0.0 && got[4].is_nan(),
                "{}: {got:?}",
                isa.name()
            );
        }
    }

    #[test]
    fn conversions_agree_with_the_scalar_ones() {
        let mut bits: Vec<u32> = (0..=u16::MAX).map(|b| u32::from(b) << 16).collect();
        // Ties, near ties and all exponents, for both 16-bit types.
        for exponent in 0..=255u32 {
            for mantissa in [0, 1, 0x1000, 0x0fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000] {
                bits.push(exponent << 23 | mantissa);
                bits.push(1 << 31 | exponent << 23 | 0x7f_0000 | mantissa);
            }
        }
        let wide: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        for isa in Isa::available() {
            let mut out = vec![f16::ZERO; wide.len()];
            dispatch(isa, Convert { out: &mut out, x: &wide });
            for (x, y) in wide.iter().zip(&out) {
                let want = f16::from_f32(*x);
                assert!(*y == want || (y.is_nan() && want.is_nan()), "{x} to f16: {y}");
                assert_eq!(y.is_sign_negative(), want.is_sign_negative());
            }
            let mut out = vec![bf16::ZERO; wide.len()];
            dispatch(isa, Convert { out: &mut out, x: &wide });
            for (x, y) in wide.iter().zip(&out) {
                let want = bf16::from_f32(*x);
                assert_eq!(y.to_bits(), want.to_bits(), "{}: {x} to bf16", isa.name());
            }
            if isa.has_pairs() {
                dispatch_pairs(isa, Convert { out: &mut out, x: &wide });
                for (x, y) in wide.iter().zip(&out) {
                    let want = bf16::from_f32(*x).to_bits();
                    let flushed = if x.is_subnormal() { want & 0x8000 } else { want };
                    let all = [want, flushed];
                    assert!(all.contains(&y.to_bits()), "{}: {x} to bf16: {y}", isa.name());
                }
            }
            let mut out = vec![0.0f32; halves.len()];
            dispatch(isa, Convert { out: &mut out, x: &halves });
            for (x, y) in halves.iter().zip(&out) {
                assert!(x.to_f32().to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()));
            }
            dispatch(isa, Convert { out: &mut out, x: &brains });
            for (x, y) in brains.iter().zip(&out) {
                assert_eq!(u32::from(x.to_bits()) << 16, y.to_bits());
            }
            let codes: Vec<Fp8> = (0..=u8::MAX).map(Fp8).collect();
            dispatch(isa, Convert { out: &mut out[..256], x: &codes });
            for (x, y) in codes.iter().zip(&out) {
                let want = photon_core::kv::from_fp8(x.0);
                assert_eq!(want.to_bits(), y.to_bits(), "{}: {x:?}", isa.name());
            }
            let codes: Vec<i8> = (i8::MIN..=i8::MAX).collect();
            dispatch(isa, Convert { out: &mut out[..256], x: &codes });
            assert!(codes.iter().zip(&out).all(|(x, y)| f32::from(*x) == *y), "{}", isa.name());
        }
    }

    #[test]
    fn bytes_are_taken_apart_to_nibbles() {
        struct Nibbles(Vec<u8>);
        impl Op for Nibbles {
            type Output = Vec<f32>;
            #[inline(always)]
            fn call<S: Simd>(self, s: S) -> Vec<f32> {
                let mut out = vec![0.0; 512];
                for (bytes, out) in
                    self.0.chunks_exact(S::LANES).zip(out.chunks_exact_mut(2 * S::LANES))
                {
                    // SAFETY: the chunk has so many bytes.
                    let halves = unsafe { s.read_nibbles(bytes.as_ptr()) };
                    store(s, out, halves[0]);
                    store(s, &mut out[S::LANES..], halves[1]);
                }
                out
            }
        }
        for isa in Isa::available() {
            let got = dispatch(isa, Nibbles((0..=255).collect()));
            let mut pairs: Vec<(u8, u8)> = Vec::new();
            for lanes in [4, 8, 16] {
                pairs.clear();
                for chunk in got.chunks_exact(2 * lanes) {
                    pairs.extend((0..lanes).map(|i| (chunk[i] as u8, chunk[lanes + i] as u8)));
                }
                if pairs.iter().enumerate().all(|(i, p)| usize::from(p.0 | p.1 << 4) == i) {
                    break;
                }
            }
            let right = pairs.iter().enumerate().all(|(i, p)| usize::from(p.0 | p.1 << 4) == i);
            assert!(right, "{}: {pairs:?}", isa.name());
        }
    }

    #[test]
    fn transpose_turns_rows_into_columns() {
        struct Transpose;
        impl Op for Transpose {
            type Output = (usize, Vec<[f32; MAX_LANES]>);
            #[inline(always)]
            fn call<S: Simd>(self, s: S) -> Self::Output {
                let row = |i: usize| std::array::from_fn(|j| (100 * i + j) as f32);
                let rows: [[f32; MAX_LANES]; MAX_LANES] = std::array::from_fn(row);
                let columns = s.transpose(rows.map(|row| load(s, &row)));
                let mut out = vec![[0.0; MAX_LANES]; MAX_LANES];
                for (out, column) in out.iter_mut().zip(columns) {
                    store(s, out, column);
                }
                (S::LANES, out)
            }
        }
        for isa in Isa::available() {
            let (lanes, columns) = dispatch(isa, Transpose);
            for (j, column) in columns.iter().enumerate().take(lanes) {
                for (i, x) in column.iter().enumerate().take(lanes) {
                    assert_eq!(*x, (100 * i + j) as f32, "{}", isa.name());
                }
            }
        }
    }

    #[test]
    fn pairs_are_taken_apart_and_multiplied() {
        struct Pairs([f32; 16], [f32; 16]);
        impl Op for Pairs {
            type Output = Vec<f32>;
            #[inline(always)]
            fn call<S: Simd>(self, s: S) -> Vec<f32> {
                let mut out = [0.0; 16];
                let acc = s.splat(0.5);
                store(s, &mut out, s.dot_pairs(acc, load(s, &self.0), load(s, &self.1)));
                out[..S::LANES].to_vec()
            }
        }
        let pair = |first: f32, second: f32| {
            let bits = |x| u32::from(bf16::from_f32(x).to_bits());
            f32::from_bits(bits(second) << 16 | bits(first))
        };
        let a = std::array::from_fn(|i| pair(i as f32, 1.5));
        let b = std::array::from_fn(|i| pair(2.0, -(i as f32)));
        for isa in Isa::available() {
            for (i, got) in dispatch_product(isa, Pairs(a, b)).into_iter().enumerate() {
                assert_eq!(got, 0.5 + 2.0 * i as f32 - 1.5 * i as f32, "{}", isa.name());
            }
        }
    }

    #[test]
    fn bytes_are_multiplied_in_fours_and_rounded_to() {
        struct Quads([f32; 16], [f32; 16]);
        impl Op for Quads {
            type Output = (Vec<f32>, Vec<i8>);
            #[inline(always)]
            fn call<S: Simd>(self, s: S) -> Self::Output {
                let (mut sums, mut bytes) = ([0.0; 16], [0; 16]);
                let acc = s.splat(f32::from_bits(-7_i32 as u32));
                let sum = s.dot_quads(acc, load(s, &self.0), load(s, &self.1));
                store(s, &mut sums, s.to_float(sum));
                // What this constant leaves in the low bits is the nearest integer.
                let x = s.fma(load(s, &RAMP), s.splat(1.0), s.splat(12_582_912.0));
                // SAFETY: there are sixteen.
                unsafe { s.write_low_bytes(bytes.as_mut_ptr(), x) };
                let bytes = bytes[..S::LANES].iter().map(|&byte: &u8| byte as i8);
                (sums[..S::LANES].to_vec(), bytes.collect())
            }
        }
        const RAMP: [f32; 16] = [
            -127.0, -126.6, -3.5, -2.5, -1.4, -0.5, 0.0, 0.5, 0.6, 1.5, 2.5, 63.2, 126.4, 126.6,
            127.0, -0.4,
        ];
        const ROUNDED: [i8; 16] = [-127, -127, -4, -2, -1, 0, 0, 0, 1, 2, 2, 63, 126, 127, 127, 0];
        let a = |i: i32| [i as i8 - 8, -128, 127, 3];
        let b = |i: i32| [127, i as u8, 100, 127 - i as u8].map(|b| b + QUAD_BIAS);
        let float = |bytes: [u8; 4]| f32::from_bits(u32::from_le_bytes(bytes));
        let quads = || {
            Quads(
                std::array::from_fn(|i| float(a(i as i32).map(|x| x as u8))),
                std::array::from_fn(|i| float(b(i as i32))),
            )
        };
        for isa in Isa::available() {
            let (sums, bytes) = dispatch_product(isa, quads());
            for (i, sum) in (0..).zip(sums) {
                let products = a(i).into_iter().zip(b(i));
                let want: i32 = products.map(|(a, b)| i32::from(a) * i32::from(b)).sum();
                assert_eq!(sum, (want - 7) as f32, "{}: {i}", isa.name());
            }
            assert_eq!(bytes, ROUNDED[..bytes.len()], "{}", isa.name());
        }
    }
    #[test]
    fn bytes_of_four_rows_come_together_by_columns() {
        struct Columns<'a>(&'a [[i8; 4 * MAX_LANES]; 4]);
        impl Op for Columns<'_> {
            type Output = Vec<[u8; 4]>;
            #[inline(always)]
            fn call<S: Simd>(self, s: S) -> Self::Output {
                // SAFETY: a row is as long as the longest vector.
                let read = |row: &[i8; 4 * MAX_LANES]| unsafe { s.read_quads(row.as_ptr()) };
                let rows = [read(&self.0[0]), read(&self.0[1]), read(&self.0[2]), read(&self.0[3])];
                let mut words = [0.0; 4 * MAX_LANES];
                for (out, v) in words.chunks_mut(S::LANES).zip(s.quads_in_order(s.quads(rows))) {
                    store(s, out, v);
                }
                words[..4 * S::LANES].iter().map(|word| word.to_bits().to_le_bytes()).collect()
            }
        }
        let code = |row: usize, column: usize| (64 * row + column) as i8;
        let rows = std::array::from_fn(|row| std::array::from_fn(|column| code(row, column)));
        for isa in Isa::available() {
            for (column, word) in dispatch_product(isa, Columns(&rows)).into_iter().enumerate() {
                let want: [_; 4] = std::array::from_fn(|row| code(row, column) as u8);
                let want = want.map(|code| code.wrapping_add(QUAD_BIAS));
                assert_eq!(word, want, "{}: column {column}", isa.name());
            }
        }
    }
}
