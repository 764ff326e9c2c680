//! Functions of single elements.
use photon_core::{Activate, Cx, GatedGelu, Tau};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn activate<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Activate<'_, Gpu<L>>) {
    cx.stream.missing("activate");
}

pub(crate) fn gated_gelu<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: GatedGelu<'_, Gpu<L>>) {
    cx.stream.missing("gated_gelu");
}

pub(crate) fn tau<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Tau<'_, Gpu<L>>) {
    cx.stream.missing("tau");
}
