//! One test binary for the crate; each module is one part of it, tested from outside on files.

mod adapter;
mod convert;
mod formats;
mod golden;
mod image;
