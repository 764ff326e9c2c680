//! Drawing tokens: [`photon_core::sampler::sample_row`] with its two passes over the vocabulary
//! vectorized and the sort replaced by selection. The result is the same to the last bit.
use std::{cell::RefCell, cmp::Ordering, f32::consts::LOG2_E};

use photon_core::{
    Masks, Sample, SampleParams,
    sampler::{NO_TOKEN, exp2p, philox, sample_row},
};

use crate::{
    Cpu, Isa,
    elements::{Float, Rows, RowsMut, with_float},
    simd::{Convert, Op, Simd, dispatch, load, max_of_lanes, store},
};

/// 1 as a mass.
const ONE: f32 = (1u32 << 30) as f32;

/// Whether plain vectors fuse multiply and add, without which the definition's bits do not come out.
const PORTABLE_FUSES: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// Per-thread memory for one row.
#[derive(Default)]
struct Scratch {
    row: Vec<f32>,
    masses: Vec<u32>,
    ids: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

pub(crate) fn sample(cpu: &Cpu, op: Sample<'_, Cpu>) {
    let params = Rows::<u8>::new(op.params);
    let masks = op.masks.map(|Masks { bits, rows }| (Rows::new(bits), Rows::new(rows).all()));
    let (ids, logprobs) = (RowsMut::<i32>::new(op.ids), RowsMut::<f32>::new(op.logprobs));
    with_float!(op.logits.dtype(), T => {
        sample_rows(cpu, ids, logprobs, Rows::<T>::new(op.logits), params, masks);
    });
}

fn sample_rows<T: Float>(
    cpu: &Cpu,
    ids: RowsMut<'_, i32>,
    logprobs: RowsMut<'_, f32>,
    logits: Rows<'_, T>,
    params: Rows<'_, u8>,
    masks: Option<(Rows<'_, i32>, &[i32])>,
) {
    // However shaped, ids and logprobs hold one element per row of logits (`Cx`).
    let place = |row: usize, cols: usize| (row / cols, row % cols..row % cols + 1);
    cpu.pool().run(logits.rows(), &|i| {
        let params: SampleParams = bytemuck::pod_read_unaligned(params.row(i));
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.row.resize(logits.cols(), 0.0);
            dispatch(cpu.isa(), Convert { out: &mut scratch.row, x: logits.row(i) });
            let mask = masks.and_then(|(bits, rows)| {
                super::index(rows[i], bits.rows()).map(|mask| bits.row(mask))
            });
            let (id, logprob) = draw(cpu, scratch, params, mask);
            let (row, cols) = place(i, ids.cols());
            // SAFETY: each task writes the element of its own row (the partition).
            let to = unsafe { ids.part(row, cols) };
            to[0] = id;
            let (row, cols) = place(i, logprobs.cols());
            // SAFETY: as above.
            let to = unsafe { logprobs.part(row, cols) };
            to[0] = logprob;
        });
    });
}

fn draw(
    cpu: &Cpu,
    scratch: &mut Scratch,
    params: SampleParams,
    mask: Option<&[i32]>,
) -> (i32, f32) {
    let params = apply_lists(&mut scratch.row, params);
    if let Some(mask) = mask {
        apply_mask(&mut scratch.row, mask);
    }
    let row = &scratch.row;
    let temperature = if params.temperature == 0.0 { 1.0 } else { params.temperature };
    let scale = LOG2_E / temperature;
    let Extremes { max, has_nan } = dispatch(cpu.isa(), FindExtremes { row });
    if has_nan || max == f32::NEG_INFINITY {
        return (NO_TOKEN, f32::NAN);
    }
    if max == f32::INFINITY || !(scale > 0.0 && scale.is_finite()) {
        // Infinities need the definition's case distinctions.
        return sample_row(row, &params, None);
    }
    let masses = &mut scratch.masses;
    masses.resize(row.len(), 0);
    let total = if cpu.isa() == Isa::Portable && !PORTABLE_FUSES {
        for (mass, &v) in masses.iter_mut().zip(row) {
            *mass = (exp2p((v - max) * scale) * ONE) as u32;
        }
        masses.iter().map(|&mass| u64::from(mass)).sum()
    } else {
        dispatch(cpu.isa(), Masses { row, max, scale, masses })
    };
    let logprob = |i: usize| {
        // Not the difference, which may be minus zero.
        let gap = if row[i] == max { 0.0 } else { row[i] - max };
        gap / temperature - (total as f64 / f64::from(ONE)).ln() as f32
    };
    let first = || row.iter().position(|&v| v == max).expect("the maximum is in the row");
    let id = if params.temperature == 0.0 {
        first()
    } else {
        choose(row, masses, &mut scratch.ids, &params, total)
    };
    (id as i32, logprob(id))
}

/// Gives ids that do not take part a logit of minus infinity, which says the same.
fn apply_lists(row: &mut [f32], params: SampleParams) -> SampleParams {
    let vocab = row.len();
    let ids = move |list: [i32; 4]| list.into_iter().filter_map(move |i| super::index(i, vocab));
    if params.allowed.iter().any(|&id| id >= 0) {
        let mut kept = [f32::NEG_INFINITY; 4];
        for (kept, &id) in kept.iter_mut().zip(&params.allowed) {
            if let Some(id) = super::index(id, vocab) {
                *kept = row[id];
            }
        }
        row.fill(f32::NEG_INFINITY);
        for (kept, &id) in kept.iter().zip(&params.allowed) {
            if let Some(id) = super::index(id, vocab) {
                row[id] = *kept;
            }
        }
    }
    ids(params.banned).for_each(|id| row[id] = f32::NEG_INFINITY);
    SampleParams { allowed: [-1; 4], banned: [-1; 4], ..params }
}

/// As [`apply_lists`], for ids that the mask does not have. Most words have all or none.
fn apply_mask(row: &mut [f32], mask: &[i32]) {
    for (row, &word) in row.chunks_mut(32).zip(mask) {
        match word {
            -1 => {}
            0 => row.fill(f32::NEG_INFINITY),
            _ => {
                for (i, v) in row.iter_mut().enumerate() {
                    *v = if word >> i & 1 == 1 { *v } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

struct Extremes {
    max: f32,
    has_nan: bool,
}

struct FindExtremes<'a> {
    row: &'a [f32],
}

impl Op for FindExtremes<'_> {
    type Output = Extremes;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> Extremes {
        let mut max = [s.splat(f32::NEG_INFINITY); 4];
        // Zero times a number is zero, times NaN (or an infinity) NaN.
        let mut zero = s.splat(0.0);
        let mut blocks = self.row.chunks_exact(4 * S::LANES);
        for block in blocks.by_ref() {
            for (max, x) in max.iter_mut().zip(block.chunks_exact(S::LANES)) {
                let x = load(s, x);
                *max = s.max(x, *max);
                zero = s.fma(x, s.splat(0.0), zero);
            }
        }
        let rest = blocks.remainder();
        let max = max_of_lanes(s, s.max(s.max(max[0], max[1]), s.max(max[2], max[3])));
        let max = rest.iter().copied().fold(max, f32::max);
        let mut zeros = [0.0f32; 16];
        store(s, &mut zeros, zero);
        let suspicious = zeros.iter().any(|z| z.is_nan());
        let has_nan = if suspicious { self.row } else { rest }.iter().any(|x| x.is_nan());
        Extremes { max, has_nan }
    }
}

/// Fills in each id's mass and returns their sum. `max` and `scale` are finite, `scale` positive, and
/// vectors fuse multiply and add.
struct Masses<'a> {
    row: &'a [f32],
    max: f32,
    scale: f32,
    masses: &'a mut [u32],
}

impl Op for Masses<'_> {
    type Output = u64;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> u64 {
        let Masses { row, max, scale, masses } = self;
        let mut total = 0;
        let mut wide = [0.0f32; 16];
        for (row, masses) in row.chunks(S::LANES).zip(masses.chunks_mut(S::LANES)) {
            wide[..row.len()].copy_from_slice(row);
            let x = s.mul(s.sub(load(s, &wide), s.splat(max)), s.splat(scale));
            let mut result = [0.0f32; 16];
            store(s, &mut result, s.mul(exp2p_lanes(s, x), s.splat(ONE)));
            for (mass, &y) in masses.iter_mut().zip(&result) {
                *mass = y as u32;
                total += u64::from(*mass);
            }
        }
        total
    }
}

/// [`exp2p`] of lanes from -126 to 0. Below, something far too small for a mass instead of 0.
#[inline(always)]
fn exp2p_lanes<S: Simd>(s: S, x: S::V) -> S::V {
    // Adding this rounds to the nearest integer, ties to even, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = s.max(x, s.splat(-126.0));
    let shifted = s.add(x, s.splat(ROUND));
    let f = s.sub(x, s.sub(shifted, s.splat(ROUND)));
    let mut p = s.splat(1.540_353e-4);
    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
        p = s.fma(p, f, s.splat(c));
    }
    s.shift_exponent(p, shifted)
}

/// Steps 4 and 5 of the definition.
fn choose(
    row: &[f32],
    masses: &[u32],
    ids: &mut Vec<u32>,
    params: &SampleParams,
    total: u64,
) -> usize {
    let floor = ((params.min_p.min(1.0) * ONE) as u64).max(1);
    let random = u128::from(philox(params.seed, params.position, params.stream));
    let target = |kept_mass: u64| ((random * u128::from(kept_mass)) >> 64) as u64;
    let everything = floor == 1 && params.top_k == 0 && params.top_p >= 1.0;
    if everything {
        let target = target(total);
        let mut sum = 0;
        let chosen = masses.iter().position(|&mass| {
            sum += u64::from(mass);
            sum > target
        });
        return chosen.expect("the target is below the sum of kept mass");
    }
    let mass = |id: u32| u64::from(masses[id as usize]);
    ids.clear();
    ids.extend((0..row.len() as u32).filter(|&id| mass(id) >= floor));
    if params.top_k > 0 || params.top_p < 1.0 {
        keep_likeliest(row, &mass, ids, params);
        ids.sort_unstable();
    }
    let target = target(ids.iter().map(|&id| mass(id)).sum());
    let mut sum = 0;
    let chosen = ids.iter().find(|&&id| {
        sum += mass(id);
        sum > target
    });
    *chosen.expect("the target is below the sum of kept mass") as usize
}

/// Cuts `ids` down to what `top_k` and `top_p` leave, in no order.
fn keep_likeliest(
    row: &[f32],
    mass: &dyn Fn(u32) -> u64,
    ids: &mut Vec<u32>,
    params: &SampleParams,
) {
    let rank = |&a: &u32, &b: &u32| -> Ordering {
        row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b))
    };
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < ids.len() {
        ids.select_nth_unstable_by(top_k - 1, rank);
        ids.truncate(top_k);
    }
    if params.top_p >= 1.0 {
        return;
    }
    let total: u64 = ids.iter().map(|&id| mass(id)).sum();
    let limit = (total * (params.top_p * 65536.0) as u64) >> 16;
    // The share is mostly reached within a few hundred ids, so rank in growing steps, not all.
    let (mut ranked, mut step, mut before) = (0, 256, 0);
    while ranked < ids.len() {
        let rest = &mut ids[ranked..];
        let step_len = rest.len().min(step);
        if step_len < rest.len() {
            rest.select_nth_unstable_by(step_len, rank);
        }
        let next = &mut rest[..step_len];
        next.sort_unstable_by(rank);
        for (i, &id) in next.iter().enumerate() {
            if before > limit {
                return ids.truncate((ranked + i).max(1));
            }
            before += mass(id);
        }
        ranked += step_len;
        step *= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuOptions, test_support::Random};

    fn check(cpu: &Cpu, row: &[f32], params: SampleParams, mask: Option<&[i32]>) {
        let mut scratch = Scratch { row: row.to_vec(), ..Scratch::default() };
        let (id, logprob) = draw(cpu, &mut scratch, params, mask);
        let (want_id, want_logprob) = sample_row(row, &params, mask);
        assert_eq!(id, want_id, "{params:?}");
        assert_eq!(logprob.to_bits(), want_logprob.to_bits(), "{params:?}");
    }

    #[test]
    fn draws_are_the_definition_s_to_the_last_bit() {
        let mut random = Random::new(7);
        for isa in Isa::available() {
            let cpu = Cpu::open(CpuOptions { threads: Some(1), isa: Some(isa) }).unwrap();
            for case in 0..300u32 {
                let vocab = 1 + random.below(3000);
                let spread = [0.01, 1.0, 10.0, 200.0][random.below(4)];
                let coarse = random.below(3) == 0;
                let mut row: Vec<f32> = (0..vocab)
                    .map(|_| {
                        let x = random.normal() * spread;
                        if coarse { x.round() } else { x }
                    })
                    .collect();
                if random.below(4) == 0 {
                    row.iter_mut().step_by(3).for_each(|v| *v = f32::NEG_INFINITY);
                }
                if random.below(40) == 0 {
                    row[random.below(vocab)] = f32::NAN;
                }
                if random.below(40) == 0 {
                    row[random.below(vocab)] = f32::INFINITY;
                }
                let id = |random: &mut Random| random.below(vocab + 2) as i32 - 1;
                let mut params = SampleParams {
                    temperature: [0.0, 0.3, 1.0, 1.7][random.below(4)],
                    top_p: [1.0, 0.9, 0.5, 0.0, 0.999][random.below(5)],
                    min_p: [0.0, 0.0, 0.05, 0.5, 2.0][random.below(5)],
                    top_k: [0, 0, 1, 40, 500][random.below(5)],
                    seed: [case, 17],
                    position: case * 3,
                    ..SampleParams::GREEDY
                };
                if random.below(5) == 0 {
                    params.allowed = std::array::from_fn(|_| id(&mut random));
                }
                if random.below(3) == 0 {
                    params.banned = std::array::from_fn(|_| id(&mut random));
                }
                let mask: Vec<i32> = (0..vocab.div_ceil(32))
                    .map(|_| {
                        [-1, 0, 1 << random.below(32), random.below(1 << 31) as i32]
                            [random.below(4)]
                    })
                    .collect();
                check(&cpu, &row, params, (random.below(3) == 0).then_some(&mask));
            }
        }
    }
}
