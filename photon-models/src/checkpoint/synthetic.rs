//! Weights made from nothing but a tensor's name and shape.
//!
//! `value[i] = offset + amplitude (2 u - 1)` with `u = (mix(s + (i + 1) GOLDEN) >> 40) 2^-24` and
//! `s = fnv1a64(name) + seed GOLDEN`, all modulo 2^64: integer arithmetic that any language repeats
//! exactly, so golden outputs need no weight files and benchmarks at real size need no download.
use std::collections::BTreeMap;

use photon_core::{DType, WeightFormat};

use super::TensorInfo;

/// Fewer values than this are not worth a thread.
const MIN_PIECE: usize = 1 << 18;

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A checkpoint whose values follow from names, in f32.
#[derive(Debug)]
pub struct Synthetic {
    seed: u64,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Synthetic {
    pub(super) fn new(seed: u64, tensors: Vec<(String, Vec<usize>)>) -> Self {
        Synthetic { seed, shapes: tensors.into_iter().collect() }
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, TensorInfo)> {
        let format = WeightFormat::Float(DType::F32);
        let info = move |shape: &Vec<usize>| TensorInfo { shape: shape.clone(), format };
        self.shapes.iter().map(move |(name, shape)| (name.as_str(), info(shape)))
    }

    /// Made on all processors: the experts of one block are a gigabyte.
    pub(super) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let shape = self.shapes.get(name)?;
        let count: usize = shape.iter().product();
        let (offset, amplitude) = rule(name, shape);
        let start = fnv1a64(name).wrapping_add(self.seed.wrapping_mul(GOLDEN));
        let fill = |first: usize, bytes: &mut [u8]| {
            for (i, out) in (1 + first as u64..).zip(bytes.chunks_exact_mut(4)) {
                let u = (mix(start.wrapping_add(i.wrapping_mul(GOLDEN))) >> 40) as f32;
                let value = offset + amplitude * (2.0 * (u * (-24f32).exp2()) - 1.0);
                out.copy_from_slice(&value.to_le_bytes());
            }
        };
        let mut bytes = vec![0; count * 4];
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let piece = count.div_ceil(threads).max(MIN_PIECE);
        std::thread::scope(|scope| {
            let mut pieces = (0..).step_by(piece).zip(bytes.chunks_mut(4 * piece));
            let own = pieces.next();
            pieces.for_each(|(first, bytes)| drop(scope.spawn(move || fill(first, bytes))));
            own.into_iter().for_each(|(first, bytes)| fill(first, bytes));
        });
        Some(bytes)
    }
}

fn fnv1a64(name: &str) -> u64 {
    name.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

/// The finalizer of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Offset and amplitude by the kind of tensor its name shows.
fn rule(name: &str, shape: &[usize]) -> (f32, f32) {
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let norm = [".ln.", ".ln1.", ".ln2.", "post_ln."].iter().any(|k| name.contains(k));
    match leaf {
        "bias" => (0.0, 0.1),
        "weight" if norm => (1.0, 0.2),
        "coord_features" | "size_features" => (0.0, 2.0),
        "wte" => (0.0, 4.0),
        "pos_emb" | "alpha" => (0.0, 1.0),
        _ => {
            let fan_in = *shape.last().unwrap_or(&1) as f64;
            (0.0, ((3.0 / fan_in).sqrt() * 1.5) as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First values of the rule as its Python definition gives them.
    #[test]
    fn the_rule_gives_the_recorded_values() {
        let source = Synthetic::new(0, vec![("model.text.wte".into(), vec![2, 2])]);
        let bytes = source.bytes("model.text.wte").unwrap();
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(values, WTE);
    }

    /// Any element by itself, wherever the pieces of the threads begin.
    #[test]
    fn large_tensors_follow_the_same_rule() {
        let count = 2 * MIN_PIECE + 3;
        let tensors = vec![("large".into(), vec![count]), ("bias".into(), vec![4])];
        let source = Synthetic::new(3, tensors);
        let bytes = source.bytes("large").unwrap();
        let start = fnv1a64("large").wrapping_add(3u64.wrapping_mul(GOLDEN));
        let (offset, amplitude) = rule("large", &[count]);
        for i in [0, 1, MIN_PIECE - 1, MIN_PIECE, MIN_PIECE + 1, 2 * MIN_PIECE, count - 1] {
            let u = mix(start.wrapping_add((i as u64 + 1).wrapping_mul(GOLDEN))) >> 40;
            let want = offset + amplitude * (2.0 * (u as f32 / 16_777_216.0) - 1.0);
            assert_eq!(bytes[4 * i..4 * i + 4], want.to_le_bytes(), "{i}");
        }
        assert_eq!(bytes.len(), 4 * count);
    }

    const WTE: [f32; 4] = [-0.088_763_24, -1.773_347_4, -3.326_811_8, -0.838_675_5];
}
