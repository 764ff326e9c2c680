//! Products with weight matrices.
use photon_core::{Cx, GroupedLinear, Linear, Result, Weight, WeightData};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn pack<L: Driver>(_: &Gpu<L>, _: WeightData<'_>) -> Result<Weight<Gpu<L>>> {
    unimplemented!("weights on Metal")
}

pub(crate) fn linear<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Linear<'_, Gpu<L>>) {
    unimplemented!("linear on Metal")
}

pub(crate) fn grouped_linear<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: GroupedLinear<'_, Gpu<L>>) {
    unimplemented!("grouped_linear on Metal")
}
