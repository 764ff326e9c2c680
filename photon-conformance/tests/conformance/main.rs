//! The suite's own tests: a plain device passes it, and planted bugs do not.
mod naive {
    use photon_conformance::{Naive, Options, suite};
    suite!(Naive, Options { batch_invariant: true, ..Options::FULL });
}
