//! The sampler.
use bytemuck::{Pod, Zeroable};
use photon_core::{Cx, DType, Masks, Sample};

use super::elements::u32_of;
use crate::{device::Gpu, driver::Driver};

/// `SampleArgs` of `sample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
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
    staged: u32,
}

/// Shared memory that the kernel itself declares, rounded up.
const OWN_BYTES: u32 = 16 << 10;
/// Ids that are worth a warp of their own.
const IDS_PER_WARP: u32 = 128;

pub(crate) fn sample<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Sample<'_, Gpu<L>>) {
    let Sample { ids, logprobs, logits, params, masks } = op;
    let (mask_bits, mask_rows, num_masks) = match masks {
        Some(Masks { bits, rows }) => {
            (cx.stream.address(bits), cx.stream.address(rows), bits.rows())
        }
        None => (0, 0, 0),
    };
    let vocab = u32_of(logits.cols());
    let room = cx.device.facts().shared_bytes.saturating_sub(OWN_BYTES) / 4;
    let args = SampleArgs {
        ids: cx.stream.address(ids),
        logprobs: cx.stream.address(logprobs),
        logits: cx.stream.address(logits),
        params: cx.stream.address(params),
        mask_bits,
        mask_rows,
        vocab,
        masks: u32_of(num_masks),
        logits_stride: u32_of(logits.row_stride()),
        staged: vocab.min(room),
    };
    let kernel = match logits.dtype() {
        DType::F16 => "sample_f16",
        DType::Bf16 => "sample_bf16",
        _ => "sample_f32",
    };
    let warps = (vocab / IDS_PER_WARP).next_power_of_two().clamp(1, 32);
    let grid = [u32_of(logits.rows()), 1, 1];
    cx.stream.launch(kernel, grid, [32 * warps, 1, 1], 4 * args.staged, &args);
}
