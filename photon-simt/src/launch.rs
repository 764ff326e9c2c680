//! What launches of both languages share: their limits, the threads they run on, and what is said of a fault.
use std::{
    ffi::c_void,
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
};

use crate::{Fault, fault, memory, raw};

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
    /// Whether all blocks run at once, so that they can wait for each other.
    pub cooperative: bool,
    /// Whether the kernel may start before the one before it has ended, so that each of its threads has to call
    /// `grid_wait`.
    pub starts_early: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            threads: 0,
            shared_limit: 227 << 10,
            cooperative: false,
            starts_early: false,
        }
    }
}

/// What a launch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How often one simulated thread gave way to another.
    pub switches: u64,
    /// Bytes of the arrays that a block shared, without dynamic ones.
    pub static_shared: u64,
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

impl Field {
    pub(crate) fn new(raw: &raw::Field) -> Self {
        Self {
            name: raw.name(),
            kind: raw.kind(),
            offset: raw.offset as usize,
            size: raw.size as usize,
        }
    }
}

/// Bytes of arrays that a block shares, as launches have shown them: which instances of templates a kernel uses, and so how
/// large, only running it tells.
#[derive(Debug, Default)]
pub(crate) struct StaticShared(AtomicU64);

impl StaticShared {
    /// One more than the most seen; 0 if no launch was.
    pub(crate) fn note(&self, report: Report) {
        self.0.fetch_max(report.static_shared + 1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// Blocks, threads of each, and bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
}

impl Shape {
    /// Blocks and threads of each, if a device would take them.
    fn sizes(self, options: Options, most: u32) -> Result<(u32, u32), String> {
        let Self { grid, block, shared_bytes } = self;
        let product = |dims: [u32; 3]| dims.iter().try_fold(1_u32, |a, &b| a.checked_mul(b));
        let (blocks, threads) = match (product(grid), product(block)) {
            (Some(0), _) | (_, Some(0)) => return Err(format!("empty: {grid:?} x {block:?}")),
            (Some(blocks), Some(threads)) if threads <= most => (blocks, threads),
            _ => {
                return Err(format!(
                    "{grid:?} blocks of {block:?} threads, of which {most} are allowed"
                ));
            }
        };
        if grid[1] > 65535 || grid[2] > 65535 || grid[0] > i32::MAX as u32 {
            return Err(format!("a grid of {grid:?}, beyond 2^31 - 1, 65535, 65535"));
        }
        if shared_bytes > options.shared_limit {
            let limit = options.shared_limit;
            return Err(format!(
                "{shared_bytes} bytes of shared memory, where a block can have {limit}"
            ));
        }
        if options.cooperative && blocks.saturating_mul(threads) > 1 << 16 {
            return Err("a cooperative launch of more than 65536 threads".into());
        }
        Ok((blocks, threads))
    }
}

/// Runs a kernel to its end. `args` is what the generated code of its language expects.
pub(crate) fn run(
    kernel: &'static raw::Kernel,
    shape: Shape,
    args: *const c_void,
    options: Options,
) -> Result<Report, Fault> {
    let most = if kernel.launch_bounds == 0 { 1024 } else { kernel.launch_bounds.min(1024) };
    let sizes = shape.sizes(options, most);
    let (blocks, threads) = sizes.map_err(|message| Fault::refused(kernel.name(), message))?;
    let launch = raw::Launch {
        kernel,
        args,
        grid: shape.grid,
        block: shape.block,
        dynamic_bytes: shape.shared_bytes,
        shared_limit: options.shared_limit,
        seed: options.seed,
        cooperative: options.cooperative.into(),
        starts_early: options.starts_early.into(),
        next: AtomicU32::new(0),
        failed: AtomicU32::new(0),
    };
    let reports = work(&launch, workers(options, blocks, threads));
    if let Some(failed) = reports.iter().find(|r| r.kind != 0) {
        return Err(explain(kernel, failed));
    }
    let switches = reports.iter().map(|r| r.switches).sum();
    let static_shared = reports.iter().map(|r| r.static_shared).max().unwrap_or(0);
    Ok(Report { switches, static_shared })
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

fn work(launch: &raw::Launch, workers: usize) -> Vec<raw::Report> {
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(|| raw::work(launch))).collect();
        let mut reports = vec![raw::work(launch)];
        reports.extend(others.into_iter().map(|other| other.join().expect("workers do not panic")));
        reports
    })
}

fn explain(kernel: &raw::Kernel, report: &raw::Report) -> Fault {
    Fault {
        kernel: kernel.name().to_owned(),
        block: Some(report.block),
        thread: (report.has_thread != 0).then_some(report.thread),
        message: if report.kind == 2 { trap(report) } else { report.text() },
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
