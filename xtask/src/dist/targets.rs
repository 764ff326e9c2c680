//! What is released: a program for each kind of machine, and where it is made.

/// A kind of machine.
#[derive(Debug)]
pub(crate) struct Target {
    /// The compiler's name of it.
    pub(crate) triple: &'static str,
    /// For whom.
    pub(crate) about: &'static str,
    /// Of photon-cli.
    pub(crate) features: &'static [&'static str],
    /// What lies compiled beside the program.
    pub(crate) kernels: Kernels,
    /// The hosted machine on which the release's workflow makes it.
    pub(crate) runner: &'static str,
}

/// Kernels for GPUs that are compiled beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    None,
    Cuda,
    Metal,
}

/// What every program can.
const COMMON: &[&str] = &["grpc", "kv-events"];
const CUDA: &[&str] = &["cuda", "grpc", "kv-events"];

pub(crate) const TARGETS: &[Target] = &[
    Target {
        triple: "x86_64-unknown-linux-gnu",
        about: "Linux, x86-64, with NVIDIA GPUs",
        features: CUDA,
        kernels: Kernels::Cuda,
        runner: "ubuntu-24.04",
    },
    Target {
        triple: "aarch64-unknown-linux-gnu",
        about: "Linux, Arm, with NVIDIA GPUs (Orin, Thor, GH200)",
        features: CUDA,
        kernels: Kernels::Cuda,
        runner: "ubuntu-24.04-arm",
    },
    Target {
        triple: "x86_64-unknown-linux-musl",
        about: "Linux, x86-64, the processor only: one static file",
        features: COMMON,
        kernels: Kernels::None,
        runner: "ubuntu-24.04",
    },
    Target {
        triple: "aarch64-unknown-linux-musl",
        about: "Linux, Arm, the processor only: one static file",
        features: COMMON,
        kernels: Kernels::None,
        runner: "ubuntu-24.04-arm",
    },
    Target {
        triple: "x86_64-pc-windows-msvc",
        about: "Windows, x86-64, with NVIDIA GPUs",
        features: CUDA,
        kernels: Kernels::Cuda,
        runner: "windows-2022",
    },
    Target {
        triple: "aarch64-apple-darwin",
        about: "macOS, Apple's processors and GPUs",
        features: COMMON,
        kernels: Kernels::Metal,
        runner: "macos-14",
    },
];

/// The oldest C library of Linux that programs run with: Debian 10, Ubuntu 20.04, JetPack 5, RHEL 8.
const GLIBC: &str = "2.28";

impl Target {
    pub(crate) fn named(triple: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.triple == triple)
    }

    pub(crate) fn is_linux(&self) -> bool {
        self.triple.contains("-linux-")
    }

    pub(crate) fn is_windows(&self) -> bool {
        self.triple.contains("-windows-")
    }

    pub(crate) fn is_static(&self) -> bool {
        self.triple.ends_with("-musl")
    }

    /// The processor, by its first name.
    pub(crate) fn processor(&self) -> &'static str {
        self.triple.split('-').next().unwrap_or_default()
    }

    /// What zig's linker is told: the C library's version, too.
    pub(crate) fn for_zig(&self) -> String {
        match self.triple.ends_with("-gnu") {
            true => format!("{}.{GLIBC}", self.triple),
            false => self.triple.to_owned(),
        }
    }

    pub(crate) fn program(&self) -> &'static str {
        if self.is_windows() { "photon.exe" } else { "photon" }
    }

    pub(crate) fn extension(&self) -> &'static str {
        if self.is_windows() { "zip" } else { "tar.gz" }
    }

    /// Why this machine cannot make it, if it cannot.
    pub(crate) fn needs(&self) -> Option<&'static str> {
        let (here, needed) = match self {
            _ if self.is_linux() => (cfg!(target_os = "linux"), "needs Linux"),
            _ if self.is_windows() => {
                (cfg!(windows), "needs Windows: Microsoft's linker and libraries")
            }
            _ => (cfg!(target_os = "macos"), "needs macOS: Apple's linker and frameworks"),
        };
        (!here).then_some(needed)
    }
}
