//! What the backend promises to everyone, checked from outside.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
mod conformance;
mod machine;
mod tape;
