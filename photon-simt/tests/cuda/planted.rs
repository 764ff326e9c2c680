//! Bugs planted in a kernel that is right are found, and the kernel without them passes the same test.
use photon_simt::{Fault, Memory};

use crate::support::{buffer, eighths, floats, launch, seeds};

const N: usize = 128;
const HEADS: usize = 2;
const DIM: usize = 64;
const SCALE: f32 = 0.125;

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn inputs() -> Inputs {
    let [q, k, v] = [1, 2, 3].map(|seed| eighths(HEADS * N * DIM, seed));
    // Large enough that rows differ, small enough that no weight drowns the others.
    let q = q.into_iter().map(|x| x / 4.0).collect();
    Inputs { q, k, v }
}

/// `softmax(scale q k^T) v` in f64.
fn defined(x: &Inputs) -> Vec<f64> {
    let mut out = Vec::new();
    for (head, row) in (0..HEADS).flat_map(|head| (0..N).map(move |row| (head, row))) {
        let of = |m: &[f32], row: usize, d: usize| f64::from(m[(head * N + row) * DIM + d]);
        let dot = |key: usize| (0..DIM).map(|d| of(&x.q, row, d) * of(&x.k, key, d)).sum::<f64>();
        let scores: Vec<f64> = (0..N).map(|key| dot(key) * f64::from(SCALE)).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        let sum = |d: usize| (0..N).map(|key| weights[key] * of(&x.v, key, d)).sum::<f64>();
        out.extend((0..DIM).map(|d| sum(d) / total));
    }
    out
}

/// The largest error of a build of the kernel under a seed.
fn error(kernel: &str, seed: u64) -> Result<f64, Fault> {
    let x = inputs();
    let bf16 =
        |m: &[f32]| buffer(&m.iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<_>>());
    let [q, k, v] = [&x.q, &x.k, &x.v].map(|m| bf16(m));
    let out = Memory::new(x.q.len() * 4);
    let addresses = [q.address(), k.address(), v.address(), out.address()];
    let numbers = [N as i32, SCALE.to_bits() as i32];
    let grid = [(N / 64) as u32, HEADS as u32, 1];
    launch(kernel, grid, 128, 0, (&addresses, &numbers), seed)?;
    let errors =
        floats(&out).into_iter().zip(defined(&x)).map(|(got, x)| (f64::from(got) - x).abs());
    // NaN, which unwritten memory reads as, is the largest of errors.
    Ok(errors.fold(0.0, |a, b| if a > b || a.is_nan() { a } else { b }))
}

/// Weights are rounded to bf16: 2^-9 of values up to 4.
const TOLERANCE: f64 = 4.0 / 512.0;

fn is_wrong(kernel: &str, seed: u64) -> bool {
    error(kernel, seed).is_ok_and(|e| e.is_nan() || e > TOLERANCE)
}

#[test]
fn the_kernel_is_right_whatever_the_order() {
    for seed in seeds() {
        let error = error("attention", seed).unwrap();
        assert!(error < TOLERANCE, "{error} with seed {seed}");
    }
}

#[test]
fn a_missing_barrier_shows_in_some_orders() {
    let wrong: Vec<u64> = seeds().filter(|&seed| is_wrong("attention!barrier", seed)).collect();
    let right = seeds().count() - wrong.len();
    // Where copies land late and warps happen to keep step, nothing is overwritten too early.
    assert!(wrong.contains(&1), "seeds {wrong:?} are wrong");
    assert!(right > 0, "the order does not matter any more: {wrong:?}");
}

#[test]
fn an_index_off_by_one_is_a_wrong_result_or_a_fault() {
    for seed in seeds() {
        match error("attention!index", seed) {
            Ok(error) => assert!(error.is_nan() || error > TOLERANCE, "{error} with seed {seed}"),
            Err(fault) => {
                let message = fault.to_string();
                assert!(message.contains("past the end of a buffer of 65536 bytes"), "{message}");
                assert!(message.contains("photon-simt/kernels/attention.cu:"), "{message}");
            }
        }
    }
}

#[test]
fn a_wrong_lane_is_a_wrong_result() {
    for seed in seeds() {
        assert!(is_wrong("attention!lane", seed), "seed {seed}");
    }
}
