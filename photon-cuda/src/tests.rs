//! Every case of the suite on the simulated GPU.
mod planted;

use std::{collections::BTreeMap, sync::LazyLock};

use photon_conformance::Options;

use crate::{SimCuda, source::TARGETS};

/// Shared by all cases, as a machine has one.
static GPU: LazyLock<SimCuda> = LazyLock::new(|| SimCuda::open().expect("the simulator"));

const PROMISES: Options =
    Options { batch_invariant: true, chunk_invariant: true, rounded_shares: true, ..Options::FULL };

mod simulated {
    use super::{GPU, PROMISES};

    photon_conformance::suite!(GPU.clone(), PROMISES);
}

/// NVIDIA's compilers are not here: `cargo xtask cuda-check` fetches them, compiles every kernel for every architecture and
/// writes what it found. A kernel that it has not seen, or an architecture, is missing there.
#[test]
fn every_kernel_has_been_compiled_for_every_architecture() {
    let table = include_str!("../kernels/resources.tsv");
    let mut rows = table.lines().filter(|line| !line.starts_with('#'));
    let cells = |line: &'static str| line.split('\t').skip(2).collect::<Vec<_>>();
    let names = TARGETS.iter().map(|target| target.name(13)[3..].to_owned()).collect::<Vec<_>>();
    assert_eq!(rows.next().map(cells).unwrap_or_default(), names);
    let rows: BTreeMap<_, _> =
        rows.map(|line| (line.split('\t').next().unwrap_or_default(), cells(line))).collect();
    for kernel in photon_simt::cuda::kernels() {
        if kernel.file.starts_with("photon-cuda/") && !kernel.name.contains('!') {
            let found = rows
                .get(kernel.name)
                .map_or(0, |cells| cells.iter().filter(|cell| **cell != "-").count());
            assert_eq!(found, names.len(), "{}: `cargo xtask cuda-check --update`", kernel.name);
        }
    }
}
