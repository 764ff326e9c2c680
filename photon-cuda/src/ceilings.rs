//! What this GPU can do at most, as its own library and copy engine show it: what percentages of a
//! benchmark are of.
#![allow(unsafe_code, reason = "multiplies by addresses")]

use half::bf16;
use photon_core::Result;

use crate::{
    Cuda,
    blas::{Blas, Product},
    driver::{Driver, Memory},
    ffi::Stream,
};

/// Rates that were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read and bytes written per second by a copy within the device's memory.
    pub copy_bytes_per_s: f64,
    /// Operations per second of a large product of bf16 matrices, by the best algorithm that cuBLASLt suggests;
    /// or why there is no cuBLASLt.
    pub gemm_flops: std::result::Result<f64, String>,
}

const COPY_BYTES: usize = 1 << 30;
const SIDE: usize = 8192;
/// After one to warm up; long enough that the host's share does not show.
const RUNS: usize = 20;

impl Cuda {
    /// Measures, which takes a second and some gigabytes.
    ///
    /// # Errors
    /// If there is too little memory, or the device fails.
    pub fn ceilings(&self) -> Result<Ceilings> {
        let mut stream = self.driver().stream()?;
        let copy_bytes_per_s = self.copy_bytes_per_s(&mut stream)?;
        let gemm_flops = match Blas::open(self.driver().facts().driver_version) {
            Ok(blas) => Ok(self.gemm_flops(&mut stream, &blas)?),
            Err(why) => Err(why),
        };
        Ok(Ceilings { copy_bytes_per_s, gemm_flops })
    }

    fn copy_bytes_per_s(&self, stream: &mut Stream) -> Result<f64> {
        let driver = self.driver();
        let (from, to) = (driver.alloc(COPY_BYTES)?, driver.alloc(COPY_BYTES)?);
        let seconds =
            driver.seconds(stream, RUNS, |stream| driver.copy_within(stream, &from, &to))?;
        Ok(2.0 * COPY_BYTES as f64 / seconds)
    }

    fn gemm_flops(&self, stream: &mut Stream, blas: &Blas) -> Result<f64> {
        // Random numbers: zeros are faster, as the chip draws less power.
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bf16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
        };
        let matrix: Vec<u8> = (0..SIDE * SIDE).flat_map(|_| noise()).collect();
        let (driver, x) = (self.driver(), self.load(&matrix)?);
        let (out, scratch) = (driver.alloc(matrix.len())?, driver.alloc(Product::SCRATCH_BYTES)?);
        let addresses = [x.address(), x.address(), out.address(), scratch.address()];
        let lost = |why| driver.lost("multiplying", why);
        let product = Product::new(blas, SIDE).map_err(lost)?;
        let mut best = f64::INFINITY;
        for algorithm in product.algorithms().map_err(lost)? {
            let seconds = driver.seconds(stream, RUNS, |stream| {
                // SAFETY: the matrices and the scratch memory are as large as said, and live until the work
                // was waited for by `seconds`; `open` was called on this thread, for this driver's context.
                unsafe { product.run(&algorithm, addresses, stream.raw()) }.map_err(lost)
            })?;
            best = best.min(seconds);
        }
        if best.is_infinite() {
            return Err(lost("cuBLASLt has no algorithm for bf16".into()));
        }
        Ok(2.0 * (SIDE as f64).powi(3) / best)
    }
}
