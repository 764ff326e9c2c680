//! Rotation by position, and the store of keys and values.
use photon_core::{Cx, RopeStore};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn rope_store<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: RopeStore<'_, Gpu<L>>) {
    cx.stream.missing("rope_store");
}
