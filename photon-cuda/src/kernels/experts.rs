//! Which experts a token goes to, and how their results are joined.
use photon_core::{Cx, Nest, Route, WeightedSum};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn route<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Route<'_, Gpu<L>>) {
    cx.stream.missing("route");
}

pub(crate) fn nest<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Nest<'_, Gpu<L>>) {
    cx.stream.missing("nest");
}

pub(crate) fn weighted_sum<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: WeightedSum<'_, Gpu<L>>) {
    cx.stream.missing("weighted_sum");
}
