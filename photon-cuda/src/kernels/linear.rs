//! Linear layers: how weights lie, and what multiplies them.
use photon_core::{Cx, Error, GroupedLinear, Linear, Result, Weight, WeightData};

use crate::{device::Gpu, driver::Driver};

/// Copies a weight matrix to the device in the layout its kernels like best.
pub(crate) fn pack<L: Driver>(gpu: &Gpu<L>, data: WeightData<'_>) -> Result<Weight<Gpu<L>>> {
    let _ = |bytes: &[u8]| gpu.load(bytes);
    let (device, format) = (gpu.facts().name.clone(), data.format.to_string());
    Err(Error::UnsupportedFormat { device, format })
}

pub(crate) fn linear<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Linear<'_, Gpu<L>>) {
    cx.stream.missing("linear");
}

pub(crate) fn grouped_linear<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: GroupedLinear<'_, Gpu<L>>) {
    cx.stream.missing("grouped_linear");
}
