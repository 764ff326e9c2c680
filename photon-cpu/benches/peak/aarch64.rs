//! As many multiplications and additions as registers allow, for each kind of instruction.
use std::{
    arch::{aarch64::*, asm, is_aarch64_feature_detected},
    hint::black_box,
};

use super::Peak;

/// Enough independent chains to keep four units of latency four or five busy.
const CHAINS: usize = 20;

/// Does so many steps.
type Chains = unsafe fn(usize);

/// What this processor has for a kind of arithmetic, and operations of a step.
pub(super) fn best(peak: Peak) -> Option<(Chains, usize)> {
    match peak {
        Peak::Floats => Some((floats, CHAINS * 4 * 2)),
        Peak::Pairs => is_aarch64_feature_detected!("bf16").then_some((pairs, CHAINS * 8 * 2)),
        Peak::Bytes => is_aarch64_feature_detected!("dotprod").then_some((quads, CHAINS * 16 * 2)),
        Peak::Read | Peak::HandOver => None,
    }
}

macro_rules! chains {
    ($name:ident, $instruction:literal) => {
        /// # Safety
        /// The processor has the instruction.
        unsafe fn $name(steps: usize) {
            // SAFETY: all of these processors have vectors.
            let one = unsafe { vdupq_n_f32(1.0) };
            // Unknown to the compiler, or it would see that all chains are one.
            let (mut all, x) = (black_box([one; CHAINS]), black_box(one));
            for _ in 0..steps {
                for sum in &mut all {
                    // SAFETY: the caller vouches for the instruction, which touches registers alone.
                    unsafe {
                        asm!($instruction, sum = inout(vreg) *sum, x = in(vreg) x,
                            options(pure, nomem, nostack, preserves_flags));
                    }
                }
            }
            black_box(all);
        }
    };
}
chains!(floats, "fmla {sum:v}.4s, {x:v}.4s, {x:v}.4s");
chains!(pairs, ".arch_extension bf16\nbfdot {sum:v}.4s, {x:v}.8h, {x:v}.8h");
chains!(quads, ".arch_extension dotprod\nsdot {sum:v}.4s, {x:v}.16b, {x:v}.16b");
