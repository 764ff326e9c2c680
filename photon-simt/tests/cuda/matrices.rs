//! Fragments of matrices and background copies against their definitions.
use photon_simt::Memory;

use crate::support::{buffer, eighths, floats, launch, pseudo, seeds, words};

/// Where a fragment's element lies: by lane and element, row and column.
fn a_place(lane: usize, i: usize, per_register: usize) -> (usize, usize) {
    let (g, t, register) = (lane / 4, lane % 4, i / per_register);
    let column = per_register * t + i % per_register + register / 2 * 4 * per_register;
    (g + register % 2 * 8, column)
}

fn b_place(lane: usize, i: usize, per_register: usize) -> (usize, usize) {
    let (g, t, register) = (lane / 4, lane % 4, i / per_register);
    (per_register * t + i % per_register + register * 4 * per_register, g)
}

fn d_place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2)
}

/// `d + a b`, of numbers small enough that every order of summing gives the same.
fn product(a: &[f32], b: &[f32], d: &[f32], k: usize) -> Vec<f32> {
    let at = |row: usize, n: usize| (0..k).map(|k_| a[row * k + k_] * b[k_ * 8 + n]).sum::<f32>();
    (0..128).map(|i| d[i] + at(i / 8, i % 8)).collect()
}

fn check_mma(kind: i32, per_register: usize, encode: fn(f32) -> u32) {
    let k = 8 * per_register;
    let (a, b, d) = (eighths(16 * k, 1), eighths(k * 8, 2), eighths(128, 3));
    let round = kind == 2;
    // int8 takes whole numbers; e4m3 has three bits after the first, and halves from 4 on.
    let scale = |x: &[f32]| -> Vec<f32> {
        let fit = |x: &f32| {
            if round {
                x * 8.0
            } else if kind == 3 {
                (x * 2.0).trunc() / 2.0
            } else {
                *x
            }
        };
        x.iter().map(fit).collect()
    };
    let (a, b, d) = (scale(&a), scale(&b), scale(&d));
    let bits = 32 / per_register;
    let pack = |n: usize, element: &dyn Fn(usize, usize) -> f32| -> Vec<u32> {
        let register = |lane: usize, r: usize| {
            let part = |i: usize| encode(element(lane, r * per_register + i)) << (bits * i);
            (0..per_register).map(part).sum::<u32>()
        };
        (0..32)
            .flat_map(|lane| (0..n).map(move |r| (lane, r)))
            .map(|(l, r)| register(l, r))
            .collect()
    };
    let of_a = |lane: usize, i: usize| {
        let (row, column) = a_place(lane, i, per_register);
        a[row * k + column]
    };
    let of_b = |lane: usize, i: usize| {
        let (row, column) = b_place(lane, i, per_register);
        b[row * 8 + column]
    };
    let lanes = |m: &[f32]| -> Vec<f32> {
        let places = (0..128).map(|i| d_place(i / 4, i % 4));
        places.map(|(row, column)| m[row * 8 + column]).collect()
    };
    let expected = lanes(&product(&a, &b, &d, k));
    for seed in seeds() {
        let (fa, fb) = (buffer(&pack(4, &of_a)), buffer(&pack(2, &of_b)));
        let sums = lanes(&d);
        let fd = if round {
            buffer(&sums.iter().map(|&x| x as i32).collect::<Vec<_>>())
        } else {
            buffer(&sums)
        };
        let addresses = [fa.address(), fb.address(), fd.address()];
        launch("mma", [1, 1, 1], 32, 0, (&addresses, &[kind, 0]), seed).unwrap();
        let got: Vec<f32> =
            if round { words(&fd).iter().map(|&x| x as i32 as f32).collect() } else { floats(&fd) };
        assert_eq!(got, expected, "seed {seed}");
    }
}

#[test]
fn mma_of_bf16_is_the_product() {
    check_mma(0, 2, |x| x.to_bits() >> 16);
}

/// Of a multiple of 1/8 below 8.
fn small_float(x: f32, mantissa: u32, bias: u32) -> u32 {
    let sign = u32::from(x < 0.0);
    if x == 0.0 {
        return 0;
    }
    let exponent = x.abs().log2().floor() as i32;
    let fraction = ((x.abs() / 2_f32.powi(exponent) - 1.0) * (1 << mantissa) as f32) as u32;
    let exponent_bits = if mantissa == 10 { 5 } else { 4 };
    sign << (mantissa + exponent_bits) | ((exponent + bias as i32) as u32) << mantissa | fraction
}

#[test]
fn mma_of_f16_is_the_product() {
    check_mma(1, 2, |x| small_float(x, 10, 15));
}

#[test]
fn mma_of_int8_is_the_product() {
    check_mma(2, 4, |x| u32::from(x as i8 as u8));
}

#[test]
fn mma_of_e4m3_is_the_product_of_what_its_codes_stand_for() {
    check_mma(3, 4, |x| small_float(x, 3, 7));
}

#[test]
fn ldmatrix_gives_each_lane_its_elements() {
    let x: Vec<u16> = pseudo(256, 9).into_iter().map(|x| x as u16).collect();
    let pair = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
    let of = |m: usize, row: usize, column: usize| x[(m * 8 + row) * 8 + column];
    for seed in seeds() {
        let (input, out) = (buffer(&x), Memory::zeroed(6 * 128 * 4));
        launch("ldmatrix", [1, 1, 1], 32, 0, (&[input.address(), out.address()], &[]), seed)
            .unwrap();
        let got = words(&out);
        for (which, matrices) in [1, 2, 4, 1, 2, 4].into_iter().enumerate() {
            for (lane, m) in (0..32).flat_map(|lane| (0..matrices).map(move |m| (lane, m))) {
                let (g, t) = (lane / 4, 2 * (lane % 4));
                let expected = if which < 3 {
                    pair(of(m, g, t), of(m, g, t + 1))
                } else {
                    pair(of(m, t, g), of(m, t + 1, g))
                };
                let got = got[which * 128 + lane * 4 + m];
                assert_eq!(got, expected, "variant {which}, lane {lane}, matrix {m}, seed {seed}");
            }
        }
    }
}

#[test]
fn copies_land_whatever_the_order_and_missing_ones_are_zero() {
    let x = pseudo(3 * 64 * 4, 4);
    for (seed, valid) in seeds().zip([0, 1, 30, 63, 64].into_iter().cycle()) {
        let (input, out) = (buffer(&x), Memory::new(x.len() * 4));
        let args: (&[u64], &[i32]) = (&[input.address(), out.address()], &[valid, 0]);
        launch("copies", [3, 1, 1], 64, 0, args, seed).unwrap();
        let expected: Vec<u32> = (0..x.len())
            .map(|at| {
                let (block, other, j) = (at / 256, 63 - at / 4 % 64, at % 4);
                let x = x[block * 256 + other * 4 + j];
                let or_zero = |kept: bool| if kept { x } else { 0 };
                let valid = (other as i32) < valid;
                let (by16, by8, by4) =
                    (or_zero(valid), or_zero(valid || j >= 2), or_zero(valid || j > 0));
                by16 ^ by8.wrapping_mul(3) ^ by4.wrapping_mul(5)
            })
            .collect();
        assert!(words(&out) == expected, "seed {seed}");
    }
}
