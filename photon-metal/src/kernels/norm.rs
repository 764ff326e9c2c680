//! Layer norms.
use photon_core::{Cx, LayerNorm};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn layer_norm<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: LayerNorm<'_, Gpu<L>>) {
    unimplemented!("layer_norm on Metal")
}
