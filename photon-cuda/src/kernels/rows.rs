//! Rows moved, repeated and made.
use photon_core::{Copy, Cx, Fourier, Gather, Scatter, Tile};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn tile<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Tile<'_, Gpu<L>>) {
    cx.stream.missing("tile");
}

pub(crate) fn gather<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Gather<'_, Gpu<L>>) {
    cx.stream.missing("gather");
}

pub(crate) fn scatter<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Scatter<'_, Gpu<L>>) {
    cx.stream.missing("scatter");
}

pub(crate) fn fourier<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Fourier<'_, Gpu<L>>) {
    cx.stream.missing("fourier");
}

pub(crate) fn copy<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Copy<'_, Gpu<L>>) {
    cx.stream.missing("copy");
}
