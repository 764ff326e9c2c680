//! Rotation, and what the cache keeps.
use photon_core::{Cx, RopeStore};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn rope_store<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: RopeStore<'_, Gpu<L>>) {
    unimplemented!("rope_store on Metal")
}
