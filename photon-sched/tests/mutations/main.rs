//! The simulator sees every planted bug, and nothing where there is none.

use photon_sched::{Bug, sim};

/// Seeds within which each bug must be found.
const SEEDS: u64 = 3000;

fn first_failure(bug: Bug) -> Option<sim::Failure> {
    (0..SEEDS).find_map(|seed| sim::run(seed, Some(bug)).err())
}

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<Bug> =
        Bug::ALL.into_iter().filter(|bug| first_failure(*bug).is_none()).collect();
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

#[test]
fn without_a_bug_every_seed_is_clean() {
    let mut total = sim::Report::default();
    for seed in 0..SEEDS {
        match sim::run(seed, None) {
            Ok(report) => total.add(&report),
            Err(failure) => panic!("{failure}"),
        }
    }
    // A simulation in which nothing happens finds nothing.
    let sim::Report { hits, preemptions, copies, ended, drafted, accepted, .. } = total;
    assert!(SEEDS < hits && SEEDS < copies, "{hits} hits, {copies} copies");
    let rejected = drafted - accepted;
    assert!(SEEDS < accepted && SEEDS < rejected, "{accepted} accepted, {rejected} rejected");
    assert!(SEEDS / 2 < preemptions && SEEDS / 2 < ended, "{preemptions} preempted, {ended} ended");
}

#[test]
fn a_seed_always_gives_the_same_simulation() {
    for seed in 0..100 {
        assert_eq!(sim::run(seed, None), sim::run(seed, None));
    }
}
