//! Working memory of the thread that asks, kept from call to call.
use std::cell::RefCell;

/// A cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// What is not in use: last returned, first taken, so that nested uses find their own again.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats, aligned to cache lines, holding whatever they held.
pub(super) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = FREE.with(|free| free.borrow_mut().pop()).unwrap_or_default();
    if lines.len() < len.div_ceil(16) {
        // What is there need not be copied along.
        lines.clear();
        lines.resize(len.div_ceil(16), bytemuck::Zeroable::zeroed());
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut lines)[..len]);
    FREE.with(|free| free.borrow_mut().push(lines));
    result
}
