//! Real kernels with one bug each (`kernels/planted.diff`): the suite finds every one of them, though it only
//! ever sees a device.
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::PROMISES;
use crate::{Gpu, Sim};

/// What a case says of a device whose kernels have a bug.
#[track_caller]
fn failure(case: &str, bug: &str) -> String {
    let device = Gpu::new(Sim::with_bug(bug)).expect("the simulator");
    let run = || photon_conformance::run("planted", case, Some(device), &PROMISES);
    let panic = catch_unwind(AssertUnwindSafe(run));
    let panic = panic.expect_err(&format!("{case} does not see the bug `{bug}`"));
    *panic.downcast::<String>().expect("a failure in words")
}

/// A number that is wrong, where and by how much.
#[track_caller]
fn is_a_wrong_number(case: &str, operation: &str, bug: &str) {
    let failure = failure(case, bug);
    assert!(failure.starts_with(operation), "{failure}");
}

#[test]
fn a_missing_barrier_is_a_wrong_number() {
    is_a_wrong_number("attention_every_type", "attention", "barrier");
    is_a_wrong_number("paged_attention_batch_invariance", "paged_attention", "barrier");
}

#[test]
fn a_wrong_lane_is_a_wrong_number() {
    is_a_wrong_number("attention_every_type", "attention", "lane");
    is_a_wrong_number("paged_attention_decode", "paged_attention", "lane");
}

#[test]
fn an_index_off_by_one_is_a_wrong_number_or_an_error_with_its_place() {
    is_a_wrong_number("paged_attention_batch_invariance", "paged_attention", "index");
    let failure = failure("attention_every_type", "index");
    // Keys or values: whose copy lands first, the seed says.
    assert!(failure.contains("past the end of shared `"), "{failure}");
}
