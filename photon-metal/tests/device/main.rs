//! The suite on a real GPU, where there is one: on a Mac. `cargo xtask metal-check` runs it there; everywhere
//! else there is nothing to run.
#![cfg(target_os = "macos")]

mod gpu {
    use std::sync::LazyLock;

    use photon_conformance::{Options, suite};
    use photon_metal::Metal;

    static METAL: LazyLock<Option<Metal>> = LazyLock::new(|| Metal::open().ok());

    suite!(
        optional METAL.clone(),
        Options { batch_invariant: true, chunk_invariant: true, ..Options::FULL }
    );
}
