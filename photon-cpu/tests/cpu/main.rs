//! What the backend promises to everyone, checked from outside.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
mod conformance;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod inlined;
mod machine;
mod tape;
