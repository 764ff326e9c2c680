//! Many operations in many orders, against memory that must read back, a naive model that knows what must
//! happen, and a cache that never forgets.
use photon_kv::TokenKey;

use crate::world::{World, keys, namespace};

struct Rng(u64);

impl Rng {
    /// SplitMix64.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// Two letters, so that prefixes meet often.
    fn key(&mut self) -> TokenKey {
        TokenKey::text(self.below(2) as u32)
    }

    /// A new word, or one from before with another end.
    fn word(&mut self, world: &World) -> Vec<TokenKey> {
        let mut word = Vec::new();
        if !world.kept.is_empty() && self.below(2) == 0 {
            let (_, kept) = &world.kept[self.below(world.kept.len())];
            word.extend(&kept[..self.below(kept.len() + 1)]);
        }
        let more = 1 + self.below(20);
        word.extend((0..more).map(|_| self.key()));
        word.truncate(24);
        word
    }
}

fn run(seed: u64) {
    let mut rng = Rng(seed);
    let block_size = 1 + rng.below(5);
    // Every fourth pool is so large that nothing is ever evicted: then hits are exactly what was kept.
    let roomy = seed.is_multiple_of(4);
    let num_blocks = if roomy { 1000 } else { 4 + rng.below(40) };
    let mut world = World::new(num_blocks as u32, block_size as u32);
    for _ in 0..60 {
        operate(&mut rng, &mut world, roomy);
    }
}

fn operate(rng: &mut Rng, world: &mut World, roomy: bool) {
    let pick = (!world.live.is_empty()).then(|| rng.below(world.live.len()));
    match (rng.below(12), pick) {
        (0..=3, _) => {
            let (space, keys) = (namespace(rng.below(2) as u64), rng.word(world));
            let kept = world.longest_kept(&space, &keys);
            let hit = world.plan(space, &keys);
            if roomy {
                assert_eq!(hit.unwrap().tokens as usize, kept, "{keys:?}");
            }
        }
        (4, Some(i)) if rng.below(2) == 0 => drop(world.extend(i, rng.key())),
        (4, Some(i)) => world.guess(i, 1 + rng.below(9)),
        (5..=6, _) => world.step(),
        (7..=8, Some(i)) => {
            // Mostly a sequence publishes more and more of itself, but less is no mistake.
            let computed = world.live[i].computed;
            let len = if rng.below(2) == 0 { computed } else { rng.below(computed + 1) };
            world.publish(i, len);
        }
        (9, Some(i)) => {
            let computed = world.live[i].computed;
            let len = if rng.below(2) == 0 { computed } else { rng.below(computed + 1) };
            world.release(i, len);
        }
        (10, Some(i)) => world.drop_lease(i),
        (11, _) if rng.below(2) == 0 => world.copies_done(),
        (11, _) if !roomy && rng.below(4) == 0 => world.clear(),
        _ => {}
    }
}

#[test]
fn random_orders() {
    for seed in 0..6000 {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}

/// Every order of six operations at two slots a block, in a pool of five blocks.
#[test]
fn all_short_orders() {
    let words = ["abab", "abb", "a"].map(keys);
    let space = namespace(0);
    for order in 0..8u32.pow(6) {
        let mut world = World::new(6, 2);
        for place in 0..6 {
            match order / 8u32.pow(place) % 8 {
                word @ 0..3 => drop(world.plan(space, &words[word as usize])),
                3 => world.step(),
                _ if world.live.is_empty() => break,
                4 => world.publish(0, world.live[0].computed),
                5 => world.release(0, world.live[0].computed),
                6 => drop(world.extend(0, keys("b")[0])),
                _ => world.drop_lease(world.live.len() - 1),
            }
        }
    }
}
