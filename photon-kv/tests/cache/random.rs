//! Many operations in many orders, against memory that must read back and a cache that never forgets.
use photon_kv::TokenKey;

use crate::world::{World, namespace};

struct Rng(u64);

impl Rng {
    /// SplitMix64.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Two words, so that prefixes meet often.
fn word(rng: &mut Rng, max: usize) -> Vec<TokenKey> {
    (0..1 + rng.below(max)).map(|_| TokenKey::text(rng.below(2) as u32)).collect()
}

fn run(seed: u64) {
    let mut rng = Rng(seed);
    let block_size = 1 + rng.below(5);
    // Every other pool is so large that nothing is ever evicted: then hits are exactly what was kept.
    let roomy = seed.is_multiple_of(2);
    let num_blocks = if roomy { 2000 } else { 4 + rng.below(30) };
    let mut world = World::new(num_blocks as u32, block_size as u32);
    for _ in 0..60 {
        let pick = (!world.live.is_empty()).then(|| rng.below(world.live.len()));
        match (rng.below(8), pick) {
            (0..=2, _) => {
                let (space, keys) = (namespace(rng.below(2) as u64), word(&mut rng, 20));
                let kept = world.longest_kept(&space, &keys);
                let hit = world.begin(space, &keys);
                if roomy {
                    assert_eq!(hit.unwrap().tokens as usize, kept, "{keys:?}");
                }
            }
            (3, Some(i)) => drop(world.extend(i, TokenKey::text(rng.below(2) as u32))),
            (4, Some(i)) => {
                // A sequence publishes more and more of itself.
                let shared = world.live[i].lease.num_shared() * block_size;
                let len = world.live[i].keys.len();
                world.publish(i, shared + rng.below(len - shared + 1));
            }
            (5, Some(i)) => {
                let len = world.live[i].keys.len();
                world.release(i, rng.below(len + 1));
            }
            (6, Some(i)) => world.drop_lease(i),
            (7, _) if !roomy && rng.below(10) == 0 => world.cache.clear(),
            _ => {}
        }
    }
}

#[test]
fn random_orders() {
    for seed in 0..4000 {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}

/// Every order of five operations on four words of two letters, at two slots a block.
#[test]
fn all_short_orders() {
    let letters = |text: &str| crate::world::keys(text);
    let words = ["a", "ab", "abab", "abb"].map(letters);
    let space = namespace(0);
    for order in 0..8u32.pow(5) {
        let mut world = World::new(6, 2);
        for step in 0..5 {
            match order / 8u32.pow(step) % 8 {
                word @ 0..4 => drop(world.begin(space, &words[word as usize])),
                _ if world.live.is_empty() => {}
                4 => world.publish(0, world.live[0].keys.len()),
                5 => world.release(0, world.live[0].keys.len()),
                6 => drop(world.extend(0, letters("b")[0])),
                _ => world.drop_lease(world.live.len() - 1),
            }
        }
    }
}
