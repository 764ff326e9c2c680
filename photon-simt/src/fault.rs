//! What a kernel did wrong, in words.
use std::fmt;

/// Why a launch failed: the kernel, the block and thread where one is to blame, and what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's name.
    pub kernel: String,
    /// The block, where one is to blame.
    pub block: Option<[u32; 3]>,
    /// The thread in its block, likewise.
    pub thread: Option<[u32; 3]>,
    /// What happened, and where in the source.
    pub message: String,
}

impl Fault {
    /// Of a launch that did not begin.
    pub(crate) fn refused(kernel: &str, message: String) -> Self {
        Self { kernel: kernel.to_owned(), block: None, thread: None, message }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        if let Some([x, y, z]) = self.block {
            write!(f, ", block ({x}, {y}, {z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}

/// `file:line` of an instruction, and of what it was inlined into, from the program's line tables.
pub(crate) fn place(ip: u64) -> Option<String> {
    let mut places = Vec::new();
    let ip = std::ptr::without_provenance_mut(usize::try_from(ip).ok()?);
    backtrace::resolve(ip, |symbol| {
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            let file = file.strip_prefix(".").unwrap_or(file);
            places.push(format!("{}:{line}", file.display()));
        }
    });
    // The shim's own lines say nothing; whoever called it does.
    let ours = |place: &&String| !place.contains("shim/simt/") && !place.contains("/c++/");
    places.iter().find(ours).or(places.first()).cloned()
}
