//! Metal kernels: which there are, what they are bound to, and how they are launched.
use std::{collections::BTreeSet, sync::LazyLock};

pub use crate::launch::{Field, Options, Report};
use crate::{
    Fault,
    launch::{self, Shape, StaticShared},
    memory, raw,
};

/// Threadgroup memory of a threadgroup, static and dynamic, on every device of the family.
pub const THREADGROUP_LIMIT: u32 = 32 << 10;

const MAX_BUFFERS: usize = 31;
const MAX_THREADGROUP: usize = 8;
const MAX_CONSTANTS: usize = 32;

/// What a name of a kernel stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// `[[buffer(n)]]`.
    Buffer,
    /// `[[buffer(n), function_constant(c)]]`: bound where the constant says so.
    OptionalBuffer,
    /// `[[threadgroup(n)]]`: memory whose size the launch gives.
    Threadgroup,
    /// `[[function_constant(n)]]`.
    Constant,
}

/// A name that the host binds something to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Its type, as spelled in the source.
    pub kind: &'static str,
    /// What it is bound to.
    pub binding: Binding,
    /// The number in the attribute.
    pub index: u32,
}

/// A struct that a kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Struct {
    /// Its name.
    pub name: &'static str,
    /// Its bytes.
    pub size: usize,
    /// Its fields, in order.
    pub fields: Vec<Field>,
}

/// A kernel, or an instance of one by its host name.
#[derive(Debug)]
pub struct Kernel {
    /// Its name for the host; with a planted bug, `name!bug`.
    pub name: &'static str,
    /// The source, from the workspace's folder.
    pub file: &'static str,
    /// Where in it.
    pub line: u32,
    /// Buffers and threadgroup memory in the order of its parameters, then the source's function constants.
    pub parameters: Vec<Parameter>,
    /// The struct at buffer 0, if the first parameter is `constant Args& a [[buffer(0)]]`.
    pub args: Option<Struct>,
    /// Most threads of a threadgroup, if it says so.
    pub max_threads: Option<u32>,
    static_shared: StaticShared,
    raw: &'static raw::Kernel,
}

impl Kernel {
    fn new(raw: &'static raw::Kernel) -> Self {
        let parameter = |f: &raw::Field| {
            // `msl::Source` of `shim/simt/metal.hpp`, whose other values are not listed.
            let binding = match f.size {
                0 => Binding::Buffer,
                1 => Binding::OptionalBuffer,
                2 => Binding::Threadgroup,
                _ => Binding::Constant,
            };
            Parameter { name: f.name(), kind: f.kind(), binding, index: f.offset }
        };
        Self {
            name: raw.name(),
            file: raw.file(),
            line: raw.line,
            parameters: raw.parameters().iter().map(parameter).collect(),
            args: raw.args().map(|name| Struct {
                name,
                size: raw.args_size as usize,
                fields: raw.fields().iter().map(Field::new).collect(),
            }),
            max_threads: (raw.launch_bounds != 0).then_some(raw.launch_bounds),
            static_shared: StaticShared::default(),
            raw,
        }
    }

    /// Bytes of `threadgroup` arrays, once a launch has shown them.
    pub fn static_shared(&self) -> Option<u64> {
        self.static_shared.get()
    }
}

/// A value of a function constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Constant {
    /// `bool`.
    Bool(bool),
    /// `int`.
    I32(i32),
    /// `uint`.
    U32(u32),
    /// `float`.
    F32(f32),
}

impl Constant {
    fn bits(self) -> u64 {
        match self {
            Self::Bool(x) => x.into(),
            Self::I32(x) => u64::from(x.cast_unsigned()),
            Self::U32(x) => x.into(),
            Self::F32(x) => x.to_bits().into(),
        }
    }
}

/// What a kernel is launched with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arguments<'a> {
    /// Addresses in [`Memory`](crate::Memory), by buffer.
    pub buffers: &'a [(u32, u64)],
    /// Bytes that a kernel reads as its own copy, by buffer.
    pub bytes: &'a [(u32, &'a [u8])],
    /// Bytes of threadgroup memory, by index.
    pub threadgroup: &'a [(u32, u32)],
    /// Function constants, by index.
    pub constants: &'a [(u32, Constant)],
}

/// As `simt::msl::Arguments` in C++.
#[repr(C)]
struct RawArguments {
    buffers: [u64; MAX_BUFFERS],
    threadgroup_bytes: [u32; MAX_THREADGROUP],
    constants: [u64; MAX_CONSTANTS],
    constants_given: u32,
}

/// All kernels.
pub fn kernels() -> &'static [Kernel] {
    static KERNELS: LazyLock<Vec<Kernel>> =
        LazyLock::new(|| raw::metal().into_iter().map(Kernel::new).collect());
    &KERNELS
}

/// The kernel of a name.
pub fn kernel(name: &str) -> Option<&'static Kernel> {
    kernels().iter().find(|kernel| kernel.name == name)
}

/// Runs a kernel to its end; of [`Options`], the limit of shared memory is [`THREADGROUP_LIMIT`] at most.
///
/// # Errors
/// What went wrong first, a missing binding included.
///
/// # Panics
/// If an index is beyond what Metal has: 31 buffers, here 8 pieces of threadgroup memory and 32 constants.
pub fn launch(
    name: &str,
    threadgroups: [u32; 3],
    threads: [u32; 3],
    arguments: Arguments<'_>,
    options: Options,
) -> Result<Report, Fault> {
    let refuse = |message: String| Fault::refused(name, message);
    let kernel = kernel(name).ok_or_else(|| refuse("there is no such kernel".into()))?;
    let mut raw = RawArguments {
        buffers: [0; MAX_BUFFERS],
        threadgroup_bytes: [0; MAX_THREADGROUP],
        constants: [0; MAX_CONSTANTS],
        constants_given: 0,
    };
    let mut bound = BTreeSet::new();
    let mut bind = |index: u32, address: u64| {
        raw.buffers[index as usize] = address;
        bound.insert(index);
    };
    arguments.buffers.iter().for_each(|&(index, address)| bind(index, address));
    arguments.bytes.iter().for_each(|(index, bytes)| bind(*index, bytes.as_ptr() as u64));
    for &(index, bytes) in arguments.threadgroup {
        raw.threadgroup_bytes[index as usize] = bytes;
    }
    for &(index, constant) in arguments.constants {
        raw.constants[index as usize] = constant.bits();
        raw.constants_given |= 1 << index;
    }
    for index in bound {
        let takes = |p: &Parameter| {
            p.index == index && matches!(p.binding, Binding::Buffer | Binding::OptionalBuffer)
        };
        if !kernel.parameters.iter().any(takes) {
            return Err(refuse(format!("buffer {index} is bound, and the kernel has none such")));
        }
    }
    let padded = raw.threadgroup_bytes.iter().map(|bytes| bytes.next_multiple_of(16));
    let shape = Shape { grid: threadgroups, block: threads, shared_bytes: padded.sum() };
    let shared_limit = options.shared_limit.min(THREADGROUP_LIMIT);
    let options = Options { shared_limit, ..options };
    let report = launch::run(kernel.raw, shape, (&raw const raw).cast(), options)?;
    kernel.static_shared.note(report);
    // Buffers are bound, or named by address in what is copied.
    let bytes = arguments.bytes.iter().flat_map(|(_, bytes)| bytes.chunks_exact(8));
    let words = bytes.map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")));
    match memory::check_surroundings(raw.buffers.into_iter().chain(words)) {
        Some((len, at)) => Err(refuse(format!("wrote to byte {at} of a buffer of {len} bytes"))),
        None => Ok(report),
    }
}
