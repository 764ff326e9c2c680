//! Numbers that look random and are the same on every machine: SplitMix64.

#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A stream of its own for each pair.
    pub(crate) fn new(seed: u64, stream: u64) -> Rng {
        Rng(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// In `from..to`.
    pub(crate) fn between(&mut self, from: u32, to: u32) -> u32 {
        from + (self.unit() * (to - from) as f32) as u32
    }

    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.between(0, items.len() as u32) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_different() {
        // The first output of SplitMix64 from 0 as published with it.
        assert_eq!(Rng(0).bits(), 0xE220_A839_7B1D_CDAF);
        let draw = |stream| Rng::new(7, stream).between(0, 1_000_000);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut rng = Rng::new(1, 1);
        assert!((0..10_000).all(|_| (3..9).contains(&rng.between(3, 9))));
    }
}
