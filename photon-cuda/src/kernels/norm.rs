//! Layer norm.
use photon_core::{Cx, LayerNorm};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn layer_norm<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: LayerNorm<'_, Gpu<L>>) {
    cx.stream.missing("layer_norm");
}
