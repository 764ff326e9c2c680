//! How fast the simulator is: `cargo run --release -p photon-simt --example speed`.
#![allow(clippy::print_stdout, reason = "prints its measurements")]
#![forbid(unsafe_code)]

use std::time::Instant;

use photon_simt::{Fault, Memory, cuda};

fn main() -> Result<(), Fault> {
    for threads in [1, 2] {
        let options = cuda::Options { threads, ..cuda::Options::default() };
        let (heads, n) = (4_u32, 512_u32);
        let rows = Memory::zeroed((heads * n * 64 * 2) as usize);
        let out = Memory::zeroed((heads * n * 64 * 4) as usize);
        let mut args = Vec::new();
        for memory in [&rows, &rows, &rows, &out] {
            args.extend(memory.address().to_ne_bytes());
        }
        args.extend(n.to_ne_bytes());
        args.extend(0.125_f32.to_ne_bytes());
        let begun = Instant::now();
        let report = cuda::launch("attention", [n / 64, heads, 1], [128, 1, 1], 0, &args, options)?;
        let seconds = begun.elapsed().as_secs_f64();
        let flop = 4.0 * f64::from(heads) * f64::from(n) * f64::from(n) * 64.0;
        println!(
            "attention, {threads} threads: {:.0} ms, {:.2} GFLOP/s, {:.1} ns a switch",
            seconds * 1e3,
            flop / seconds / 1e9,
            seconds * 1e9 * threads as f64 / report.switches as f64
        );
    }
    Ok(())
}
