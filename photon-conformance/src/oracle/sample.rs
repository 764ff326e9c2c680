//! The sampler, written a second time from the definition in `photon_core::sampler`.
//!
//! Where the other one filters and sums lazily, this one makes the whole table of candidates, ranks
//! it and strikes out, in the definition's order.
use photon_core::{SampleParams, sampler::NO_TOKEN};

/// An id that takes part.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: usize,
    logit: f32,
    mass: u64,
}

/// `2^x` for `x <= 0` in the fixed f32 operations of the definition: nearest integer, a polynomial
/// of degree 6 in Horner form with fused multiply-adds, an exponent.
fn exp2p(x: f32) -> f32 {
    if x < -126.0 {
        return 0.0;
    }
    let whole = x.round_ties_even();
    let f = x - whole;
    // ln(2)^i / i! for i = 0, 1, ..., 6.
    const SERIES: [f32; 7] =
        [1.0, 6.931_472e-1, 2.402_265e-1, 5.550_411e-2, 9.618_129e-3, 1.333_355_8e-3, 1.540_353e-4];
    let polynomial = SERIES.iter().rev().copied().reduce(|p, c| p.mul_add(f, c));
    // A power of two is exact, however it is made.
    polynomial.expect("seven coefficients") * (whole as f64).exp2() as f32
}

/// Philox4x32-10 with counter (position, stream, 0, 0): the first two words.
fn philox(seed: [u32; 2], position: u32, stream: u32) -> u64 {
    let high_low = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    let mut counter = [position, stream, 0, 0];
    for round in 0..10u32 {
        let key = [
            seed[0].wrapping_add(round.wrapping_mul(0x9E37_79B9)),
            seed[1].wrapping_add(round.wrapping_mul(0xBB67_AE85)),
        ];
        let (high0, low0) = high_low(0xD251_1F53, counter[0]);
        let (high1, low1) = high_low(0xCD9E_8D57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    (u64::from(counter[1]) << 32) | u64::from(counter[0])
}

/// The id, and the logarithm of its probability before truncation. `set` says of each id whether the mask
/// has it.
pub(crate) fn sample(row: &[f32], params: &SampleParams, set: Option<&[bool]>) -> (i32, f64) {
    let allows_all = params.allowed.iter().all(|&a| a < 0);
    let takes_part = |id: i32, v: f32| {
        let named = allows_all || params.allowed.contains(&id);
        let in_set = set.is_none_or(|set| set[id as usize]);
        named && in_set && !params.banned.contains(&id) && v != f32::NEG_INFINITY
    };
    let ids = (0..row.len()).filter(|&id| takes_part(id as i32, row[id]));
    let ids: Vec<usize> = ids.collect();
    if ids.is_empty() || ids.iter().any(|&id| row[id].is_nan()) {
        return (NO_TOKEN, f64::NAN);
    }
    let max = ids.iter().map(|&id| row[id]).fold(f32::NEG_INFINITY, f32::max);
    let greedy = params.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { params.temperature };
    let gap = |v: f32| if v == max { 0.0 } else { v - max };
    let mass = |v: f32| {
        let scaled = gap(v) * (std::f32::consts::LOG2_E / temperature);
        (exp2p(scaled) * 2f32.powi(30)).floor() as u64
    };
    let mut ranked: Vec<Candidate> =
        ids.iter().map(|&id| Candidate { id, logit: row[id], mass: mass(row[id]) }).collect();
    let whole: u64 = ranked.iter().map(|c| c.mass).sum();
    let probability =
        |v: f32| f64::from(gap(v)) / f64::from(temperature) - (whole as f64 / 2f64.powi(30)).ln();
    if greedy {
        let id = ids.iter().copied().find(|&id| row[id] == max).expect("the maximum is of the row");
        return (id as i32, probability(max));
    }

    ranked.sort_by(|a, b| {
        b.logit.partial_cmp(&a.logit).expect("no NaN is left").then(a.id.cmp(&b.id))
    });
    let floor = (params.min_p.min(1.0) * 2f32.powi(30)).floor() as u64;
    let mut rank = 0;
    ranked.retain(|c| {
        rank += 1;
        let is_first = rank == 1;
        let in_top_k = params.top_k == 0 || rank <= params.top_k as usize;
        is_first || (in_top_k && c.mass >= floor)
    });
    let left: u64 = ranked.iter().map(|c| c.mass).sum();
    let share = (params.top_p * 65536.0).floor() as u128;
    let limit = (u128::from(left) * share) >> 16;
    let mut before = 0u128;
    ranked.retain(|c| {
        let keep = before <= limit || before == 0;
        before += u128::from(c.mass);
        keep
    });

    ranked.sort_by_key(|c| c.id);
    let kept: u64 = ranked.iter().map(|c| c.mass).sum();
    let random = u128::from(philox(params.seed, params.position, params.stream));
    let target = ((random * u128::from(kept)) >> 64) as u64;
    let mut sum = 0;
    for c in &ranked {
        sum += c.mass;
        if sum > target {
            return (c.id as i32, probability(c.logit));
        }
    }
    panic!("the target is below the sum of kept mass");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_implementations_agree_on_the_published_philox_vector() {
        assert_eq!(philox([0, 0], 0, 0), 0xe169_c58d_6627_e8d5);
        assert_eq!(philox([3, 9], 5, 7), photon_core::sampler::philox([3, 9], 5, 7));
    }

    #[test]
    fn masses_are_the_integers_of_an_exponential() {
        for i in 0..2000 {
            let x = -(i as f32) / 16.0;
            let want = f64::from(x).exp2();
            assert!((f64::from(exp2p(x)) - want).abs() <= 3e-7 * want, "exp2p({x})");
        }
    }
}
