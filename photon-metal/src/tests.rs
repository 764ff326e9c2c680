//! Every case of the suite on the simulated GPU; in what order launches run.
use std::sync::LazyLock;

use photon_conformance::Options;
use photon_core::{DType, Device};

use crate::{Gpu, Sim, SimMetal};

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

/// Before Apple9 models of bf16 are kept in f16; what is of bf16 all the same has kernels, if slower ones.
#[test]
fn without_bfloat_models_are_kept_in_f16_and_every_type_has_kernels() {
    let gpu = Gpu::new(Sim::of_family(7)).unwrap();
    let kept = [DType::Bf16, DType::F16, DType::F32].map(|own| gpu.model_dtype(own));
    assert_eq!(kept, [DType::F16, DType::F16, DType::F32]);
    assert_eq!(GPU.model_dtype(DType::Bf16), DType::Bf16);
    for case in ["layer_norm_every_type", "attention_every_type", "paged_attention_decode"] {
        photon_conformance::run(module_path!(), case, Some(gpu.clone()), &PROMISES);
    }
}
