//! Conversions round to nearest, ties to even, everywhere: against definitions in f64.
use photon_simt::Memory;

use crate::support::{buffer, launch, pseudo, words};

/// A binary format: bits of the fraction, and the smallest normal exponent.
#[derive(Clone, Copy)]
struct Format {
    fraction: u32,
    bits: u32,
    bias: i32,
}
const BF16: Format = Format { fraction: 7, bits: 16, bias: 127 };
const F16: Format = Format { fraction: 10, bits: 16, bias: 15 };
const E4M3: Format = Format { fraction: 3, bits: 8, bias: 7 };

impl Format {
    fn decode(self, code: u32) -> f64 {
        let exponents = self.bits - 1 - self.fraction;
        let exponent = code >> self.fraction & ((1 << exponents) - 1);
        let fraction = f64::from(code & ((1 << self.fraction) - 1)) / f64::from(1 << self.fraction);
        let sign = if code >> (self.bits - 1) & 1 == 1 { -1.0 } else { 1.0 };
        let full = exponent == (1 << exponents) - 1;
        if full && self.bits == 16 {
            return if fraction == 0.0 { sign * f64::INFINITY } else { f64::NAN };
        }
        if full && fraction == 7.0 / 8.0 {
            return f64::NAN;
        }
        let power = |e: i32| 2_f64.powi(e - self.bias);
        sign * if exponent == 0 {
            fraction * power(1)
        } else {
            (1.0 + fraction) * power(exponent as i32)
        }
    }

    /// The nearest of all codes: found among the codes' values, so by nothing that the simulator does.
    fn encode(self, x: f64) -> u32 {
        let sign = u32::from(x.is_sign_negative()) << (self.bits - 1);
        let largest =
            (0..1 << (self.bits - 1)).rev().find(|&c| self.decode(c).is_finite()).unwrap();
        // Values of codes grow with them: the last that is not above, and its neighbor.
        let (mut low, mut high) = (0, largest);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if self.decode(middle) <= x.abs() { low = middle } else { high = middle - 1 }
        }
        let step = self.decode(low) - self.decode(low.saturating_sub(1));
        let next = if low == largest { self.decode(low) + step } else { self.decode(low + 1) };
        let (below, above) = (x.abs() - self.decode(low), next - x.abs());
        let up = above < below || above == below && low % 2 == 1;
        let saturates = self.bits == 8;
        sign | if up && !(saturates && low == largest) { low + 1 } else { low }
    }
}

fn interesting(n: usize) -> Vec<u32> {
    let mut x = pseudo(n, 77);
    // Ties, subnormals, limits: where rounding goes wrong.
    for (i, x) in x.iter_mut().enumerate() {
        match i % 8 {
            0 => *x = *x & 0xffff_0000 | 0x8000,
            1 => *x = *x & 0xffff_e000 | 0x1000,
            2 => *x = *x & 0x807f_ffff | (100 + *x % 30) << 23,
            3 => *x = *x & 0x80f0_0000 | (118 + *x % 20) << 23 | 0x8_0000,
            4 => *x = *x & 0x8000_ffff | (*x >> 16 & 0xffff) % 0x80 << 16,
            5 => *x = *x & 0x9fff_9fff | 0x2000_2000,
            _ => {}
        }
    }
    let special = [
        0,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x7f7f_ffff,
        0x477f_f000,
        0x43e0_0000,
    ];
    x[..special.len()].copy_from_slice(&special);
    x
}

/// `a * b + c` of a format, rounded once: exact in integers of 2^-300.
fn fma(format: Format, a: u32, b: u32, c: u32) -> Option<u32> {
    let (a, b, c) = (format.decode(a), format.decode(b), format.decode(c));
    let product = a * b;
    let sum = product + c;
    if !sum.is_finite() {
        return None;
    }
    // Where f64 loses something, a nudge keeps the direction: rounding to a few bits sees no more.
    let back = sum - product;
    let lost = (product - (sum - back)) + (c - back);
    let nudged = if lost == 0.0 {
        sum
    } else if lost > 0.0 {
        sum.next_up()
    } else {
        sum.next_down()
    };
    let code = format.encode(if lost != 0.0 && sum.to_bits() & 1 == 1 { sum } else { nudged });
    Some(code)
}

#[test]
fn every_conversion_is_the_nearest() {
    let x = interesting(1 << 14);
    let n = x.len();
    let (input, out) = (buffer(&x), Memory::new(12 * n * 4));
    let args: (&[u64], &[i32]) = (&[input.address(), out.address()], &[n as i32, 0]);
    launch("numbers", [n as u32 / 256, 1, 1], 256, 0, args, 0).unwrap();
    let out = words(&out);
    for i in 0..n {
        let got = |result: usize| out[result * n + i];
        let f = f32::from_bits(x[i]);
        let (y, z) = (x[(i + 1) % n], x[(i + 2) % n]);
        let as_f64 = f64::from(f);
        let encode = |format: Format| if f.is_nan() { 0x7fff } else { format.encode(as_f64) };
        assert_eq!(got(0), encode(BF16), "bf16 of {f:e}");
        assert_eq!(got(1), encode(F16), "f16 of {f:e}");
        let e4m3 = if f.is_nan() { 0x7f } else { E4M3.encode(as_f64) };
        assert_eq!(got(2), e4m3 | 0x4038_0000, "e4m3 of {f:e}");
        let half = F16.decode(x[i] & 0xffff);
        let decoded = f64::from(f32::from_bits(got(3)));
        assert!(decoded == half || half.is_nan() && decoded.is_nan(), "{:#x}", x[i]);
        assert_eq!(got(4), encode(BF16) | 0x3f80_0000);
        assert_eq!(got(5), encode(F16) << 16 | 0xbc00);
        for (result, format) in [(6, BF16), (7, F16)] {
            for shift in [0, 16] {
                let part = |x: u32| x >> shift & 0xffff;
                if let Some(expected) = fma(format, part(x[i]), part(y), part(z)) {
                    let (a, b, c) = (part(x[i]), part(y), part(z));
                    assert_eq!(part(got(result)), expected, "{a:#x} * {b:#x} + {c:#x}");
                }
            }
        }
        let both = u64::from(y) << 32 | u64::from(x[i]);
        let byte = |i: u32| (both >> ((z >> (4 * i) & 7) * 8) & 0xff) as u32;
        assert_eq!(got(8), (0..4).map(|i| byte(i) << (8 * i)).sum::<u32>());
        assert_eq!(got(9) as i32, f.round_ties_even() as i32, "{f:e}");
        let part = |x: u32, i: usize| i32::from(x.to_le_bytes()[i] as i8);
        let dot = (0..4).fold(z as i32, |sum, j| sum.wrapping_add(part(x[i], j) * part(y, j)));
        assert_eq!(got(10) as i32, dot);
        let high = (u64::from(x[i]) * u64::from(y) >> 32) as u32;
        let shifted = (both >> (z & 31)) as u32;
        assert_eq!(got(11), shifted ^ z.reverse_bits() ^ x[i].leading_zeros() ^ high);
    }
}
