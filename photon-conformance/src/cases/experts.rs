//! What experts are made of: [`Route`], [`GroupedLinear`] and [`WeightedSum`].
use photon_core::{
    Activation, Copy, DType, GroupedLinear, Kernels, Nest, Route, WeightFormat, WeightedSum,
};

use crate::{
    Options,
    cases::poisoned,
    oracle,
    rig::{Gaps, Label, Rig, Value, Want, skip},
    rng::Rng,
};

#[derive(Clone, Copy, Debug)]
struct Config {
    /// Rows of x, and how many of the output each has.
    rows: usize,
    per_row: usize,
    count: usize,
    n: usize,
    k: usize,
    x: DType,
    w: WeightFormat,
    out: DType,
    accumulate: bool,
    poison: bool,
    /// Compute the oracle for one element in so many.
    sparse: usize,
    seed: u64,
}

impl Config {
    fn label(&self) -> Label {
        Label { op: "grouped_linear", about: format!("{self:?}"), seed: self.seed }
    }

    /// Most rows in few groups, and groups without rows.
    fn groups(&self, rng: &mut Rng) -> Vec<i32> {
        let rows = self.rows * self.per_row;
        let group = |_| {
            let most = rng.below(self.count) + 1;
            rng.below(most) as i32
        };
        let mut groups: Vec<i32> = (0..rows).map(group).collect();
        groups[rows - 1] = self.count as i32 - 1;
        if self.poison {
            for (bad, at) in poisoned(self.count).into_iter().zip(rng.permutation(rows)) {
                groups[at] = bad;
            }
        }
        groups
    }
}

fn check_grouped<D: Kernels>(rig: &mut Rig<'_, D>, c: Config) {
    let Config { rows, per_row, count, n, k, .. } = c;
    let label = c.label();
    let rng = &mut Rng::new(c.seed);
    let gaps = [Gaps::NONE, Gaps { before: 2, after: 5 }][c.seed as usize % 2];
    let x = rig.view("x", [rows, k], c.x, gaps, &rng.floats(rows * k, 1.0));
    let (w, ws) = rig.weights(count, n, k, c.w, rng);
    let groups = c.groups(rng);
    let group = rig.indices("groups", [rows * per_row], &groups);
    let shape = [rows * per_row, n];
    let mut out = if c.accumulate {
        rig.in_out("out", shape, c.out, Gaps::NONE, &rng.floats(rows * per_row * n, 2.0))
    } else {
        rig.output("out", shape, c.out, Gaps::NONE)
    };
    rig.record(|cx| {
        cx.grouped_linear(GroupedLinear {
            out: &mut out.t,
            x: &x.t,
            w: &w,
            groups: &group.t,
            accumulate: c.accumulate,
        });
    });
    let (xs, old) = (x.values(), out.values());
    rig.check(&label, &out, |i, j| {
        let Some(matrix) = usize::try_from(groups[i]).ok().filter(|&g| g < count) else {
            return Want::Stays;
        };
        if (i * 7 + j) % c.sparse != 0 && j + 1 != n {
            return Want::Finite;
        }
        let row = i / per_row;
        let w = &ws[(matrix * n + j) * k..][..k];
        let old = c.accumulate.then(|| old[i * n + j]);
        let x = &xs[row * k..(row + 1) * k];
        let extra = oracle::rounded_row(x, w, c.w, rig.options);
        Want::Near(Value { extra, ..oracle::linear(x, w, None, Activation::None, old) })
    });
    rig.unchanged(&label, &[&x, &group]);
}

/// Every combination of types, over ragged shapes; bad groups skip their rows.
pub(crate) fn grouped_linear<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 83_000;
    for (x, out) in options.pairs() {
        for &w in options.weights {
            for (rows, per_row, count) in [(1, 1, 1), (1, 8, 9), (7, 2, 3), (33, 3, 8), (65, 1, 2)]
            {
                for (n, k) in [(1, 7), (33, 65), (65, 33)] {
                    seed += 1;
                    let (accumulate, poison) = (seed / 2 % 2 == 0, seed % 3 == 0);
                    let shape = Config {
                        rows,
                        per_row,
                        count,
                        n,
                        k,
                        x,
                        w,
                        out,
                        accumulate,
                        poison,
                        sparse: 1,
                        seed,
                    };
                    check_grouped(rig, shape);
                }
            }
        }
    }
}

/// More rows than any backend streams weights for, of every type; bad groups skip their rows.
pub(crate) fn grouped_linear_many_rows<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 84_500;
    for &x in options.floats {
        for &w in options.weights {
            for (rows, per_row, count, n, k) in [(75, 2, 5, 144, 200), (300, 1, 7, 40, 36)] {
                seed += 1;
                let (accumulate, poison) = (seed % 2 == 0, seed % 3 != 0);
                let (out, sparse) = (x, 17);
                let shape = Config {
                    rows,
                    per_row,
                    count,
                    n,
                    k,
                    x,
                    w,
                    out,
                    accumulate,
                    poison,
                    sparse,
                    seed,
                };
                check_grouped(rig, shape);
            }
        }
    }
}

/// Shapes of Moondream 3, with fewer experts: a decode step, and a prefill.
pub(crate) fn grouped_linear_real<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let (x, w) = (options.float(0), options.weight(options.weights.len() - 1));
    for (i, (rows, per_row, n, k)) in
        [(2, 8, 2048, 2048), (16, 1, 2048, 1024), (100, 4, 512, 2048)].into_iter().enumerate()
    {
        let seed = 84_000 + i as u64;
        let (accumulate, poison, count) = (i == 1, false, 6);
        check_grouped(
            rig,
            Config {
                rows,
                per_row,
                count,
                n,
                k,
                x,
                w,
                out: x,
                accumulate,
                poison,
                sparse: 211,
                seed,
            },
        );
    }
}

/// A row has the same bits whoever shares its matrix.
pub(crate) fn grouped_linear_invariance<D: Kernels>(device: &D, options: &Options) {
    if !options.batch_invariant {
        return skip("grouped_linear_batch_invariance", &device.name(), "not promised");
    }
    let rig = &mut Rig::new(device, options);
    let mut seed = 85_000;
    // The last of them are more rows than any backend streams weights for.
    for (n, k, rows, per_row) in
        [(33, 65, 40, 2), (129, 588, 40, 2), (16, 2048, 40, 2), (33, 200, 75, 3), (272, 65, 150, 1)]
    {
        for (&w_type, &x_type) in
            options.weights.iter().flat_map(|w| options.floats.iter().map(move |x| (w, x)))
        {
            seed += 1;
            let (count, out_type) = (3, x_type);
            let label = Label {
                op: "grouped_linear alone and in a batch",
                about: format!("n {n}, k {k}, {rows} by {per_row}; w {w_type}, x {x_type}"),
                seed,
            };
            let rng = &mut Rng::new(seed);
            let x = rig.input("x", [rows, k], x_type, &rng.floats(rows * k, 1.0));
            let (w, _) = rig.weights(count, n, k, w_type, rng);
            let groups: Vec<i32> = (0..rows * per_row).map(|_| rng.below(count) as i32).collect();
            let mut run = |first: usize, some: usize| {
                let range = first * per_row..(first + some) * per_row;
                let group = rig.indices("groups", [range.len()], &groups[range.clone()]);
                let mut out = rig.output("out", [range.len(), n], out_type, Gaps::NONE);
                rig.record(|cx| {
                    cx.grouped_linear(GroupedLinear {
                        out: &mut out.t,
                        x: &x.t.row_range(first..first + some),
                        w: &w,
                        groups: &group.t,
                        accumulate: false,
                    });
                });
                rig.read(&label, &out)
            };
            let together = run(0, rows);
            let bytes = per_row * n * out_type.size();
            for (first, some) in [(0, 1), (rows - 1, 1), (rows / 2, 7)] {
                let apart = run(first, some);
                let batched = &together[first * bytes..(first + some) * bytes];
                assert!(apart == batched, "{label}: rows {first} to {} differ", first + some);
            }
        }
    }
}

/// Matrices copied from one weight to a place in another, as adapters are, are those matrices.
pub(crate) fn grouped_linear_copied<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    for (seed, &w_type) in (85_500..).zip(options.weights) {
        for (n, k) in [(33, 65), (64, 16), (1, 7)] {
            let (rows, float) = (6, options.float(0));
            let label =
                Label { op: "grouped_linear", about: format!("copied {n}, {k}, {w_type}"), seed };
            let rng = &mut Rng::new(seed);
            let x = rig.input("x", [rows, k], float, &rng.floats(rows * k, 1.0));
            let (slots, _) = rig.weights(5, n, k, w_type, rng);
            let (two, _) = rig.weights(2, n, k, w_type, rng);
            let run = |rig: &mut Rig<'_, D>, w, ids: &[i32]| {
                let group = rig.indices("groups", [rows], ids);
                let mut out = rig.output("out", [rows, n], float, Gaps::NONE);
                rig.record(|cx| {
                    let (out, x, groups) = (&mut out.t, &x.t, &group.t);
                    cx.grouped_linear(GroupedLinear { out, x, w, groups, accumulate: false });
                });
                rig.read(&label, &out)
            };
            let kept = run(rig, &slots, &[0, 1, 4, 0, 1, 4]);
            let want = run(rig, &two, &[0, 1, 0, 1, 0, 1]);
            rig.record(|cx| {
                let (out, x) = (&mut slots.matrices(2..4), &two.matrices(0..2));
                cx.copy(Copy { out, x });
            });
            let (copied, others) =
                (run(rig, &slots, &[2, 3, 2, 3, 2, 3]), run(rig, &slots, &[0, 1, 4, 0, 1, 4]));
            assert!(copied == want, "{label}: not what was copied");
            assert!(others == kept, "{label}: the neighbors changed");
        }
    }
}

fn check_route<D: Kernels>(
    rig: &mut Rig<'_, D>,
    [rows, num_experts, top]: [usize; 3],
    dtype: DType,
    values: &[f32],
    seed: u64,
) {
    let about = format!("rows {rows}, experts {num_experts}, top {top}; logits {dtype}");
    let label = Label { op: "route", about, seed };
    let logits = rig.input("logits", [rows, num_experts], dtype, values);
    let mut experts = rig.indices("experts", [rows, top], &vec![-7; rows * top]);
    let mut weights = rig.output("weights", [rows, top], DType::F32, Gaps::NONE);
    rig.record(|cx| {
        cx.route(Route { experts: &mut experts.t, weights: &mut weights.t, logits: &logits.t });
    });
    let given = logits.values();
    let want: Vec<_> = given.chunks_exact(num_experts).map(|row| oracle::route(row, top)).collect();
    let got = rig.read_i32(&label, &experts);
    for (row, (got, want)) in got.chunks_exact(top).zip(&want).enumerate() {
        let want: Vec<i32> = want.iter().map(|(place, _)| *place as i32).collect();
        assert_eq!(got, want, "{label}: row {row}");
    }
    rig.check(&label, &weights, |i, j| match want[i][j].1 {
        value if value.value.is_nan() => Want::Any,
        value => Want::Near(value),
    });
    rig.unchanged(&label, &[&logits]);
}

/// Every type; many experts and few, all of them chosen, logits that are equal, NaN among them.
pub(crate) fn route<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 86_000;
    for &dtype in options.floats {
        for shape in [[1, 1, 1], [7, 8, 2], [33, 64, 8], [65, 5, 5], [3, 130, 4]] {
            seed += 1;
            let rng = &mut Rng::new(seed);
            let mut values = rng.floats(shape[0] * shape[1], 4.0);
            check_route(rig, shape, dtype, &values, seed);
            // Few distinct values, so that most choices are between equals.
            values.iter_mut().for_each(|v| *v = v.round());
            check_route(rig, shape, dtype, &values, seed);
            for row in values.chunks_exact_mut(shape[1]).skip(1) {
                row[rng.below(shape[1])] = f32::NAN;
            }
            check_route(rig, shape, dtype, &values, seed);
        }
    }
}

/// Groups of groups, good and bad on both levels.
pub(crate) fn nest<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let shapes = [(1, 1, 1, 1), (7, 2, 3, 9), (33, 8, 4, 64), (65, 3, 2, 5)];
    for (seed, (rows, top, outer_count, count)) in (88_000..).zip(shapes) {
        let about = format!("rows {rows}, top {top}, outer {outer_count}, inner {count}");
        let label = Label { op: "nest", about, seed };
        let rng = &mut Rng::new(seed);
        let mut outers: Vec<i32> = (0..rows).map(|_| rng.below(outer_count) as i32).collect();
        let mut inners: Vec<i32> = (0..rows * top).map(|_| rng.below(count) as i32).collect();
        for (bad, at) in [-1, i32::MIN].into_iter().zip(rng.permutation(rows)) {
            outers[at] = bad;
        }
        for (bad, at) in poisoned(count).into_iter().zip(rng.permutation(rows * top)) {
            inners[at] = bad;
        }
        let outer = rig.indices("outer", [rows], &outers);
        let inner = rig.indices("inner", [rows, top], &inners);
        let mut out = rig.indices("out", [rows, top], &vec![-7; rows * top]);
        let (outer_t, inner_t) = (&outer.t, &inner.t);
        rig.record(|cx| {
            cx.nest(Nest { out: &mut out.t, outer: outer_t, inner: inner_t, count });
        });
        let want: Vec<i32> = (0..rows * top)
            .map(|i| match (outers[i / top], inners[i]) {
                (outer @ 0.., inner @ 0..) if (inner as usize) < count => {
                    outer * count as i32 + inner
                }
                _ => -1,
            })
            .collect();
        assert_eq!(rig.read_i32(&label, &out), want, "{label}");
        rig.unchanged(&label, &[&outer, &inner]);
    }
}

/// Every pair of types; one part and many, tails of vectors.
pub(crate) fn weighted_sum<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 87_000;
    for (x_type, out_type) in options.pairs() {
        for (rows, top, dim) in [(1, 1, 1), (7, 2, 33), (33, 8, 7), (3, 3, 720), (2, 8, 2048)] {
            seed += 1;
            let about = format!("rows {rows}, top {top}, dim {dim}; x {x_type}, out {out_type}");
            let label = Label { op: "weighted_sum", about, seed };
            let rng = &mut Rng::new(seed);
            let x = rng.floats(rows * top * dim, 2.0);
            let x = rig.input("x", [rows * top, dim], x_type, &x);
            let weights =
                rig.input("weights", [rows, top], DType::F32, &rng.floats(rows * top, 1.0));
            let old = rng.floats(rows * dim, 2.0);
            let mut out = rig.in_out("out", [rows, dim], out_type, Gaps::NONE, &old);
            rig.record(|cx| {
                let (out, x, weights) = (&mut out.t, &x.t, &weights.t);
                cx.weighted_sum(WeightedSum { out, x, weights });
            });
            let (xs, ws, old) = (x.values(), weights.values(), out.values());
            rig.check(&label, &out, |i, j| {
                let parts: Vec<f64> = (0..top).map(|e| xs[(i * top + e) * dim + j]).collect();
                let old = Some(old[i * dim + j]);
                let ws = &ws[i * top..(i + 1) * top];
                Want::Near(oracle::linear(&parts, ws, None, Activation::None, old))
            });
            rig.unchanged(&label, &[&x, &weights]);
        }
    }
}
