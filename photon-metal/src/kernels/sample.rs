//! The sampler.
use photon_core::{Cx, DType, Masks, Sample};

use super::elements::u32_of;
use crate::{arguments::arguments, device::Gpu, driver::Driver};

arguments! {
    /// `SampleArgs` of `sample.metal`.
    struct SampleArgs {
        ids: u64,
        logprobs: u64,
        logits: u64,
        params: u64,
        mask_bits: u64,
        mask_rows: u64,
        vocab: u32,
        masks: u32,
        logits_stride: u32,
        padding: u32,
    }
}

/// Ids that are worth a SIMD-group of their own.
const IDS_PER_SIMDGROUP: u32 = 128;

pub(crate) fn sample<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Sample<'_, Gpu<L>>) {
    let Sample { ids, logprobs, logits, params, masks } = op;
    let (mask_bits, mask_rows, num_masks) = match masks {
        Some(Masks { bits, rows }) => (cx.stream.reads(bits), cx.stream.reads(rows), bits.rows()),
        None => (0, 0, 0),
    };
    let args = SampleArgs {
        ids: cx.stream.writes(ids),
        logprobs: cx.stream.writes(logprobs),
        logits: cx.stream.reads(logits),
        params: cx.stream.reads(params),
        mask_bits,
        mask_rows,
        vocab: u32_of(logits.cols()),
        masks: u32_of(num_masks),
        logits_stride: u32_of(logits.row_stride()),
        padding: 0,
    };
    let kernel = match logits.dtype() {
        DType::F16 => "sample_f16",
        DType::Bf16 => "sample_bf16",
        _ => "sample_f32",
    };
    let simdgroups = (args.vocab / IDS_PER_SIMDGROUP).next_power_of_two().clamp(1, 32);
    cx.stream.launch(kernel, [u32_of(logits.rows()), 1, 1], 32 * simdgroups, &args);
}
