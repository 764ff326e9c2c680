//! Quantizing a tensor of a checkpoint, or taking it as it is.
use photon_core::{DType, WeightFormat, convert, quant};

use super::{Checkpoint, CheckpointError};

impl Checkpoint {
    /// The codes and scales of a tensor with rows of `k`, in the format that is asked for; those that are
    /// stored if none is; nothing if the tensor is of floats and shall stay so.
    ///
    /// # Errors
    /// [`CheckpointError::Coded`] if it is stored in another format than is asked for: what quantizing
    /// took cannot be had again, and quantizing what is left takes more.
    pub fn quantized(
        &self,
        name: &str,
        k: usize,
        asked: Option<WeightFormat>,
    ) -> Result<Option<(WeightFormat, quant::Quantized)>, CheckpointError> {
        let not_finite = || CheckpointError::NotFinite { name: name.into() };
        let stored = self.info(name).map(|info| info.format);
        if let (Some(stored), Some(coded)) = (stored, self.coded(name)) {
            if let Some(asked) = asked.filter(|asked| *asked != stored) {
                return Err(CheckpointError::Coded { name: name.into(), stored, asked });
            }
            let finite = coded.scales.iter().all(|scale| scale.is_finite());
            return finite.then_some(Some((stored, coded))).ok_or_else(not_finite);
        }
        let (Some(format), Some((from, bytes))) = (asked, self.floats(name)) else {
            return Ok(None);
        };
        Ok(Some((format, quantize(format, k, &bytes, from).ok_or_else(not_finite)?)))
    }
}

/// Quantizes rows of `k` floats on all processors; `None` if a number is not finite.
fn quantize(format: WeightFormat, k: usize, bytes: &[u8], from: DType) -> Option<quant::Quantized> {
    let row_bytes = k * from.size();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = (bytes.len() / row_bytes).div_ceil(threads).max(1);
    let piece = |bytes: &[u8]| {
        // Few rows at a time: all of them as f32 would be twice the checkpoint's memory.
        let mut out = quant::Quantized::default();
        for rows in bytes.chunks(256 * row_bytes) {
            let wide = convert(rows, from, DType::F32);
            let values: Vec<f32> = wide
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let coded = quant::quantize(format, k, &values)?;
            out.bytes.extend(coded.bytes);
            out.scales.extend(coded.scales);
        }
        Some(out)
    };
    std::thread::scope(|scope| {
        let pieces: Vec<_> =
            bytes.chunks(rows * row_bytes).map(|bytes| scope.spawn(move || piece(bytes))).collect();
        let mut all = quant::Quantized::default();
        for piece in pieces {
            let coded = piece.join().expect("quantizing does not panic")?;
            all.bytes.extend(coded.bytes);
            all.scales.extend(coded.scales);
        }
        Some(all)
    })
}
