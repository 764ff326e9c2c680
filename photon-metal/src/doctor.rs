//! What there is to say about this machine's GPU, or why there is none to use.

/// Describes the GPU: what it is, its memory, whether its compiler takes every kernel.
///
/// # Errors
/// Why Metal cannot be used at all.
#[cfg(target_os = "macos")]
pub fn describe() -> Result<String, String> {
    use photon_core::{Device, Error};

    let gpu = crate::Metal::open().map_err(|error| match error {
        // Said by the device itself, without the name of the backend that precedes it elsewhere.
        Error::Unavailable { why, .. } => why,
        error => error.to_string(),
    })?;
    let crate::driver::Facts { name, family, has_bfloat, has_tensor_ops } = gpu.facts();
    let memory = gpu.memory();
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let (free, total) = (gib(memory.free_bytes), gib(memory.total_bytes));
    let kernels = gpu.driver().kernels().map_err(|error| error.to_string())?;
    let most = kernels.values().map(|(bytes, _)| bytes).max().unwrap_or(&0);
    Ok(format!(
        "GPU           {name}, Apple family {family}\n\
         bfloat16      {}\n\
         tensor ops    {}\n\
         few rows      {}\n\
         memory        {free:.1} GiB free of the {total:.1} GiB that macOS lets it use\n\
         kernels       {} compiled, at most {most} bytes of threadgroup memory",
        // See `Device::model_dtype`.
        if *has_bfloat { "yes" } else { "no: models in it are kept in f16" },
        if *has_tensor_ops { "yes" } else { "no" },
        // What to look at first on a new GPU: see `kernels/linear.rs`.
        match gpu.matrices_chain() {
            true => "by chains of fma, whose bits this GPU's matrices share",
            false => "by matrices, whose bits no chain of fma has on this GPU",
        },
        kernels.len(),
    ))
}

/// Says that there is no Metal.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "macos"))]
pub fn describe() -> Result<String, String> {
    Err("Metal is part of macOS, and this is another system".into())
}
