//! Numbers from a seed, the same on every machine: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
//!
//! The environment variable [`SALT_VARIABLE`] changes all of them at once, to look for bugs that the usual
//! numbers miss; failures name it.
use std::sync::LazyLock;

/// A number that every seed is combined with; 0, or unset, for the usual ones.
pub(crate) const SALT_VARIABLE: &str = "PHOTON_CONFORMANCE_SALT";

/// The salt of this run.
///
/// # Panics
/// If the variable holds no number.
pub(crate) fn salt() -> u64 {
    static SALT: LazyLock<u64> = LazyLock::new(|| match std::env::var(SALT_VARIABLE) {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("{SALT_VARIABLE}={text}: set a whole number"))
        }
        Err(_) => 0,
    });
    *SALT
}

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Rng((seed ^ salt().rotate_left(32)).wrapping_mul(0xD134_2543_DE82_EF95))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; the bias of a plain remainder is far below what any test could see.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in `[-1, 1)`, in steps of 2^-23.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// `n` numbers in `[-scale, scale)`.
    pub(crate) fn floats(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * scale).collect()
    }

    /// The numbers `0..n` in random order.
    pub(crate) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut ids: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            ids.swap(i, self.below(i + 1));
        }
        ids
    }
}
