//! [`Linear`] against the oracle: every type, ragged and real shapes, column views, the residual.
use photon_core::{Activation, DType, Kernels, Linear, WeightFormat};

use crate::{
    Options, oracle,
    rig::{Gaps, Label, Rig, Value, Want, skip},
    rng::Rng,
};

#[derive(Clone, Copy, Debug)]
struct Config {
    rows: usize,
    n: usize,
    k: usize,
    x: DType,
    w: WeightFormat,
    out: DType,
    /// Five bits: bias, GELU, accumulate, x a column view, out a column view.
    flags: usize,
    /// Compute the oracle for one element in so many.
    sparse: usize,
    seed: u64,
}

impl Config {
    fn has(&self, bit: usize) -> bool {
        self.flags >> bit & 1 == 1
    }

    /// Either GELU by turns.
    fn activation(&self) -> Activation {
        match (self.has(1), self.seed / 2 % 3) {
            (false, _) => Activation::None,
            (true, 0) => Activation::GeluErf,
            (true, _) => Activation::GeluTanh,
        }
    }

    fn label(&self) -> Label {
        let names = ["bias", "gelu", "accumulate", "x in columns", "out in columns"];
        let flags: Vec<&str> = (0..5).filter(|&bit| self.has(bit)).map(|bit| names[bit]).collect();
        let Config { rows, n, k, x, w, out, .. } = self;
        let about = format!(
            "rows {rows}, n {n}, k {k}; x {x}, w {w}, out {out}; {}; {:?}",
            flags.join(", "),
            self.activation()
        );
        Label { op: "linear", about, seed: self.seed }
    }
}

fn check<D: Kernels>(rig: &mut Rig<'_, D>, c: Config) {
    let label = c.label();
    let mut rng = Rng::new(c.seed);
    let gaps = |on: bool, before, after| if on { Gaps { before, after } } else { Gaps::NONE };
    let x_values = rng.floats(c.rows * c.k, 1.0);
    let x = rig.view("x", [c.rows, c.k], c.x, gaps(c.has(3), 5, 3), &x_values);
    let (w, w_values) = rig.weight(c.n, c.k, c.w, &mut rng);
    let bias = rig.input("bias", [c.n], DType::F32, &rng.floats(c.n, 2.0));
    let out_gaps = gaps(c.has(4), 1, 9);
    let mut out = if c.has(2) {
        rig.in_out("out", [c.rows, c.n], c.out, out_gaps, &rng.floats(c.rows * c.n, 2.0))
    } else {
        rig.output("out", [c.rows, c.n], c.out, out_gaps)
    };
    let activation = c.activation();
    rig.record(|cx| {
        cx.linear(Linear {
            out: &mut out.t,
            x: &x.t,
            w: &w,
            bias: c.has(0).then_some(&bias.t),
            activation,
            accumulate: c.has(2),
        });
    });
    let (xs, biases, old) = (x.values(), bias.values(), out.values());
    rig.check(&label, &out, |i, j| {
        if (i * 7 + j) % c.sparse != 0 && i + 1 != c.rows && j + 1 != c.n {
            return Want::Finite;
        }
        let x = &xs[i * c.k..(i + 1) * c.k];
        let w = &w_values[j * c.k..(j + 1) * c.k];
        let bias = c.has(0).then(|| biases[j]);
        let old = c.has(2).then(|| old[i * c.n + j]);
        let extra = oracle::rounded_row(x, w, c.w, rig.options);
        Want::Near(Value { extra, ..oracle::linear(x, w, bias, activation, old) })
    });
    rig.unchanged(&label, &[&x, &bias]);
}

/// Every combination of types, over enough ragged shapes to meet every combination of flags.
pub(crate) fn every_type<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let sizes = [1, 7, 33, 65];
    let mut seed = 0;
    for (x, out) in options.pairs() {
        for &w in options.weights {
            for flags in 0..32 {
                let pick = |salt: u64| sizes[Rng::new(seed * 3 + salt).below(sizes.len())];
                let (rows, n, k) = (pick(0), pick(1), pick(2));
                check(rig, Config { rows, n, k, x, w, out, flags, sparse: 1, seed });
                seed += 1;
            }
        }
    }
}

/// Every ragged shape and the neighbors of the tile sizes kernels like.
pub(crate) fn ragged_shapes<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let sizes = [1, 7, 16, 33, 65];
    let mut i = 0;
    for rows in [1, 2, 3, 5, 7, 8, 15, 17, 33, 65] {
        for n in sizes {
            for k in sizes {
                let (x, w, out) = (options.float(i), options.weight(i / 3), options.float(i / 9));
                let seed = 10_000 + i as u64;
                check(rig, Config { rows, n, k, x, w, out, flags: i * 11, sparse: 1, seed });
                i += 1;
            }
        }
    }
}

/// The shapes of the models: patch embedding, vision qkv, a text projection for one token and a few.
pub(crate) fn real_shapes<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let shapes = [
        (729, 1152, 588, 0b00001, 211),
        (65, 3456, 1152, 0b10001, 97),
        (1, 2048, 2048, 0b00100, 7),
        (4, 2048, 1152, 0b00111, 13),
        (7, 720, 8192, 0b01101, 13),
        (730, 64, 2048, 0b00011, 29),
    ];
    for (i, (rows, n, k, flags, sparse)) in shapes.into_iter().enumerate() {
        let last = options.floats.len() - 1;
        // What the models store: 16-bit activations and small weights, where the device has them.
        let (x, w, out) =
            (options.float(last), options.weight(2 * options.weights.len() - 1 - i), last);
        let out = if i % 2 == 0 { options.float(out) } else { options.float(0) };
        let seed = 20_000 + i as u64;
        check(rig, Config { rows, n, k, x, w, out, flags, sparse, seed });
    }
}

/// More rows and features than any backend streams weights for, and k on both sides of their steps.
pub(crate) fn many_rows<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 25_000;
    for (x, out) in options.pairs() {
        for &w in options.weights {
            for (rows, n, k) in [(161, 272, 200), (129, 300, 36), (130, 257, 130)] {
                let flags = seed as usize * 13 % 32;
                check(rig, Config { rows, n, k, x, w, out, flags, sparse: 97, seed });
                seed += 1;
            }
        }
    }
}

/// A row alone has the bits it has among others.
pub(crate) fn batch_invariance<D: Kernels>(device: &D, options: &Options) {
    if !options.batch_invariant {
        return skip("linear_batch_invariance", &device.name(), "not promised");
    }
    let rig = &mut Rig::new(device, options);
    let mut seed = 30_000;
    let shapes =
        [(1, 33), (65, 65), (33, 7), (129, 588), (720, 1152), (16, 2048), (272, 200), (1040, 65)];
    for (n, k) in shapes {
        for (x_type, out_type) in options.pairs() {
            for &w_type in options.weights {
                seed += 1;
                let rng = &mut Rng::new(seed);
                // The last two have more rows than any backend streams weights for.
                let rows = match n {
                    272 | 1040 => [33, 129, 161][seed as usize % 3],
                    _ => [2, 3, 8, 17, 65][seed as usize % 5],
                };
                let about =
                    format!("rows {rows}, n {n}, k {k}; x {x_type}, w {w_type}, out {out_type}");
                let label = Label { op: "linear alone and in a batch", about, seed };
                let x = rig.input("x", [rows, k], x_type, &rng.floats(rows * k, 1.0));
                let (w, _) = rig.weight(n, k, w_type, rng);
                let mut run = |first: usize, count: usize| {
                    let mut out = rig.output("out", [count, n], out_type, Gaps::NONE);
                    rig.record(|cx| {
                        cx.linear(Linear {
                            out: &mut out.t,
                            x: &x.t.row_range(first..first + count),
                            w: &w,
                            bias: None,
                            activation: Activation::GeluTanh,
                            accumulate: false,
                        });
                    });
                    rig.read(&label, &out)
                };
                let together = run(0, rows);
                let row_bytes = n * out_type.size();
                for row in [0, rows / 2, rows - 1] {
                    let alone = run(row, 1);
                    let batched = &together[row * row_bytes..(row + 1) * row_bytes];
                    assert!(alone == batched, "{label}: row {row} differs");
                }
                let half = run(rows / 2, rows - rows / 2);
                assert!(
                    half == together[rows / 2 * row_bytes..],
                    "{label}: the second half differs"
                );
            }
        }
    }
}
