//! Host memory as device memory: aligned, zeroed, shared by reference count.
//!
//! # Soundness
//! A [`Buffer`] is read and written through raw pointers, because tensors are handles that overlap
//! freely. Four parties make that sound, and every SAFETY comment in this crate names one of them:
//! - **The stream.** Operations on one stream run in recording order, each finished before the next
//!   begins, on the recording thread and the pool it waits for. Streams that share buffers are
//!   ordered by their users with events, as on any device.
//! - **`Cx`.** Shapes, element types and freshness were checked before a kernel is called, and
//!   outputs do not overlap inputs unless the operation's doc says so.
//! - **The views** ([`crate::elements`]). A typed view checks once that every row it can name lies
//!   inside its buffer.
//! - **The partition.** Within an operation, tasks write disjoint parts of the output; no index
//!   tensor can make two tasks write one element.
#![allow(unsafe_code, reason = "owns raw memory")]

#[cfg(target_os = "linux")]
use std::sync::LazyLock;
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ptr::NonNull,
    sync::Arc,
};

use photon_core::{Error, MemoryInfo, Result};

const ALIGNMENT: usize = 256;
const HUGE_PAGE: usize = 2 << 20;
/// From here on a buffer asks for huge pages: streaming weights through 4 KiB pages loses a fifth of
/// the bandwidth to TLB misses.
const HUGE_FROM: usize = 4 << 20;

/// A handle to zero-initialized host memory. Cloning shares it; the last drop frees it.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    /// What the system gave.
    base: NonNull<u8>,
    layout: Layout,
    /// The first aligned byte.
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the allocation, not to a thread; accesses are ordered as the module
// doc says.
unsafe impl Send for Allocation {}
// SAFETY: as above; the fields themselves never change.
unsafe impl Sync for Allocation {}

impl Buffer {
    /// Takes zeroed memory from the system, aligned to 256 bytes (2 MiB from 4 MiB on).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system has not that much available. Linux would promise the
    /// memory all the same and kill the process when it is touched, so this asks beforehand.
    pub fn new(bytes: usize) -> Result<Self> {
        let alignment = if bytes >= HUGE_FROM { HUGE_PAGE } else { ALIGNMENT };
        let too_large = || out_of_memory(bytes, "a buffer");
        let padded = bytes.max(1).checked_next_multiple_of(alignment).ok_or_else(too_large)?;
        let with_slack = padded.checked_add(alignment).ok_or_else(too_large)?;
        // Aligned here and not by the allocator, which would clear what it aligns byte by byte: pages
        // stay untouched until they are used, and come as huge pages then.
        let layout = Layout::from_size_align(with_slack, 16).map_err(|_| too_large())?;
        check_available(bytes, "a buffer")?;
        let base = take(layout).ok_or_else(too_large)?;
        let offset = base.addr().get().next_multiple_of(alignment) - base.addr().get();
        // SAFETY: `offset` is less than `alignment`, by which the allocation is longer than `padded`.
        let start = unsafe { base.add(offset) };
        if bytes >= HUGE_FROM {
            advise_huge_pages(start, padded);
            spread_over_nodes(start, padded);
        }
        Ok(Buffer(Arc::new(Allocation { base, layout, start, bytes })))
    }

    /// Bytes usable.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether device memory is empty")]
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// The first byte. Valid for [`Self::len`] bytes while any clone lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.start.as_ptr()
    }

    /// Copies `bytes` in at `offset`.
    ///
    /// # Panics
    /// If they do not fit.
    #[track_caller]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "upload: {} bytes at {offset} of a buffer of {}",
            bytes.len(),
            self.len()
        );
        // SAFETY: `offset` is inside the allocation: asserted above.
        let to = unsafe { self.as_ptr().add(offset) };
        // SAFETY: both ends are long enough (asserted above); `bytes` is a Rust slice, which device
        // memory never overlaps; no kernel runs meanwhile (the stream).
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies from `offset` to fill `bytes`.
    ///
    /// # Panics
    /// If the buffer ends before that.
    #[track_caller]
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        let end = offset.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "read_back: {} bytes at {offset} of a buffer of {}",
            bytes.len(),
            self.len()
        );
        // SAFETY: `offset` is inside the allocation: asserted above.
        let from = unsafe { self.as_ptr().add(offset) };
        // SAFETY: both ends are long enough (asserted above); `bytes` is a Rust slice, which device
        // memory never overlaps; no kernel runs meanwhile (the stream).
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from, bytes.len()) };
    }
}

fn out_of_memory(bytes: usize, purpose: &str) -> Error {
    Error::OutOfMemory {
        device: "cpu".into(),
        purpose: purpose.into(),
        requested_bytes: bytes as u64,
        free_bytes: memory_info().free_bytes,
    }
}

/// Refuses what the system does not have. Small amounts are not worth asking for.
pub(crate) fn check_available(bytes: usize, purpose: &str) -> Result<()> {
    if bytes >= HUGE_FROM && memory_info().free_bytes < bytes as u64 {
        return Err(out_of_memory(bytes, purpose));
    }
    Ok(())
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `base` came from `take` with this layout, and this is the last owner.
        unsafe { give_back(self.base, self.layout) };
    }
}

/// Zeroed memory. From [`HUGE_FROM`] on it comes from the system and not from the allocator, which would hand out
/// again what was freed before, in small pages that it clears itself.
fn take(layout: Layout) -> Option<NonNull<u8>> {
    #[cfg(unix)]
    if layout.size() >= HUGE_FROM {
        let (anywhere, access) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the system likes.
        let base = unsafe { libc::mmap(anywhere, layout.size(), access, flags, -1, 0) };
        return NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED);
    }
    // SAFETY: the layout's size is at least the alignment of its buffer, so not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

/// # Safety
/// `base` came from [`take`] with this layout, and is not used any more.
unsafe fn give_back(base: NonNull<u8>, layout: Layout) {
    #[cfg(unix)]
    if layout.size() >= HUGE_FROM {
        // SAFETY: a mapping of this size: the caller vouches for it.
        unsafe { libc::munmap(base.as_ptr().cast(), layout.size()) };
        return;
    }
    // SAFETY: the caller vouches for it.
    unsafe { dealloc(base.as_ptr(), layout) };
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    // A refusal only costs speed.
    // SAFETY: the range lies in one live allocation, aligned to huge pages at both ends; the advice does
    // not change its contents.
    let _ = unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

/// Lays pages on all memory nodes in turn, where there are several: threads take whatever work is next, so nothing
/// says which node's threads will read what, and all nodes together deliver more than one.
#[cfg(target_os = "linux")]
fn spread_over_nodes(start: NonNull<u8>, bytes: usize) {
    static NODES: LazyLock<Vec<usize>> = LazyLock::new(|| {
        numbers(&std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default())
    });
    if NODES.len() > 1 {
        // A refusal only costs speed.
        let _ = interleave(start, bytes, &NODES);
    }
}

#[cfg(not(target_os = "linux"))]
fn spread_over_nodes(_: NonNull<u8>, _: usize) {}

/// Asks that pages not touched yet come from `nodes` in turn; whether the system agreed.
#[cfg(target_os = "linux")]
fn interleave(start: NonNull<u8>, bytes: usize, nodes: &[usize]) -> bool {
    const MPOL_INTERLEAVE: libc::c_int = 3;
    // As many nodes as Linux can be built for.
    let mut mask = [0 as libc::c_ulong; 1024 / libc::c_ulong::BITS as usize];
    for node in nodes {
        let bits = libc::c_ulong::BITS as usize;
        if let Some(word) = mask.get_mut(node / bits) {
            *word |= 1 << (node % bits);
        }
    }
    let flags: libc::c_uint = 0;
    // SAFETY: the range is whole pages of one live allocation, whose contents the policy does not change; the mask
    // is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start.as_ptr(),
            bytes,
            MPOL_INTERLEAVE,
            mask.as_ptr(),
            libc::c_ulong::BITS as usize * mask.len(),
            flags,
        )
    };
    result == 0
}

/// What a list such as `0-1,4` names.
#[cfg(target_os = "linux")]
fn numbers(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok().filter(|last| *last < 1024)?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// What the system has, from `/proc/meminfo`.
#[cfg(target_os = "linux")]
pub(crate) fn memory_info() -> MemoryInfo {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    let unknown = u64::MAX;
    MemoryInfo {
        free_bytes: field("MemAvailable:").unwrap_or(unknown),
        total_bytes: field("MemTotal:").unwrap_or(unknown),
        is_dedicated: false,
    }
}

/// What the system has: free memory is not told apart from memory in all.
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) fn memory_info() -> MemoryInfo {
    // SAFETY: no preconditions.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let total_bytes = match (u64::try_from(pages), u64::try_from(page)) {
        (Ok(pages), Ok(page)) => pages.saturating_mul(page),
        _ => u64::MAX,
    };
    MemoryInfo { free_bytes: total_bytes, total_bytes, is_dedicated: false }
}

/// What the system has: unknown here, so nothing is refused beforehand.
#[cfg(not(unix))]
pub(crate) fn memory_info() -> MemoryInfo {
    MemoryInfo { free_bytes: u64::MAX, total_bytes: u64::MAX, is_dedicated: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_freed_with_the_last_clone() {
        for bytes in [0, 1, 300, 5 << 20] {
            let buffer = Buffer::new(bytes).unwrap();
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            let clone = buffer.clone();
            drop(buffer);
            let mut contents = vec![1; bytes];
            clone.read(0, &mut contents);
            assert!(contents.iter().all(|&b| b == 0));
        }
        assert_eq!(Buffer::new(5 << 20).unwrap().as_ptr() as usize % HUGE_PAGE, 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn lists_of_nodes_are_read_and_pages_spread() {
        assert_eq!(numbers("0\n"), [0]);
        assert_eq!(numbers("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(numbers(""), [0; 0]);
        assert_eq!(numbers("0-99999999999,x,3"), [3]);
        let buffer = Buffer::new(5 << 20).unwrap();
        // A container may forbid the call; then it says no.
        let agreed = interleave(buffer.0.start, 4 << 20, &[0]);
        buffer.write(0, &[7; 4]);
        let mut read = [0; 8];
        buffer.read(0, &mut read);
        assert_eq!(read, [7, 7, 7, 7, 0, 0, 0, 0], "{agreed}");
        assert!(!interleave(buffer.0.start, 4 << 20, &[1023]), "there is no such node");
    }

    #[test]
    fn a_request_that_cannot_be_met_is_an_error_with_numbers() {
        for bytes in [1 << 50, usize::MAX, isize::MAX as usize] {
            let error = Buffer::new(bytes).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(&bytes.to_string()) && message.contains("free"), "{message}");
        }
    }

    #[test]
    #[should_panic(expected = "upload: 4 bytes at 13 of a buffer of 16")]
    fn a_write_past_the_end_panics() {
        Buffer::new(16).unwrap().write(13, &[0; 4]);
    }
}
