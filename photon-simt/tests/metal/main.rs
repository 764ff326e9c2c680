//! Metal's kernels as the simulator runs them, against definitions.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
#![allow(clippy::precedence, reason = "definitions of bits read better as the manuals write them")]
use photon_simt::{
    Fault, Memory,
    metal::{self, Arguments, Binding, Constant, Options},
};

fn seeds() -> impl Iterator<Item = u64> {
    0..8
}

fn options(seed: u64) -> Options {
    Options { seed, ..Options::default() }
}

fn buffer(bytes: impl IntoIterator<Item = u8>) -> Memory {
    let bytes: Vec<u8> = bytes.into_iter().collect();
    let memory = Memory::new(bytes.len());
    memory.write(0, &bytes);
    memory
}

fn words(memory: &Memory) -> Vec<u32> {
    let bytes = memory.to_vec();
    bytes.chunks_exact(4).map(|w| u32::from_ne_bytes(w.try_into().unwrap())).collect()
}

/// Multiples of 1/8 below 4 in size, the same for the same seed.
fn eighths(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 33) % 63) as f32 / 8.0 - 3.875
    };
    (0..n).map(|_| next()).collect()
}

/// A multiple of 1/8 below 4 as binary16.
fn half(x: f32) -> u16 {
    if x == 0.0 {
        return 0;
    }
    let bits = x.to_bits();
    (bits >> 16 & 0x8000 | (((bits >> 23 & 0xff) + 15 - 127) << 10) | bits >> 13 & 0x3ff) as u16
}

fn bfloat(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

const KEYS: usize = 77;
const HEADS: usize = 3;

/// The largest error of a decoding kernel, with or without a mask.
fn decode(
    kernel: &str,
    (dim, groups): (usize, usize),
    encode: fn(f32) -> u16,
    masked: bool,
    seed: u64,
) -> Result<f64, Fault> {
    let [q, k, v] = [(1, 1), (KEYS, 2), (KEYS, 3)].map(|(n, seed)| eighths(HEADS * n * dim, seed));
    let mask: Vec<u8> = (0..KEYS).map(|key| u8::from(key % 5 != 3)).collect();
    let packed = |x: &[f32]| buffer(x.iter().flat_map(|&x| encode(x).to_ne_bytes()));
    let (bq, bk, bv) = (packed(&q), packed(&k), packed(&v));
    let (out, bmask) = (Memory::new(HEADS * dim * 4), buffer(mask.clone()));
    let scale = 0.05_f32;
    let params = [(KEYS as u32).to_ne_bytes(), scale.to_ne_bytes()].concat();
    let mut buffers =
        vec![(0, bq.address()), (1, bk.address()), (2, bv.address()), (3, out.address())];
    if masked {
        buffers.push((5, bmask.address()));
    }
    let arguments = Arguments {
        buffers: &buffers,
        bytes: &[(4, &params)],
        threadgroup: &[(0, (groups * dim * 4) as u32)],
        constants: &[(0, Constant::Bool(masked))],
    };
    let threads = [groups as u32 * 32, 1, 1];
    metal::launch(kernel, [HEADS as u32, 1, 1], threads, arguments, options(seed))?;
    let got: Vec<f64> = words(&out).into_iter().map(|w| f64::from(f32::from_bits(w))).collect();
    let mut worst = 0.0_f64;
    for head in 0..HEADS {
        let row = |m: &[f32], key: usize, d: usize| f64::from(m[(head * KEYS + key) * dim + d]);
        let dot = |key: usize| {
            (0..dim).map(|d| f64::from(q[head * dim + d]) * row(&k, key, d)).sum::<f64>()
        };
        let kept = |key: &usize| !masked || mask[*key] != 0;
        let weights: Vec<(usize, f64)> =
            (0..KEYS).filter(kept).map(|key| (key, (dot(key) * f64::from(scale)).exp())).collect();
        let total: f64 = weights.iter().map(|(_, w)| w).sum();
        for d in 0..dim {
            let expected = weights.iter().map(|(key, w)| w * row(&v, *key, d)).sum::<f64>() / total;
            let error = (got[head * dim + d] - expected).abs();
            worst = if error > worst || error.is_nan() { error } else { worst };
        }
    }
    Ok(worst)
}

#[test]
fn templates_constants_and_optional_buffers_work() {
    for (seed, masked) in seeds().flat_map(|seed| [(seed, false), (seed, true)]) {
        let f16 = decode("decode_f16", (64, 4), half, masked, seed).unwrap();
        let bf16 = decode("decode_bf16", (96, 3), bfloat, masked, seed).unwrap();
        assert!(f16 < 1e-5 && bf16 < 1e-5, "{f16} and {bf16}, masked {masked}, seed {seed}");
    }
}

#[test]
fn a_missing_barrier_shows_in_some_orders() {
    let is_wrong = |seed: &u64| {
        let error = decode("decode_f16!barrier", (64, 4), half, false, *seed).unwrap();
        error.is_nan() || error > 1e-3
    };
    let wrong: Vec<u64> = seeds().filter(is_wrong).collect();
    assert!(wrong.contains(&0), "{wrong:?}");
}

#[test]
fn tables_say_what_is_bound_to_which_index() {
    let kernel = metal::kernel("decode_f16").unwrap();
    assert_eq!((kernel.file, kernel.max_threads), ("photon-simt/kernels/decode.metal", Some(128)));
    let bound: Vec<_> = kernel.parameters.iter().map(|p| (p.name, p.binding, p.index)).collect();
    let expected = [
        ("q", Binding::Buffer, 0),
        ("k", Binding::Buffer, 1),
        ("v", Binding::Buffer, 2),
        ("out", Binding::Buffer, 3),
        ("p", Binding::Buffer, 4),
        ("mask", Binding::OptionalBuffer, 5),
        ("sums", Binding::Threadgroup, 0),
        ("masked", Binding::Constant, 0),
    ];
    assert_eq!(bound, expected);
}

#[test]
fn what_is_not_bound_or_too_large_is_told() {
    let launch =
        |arguments| metal::launch("decode_f16", [1, 1, 1], [128, 1, 1], arguments, options(0));
    let memory = Memory::zeroed(1 << 16);
    let all: Vec<(u32, u64)> = (0..5).map(|index| (index, memory.address())).collect();
    let constants = [(0, Constant::Bool(false))];
    let (buffers, threadgroup) = (&all[..], &[(0, 1024)][..]);
    let full = Arguments { buffers, threadgroup, constants: &constants, bytes: &[] };
    launch(full).unwrap();
    let message = |arguments| launch(arguments).unwrap_err().message;
    assert_eq!(message(Arguments { buffers: &all[..4], ..full }), "buffer 4, `p`, is not bound");
    assert_eq!(
        message(Arguments { constants: &[], ..full }),
        "function constant 0, `masked`, was not given"
    );
    assert_eq!(
        message(Arguments { threadgroup: &[], ..full }),
        "threadgroup memory 0, `sums`, has no length"
    );
    let large = message(Arguments { threadgroup: &[(0, 32 << 10)], ..full });
    assert!(
        large.contains("32768 of dynamic shared memory, where a block can have 32768"),
        "{large}"
    );
    let extra: Vec<(u32, u64)> = all.iter().copied().chain([(9, memory.address())]).collect();
    assert_eq!(
        message(Arguments { buffers: &extra, ..full }),
        "buffer 9 is bound, and the kernel has none such"
    );
}

#[test]
fn matrices_of_a_simd_group_multiply() {
    let (m, n, k) = (64, 96, 64);
    let (a, b) = (eighths(m * k, 4), eighths(n * k, 5));
    let packed = |x: &[f32]| buffer(x.iter().flat_map(|&x| half(x).to_ne_bytes()));
    let (ba, bb) = (packed(&a), packed(&b));
    let params = [m, n, k].map(|x| (x as u32).to_ne_bytes()).concat();
    // Products of multiples of 1/8: every order of summing gives the same.
    let at = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum::<f32>();
    let expected: Vec<u32> = (0..m * n).map(|i| at(i).to_bits()).collect();
    for seed in seeds() {
        let c = Memory::new(m * n * 4);
        let buffers = [(0, ba.address()), (1, bb.address()), (2, c.address())];
        let arguments =
            Arguments { buffers: &buffers, bytes: &[(3, &params)], ..Arguments::default() };
        let grid = [(n / 32) as u32, (m / 32) as u32, 1];
        metal::launch("product", grid, [128, 1, 1], arguments, options(seed)).unwrap();
        assert!(words(&c) == expected, "seed {seed}");
    }
}

#[test]
fn functions_of_lanes_are_what_the_specification_says() {
    let x: Vec<u32> = eighths(128, 6).into_iter().map(|x| (x * 1000.0).to_bits() >> 3).collect();
    let group = |i: usize| &x[i / 32 * 32..i / 32 * 32 + 32];
    let sum = |x: &[u32]| x.iter().fold(0_u32, |a, &b| a.wrapping_add(b));
    type Definition<'a> = Box<dyn Fn(usize) -> u32 + 'a>;
    let definitions: Vec<Definition<'_>> = vec![
        Box::new(|i| sum(group(i))),
        Box::new(|i| *group(i).iter().min().unwrap()),
        Box::new(|i| *group(i).iter().max().unwrap()),
        Box::new(|i| group(i).iter().fold(0, |a, b| a ^ b)),
        Box::new(|i| group(i)[31 - i % 32]),
        Box::new(|i| group(i)[i % 32 ^ 5]),
        Box::new(|i| group(i)[9]),
        Box::new(|i| sum(&group(i)[..i % 32])),
        Box::new(|i| sum(&group(i)[..=i % 32])),
        Box::new(|i| (0..32).map(|l| (group(i)[l] & 1) << l).sum()),
        Box::new(|i| u32::from(group(i).iter().any(|x| x & 3 == 3))),
        Box::new(|i| group(i)[0]),
        Box::new(|i| (f32::from_bits(x[i] & 0x3fff_ffff) * 0.5 + 1.0 - 1.0).to_bits()),
    ];
    for seed in seeds() {
        let input = buffer(x.iter().flat_map(|x| x.to_ne_bytes()));
        let (out, counts) = (Memory::new(13 * 128 * 4), Memory::zeroed(8));
        let buffers = [(0, input.address()), (1, out.address()), (2, counts.address())];
        let arguments = Arguments { buffers: &buffers, ..Arguments::default() };
        metal::launch("simd_functions", [2, 1, 1], [64, 1, 1], arguments, options(seed)).unwrap();
        let got = words(&out);
        for (n, definition) in definitions.iter().enumerate() {
            let expected: Vec<u32> = (0..128).map(definition).collect();
            assert!(got[n * 128..][..128] == expected, "result {n}, seed {seed}");
        }
        assert_eq!(words(&counts), [128, *x.iter().max().unwrap()]);
    }
}
