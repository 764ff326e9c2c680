//! [`Sample`]: the ids the definition names, to the last bit, and draws that follow the distribution.
use photon_core::{DType, Kernels, Masks, Sample, SampleParams, sampler::NO_TOKEN};

use crate::{
    Options, oracle,
    rig::{Gaps, Label, Rig},
    rng::Rng,
};

/// Masks, and the index of each row's.
struct Sets {
    /// Whether a mask has an id.
    sets: Vec<Vec<bool>>,
    rows: Vec<i32>,
}

impl Sets {
    /// Masks with all, one, none, few and most of the ids; rows with any of them, or with a bad index.
    fn any(rng: &mut Rng, rows: usize, vocab: usize) -> Self {
        let only = rng.below(vocab);
        let shares = [vocab, 0, vocab / 20 + 1, vocab - vocab / 20];
        let random = shares.map(|share| (0..vocab).map(|_| rng.below(vocab) < share).collect());
        let mut sets: Vec<Vec<bool>> = random.into();
        sets.push((0..vocab).map(|id| id == only).collect());
        let bad = [-1, i32::MIN, sets.len() as i32, i32::MAX];
        let row = |_| match rng.below(9) {
            i @ 0..5 => i as i32,
            i => bad[i - 5],
        };
        Sets { rows: (0..rows).map(row).collect(), sets }
    }

    /// The mask of a row, if it has one.
    fn of(&self, row: usize) -> Option<&[bool]> {
        self.sets.get(usize::try_from(self.rows[row]).ok()?).map(Vec::as_slice)
    }

    /// The bits; those behind the last id are ones, which must not matter.
    fn words(&self) -> Vec<i32> {
        let word = |ids: &[bool]| {
            let has = |bit: usize| ids.get(bit).copied().unwrap_or(true);
            (0..32).map(|bit| i32::from(has(bit)) << bit).sum()
        };
        self.sets.iter().flat_map(|set| set.chunks(32).map(word)).collect()
    }
}

/// Draws one id per row on the device: ids, logprobs, and the logits as the device has them.
fn draw<D: Kernels>(
    rig: &mut Rig<'_, D>,
    label: &Label,
    dtype: DType,
    logits: &[f32],
    params: &[SampleParams],
    sets: Option<&Sets>,
) -> (Vec<i32>, Vec<f32>, Vec<f32>) {
    let rows = params.len();
    let vocab = logits.len() / rows;
    let logits = rig.input("logits", [rows, vocab], dtype, logits);
    let records =
        rig.bytes("params", [rows, size_of::<SampleParams>()], bytemuck::cast_slice(params));
    let masks = sets.map(|sets| {
        let bits = rig.indices("masks", [sets.sets.len(), vocab.div_ceil(32)], &sets.words());
        (bits, rig.indices("rows of masks", [rows], &sets.rows))
    });
    let mut ids = rig.output("ids", [rows], DType::I32, Gaps::NONE);
    let mut logprobs = rig.output("logprobs", [rows], DType::F32, Gaps::NONE);
    rig.record(|cx| {
        cx.sample(Sample {
            ids: &mut ids.t,
            logprobs: &mut logprobs.t,
            logits: &logits.t,
            params: &records.t,
            masks: masks.as_ref().map(|(bits, rows)| Masks { bits: &bits.t, rows: &rows.t }),
        });
    });
    rig.unchanged(label, &[&logits, &records]);
    masks.iter().for_each(|(bits, rows)| rig.unchanged(label, &[bits, rows]));
    let rounded = logits.values().into_iter().map(|v| v as f32).collect();
    (rig.read_i32(label, &ids), rig.read_floats(label, &logprobs), rounded)
}

fn check<D: Kernels>(
    rig: &mut Rig<'_, D>,
    label: &Label,
    dtype: DType,
    logits: &[f32],
    params: &[SampleParams],
    sets: Option<&Sets>,
) {
    let (ids, logprobs, rounded) = draw(rig, label, dtype, logits, params, sets);
    let vocab = logits.len() / params.len();
    for (r, params) in params.iter().enumerate() {
        let row = &rounded[r * vocab..(r + 1) * vocab];
        let (id, logprob) = oracle::sample::sample(row, params, sets.and_then(|sets| sets.of(r)));
        assert_eq!(ids[r], id, "{label}: id of row {r} ({dtype}), {params:?}");
        // The sum of masses is exact; what is left is a division, a logarithm and a difference in f32.
        let tolerance = 1e-5 * (1.0 + logprob.abs());
        assert!(
            id == NO_TOKEN || (f64::from(logprobs[r]) - logprob).abs() <= tolerance,
            "{label}: logprob of row {r} ({dtype}) is {}, want {logprob} within {tolerance:.1e}, {params:?}",
            logprobs[r]
        );
    }
}

/// Any parameters a request may carry.
fn params(rng: &mut Rng, vocab: usize) -> SampleParams {
    let pick = |rng: &mut Rng, of: &[f32]| of[rng.below(of.len())];
    let list = |rng: &mut Rng, chance: usize| {
        let used = rng.below(chance) == 0;
        std::array::from_fn(|_| match rng.below(6) {
            _ if !used => -1,
            0 => -1,
            1 => vocab as i32 + rng.below(9) as i32, // Names nothing.
            _ => rng.below(vocab) as i32,
        })
    };
    SampleParams {
        temperature: pick(rng, &[0.0, 0.3, 0.7, 1.0, 1.0, 1.5, 10.0]),
        top_p: pick(rng, &[1.0, 1.0, 0.95, 0.9, 0.5, 0.1, 0.0]),
        min_p: pick(rng, &[0.0, 0.0, 0.0, 0.01, 0.2, 1.0]),
        top_k: [0, 0, 1, 2, 7, 50, 100_000][rng.below(7)],
        seed: [rng.bits() as u32, rng.bits() as u32],
        position: rng.below(5000) as u32,
        stream: rng.below(3) as u32,
        allowed: list(rng, 5),
        banned: list(rng, 3),
    }
}

/// Rows of many shapes: flat, peaked, with ties, with infinities and with NaN.
fn logits(rng: &mut Rng, vocab: usize) -> Vec<f32> {
    let spread = [0.01, 1.0, 5.0, 30.0][rng.below(4)];
    let mut row = rng.floats(vocab, spread);
    match rng.below(8) {
        // Many ties. Zero is left out, because it has two signs.
        0 => row.iter_mut().for_each(|v| *v = v.signum() * (v.abs() / spread * 4.0).ceil()),
        1 => (0..vocab / 2).for_each(|_| row[rng.below(vocab)] = f32::NEG_INFINITY),
        2 => row[rng.below(vocab)] = f32::INFINITY,
        3 if rng.below(3) == 0 => row[rng.below(vocab)] = f32::NAN,
        4 => row[rng.below(vocab)] = 60.0,
        _ => {}
    }
    row
}

/// Random rows and parameters, every type; ids must be those of the definition.
pub(crate) fn every_type<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 90_000;
    for &dtype in options.floats {
        for (rows, vocab) in
            [(1, 1), (33, 7), (65, 33), (33, 65), (7, 729), (33, 1024), (3, 2048), (2, 4097)]
        {
            for _ in 0..3 {
                seed += 1;
                let rng = &mut Rng::new(seed);
                let params: Vec<_> = (0..rows).map(|_| params(rng, vocab)).collect();
                let values: Vec<f32> = (0..rows).flat_map(|_| logits(rng, vocab)).collect();
                let label =
                    Label { op: "sample", about: format!("rows {rows}, vocab {vocab}"), seed };
                check(rig, &label, dtype, &values, &params, None);
                let label = Label { about: format!("{}, masks", label.about), ..label };
                check(rig, &label, dtype, &values, &params, Some(&Sets::any(rng, rows, vocab)));
            }
        }
    }
}

/// The vocabulary of the models, with everything on.
pub(crate) fn real_vocabulary<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let vocab = 51_200;
    for (i, &dtype) in options.floats.iter().enumerate() {
        let seed = 91_000 + i as u64;
        let rng = &mut Rng::new(seed);
        let base = SampleParams { temperature: 1.0, seed: [7, i as u32], ..SampleParams::GREEDY };
        let rows = [
            SampleParams::GREEDY,
            base,
            SampleParams { top_p: 0.9, ..base },
            SampleParams { top_k: 50, top_p: 0.95, ..base },
            SampleParams { min_p: 0.05, position: 3, ..base },
            SampleParams { banned: [50256, 0, -1, -1], temperature: 0.5, ..base },
            SampleParams { allowed: [5, 51_199, -1, 17], ..base },
        ];
        let values: Vec<f32> = (0..rows.len()).flat_map(|_| logits(rng, vocab)).collect();
        let label = Label { op: "sample", about: format!("vocab {vocab}"), seed };
        check(rig, &label, dtype, &values, &rows, None);
        let sets = Sets::any(rng, rows.len(), vocab);
        check(rig, &label, dtype, &values, &rows, Some(&sets));
    }
}

/// Rows nothing can be drawn from, and rows where what could spoil them is banned.
pub(crate) fn no_token<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let base = SampleParams { temperature: 1.0, ..SampleParams::GREEDY };
    let only = |ids: [i32; 4]| SampleParams { allowed: ids, ..base };
    let without = |ids: [i32; 4]| SampleParams { banned: ids, ..base };
    let cases: &[([f32; 4], SampleParams, i32)] = &[
        ([-inf; 4], base, NO_TOKEN),
        ([-inf; 4], SampleParams::GREEDY, NO_TOKEN),
        ([1.0, nan, 2.0, 3.0], base, NO_TOKEN),
        ([1.0, nan, 2.0, 3.0], SampleParams::GREEDY, NO_TOKEN),
        ([1.0, nan, -inf, -inf], without([1, -1, -1, -1]), 0),
        ([nan, nan, nan, 3.0], only([3, -1, -1, -1]), 3),
        ([1.0, 2.0, 3.0, 4.0], without([3, 2, 1, 0]), NO_TOKEN),
        ([1.0, 2.0, 3.0, 4.0], only([4, -1, -1, -1]), NO_TOKEN),
        ([1.0, 2.0, 3.0, 4.0], only([-1, i32::MAX, 4, 2]), 2),
        ([inf, 1.0, 2.0, -inf], base, 0),
        ([-3.0, -inf, -inf, -inf], base, 0),
        ([1.0, 2.0, 2.0, 2.0], SampleParams::GREEDY, 1),
        ([1.0, 2.0, 2.0, 2.0], SampleParams { top_k: 1, ..base }, 1),
        ([1.0, 2.0, 2.0, 2.0], SampleParams { top_p: 0.0, ..base }, 1),
        // Not even the first has twice its own mass, yet it is kept.
        ([1.0, 2.0, 1.0, 1.0], SampleParams { min_p: 2.0, ..base }, 1),
    ];
    let label = Label { op: "sample", about: "rows with one answer".into(), seed: 0 };
    let values: Vec<f32> = cases.iter().flat_map(|(row, ..)| *row).collect();
    let params: Vec<SampleParams> = cases.iter().map(|(_, params, _)| *params).collect();
    for &dtype in options.floats {
        check(rig, &label, dtype, &values, &params, None);
        let (ids, ..) = draw(rig, &label, dtype, &values, &params, None);
        let want: Vec<i32> = cases.iter().map(|(.., id)| *id).collect();
        assert_eq!(ids, want, "{label} ({dtype})");
    }
}

/// Masks with one answer: each row obeys its own and no other, a mask of everything is none, and a mask
/// of nothing has no token.
pub(crate) fn masks<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let base = SampleParams { temperature: 1.0, seed: [3, 1], ..SampleParams::GREEDY };
    // 35 ids, so that the last word of a mask is not full.
    let row: Vec<f32> = (0..35).map(|id| (id * 11 % 35) as f32 / 8.0).collect();
    let only = |ids: &[usize]| (0..35).map(|id| ids.contains(&id)).collect::<Vec<_>>();
    let sets = [only(&[]), vec![true; 35], only(&[34]), only(&[0]), only(&[31, 32]), only(&[7])];
    let banned = SampleParams { banned: [7, -1, -1, -1], ..SampleParams::GREEDY };
    let allowed = SampleParams { allowed: [32, 7, -1, -1], ..base };
    let free = oracle::sample::sample(&row, &base, None).0;
    // The largest logit is that of id 19: 11 * 19 % 35 is 34.
    let cases: &[(i32, SampleParams, i32)] = &[
        (0, base, NO_TOKEN),
        (0, SampleParams::GREEDY, NO_TOKEN),
        (1, base, free),
        (-1, base, free),
        (6, base, free),
        (i32::MAX, SampleParams::GREEDY, 19),
        (2, base, 34),
        (2, SampleParams { temperature: 10.0, top_k: 1, ..base }, 34),
        (3, SampleParams { min_p: 1.0, top_p: 0.0, ..base }, 0),
        (4, SampleParams::GREEDY, 31),
        (4, allowed, 32),
        (5, allowed, 7),
        (5, banned, NO_TOKEN),
        (3, allowed, NO_TOKEN),
    ];
    let label = Label { op: "sample", about: "masks with one answer".into(), seed: 0 };
    let params: Vec<SampleParams> = cases.iter().map(|(_, params, _)| *params).collect();
    let rows = cases.iter().map(|(mask, ..)| *mask).collect();
    let (sets, values) = (Sets { sets: sets.into(), rows }, row.repeat(cases.len()));
    for &dtype in options.floats {
        check(rig, &label, dtype, &values, &params, Some(&sets));
        let (ids, logprobs, _) = draw(rig, &label, dtype, &values, &params, Some(&sets));
        let want: Vec<i32> = cases.iter().map(|(.., id)| *id).collect();
        assert_eq!(ids, want, "{label} ({dtype})");
        let (_, unmasked, _) = draw(rig, &label, dtype, &values, &params, None);
        let of_all = |mask: i32| !matches!(mask, 0 | 2..=5);
        for (r, (mask, ..)) in cases.iter().enumerate().filter(|(_, case)| of_all(case.0)) {
            let same = logprobs[r].to_bits() == unmasked[r].to_bits();
            assert!(same, "{label}: mask {mask} of everything is not none ({dtype})");
        }
    }
}

/// A draw depends on its row and its parameters, not on the batch.
pub(crate) fn does_not_depend_on_the_batch<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let (rows, vocab, seed) = (17, 729, 92_000);
    let rng = &mut Rng::new(seed);
    let dtype = options.float(0);
    let label = Label { op: "sample alone and in a batch", about: format!("vocab {vocab}"), seed };
    let all: Vec<SampleParams> = (0..rows).map(|_| params(rng, vocab)).collect();
    let values: Vec<f32> = (0..rows).flat_map(|_| logits(rng, vocab)).collect();
    let sets = Sets::any(rng, rows, vocab);
    let (ids, logprobs, _) = draw(rig, &label, dtype, &values, &all, Some(&sets));
    for r in 0..rows {
        let row = &values[r * vocab..(r + 1) * vocab];
        let one = Sets { sets: sets.sets.clone(), rows: vec![sets.rows[r]] };
        let (id, logprob, _) = draw(rig, &label, dtype, row, &all[r..r + 1], Some(&one));
        assert_eq!(id[0], ids[r], "{label}: id of row {r}");
        assert!(
            id[0] == NO_TOKEN || logprob[0].to_bits() == logprobs[r].to_bits(),
            "{label}: logprob of row {r}: {} and {}",
            logprob[0],
            logprobs[r]
        );
    }
}

/// Chi-square of draws over positions, seeds and streams against the wanted probabilities.
pub(crate) fn follows_the_distribution<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let wanted = [0.4f64, 0.25, 0.15, 0.1, 0.06, 0.04];
    let row: Vec<f32> = wanted.iter().map(|p| p.ln() as f32).collect();
    let draws = 4096;
    let base = SampleParams { temperature: 1.0, ..SampleParams::GREEDY };
    let by_position = |i: u32| SampleParams { position: i, ..base };
    let by_seed = |i: u32| SampleParams { seed: [i, 0], position: 9, ..base };
    let by_high_seed = |i: u32| SampleParams { seed: [1, i], ..base };
    let by_stream = |i: u32| SampleParams { stream: i, ..base };
    let ways: [(&str, &dyn Fn(u32) -> SampleParams); 4] = [
        ("positions", &by_position),
        ("seeds", &by_seed),
        ("high words of the seed", &by_high_seed),
        ("streams", &by_stream),
    ];
    let dtype = options.float(0);
    for (what, way) in ways {
        let label = Label { op: "sample", about: format!("{draws} draws over {what}"), seed: 0 };
        let params: Vec<SampleParams> = (0..draws).map(way).collect();
        let values = row.repeat(params.len());
        let (ids, _, rounded) = draw(rig, &label, dtype, &values, &params, None);
        let weights: Vec<f64> = rounded[..row.len()].iter().map(|v| f64::from(*v).exp()).collect();
        let total: f64 = weights.iter().sum();
        let chi2: f64 = weights
            .iter()
            .enumerate()
            .map(|(id, w)| {
                let expected = w / total * f64::from(draws);
                let seen = ids.iter().filter(|&&i| i == id as i32).count() as f64;
                (seen - expected).powi(2) / expected
            })
            .sum();
        // Five degrees of freedom: 25.7 is passed by one stream in ten thousand, and ours is fixed.
        assert!(chi2 < 25.7, "{label}: chi-square {chi2:.1} of {ids:?}", ids = &ids[..20]);
        let repeats = ids.windows(2).filter(|w| w[0] == w[1]).count() as f64;
        let p: f64 = weights.iter().map(|w| (w / total).powi(2)).sum();
        let (mean, deviation) = (p * f64::from(draws), (p * (1.0 - p) * f64::from(draws)).sqrt());
        assert!(
            (repeats - mean).abs() < 5.0 * deviation,
            "{label}: neighbors are equal {repeats} times, want {mean:.0} +- {deviation:.0}"
        );
    }
}
