//! How a token is drawn from a row of logits: the definition every backend repeats bit for bit.
//!
//! For a row `v` (as f32), one [`SampleParams`] and perhaps a mask (see [`crate::Masks`]):
//!
//! 1. An id takes part if `allowed` is empty or names it, `banned` does not, the mask has it, and `v` is
//!    not minus infinity. A NaN among those, or none left, gives [`NO_TOKEN`].
//! 2. `max` is the largest `v`; the lowest id that has it is the greedy choice, taken if
//!    `temperature == 0`.
//! 3. Each id gets an integer mass `m = floor(2^30 exp2p((v - max) (log2(e) / temperature)))`, where
//!    `exp2p` is [`exp2p`], a fixed sequence of f32 operations. Integer sums do not depend on order,
//!    so any number of threads agrees.
//! 4. Ids are ranked by `v` descending, then id ascending, and kept while `rank < top_k` (0: no
//!    limit), while `m >= floor(2^30 min(min_p, 1))`, and while the mass ranked before the id is at
//!    most `(total floor(2^16 top_p)) >> 16`, where `total` is the mass that `top_k` and `min_p` leave.
//!    The first is always kept.
//! 5. `r` is 64 bits of [`philox`] for (seed, position), `t = (r kept_mass) >> 64`; the choice is the
//!    first id, in ascending order, at which the running sum of kept mass exceeds `t`.
//!
//! The error of a mass is below 2^-30 of the largest, far below the rounding of bf16 logits.

/// The id of a row from which nothing can be drawn.
pub const NO_TOKEN: i32 = -1;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
const ONE: f32 = (1u32 << 30) as f32;

/// How to draw from one row; 64 bytes, uploaded as they are.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SampleParams {
    /// 0 chooses the largest logit; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the likeliest ids up to this share of the mass; 1 keeps all.
    pub top_p: f32,
    /// Drop ids below this share of the likeliest one's mass; 0 drops none.
    pub min_p: f32,
    /// Keep this many of the likeliest ids; 0 keeps all.
    pub top_k: u32,
    /// The request's seed, low word first.
    pub seed: [u32; 2],
    /// The position of the token to be drawn, so that a draw does not depend on the batch.
    pub position: u32,
    /// Separates several draws at one position.
    pub stream: u32,
    /// The only ids that may be drawn; entries of -1 are empty, and all empty allows every id.
    pub allowed: [i32; 4],
    /// Ids that may not be drawn; entries of -1 are empty.
    pub banned: [i32; 4],
}

impl SampleParams {
    /// The largest logit of the whole row.
    pub const GREEDY: SampleParams = SampleParams {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        seed: [0; 2],
        position: 0,
        stream: 0,
        allowed: [-1; 4],
        banned: [-1; 4],
    };

    fn takes_part(&self, id: i32, mask: Option<&[i32]>) -> bool {
        let listed = self.allowed.iter().any(|a| *a >= 0);
        (!listed || self.allowed.contains(&id))
            && !self.banned.contains(&id)
            && mask.is_none_or(|mask| mask_has(mask, id as usize))
    }
}

/// Whether a mask, one bit per id from the lowest up, has `id`.
pub fn mask_has(mask: &[i32], id: usize) -> bool {
    mask[id / 32] >> (id % 32) & 1 == 1
}

/// `2^x` for `x <= 0`, to about 2^-23 relative: split into integer and fraction, a degree-6
/// polynomial in Horner form with fused multiply-adds, and an exponent shift. Below -126 it is 0.
pub fn exp2p(x: f32) -> f32 {
    if x < -126.0 {
        return 0.0;
    }
    let whole = x.round_ties_even();
    let f = x - whole; // In [-0.5, 0.5]: exact.
    // Coefficients ln(2)^i / i!: the series' remainder on [-0.5, 0.5] is below 2^-23.
    let mut p = 1.540_353e-4_f32;
    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
        p = p.mul_add(f, c);
    }
    p * f32::from_bits(((whole as i32 + 127) as u32) << 23)
}

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the first
/// two words of the block for this key and counter (position, stream, 0, 0), low word first.
pub fn philox(seed: [u32; 2], position: u32, stream: u32) -> u64 {
    let (mut k, mut c) = (seed, [position, stream, 0, 0]);
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    u64::from(c[0]) | u64::from(c[1]) << 32
}

/// Draws from one row: the id and the natural logarithm of its probability among those that take part,
/// under the temperature (1 if that is 0), before `top_k`, `top_p` and `min_p`.
pub fn sample_row(row: &[f32], params: &SampleParams, mask: Option<&[i32]>) -> (i32, f32) {
    let mut best: Option<(usize, f32)> = None;
    for (i, &v) in row.iter().enumerate() {
        if v == f32::NEG_INFINITY || !params.takes_part(i as i32, mask) {
            continue;
        }
        if v.is_nan() {
            return (NO_TOKEN, f32::NAN);
        }
        if best.is_none_or(|(_, max)| v > max) {
            best = Some((i, v));
        }
    }
    let Some((argmax, max)) = best else { return (NO_TOKEN, f32::NAN) };
    let temperature = if params.temperature == 0.0 { 1.0 } else { params.temperature };
    let scale = LOG2_E / temperature;
    let mass = |i: usize| -> u64 {
        if row[i] == f32::NEG_INFINITY || !params.takes_part(i as i32, mask) {
            return 0;
        }
        // Equal infinities would give NaN; an infinite maximum leaves only its equals.
        let gap = if row[i] == max { 0.0 } else { row[i] - max };
        (exp2p(gap * scale) * ONE) as u64
    };
    let total: u64 = (0..row.len()).map(mass).sum();
    let logprob = |i: usize| {
        let gap = if row[i] == max { 0.0 } else { row[i] - max };
        gap / temperature - (total as f64 / f64::from(ONE)).ln() as f32
    };
    if params.temperature == 0.0 {
        return (argmax as i32, logprob(argmax));
    }
    let kept = kept(row, params, &mass);
    let kept_mass: u64 = kept.iter().map(|&i| mass(i)).sum();
    let draw = u128::from(philox(params.seed, params.position, params.stream));
    let target = ((draw * u128::from(kept_mass)) >> 64) as u64;
    let mut sum = 0;
    let chosen = kept.iter().copied().find(|&i| {
        sum += mass(i);
        sum > target
    });
    let id = chosen.expect("the target is below the sum of kept mass");
    (id as i32, logprob(id))
}

/// The ids that survive step 4, ascending.
fn kept(row: &[f32], params: &SampleParams, mass: &dyn Fn(usize) -> u64) -> Vec<usize> {
    let floor = (params.min_p.min(1.0) * ONE) as u64;
    let mut ids: Vec<usize> = (0..row.len()).filter(|&i| mass(i) >= floor.max(1)).collect();
    if params.top_k == 0 && params.top_p >= 1.0 {
        return ids;
    }
    ids.sort_unstable_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    if params.top_k > 0 {
        ids.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let total: u64 = ids.iter().map(|&i| mass(i)).sum();
        // Mass below 2^47 (2^17 ids of 2^30) times 2^16 fits 64 bits.
        let limit = (total * (params.top_p * 65536.0) as u64) >> 16;
        let mut before = 0;
        let end = ids.iter().position(|&i| {
            let over = before > limit;
            before += mass(i);
            over
        });
        ids.truncate(end.unwrap_or(ids.len()).max(1));
    }
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2p_is_close_to_exp2_everywhere_it_is_used() {
        for i in 0..=100_000 {
            let x = -126.0 * i as f32 / 100_000.0;
            let want = f64::from(x).exp2();
            let err = (f64::from(exp2p(x)) - want).abs() / want;
            assert!(err < 3e-7, "exp2p({x}) = {}, want {want}", exp2p(x));
        }
        assert_eq!(exp2p(0.0), 1.0);
        assert_eq!(exp2p(-127.0), 0.0);
        assert_eq!(exp2p(f32::NEG_INFINITY), 0.0);
    }

    /// Known-answer vectors published with Random123 (`kat_vectors`, philox4x32 10 rounds).
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox([0, 0], 0, 0), 0xe169_c58d_6627_e8d5);
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals_and_obeys_the_lists() {
        let row = [1.0, 3.0, 3.0, 2.0];
        assert_eq!(sample_row(&row, &SampleParams::GREEDY, None).0, 1);
        let banned = SampleParams { banned: [1, 2, -1, -1], ..SampleParams::GREEDY };
        assert_eq!(sample_row(&row, &banned, None).0, 3);
        let allowed = SampleParams { allowed: [-1, 0, 3, -1], ..SampleParams::GREEDY };
        assert_eq!(sample_row(&row, &allowed, None).0, 3);
        let nothing = SampleParams { allowed: [0, -1, -1, -1], banned: [0; 4], ..allowed };
        assert_eq!(sample_row(&row, &nothing, None).0, NO_TOKEN);
    }

    #[test]
    fn a_mask_leaves_what_it_has() {
        let row: Vec<f32> = (0..70).map(|i| i as f32).collect();
        let draw = |mask: [i32; 3], params: SampleParams| sample_row(&row, &params, Some(&mask));
        assert_eq!(draw([-1, -1, 0], SampleParams::GREEDY).0, 63);
        assert_eq!(draw([1 << 31, 0, 0], SampleParams::GREEDY), (31, 0.0));
        let banned = SampleParams { banned: [31, -1, -1, -1], ..SampleParams::GREEDY };
        assert_eq!(draw([1 << 31 | 1, 0, 0], banned).0, 0);
        assert_eq!(draw([0, 0, !0x3f], SampleParams::GREEDY).0, NO_TOKEN);
    }

    #[test]
    fn a_nan_row_has_no_token_but_a_banned_nan_does_not_matter() {
        let row = [1.0, f32::NAN];
        assert_eq!(sample_row(&row, &SampleParams::GREEDY, None).0, NO_TOKEN);
        let banned = SampleParams { banned: [1, -1, -1, -1], ..SampleParams::GREEDY };
        assert_eq!(sample_row(&row, &banned, None).0, 0);
    }

    /// Which ids ever come out, over many positions.
    fn support(row: &[f32], params: SampleParams) -> Vec<i32> {
        let mut seen: Vec<i32> = (0..2000)
            .map(|position| sample_row(row, &SampleParams { position, ..params }, None).0)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn truncation_keeps_exactly_the_ids_the_definition_names() {
        let row: Vec<f32> = [0.5f32, 0.25, 0.125, 0.0625, 0.0625].iter().map(|p| p.ln()).collect();
        let base = SampleParams { temperature: 1.0, ..SampleParams::GREEDY };
        assert_eq!(support(&row, base), [0, 1, 2, 3, 4]);
        assert_eq!(support(&row, SampleParams { top_k: 2, ..base }), [0, 1]);
        assert_eq!(support(&row, SampleParams { top_k: 4, ..base }), [0, 1, 2, 3]);
        assert_eq!(support(&row, SampleParams { top_p: 0.6, ..base }), [0, 1]);
        assert_eq!(support(&row, SampleParams { top_p: 0.8, ..base }), [0, 1, 2]);
        assert_eq!(support(&row, SampleParams { top_p: 0.0, ..base }), [0]);
        assert_eq!(support(&row, SampleParams { min_p: 0.2, ..base }), [0, 1, 2]);
        // The share is of the mass that top_k leaves: 0.5 of 0.75 is two thirds.
        assert_eq!(support(&row, SampleParams { top_k: 2, top_p: 0.6, ..base }), [0]);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let p = [0.5f64, 0.3, 0.15, 0.05];
        let row: Vec<f32> = p.iter().map(|p| p.ln() as f32).collect();
        let draws = 200_000;
        let mut counts = [0u32; 4];
        for position in 0..draws {
            let params = SampleParams { temperature: 1.0, position, ..SampleParams::GREEDY };
            counts[sample_row(&row, &params, None).0 as usize] += 1;
        }
        let chi2: f64 = counts
            .iter()
            .zip(p)
            .map(|(&n, p)| (f64::from(n) - p * f64::from(draws)).powi(2) / (p * f64::from(draws)))
            .sum();
        assert!(chi2 < 16.27, "chi-square {chi2} with 3 degrees of freedom: p < 0.001");
    }

    #[test]
    fn logprob_is_that_of_the_untruncated_distribution() {
        let row: Vec<f32> = [0.5f32, 0.25, 0.25].iter().map(|p| p.ln()).collect();
        let (id, logprob) =
            sample_row(&row, &SampleParams { top_k: 1, ..SampleParams::GREEDY }, None);
        assert_eq!(id, 0);
        assert!((logprob - 0.5f32.ln()).abs() < 1e-6, "{logprob}");
    }
}
