//! Activations, and gates.
use photon_core::{Activate, Cx, GatedGelu};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn activate<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Activate<'_, Gpu<L>>) {
    unimplemented!("activate on Metal")
}

pub(crate) fn gated_gelu<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: GatedGelu<'_, Gpu<L>>) {
    unimplemented!("gated_gelu on Metal")
}
