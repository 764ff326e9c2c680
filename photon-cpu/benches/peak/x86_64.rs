//! As many multiplications and additions as registers allow, for each kind of instruction.
use std::{arch::x86_64::*, hint::black_box};

use super::Peak;

/// Enough independent chains to keep two units of latency four or five busy.
const CHAINS: usize = 12;

/// Does so many steps.
type Chains = unsafe fn(usize);

/// A kind of arithmetic, whether this processor has the instructions, so many steps of it, and operations of a step.
type Kind = (Peak, fn() -> bool, Chains, usize);
/// Of each kind of arithmetic the best first.
const KINDS: [Kind; 5] = [
    (Peak::Floats, || is_x86_feature_detected!("avx512f"), f32_512, CHAINS * 16 * 2),
    (
        Peak::Floats,
        || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        f32_256,
        CHAINS * 8 * 2,
    ),
    (
        Peak::Pairs,
        || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
        pairs,
        CHAINS * 32 * 2,
    ),
    (
        Peak::Bytes,
        || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"),
        quads_512,
        CHAINS * 64 * 2,
    ),
    (
        Peak::Bytes,
        || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
        quads_256,
        CHAINS * 32 * 2,
    ),
];

/// The best this processor has for a kind of arithmetic, and operations of a step.
pub(super) fn best(peak: Peak) -> Option<(Chains, usize)> {
    let mut kinds = KINDS.iter().filter(|(of, has, ..)| *of == peak && has());
    kinds.next().map(|&(.., chains, operations)| (chains, operations))
}

macro_rules! chains {
    ($name:ident, $features:literal, $one:expr, |$acc:ident, $factor:ident| $step:expr) => {
        #[target_feature(enable = $features)]
        fn $name(steps: usize) {
            // Unknown to the compiler, or it would see that all chains are one.
            let mut all = black_box([$one; CHAINS]);
            let $factor = black_box($one);
            for _ in 0..steps {
                for $acc in &mut all {
                    *$acc = $step;
                }
            }
            black_box(all);
        }
    };
}
chains!(f32_256, "avx2,fma", _mm256_set1_ps(1.0), |acc, x| _mm256_fmadd_ps(*acc, x, x));
chains!(f32_512, "avx512f", _mm512_set1_ps(1.0), |acc, x| _mm512_fmadd_ps(*acc, x, x));
chains!(pairs, "avx512f,avx512bf16", _mm512_set1_ps(1.0), |acc, x| {
    // SAFETY: any bits are valid for both types, of 64 bytes.
    let pairs = unsafe { std::mem::transmute::<__m512, __m512bh>(x) };
    _mm512_dpbf16_ps(*acc, pairs, pairs)
});
chains!(quads_512, "avx512f,avx512vnni", _mm512_set1_epi32(1), |acc, x| {
    _mm512_dpbusd_epi32(*acc, x, x)
});
chains!(quads_256, "avx2,avxvnni", _mm256_set1_epi32(1), |acc, x| {
    _mm256_dpbusd_avx_epi32(*acc, x, x)
});
