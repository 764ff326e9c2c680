//! Attention over dense and over paged keys and values.
use photon_core::{Attention, Cx, PagedAttention};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn attention<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Attention<'_, Gpu<L>>) {
    unimplemented!("attention on Metal")
}

pub(crate) fn paged_attention<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: PagedAttention<'_, Gpu<L>>) {
    unimplemented!("paged_attention on Metal")
}
