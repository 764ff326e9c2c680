//! Quantizing a tensor of a checkpoint, or taking it as it is.
use photon_core::{
    DType, WeightFormat,
    quant::{Quantized, quantize_row},
    widen,
};

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
    ) -> Result<Option<(WeightFormat, Quantized<'_>)>, CheckpointError> {
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
fn quantize(
    format: WeightFormat,
    k: usize,
    bytes: &[u8],
    from: DType,
) -> Option<Quantized<'static>> {
    let (row_bytes, code_bytes, row_scales) =
        (k * from.size(), format.row_bytes(k), format.row_scales(k));
    let rows = bytes.len() / row_bytes;
    let (mut codes, mut scales) = (vec![0; rows * code_bytes], vec![0.0; rows * row_scales]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.div_ceil(threads).max(1);
    let piece = |rows: &[u8], codes: &mut [u8], scales: &mut [f32]| {
        let mut wide = vec![0.0; k];
        let places = codes.chunks_exact_mut(code_bytes).zip(scales.chunks_exact_mut(row_scales));
        rows.chunks_exact(row_bytes).zip(places).all(|(row, (codes, scales))| {
            widen(row, from, &mut wide);
            quantize_row(format, &wide, codes, scales)
        })
    };
    let is_finite = std::thread::scope(|scope| {
        let places =
            codes.chunks_mut(share * code_bytes).zip(scales.chunks_mut(share * row_scales));
        let pieces: Vec<_> = bytes
            .chunks(share * row_bytes)
            .zip(places)
            .map(|(rows, (codes, scales))| scope.spawn(move || piece(rows, codes, scales)))
            .collect();
        // All are waited for, and each says whether it went well.
        let went = pieces.into_iter().map(|piece| piece.join().expect("quantizing does not panic"));
        went.fold(true, |all, piece| all & piece)
    });
    is_finite.then(|| Quantized { bytes: codes.into(), scales })
}
