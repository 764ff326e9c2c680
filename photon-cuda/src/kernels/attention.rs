//! Attention, in the vision tower and over the paged cache.
use photon_core::{Attention, Cx, PagedAttention};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn attention<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Attention<'_, Gpu<L>>) {
    cx.stream.missing("attention");
}

pub(crate) fn paged_attention<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: PagedAttention<'_, Gpu<L>>) {
    cx.stream.missing("paged_attention");
}
