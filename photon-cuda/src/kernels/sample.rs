//! The sampler.
use photon_core::{Cx, Sample};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn sample<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Sample<'_, Gpu<L>>) {
    cx.stream.missing("sample");
}
