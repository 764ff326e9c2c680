//! What there is to say about this machine's GPUs, or why there are none to use.
use std::fmt::Write;

use photon_core::Device;

use crate::{Cuda, ffi};

/// Describes every GPU: what it is, where its kernels come from, which library multiplies.
///
/// # Errors
/// Why CUDA cannot be used at all.
pub fn describe() -> Result<String, String> {
    let (count, driver) = ffi::count()?;
    let mut text = format!("driver        for CUDA {}", ffi::version(driver));
    for ordinal in 0..count {
        let facts = ffi::facts(ordinal)?;
        let (major, minor) = facts.capability;
        let _ = write!(
            text,
            "\nGPU {ordinal}         {}, sm_{major}{minor}, {} multiprocessors",
            facts.name, facts.multiprocessors
        );
        match Cuda::open(ordinal) {
            Ok(gpu) => {
                let memory = gpu.memory();
                let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
                let (free, total) = (gib(memory.free_bytes), gib(memory.total_bytes));
                let _ = write!(text, "\nmemory        {free:.1} GiB free of {total:.1} GiB\n");
                text += &gpu.driver().describe();
            }
            // Said by the device itself, without the name of the backend that precedes it elsewhere.
            Err(photon_core::Error::Unavailable { why, .. }) if count == 1 => return Err(why),
            Err(error) => text += &format!("\ncannot be used: {error}"),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_told_so_and_nothing_panics() {
        match describe() {
            Ok(text) => assert!(text.contains("GPU 0"), "{text}"),
            Err(why) => assert!(why.contains("NVIDIA driver"), "{why}"),
        }
    }
}
