//! Working memory of the thread that asks, kept from call to call.
#![allow(unsafe_code, reason = "floats in a buffer of bytes")]

use std::cell::RefCell;

use crate::memory::Buffer;

/// Taken at once, so that memory comes in huge pages: with 4 KiB pages, products of 729 rows lose a
/// twentieth of their speed to TLB misses (Zen 3, 2025-11).
const GRAIN: usize = 4 << 20;

thread_local! {
    /// What is not in use: last returned, first taken, so that nested uses find their own again.
    static FREE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats, aligned to cache lines, holding whatever they held.
///
/// # Panics
/// If the system is out of memory. Sizes are bounded, so this happens in the first pass or never.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let bytes = (len * size_of::<f32>()).next_multiple_of(GRAIN);
    let free = FREE.with(|free| free.borrow_mut().pop());
    let buffer = free.filter(|buffer| buffer.len() >= bytes).unwrap_or_else(|| {
        Buffer::new(bytes).unwrap_or_else(|error| panic!("working memory for linear: {error}"))
    });
    // SAFETY: `as_ptr` is valid for `len` bytes while `buffer` lives and aligned to 256; they were
    // zeroed at birth; this is the only clone, and it is not in the list while in use.
    let floats = unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr().cast(), len) };
    let result = f(floats);
    FREE.with(|free| free.borrow_mut().push(buffer));
    result
}
