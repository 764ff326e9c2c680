//! CUDA kernels: which there are, and how they are launched.
use std::sync::LazyLock;

pub use crate::launch::{Field, Options, Report};
use crate::{
    Fault,
    launch::{self, Shape, StaticShared},
    memory, raw, record,
};

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
    static_shared: StaticShared,
    raw: &'static raw::Kernel,
}

impl Kernel {
    fn new(raw: &'static raw::Kernel) -> Self {
        Self {
            name: raw.name(),
            file: raw.file(),
            line: raw.line,
            args_size: raw.args_size as usize,
            fields: raw.fields().iter().map(Field::new).collect(),
            launch_bounds: (raw.launch_bounds != 0).then_some(raw.launch_bounds),
            static_shared: StaticShared::default(),
            raw,
        }
    }

    /// Bytes of `__shared__` arrays, once a launch has shown them: which instances of templates a kernel uses, and so how
    /// large, only running it tells.
    pub fn static_shared(&self) -> Option<u64> {
        self.static_shared.get()
    }
}

/// All kernels.
pub fn kernels() -> &'static [Kernel] {
    static KERNELS: LazyLock<Vec<Kernel>> =
        LazyLock::new(|| raw::cuda().into_iter().map(Kernel::new).collect());
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
    let refuse = |message: String| Fault::refused(name, message);
    let kernel = kernel(name).ok_or_else(|| refuse("there is no such kernel".into()))?;
    if args.len() != kernel.args_size {
        return Err(refuse(format!("{} bytes of arguments, not {}", args.len(), kernel.args_size)));
    }
    record::keep(name, (grid, block, shared_bytes), args, options);
    let shape = Shape { grid, block, shared_bytes };
    let report = launch::run(kernel.raw, shape, args.as_ptr().cast(), options)?;
    kernel.static_shared.note(report);
    let words = args.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")));
    match memory::check_surroundings(words) {
        Some((len, at)) => Err(refuse(format!("wrote to byte {at} of a buffer of {len} bytes"))),
        None => Ok(report),
    }
}
