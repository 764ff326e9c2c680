//! Device memory: pages of the host whose every edge is watched.
//!
//! A buffer's end is the end of a page, up to 15 bytes, and the next page cannot be touched: a read or write past the end
//! traps at its instruction. Before the beginning lies a band whose bytes are checked. Addresses are multiples of 16.
use std::{
    collections::BTreeMap,
    ptr::NonNull,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::record;

/// What the bytes around a buffer hold.
const BAND: u8 = 0xa5;
/// What memory holds that nobody wrote: not a number, whatever the type, and -1 as an integer.
const POISON: u8 = 0xff;
const ALIGN: usize = 16;

/// A buffer of device memory. Dropping it frees it; kernels that then touch it trap.
#[derive(Debug)]
pub struct Memory {
    mapping: NonNull<u8>,
    mapping_len: usize,
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value alone, and its bytes are only reached through raw copies.
unsafe impl Send for Memory {}
// SAFETY: as above; a copy that races with a kernel reads some bytes or others, as with a device.
unsafe impl Sync for Memory {}

/// Beginnings and lengths of all buffers, to say of an address what it is near to.
static BUFFERS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn buffers() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn page() -> usize {
    // SAFETY: asks for a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("pages have a size")
}

/// Where a mapping had best lie: anywhere, or, if launches are kept, where another program will find the place free too.
fn hint(len: usize) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x7ea0_0000_0000);
    if record::is_on() { NEXT.fetch_add(len, Ordering::Relaxed) } else { 0 }
}

impl Memory {
    /// Memory that nobody has written: all ones.
    ///
    /// # Panics
    /// If the host has none left.
    pub fn new(len: usize) -> Self {
        let memory = Self::zeroed(len);
        memory.fill(0, len, POISON);
        memory
    }

    /// Memory of zeros.
    ///
    /// # Panics
    /// If the host has none left.
    pub fn zeroed(len: usize) -> Self {
        let page = page();
        let inner = len.next_multiple_of(ALIGN).next_multiple_of(page).max(page);
        let mapping_len = inner + 2 * page;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let hint = std::ptr::without_provenance_mut(hint(mapping_len));
        // SAFETY: a new mapping where nothing is touches no memory of ours.
        let mapping = unsafe { libc::mmap(hint, mapping_len, libc::PROT_NONE, private, -1, 0) };
        assert!(mapping != libc::MAP_FAILED, "no memory for a device buffer of {len} bytes");
        let mapping = NonNull::new(mapping.cast::<u8>()).expect("mmap gives no null");
        // SAFETY: one page into a mapping of at least three.
        let begin = unsafe { mapping.add(page) };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range lies in the mapping just made, which nobody else knows.
        let done = unsafe { libc::mprotect(begin.as_ptr().cast(), inner, access) };
        assert_eq!(done, 0, "no memory for a device buffer of {len} bytes");
        // SAFETY: at most `inner` bytes into `inner` accessible ones.
        let data = unsafe { begin.add(inner - len.next_multiple_of(ALIGN)) };
        let memory = Self { mapping, mapping_len, data, len };
        for (at, len) in memory.bands() {
            // SAFETY: bands lie in the accessible part, which nobody else knows yet.
            unsafe { at.write_bytes(BAND, len) };
        }
        buffers().insert(memory.start(), len);
        memory
    }

    /// What lies between the buffer and the ends of its pages: beginnings and lengths.
    fn bands(&self) -> [(NonNull<u8>, usize); 2] {
        let page = page();
        // SAFETY: one page into the mapping.
        let begin = unsafe { self.mapping.add(page) };
        // SAFETY: the mapping goes on for `len`, rounded up, bytes after `data`.
        let end = unsafe { self.data.add(self.len) };
        let before = self.start() - begin.as_ptr() as usize;
        [(begin, before), (end, self.len.next_multiple_of(ALIGN) - self.len)]
    }

    fn start(&self) -> usize {
        self.data.as_ptr() as usize
    }

    /// Where it begins, for kernels. A multiple of 16.
    pub fn address(&self) -> u64 {
        self.start() as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to `offset`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range; a slice of the host does not overlap a mapping that only this type hands out by
        // address.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Copies bytes from `offset`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: as in `write`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
    }

    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }

    /// Sets `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        let at = self.at(offset, len);
        // SAFETY: `at` checked the range.
        unsafe { at.write_bytes(byte, len) };
    }

    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "{len} bytes at {offset} of a device buffer of {}", self.len);
        // SAFETY: inside of the buffer, as just checked.
        unsafe { self.data.add(offset) }
    }

    /// Whether nobody wrote to the bytes around the buffer; else where, in bytes from its beginning.
    ///
    /// # Errors
    /// The offset of the first such byte, which is negative or at least [`Memory::len`].
    pub fn check(&self) -> Result<(), i64> {
        check_band(self.start(), self.len)
    }
}

/// The same, of a buffer that `buffers` knows.
fn check_band(start: usize, len: usize) -> Result<(), i64> {
    let end = start + len;
    let bands = [(start & !(page() - 1), start), (end, end.next_multiple_of(ALIGN))];
    for (from, to) in bands {
        for at in from..to {
            // SAFETY: `buffers` lists mapped buffers only, and a buffer's bands are mapped with it.
            let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(at).read_volatile() };
            if byte != BAND {
                return Err(at as i64 - start as i64);
            }
        }
    }
    Ok(())
}

/// Of the buffers that words point into, the first whose surroundings were written to: its length, and where.
pub(crate) fn check_surroundings(words: impl Iterator<Item = u64>) -> Option<(usize, i64)> {
    let buffers = buffers();
    let mut all = pointed_into(&buffers, words);
    all.find_map(|(start, len)| check_band(start, len).err().map(|offset| (len, offset)))
}

/// Beginnings and bytes of the buffers that a kernel's argument points into, each once.
pub(crate) fn of_arguments(args: &[u8]) -> BTreeMap<usize, Vec<u8>> {
    let buffers = buffers();
    let bytes = |(start, len): (usize, usize)| {
        let mut bytes = vec![0; len];
        let from = std::ptr::with_exposed_provenance::<u8>(start);
        // SAFETY: `buffers` lists mapped buffers only, and holds its lock meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
        (start, bytes)
    };
    let words = args.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")));
    pointed_into(&buffers, words).map(bytes).collect()
}

fn pointed_into(
    buffers: &BTreeMap<usize, usize>,
    words: impl Iterator<Item = u64>,
) -> impl Iterator<Item = (usize, usize)> {
    words.filter_map(|word| {
        let address = usize::try_from(word).ok()?;
        let (&start, &len) = buffers.range(..=address).next_back()?;
        (address <= start + len).then_some((start, len))
    })
}

/// What an address is near to, in words.
pub(crate) fn describe(address: u64) -> String {
    let address = usize::try_from(address).unwrap_or(usize::MAX);
    let buffers = buffers();
    let near = 1 << 20;
    if let Some((&start, &len)) = buffers.range(..=address).next_back() {
        if address < start + len {
            return format!("byte {} of a buffer of {len} bytes", address - start);
        }
        if address - (start + len) < near {
            return format!(
                "{} bytes past the end of a buffer of {len} bytes",
                address - (start + len)
            );
        }
    }
    if let Some((&start, &len)) = buffers.range(address..).next()
        && start - address < near
    {
        return format!("{} bytes before a buffer of {len} bytes", start - address);
    }
    format!("address {address:#x}, which no buffer is near to")
}

impl Drop for Memory {
    fn drop(&mut self) {
        buffers().remove(&self.start());
        // SAFETY: the mapping was made by `zeroed` with this length, and nobody else unmaps it.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_unwritten_ones_are_poison() {
        let memory = Memory::new(100);
        assert_eq!(memory.to_vec(), [0xff; 100]);
        memory.write(90, &[1; 10]);
        let mut read = [0; 4];
        memory.read(88, &mut read);
        assert_eq!(read, [0xff, 0xff, 1, 1]);
        assert_eq!(memory.address() % 16, 0);
    }

    #[test]
    fn what_is_written_around_a_buffer_is_found() {
        for (offset, len) in [(-1_i64, 100_usize), (100, 100), (-100, 16)] {
            let memory = Memory::zeroed(len);
            assert_eq!(memory.check(), Ok(()));
            let at = memory.start().wrapping_add_signed(isize::try_from(offset).unwrap());
            let check = || check_surroundings([memory.address()].into_iter());
            assert_eq!(check(), None);
            // SAFETY: the bands of a buffer are mapped.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write_volatile(0) };
            assert_eq!(memory.check(), Err(offset));
            assert_eq!(check(), Some((len, offset)));
        }
    }

    #[test]
    fn addresses_are_described_by_what_they_are_near_to() {
        let memory = Memory::zeroed(64);
        assert_eq!(describe(memory.address() + 3), "byte 3 of a buffer of 64 bytes");
        assert_eq!(describe(memory.address() + 70), "6 bytes past the end of a buffer of 64 bytes");
        assert_eq!(describe(8), "address 0x8, which no buffer is near to");
    }

    #[test]
    #[should_panic(expected = "8 bytes at 60 of a device buffer of 64")]
    fn nothing_is_copied_past_the_end() {
        Memory::new(64).write(60, &[0; 8]);
    }
}
