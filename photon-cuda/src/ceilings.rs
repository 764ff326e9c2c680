//! What this GPU can do at most, as its own library and copy engine show it: what percentages of a
//! benchmark are of.
#![allow(unsafe_code, reason = "multiplies by addresses")]

use std::time::Instant;

use half::bf16;
use photon_core::{Activation, DType, Result};

use crate::{
    Cuda,
    driver::{Driver, Gemm, Memory},
};

/// Rates that were measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read and bytes written per second by a copy within the device's memory.
    pub copy_bytes_per_s: f64,
    /// Operations per second of a large product of bf16 matrices; `None` where there is no cuBLASLt.
    pub gemm_flops: Option<f64>,
}

const COPY_BYTES: usize = 1 << 30;
const SIDE: usize = 8192;
/// Long enough that the host's share does not show.
const RUNS: usize = 20;

impl Cuda {
    /// Measures, which takes a second and some gigabytes.
    ///
    /// # Errors
    /// If there is too little memory, or the device fails.
    pub fn ceilings(&self) -> Result<Ceilings> {
        let driver = self.driver();
        let mut stream = driver.stream()?;
        let (from, to) = (driver.alloc(COPY_BYTES)?, driver.alloc(COPY_BYTES)?);
        driver.copy_within(&mut stream, &from, &to)?;
        driver.wait(&driver.record(&mut stream)?)?;
        let begun = Instant::now();
        for _ in 0..RUNS {
            driver.copy_within(&mut stream, &from, &to)?;
        }
        driver.wait(&driver.record(&mut stream)?)?;
        let copy_s = begun.elapsed().as_secs_f64();
        drop((from, to));

        // Random numbers: zeros are faster, as the chip draws less power.
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bf16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
        };
        let matrix: Vec<u8> = (0..SIDE * SIDE).flat_map(|_| noise()).collect();
        let (x, w) = (self.load(&matrix)?, self.load(&matrix)?);
        let out = driver.alloc(matrix.len())?;
        let gemm = Gemm {
            rows: SIDE,
            n: SIDE,
            k: SIDE,
            dtype: DType::Bf16,
            x: x.address(),
            x_stride: SIDE,
            w: w.address(),
            out: out.address(),
            out_stride: SIDE,
            out_dtype: DType::Bf16,
            bias: None,
            activation: Activation::None,
            accumulate: false,
        };
        let multiply = |stream: &mut _| {
            // SAFETY: the matrices are as large as said, and live until the work was waited for below.
            unsafe { driver.gemm(stream, &gemm) }
        };
        let multiplied = multiply(&mut stream)?;
        driver.wait(&driver.record(&mut stream)?)?;
        let begun = Instant::now();
        for _ in 0..RUNS {
            multiply(&mut stream)?;
        }
        driver.wait(&driver.record(&mut stream)?)?;
        let gemm_s = begun.elapsed().as_secs_f64();
        let runs = RUNS as f64;
        Ok(Ceilings {
            copy_bytes_per_s: 2.0 * runs * COPY_BYTES as f64 / copy_s,
            gemm_flops: multiplied.then(|| 2.0 * runs * (SIDE as f64).powi(3) / gemm_s),
        })
    }
}
