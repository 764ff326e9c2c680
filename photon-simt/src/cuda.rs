//! CUDA kernels: which there are, and how they are launched.
use std::{
    ffi::{CStr, c_char, c_void},
    fmt,
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
};

use crate::{Fault, fault, memory};

/// How a launch is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Decides who runs before whom, when copies land and what unwritten shared memory holds. 0 and 1 are the extremes:
    /// first to last with copies as late as allowed, and the reverse; the others are drawn.
    pub seed: u64,
    /// Threads of the system that blocks are spread over; 0 for as many as there are processors.
    pub threads: usize,
    /// Most shared memory of a block.
    pub shared_limit: u32,
    /// Whether all blocks run at once, so that a grid-wide barrier works.
    pub cooperative: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, threads: 0, shared_limit: 227 << 10, cooperative: false }
    }
}

/// A field of a kernel's argument struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its type, as spelled in the source.
    pub kind: &'static str,
    /// Bytes from the struct's beginning.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
}

/// A kernel, as the C++ compiler sees it.
#[derive(Debug)]
pub struct Kernel {
    /// Its name in the source; with a planted bug, `name!bug`.
    pub name: &'static str,
    /// The source, from the workspace's folder.
    pub file: &'static str,
    /// Where in it.
    pub line: u32,
    /// Bytes of the argument struct.
    pub args_size: usize,
    /// Its fields, in order.
    pub fields: Vec<Field>,
    /// Most threads of a block, if it says so.
    pub launch_bounds: Option<u32>,
    static_shared: AtomicU64,
    raw: &'static raw::Kernel,
}

impl Kernel {
    /// Bytes of `__shared__` arrays, once a launch has shown them: which instances of templates a kernel uses, and so how
    /// large, only running it tells.
    pub fn static_shared(&self) -> Option<u64> {
        let bytes = self.static_shared.load(Ordering::Relaxed);
        (bytes != u64::MAX).then_some(bytes)
    }
}

/// What a launch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How often one simulated thread gave way to another.
    pub switches: u64,
}

/// All kernels.
pub fn kernels() -> &'static [Kernel] {
    static KERNELS: LazyLock<Vec<Kernel>> = LazyLock::new(raw::kernels);
    &KERNELS
}

/// The kernel of a name.
pub fn kernel(name: &str) -> Option<&'static Kernel> {
    kernels().iter().find(|kernel| kernel.name == name)
}

/// Runs a kernel to its end.
///
/// `args` is its argument struct, byte for byte; addresses in it are [`Memory::address`] plus an offset.
///
/// # Errors
/// What went wrong first. Memory is then in some state or other, as on a device; further launches work.
///
/// [`Memory::address`]: crate::Memory::address
pub fn launch(
    name: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    args: &[u8],
    options: Options,
) -> Result<Report, Fault> {
    let refuse = |message: String| {
        Err(Fault { kernel: name.to_owned(), block: None, thread: None, message })
    };
    let Some(kernel) = kernel(name) else {
        return refuse("there is no such kernel".into());
    };
    if args.len() != kernel.args_size {
        return refuse(format!("{} bytes of arguments, not {}", args.len(), kernel.args_size));
    }
    let product = |dims: [u32; 3]| dims.iter().try_fold(1_u32, |a, &b| a.checked_mul(b));
    let most = kernel.launch_bounds.unwrap_or(1024);
    let (blocks, threads) = match (product(grid), product(block)) {
        (Some(0), _) | (_, Some(0)) => return refuse(format!("empty: {grid:?} x {block:?}")),
        (Some(blocks), Some(threads)) if threads <= most.min(1024) => (blocks, threads),
        _ => {
            return refuse(format!(
                "{grid:?} blocks of {block:?} threads, of which {most} are allowed"
            ));
        }
    };
    if grid[1] > 65535 || grid[2] > 65535 || grid[0] > i32::MAX as u32 {
        return refuse(format!("a grid of {grid:?}, beyond 2^31 - 1, 65535, 65535"));
    }
    if shared_bytes > options.shared_limit {
        let limit = options.shared_limit;
        return refuse(format!(
            "{shared_bytes} bytes of shared memory, where a block can have {limit}"
        ));
    }
    if options.cooperative && blocks.saturating_mul(threads) > 1 << 16 {
        return refuse("a cooperative launch of more than 65536 threads".into());
    }
    let shared = raw::Launch {
        kernel: kernel.raw,
        args: args.as_ptr().cast(),
        grid,
        block,
        dynamic_bytes: shared_bytes,
        shared_limit: options.shared_limit,
        seed: options.seed,
        cooperative: options.cooperative.into(),
        next: AtomicU32::new(0),
        failed: AtomicU32::new(0),
    };
    let reports = run(&shared, workers(options, blocks, threads));
    for report in &reports {
        report_static(kernel, report.static_shared);
        if report.kind != 0 {
            return Err(explain(kernel, report));
        }
    }
    if let Some((len, offset)) = memory::check_arguments(args) {
        return refuse(format!("wrote to byte {offset} of a buffer of {len} bytes"));
    }
    Ok(Report { switches: reports.iter().map(|r| r.switches).sum() })
}

/// Threads of the system worth their start: one for each some thousand simulated threads.
fn workers(options: Options, blocks: u32, threads: u32) -> usize {
    if options.cooperative {
        return 1;
    }
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    let most = if options.threads == 0 { *PROCESSORS } else { options.threads };
    let worth = (u64::from(blocks) * u64::from(threads)).div_ceil(1024);
    most.min(blocks as usize).min(usize::try_from(worth).unwrap_or(usize::MAX)).max(1)
}

fn run(launch: &raw::Launch, workers: usize) -> Vec<raw::Report> {
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(|| raw::work(launch))).collect();
        let mut reports = vec![raw::work(launch)];
        reports.extend(others.into_iter().map(|other| other.join().expect("workers do not panic")));
        reports
    })
}

fn report_static(kernel: &Kernel, bytes: u64) {
    let before = kernel.static_shared.load(Ordering::Relaxed);
    if before == u64::MAX || before < bytes {
        kernel.static_shared.store(bytes, Ordering::Relaxed);
    }
}

fn explain(kernel: &Kernel, report: &raw::Report) -> Fault {
    let message = if report.kind == 2 { trap(report) } else { report.text() };
    let known = report.has_thread != 0;
    Fault {
        kernel: kernel.name.to_owned(),
        block: Some(report.block),
        thread: known.then_some(report.thread),
        message,
    }
}

fn trap(report: &raw::Report) -> String {
    let place = fault::place(report.ip).unwrap_or_else(|| format!("{:#x}", report.ip));
    let signal = i32::try_from(report.signal).unwrap_or(0);
    if signal == libc::SIGFPE {
        return format!("division by zero ({place})");
    }
    if signal == libc::SIGILL {
        return format!("a failed assertion ({place})");
    }
    let access = if report.is_write != 0 { "wrote to" } else { "read" };
    if let Some(name) = report.shared_name() {
        let past = report.shared_past;
        let at = if past < 0 {
            format!("{} bytes before", -past)
        } else {
            format!("{past} bytes past the end of")
        };
        return format!("{access} {at} shared `{name}` ({place})");
    }
    format!("{access} {} ({place})", memory::describe(report.address))
}

/// What C++ knows under the same names: `shim/simt/engine.hpp` and `engine.cpp`.
mod raw {
    use super::*;

    #[repr(C)]
    pub(super) struct Field {
        name: *const c_char,
        kind: *const c_char,
        offset: u32,
        size: u32,
    }

    #[repr(C)]
    pub(super) struct Kernel {
        name: *const c_char,
        file: *const c_char,
        line: u32,
        args_size: u32,
        num_fields: u32,
        fields: *const Field,
        launch_bounds: u32,
        run: Option<unsafe extern "C" fn(*const c_void)>,
    }

    impl fmt::Debug for Kernel {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Kernel")
        }
    }

    // SAFETY: tables are constants of the program.
    unsafe impl Sync for Kernel {}

    #[repr(C)]
    struct Table {
        kernels: *const Kernel,
        count: usize,
    }

    #[repr(C)]
    pub(super) struct Launch {
        pub kernel: *const Kernel,
        pub args: *const c_void,
        pub grid: [u32; 3],
        pub block: [u32; 3],
        pub dynamic_bytes: u32,
        pub shared_limit: u32,
        pub seed: u64,
        pub cooperative: u32,
        pub next: AtomicU32,
        pub failed: AtomicU32,
    }

    // SAFETY: workers only read it, but for the two atomics.
    unsafe impl Sync for Launch {}

    #[repr(C)]
    pub(super) struct Report {
        pub kind: u32,
        pub signal: u32,
        pub is_write: u32,
        pub has_thread: u32,
        pub block: [u32; 3],
        pub thread: [u32; 3],
        pub ip: u64,
        pub address: u64,
        pub switches: u64,
        pub static_shared: u64,
        shared_name: *const c_char,
        pub shared_past: i64,
        message: [u8; 4096],
    }

    // SAFETY: the name is a constant of the program.
    unsafe impl Send for Report {}

    impl Report {
        pub(super) fn text(&self) -> String {
            let end = self.message.iter().position(|&b| b == 0).unwrap_or(self.message.len());
            String::from_utf8_lossy(&self.message[..end]).into_owned()
        }

        pub(super) fn shared_name(&self) -> Option<&'static str> {
            // SAFETY: null, or a string literal of a generated table.
            (!self.shared_name.is_null()).then(|| unsafe { text(self.shared_name) })
        }
    }

    unsafe extern "C" {
        /// Ends with null.
        #[link_name = "simt_tables"]
        static TABLES: [*const Table; 0];
        fn simt_work(launch: *const Launch, report: *mut Report);
    }

    /// # Safety
    /// A constant string of the program.
    unsafe fn text(p: *const c_char) -> &'static str {
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(p) };
        text.to_str().expect("sources are UTF-8")
    }

    /// Runs blocks until none is left.
    pub(super) fn work(launch: &Launch) -> Report {
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
        // SAFETY: both live through the call; `launch` was checked by `super::launch`, and what its kernel does to memory
        // it may not touch is caught or, where it hits the host's own, is the same as with any C++ of the program.
        unsafe { simt_work(launch, &mut report) };
        report
    }

    pub(super) fn kernels() -> Vec<super::Kernel> {
        let mut kernels = Vec::new();
        let mut next = (&raw const TABLES).cast::<*const Table>();
        loop {
            // SAFETY: within the array, which ends with the null that ends this loop.
            let table = unsafe { *next };
            if table.is_null() {
                return kernels;
            }
            // SAFETY: the generated array holds addresses of generated tables.
            let table = unsafe { &*table };
            // SAFETY: `count` kernels are there.
            let list = unsafe { std::slice::from_raw_parts(table.kernels, table.count) };
            kernels.extend(list.iter().map(kernel));
            // SAFETY: at most one past the null, and then not read.
            next = unsafe { next.add(1) };
        }
    }

    fn kernel(raw: &'static Kernel) -> super::Kernel {
        // SAFETY: the generated table's own count.
        let fields = unsafe { std::slice::from_raw_parts(raw.fields, raw.num_fields as usize) };
        let field = |f: &Field| super::Field {
            // SAFETY: string literals of the generated table.
            name: unsafe { text(f.name) },
            // SAFETY: likewise.
            kind: unsafe { text(f.kind) },
            offset: f.offset as usize,
            size: f.size as usize,
        };
        super::Kernel {
            // SAFETY: likewise.
            name: unsafe { text(raw.name) },
            // SAFETY: likewise.
            file: unsafe { text(raw.file) },
            line: raw.line,
            args_size: raw.args_size as usize,
            fields: fields.iter().map(field).collect(),
            launch_bounds: (raw.launch_bounds != 0).then_some(raw.launch_bounds),
            static_shared: AtomicU64::new(u64::MAX),
            raw,
        }
    }
}
