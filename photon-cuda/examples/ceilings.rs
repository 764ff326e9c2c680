//! Prints what the first GPU can do at most, as JSON; part of `cargo xtask gpu-check`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::process::ExitCode;

use photon_cuda::{Ceilings, Cuda};

fn main() -> ExitCode {
    match Cuda::open(0).and_then(|gpu| gpu.ceilings()) {
        Ok(Ceilings { copy_bytes_per_s, gemm_flops }) => {
            let gemm_flops = gemm_flops.map_or_else(
                |why| {
                    eprintln!("{why}");
                    "null".into()
                },
                |flops| format!("{flops:e}"),
            );
            println!("{{\"copy_bytes_per_s\":{copy_bytes_per_s:e},\"gemm_flops\":{gemm_flops}}}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
