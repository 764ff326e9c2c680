//! Which experts a row goes to, and what comes back.
use photon_core::{Cx, Nest, Route, WeightedSum};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn route<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Route<'_, Gpu<L>>) {
    unimplemented!("route on Metal")
}

pub(crate) fn nest<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Nest<'_, Gpu<L>>) {
    unimplemented!("nest on Metal")
}

pub(crate) fn weighted_sum<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: WeightedSum<'_, Gpu<L>>) {
    unimplemented!("weighted_sum on Metal")
}
