//! Every case of the suite on the simulated GPU.
use std::sync::LazyLock;

use photon_conformance::Options;

use crate::SimMetal;

/// Shared by all cases, as a machine has one.
static GPU: LazyLock<SimMetal> = LazyLock::new(|| SimMetal::open().expect("the simulator"));

const PROMISES: Options =
    Options { batch_invariant: true, chunk_invariant: true, rounded_shares: true, ..Options::FULL };

mod simulated {
    use super::{GPU, PROMISES};

    photon_conformance::suite!(GPU.clone(), PROMISES);
}
