//! The suite on a real GPU, where there is one. `cargo xtask gpu-check` takes this binary to a machine
//! that has one; everywhere else each case says that it checked nothing.

mod gpu {
    use std::sync::LazyLock;

    use photon_conformance::{Options, suite};
    use photon_cuda::Cuda;

    static CUDA: LazyLock<Option<Cuda>> = LazyLock::new(|| Cuda::open(0).ok());

    suite!(
        optional CUDA.clone(),
        Options { batch_invariant: true, chunk_invariant: true, ..Options::FULL }
    );
}
