//! The suite's own tests: a plain device passes it, and devices with planted bugs do not.
mod mutant;
mod mutants;

mod naive {
    use photon_conformance::{Naive, Options, suite};
    suite!(Naive, Options { batch_invariant: true, chunk_invariant: true, ..Options::FULL });
}

mod absent {
    use photon_conformance::{Naive, run};

    #[test]
    fn an_absent_device_is_skipped_and_not_failed() {
        run::<Naive>(module_path!(), "copy_every_type", None, &photon_conformance::Options::FULL);
    }

    #[test]
    #[should_panic(expected = "no case is named typo")]
    fn a_case_nobody_wrote_is_not_passed() {
        run(module_path!(), "typo", Some(Naive), &photon_conformance::Options::FULL);
    }
}
