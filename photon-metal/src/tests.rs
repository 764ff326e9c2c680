//! Every case of the suite on the simulated GPU; in what order launches run.
use std::sync::LazyLock;

use photon_conformance::Options;

use crate::SimMetal;

mod order;

/// Shared by all cases, as a machine has one.
static GPU: LazyLock<SimMetal> = LazyLock::new(|| SimMetal::open().expect("the simulator"));

const PROMISES: Options = Options { batch_invariant: true, chunk_invariant: true, ..Options::FULL };

mod simulated {
    use super::{GPU, PROMISES};

    photon_conformance::suite!(GPU.clone(), PROMISES);
}

#[test]
fn rows_have_their_bits_in_every_batch_where_matrices_are_no_chains() {
    for case in ["linear_batch_invariance", "grouped_linear_batch_invariance"] {
        let gpu = GPU.clone().without_chains();
        photon_conformance::run(module_path!(), case, Some(gpu), &PROMISES);
    }
}
