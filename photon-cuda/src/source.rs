//! The kernels' sources, and what they are compiled for.
//!
//! A compiled source is a file named [`Compiled::file_name`], in the cache and among the prebuilt ones
//! alike: its name says what it was made of, so that nothing stale is ever loaded.

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// A file of kernels, or a header they include.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Name of the file.
    pub name: &'static str,
    /// What is in it.
    pub text: &'static str,
}

impl Source {
    /// Every file of kernels.
    pub fn all() -> &'static [Source] {
        SOURCES
    }

    /// Every header.
    pub fn headers() -> &'static [Source] {
        HEADERS
    }

    /// This file and every header it includes, those of its headers, too.
    fn with_headers(self) -> Vec<Source> {
        let mut list = vec![self];
        let mut next = 0;
        while let Some(source) = list.get(next) {
            let lines = source.text.lines().filter_map(|line| line.trim().strip_prefix("#include"));
            let names: Vec<&str> = lines.map(|name| name.trim().trim_matches('"')).collect();
            let is_new =
                |h: &&Source| names.contains(&h.name) && list.iter().all(|s| s.name != h.name);
            let new: Vec<Source> = HEADERS.iter().filter(is_new).copied().collect();
            list.extend(new);
            next += 1;
        }
        list
    }

    /// The file's name without its ending.
    pub fn stem(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }
}

/// What NVRTC is told besides the architecture. The same for every kernel, and part of what names what
/// came out.
pub(crate) const OPTIONS: &[&str] = &["--std=c++17", "--device-as-default-execution-space"];

/// The architectures that releases are built for.
pub const TARGETS: &[Target] = &[
    Target { capability: (8, 0) },
    Target { capability: (8, 6) },
    Target { capability: (8, 7) },
    Target { capability: (8, 9) },
    Target { capability: (9, 0) },
    Target { capability: (10, 0) },
    Target { capability: (11, 0) },
    Target { capability: (12, 0) },
];

/// The oldest architecture: before it there is no `cp.async` and no bf16.
pub const OLDEST: (u32, u32) = (8, 0);

/// An architecture to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Compute capability, as CUDA 13 counts: Thor is (11, 0).
    pub capability: (u32, u32),
}

impl Target {
    /// The name compilers of a major version of CUDA know it by. From sm_90 on with `a`: with everything
    /// this very architecture can do.
    pub fn name(self, cuda_major: u32) -> String {
        match (self.capability, cuda_major) {
            ((11, 0), ..=12) => "sm_101a".into(),
            ((major @ ..=8, minor), _) => format!("sm_{major}{minor}"),
            ((major, minor), _) => format!("sm_{major}{minor}a"),
        }
    }

    /// The target of a device, whose driver counts as its own version of CUDA does.
    pub fn of(capability: (u32, u32)) -> Target {
        let capability = if capability == (10, 1) { (11, 0) } else { capability };
        Target { capability }
    }
}

/// What names a compiled source.
#[derive(Clone, Debug)]
pub struct Compiled<'a> {
    /// The source.
    pub source: Source,
    /// For which architecture.
    pub target: Target,
    /// Which version of CUDA compiled it.
    pub cuda_major: u32,
    /// What else distinguishes it: the compiler's minor version, for the cache.
    pub flavor: &'a str,
}

impl Compiled<'_> {
    /// `linear-sm_90a-cuda12-0123456789abcdef.cubin`: the digest is that of the source, the
    /// headers it includes and the options.
    pub fn file_name(&self) -> String {
        let Compiled { source, target, cuda_major, flavor } = self;
        let mut hasher = blake3::Hasher::new();
        let texts = source.with_headers().into_iter().flat_map(|s| [s.name, s.text]);
        for part in texts.chain(OPTIONS.iter().copied()) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let digest = &hasher.finalize().to_hex()[..16];
        let target = target.name(*cuda_major);
        format!("{}-{target}-cuda{cuda_major}{flavor}-{digest}.cubin", source.stem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_compiler() {
        let names = |cuda| TARGETS.iter().map(|t| t.name(cuda)).collect::<Vec<_>>().join(" ");
        assert_eq!(names(12), "sm_80 sm_86 sm_87 sm_89 sm_90a sm_100a sm_101a sm_120a");
        assert_eq!(names(13), "sm_80 sm_86 sm_87 sm_89 sm_90a sm_100a sm_110a sm_120a");
        assert_eq!(Target::of((10, 1)).name(12), "sm_101a");
    }

    #[test]
    fn headers_of_headers_are_found_once() {
        let text = "  #include \"types.cuh\"\n#include \"ptx.cuh\"\n";
        let names: Vec<_> =
            Source { name: "a.cu", text }.with_headers().iter().map(|s| s.name).collect();
        assert_eq!(names, ["a.cu", "ptx.cuh", "types.cuh"]);
    }

    #[test]
    fn a_file_is_named_after_all_that_went_into_it() {
        let name = |text, flavor| {
            let source = Source { name: "rows.cu", text };
            Compiled { source, target: TARGETS[4], cuda_major: 12, flavor }.file_name()
        };
        let (a, b) = (name("a", ""), name("b", ""));
        assert!(a.starts_with("rows-sm_90a-cuda12-") && a.ends_with(".cubin"), "{a}");
        assert_ne!(a, b);
        assert!(name("a", ".9").starts_with("rows-sm_90a-cuda12.9-"));
    }
}
