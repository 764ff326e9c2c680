//! The next token.
use photon_core::{Cx, Sample};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn sample<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Sample<'_, Gpu<L>>) {
    unimplemented!("sample on Metal")
}
