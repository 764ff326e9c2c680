//! What C++ knows under the same names, `shim/simt/engine.hpp` and `engine.cpp`, and the calls into it.
use std::{
    ffi::{CStr, c_char, c_void},
    fmt,
    sync::atomic::AtomicU32,
};

#[repr(C)]
pub(crate) struct Field {
    name: *const c_char,
    kind: *const c_char,
    pub(crate) offset: u32,
    pub(crate) size: u32,
}

#[repr(C)]
pub(crate) struct Kernel {
    name: *const c_char,
    file: *const c_char,
    pub(crate) line: u32,
    args: *const c_char,
    pub(crate) args_size: u32,
    num_fields: u32,
    fields: *const Field,
    num_parameters: u32,
    parameters: *const Field,
    pub(crate) launch_bounds: u32,
    run: Option<unsafe extern "C" fn(*const c_void)>,
}

// SAFETY: tables are constants of the program.
unsafe impl Sync for Kernel {}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[repr(C)]
struct Table {
    kernels: *const Kernel,
    count: usize,
}

#[repr(C)]
pub(crate) struct Launch {
    pub(crate) kernel: *const Kernel,
    pub(crate) args: *const c_void,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_bytes: u32,
    pub(crate) shared_limit: u32,
    pub(crate) seed: u64,
    pub(crate) cooperative: u32,
    pub(crate) starts_early: u32,
    pub(crate) next: AtomicU32,
    pub(crate) failed: AtomicU32,
}

// SAFETY: workers only read it, but for the two atomics.
unsafe impl Sync for Launch {}

#[repr(C)]
pub(crate) struct Report {
    pub(crate) kind: u32,
    pub(crate) signal: u32,
    pub(crate) is_write: u32,
    pub(crate) has_thread: u32,
    pub(crate) block: [u32; 3],
    pub(crate) thread: [u32; 3],
    pub(crate) ip: u64,
    pub(crate) address: u64,
    pub(crate) switches: u64,
    pub(crate) static_shared: u64,
    shared_name: *const c_char,
    pub(crate) shared_past: i64,
    message: [u8; 4096],
}

// SAFETY: the name is a constant of the program.
unsafe impl Send for Report {}

unsafe extern "C" {
    /// Ends with null, as does the next.
    #[link_name = "simt_tables"]
    static CUDA: [*const Table; 0];
    #[link_name = "simt_metal_tables"]
    static METAL: [*const Table; 0];
    fn simt_work(launch: *const Launch, report: *mut Report);
}

/// # Safety
/// A constant string of the program.
unsafe fn text(p: *const c_char) -> &'static str {
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(p) };
    text.to_str().expect("sources are UTF-8")
}

impl Field {
    pub(crate) fn name(&self) -> &'static str {
        // SAFETY: a string literal of the generated table.
        unsafe { text(self.name) }
    }

    pub(crate) fn kind(&self) -> &'static str {
        // SAFETY: likewise.
        unsafe { text(self.kind) }
    }
}

impl Kernel {
    pub(crate) fn name(&self) -> &'static str {
        // SAFETY: likewise.
        unsafe { text(self.name) }
    }

    pub(crate) fn file(&self) -> &'static str {
        // SAFETY: likewise.
        unsafe { text(self.file) }
    }

    /// The name of its argument struct, if it takes one.
    pub(crate) fn args(&self) -> Option<&'static str> {
        // SAFETY: not null, and then a string literal of the generated table.
        (!self.args.is_null()).then(|| unsafe { text(self.args) })
    }

    pub(crate) fn fields(&'static self) -> &'static [Field] {
        list(self.fields, self.num_fields)
    }

    pub(crate) fn parameters(&'static self) -> &'static [Field] {
        list(self.parameters, self.num_parameters)
    }
}

/// A list of a generated table, with its own count.
fn list(fields: *const Field, count: u32) -> &'static [Field] {
    if count == 0 {
        return &[];
    }
    // SAFETY: generated tables say how many there are, and are constants of the program.
    unsafe { std::slice::from_raw_parts(fields, count as usize) }
}

impl Report {
    pub(crate) fn text(&self) -> String {
        let end = self.message.iter().position(|&b| b == 0).unwrap_or(self.message.len());
        String::from_utf8_lossy(&self.message[..end]).into_owned()
    }

    pub(crate) fn shared_name(&self) -> Option<&'static str> {
        // SAFETY: not null, and then a string literal of a generated table.
        (!self.shared_name.is_null()).then(|| unsafe { text(self.shared_name) })
    }
}

/// Runs blocks until none is left.
pub(crate) fn work(launch: &Launch) -> Report {
    let mut report = Report {
        kind: 0,
        signal: 0,
        is_write: 0,
        has_thread: 0,
        block: [0; 3],
        thread: [0; 3],
        ip: 0,
        address: 0,
        switches: 0,
        static_shared: 0,
        shared_name: std::ptr::null(),
        shared_past: 0,
        message: [0; 4096],
    };
    // SAFETY: both live through the call; `launch` was checked by `launch::run`, and what its kernel does to memory it may
    // not touch is caught or, where it hits the host's own, is the same as with any C++ of the program.
    unsafe { simt_work(launch, &mut report) };
    report
}

/// All kernels of CUDA.
pub(crate) fn cuda() -> Vec<&'static Kernel> {
    // SAFETY: the address of what the registry defines.
    kernels(unsafe { CUDA.as_ptr() })
}

/// All kernels of Metal.
pub(crate) fn metal() -> Vec<&'static Kernel> {
    // SAFETY: the address of what the registry defines.
    kernels(unsafe { METAL.as_ptr() })
}

fn kernels(mut next: *const *const Table) -> Vec<&'static Kernel> {
    let mut kernels = Vec::new();
    loop {
        // SAFETY: within the array, which ends with the null that ends this loop.
        let table = unsafe { *next };
        if table.is_null() {
            return kernels;
        }
        // SAFETY: the generated array holds addresses of generated tables.
        let table = unsafe { &*table };
        // SAFETY: `count` kernels are there.
        kernels.extend(unsafe { std::slice::from_raw_parts(table.kernels, table.count) });
        // SAFETY: at most one past the null, and then not read.
        next = unsafe { next.add(1) };
    }
}
