//! Replays what the fuzzer learned from (`fuzz/corpus`): quickly, without a panic, in little memory.
//!
//! A binary of its own, with one test: its allocator counts, and what runs beside would be counted too.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
use std::{
    path::Path,
    time::{Duration, Instant},
};

use peak_alloc::PeakAlloc;
use photon_models::hostile::TARGETS;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What reading any file may take besides a multiple of its size: a picture's limit, a table of ids, the
/// programs of a regular expression.
const BASE: usize = 12 << 20;
const PER_BYTE: usize = 256;
/// The slowest takes some 20 ms on a machine with nothing else to do.
const MOST_TIME: Duration = Duration::from_secs(10);

#[test]
fn every_corpus_is_read_in_little_time_and_memory() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz");
    for (name, target) in TARGETS {
        assert!(root.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name} has no target");
        let entries = std::fs::read_dir(root.join("corpus").join(name)).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() > 5, "{name} has {} files", files.len());
        // What is made once and kept is no file's.
        target(b"");
        target(&std::fs::read(&files[0]).unwrap());
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let (before, begun) = (MEMORY.current_usage(), Instant::now());
            MEMORY.reset_peak_usage();
            target(&bytes);
            let taken = MEMORY.peak_usage() - before;
            let most = BASE + PER_BYTE * bytes.len();
            assert!(taken <= most, "{}: {taken} bytes of memory, {most} at most", file.display());
            let took = begun.elapsed();
            assert!(took < MOST_TIME, "{}: {took:?}", file.display());
        }
    }
}
