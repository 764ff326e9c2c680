//! Activations, and gates.
use photon_core::{Activate, Cx, GatedGelu, Tau};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn activate<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Activate<'_, Gpu<L>>) {
    unimplemented!("activate on Metal")
}

pub(crate) fn gated_gelu<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: GatedGelu<'_, Gpu<L>>) {
    unimplemented!("gated_gelu on Metal")
}

pub(crate) fn tau<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Tau<'_, Gpu<L>>) {
    unimplemented!("tau on Metal")
}
