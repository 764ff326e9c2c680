//! `bench`: how fast this machine is.
//!
//! `workload` asks an engine many questions about drawn pictures (`pictures` and `workload` make
//! them, `drive` asks, `rounds` says in which order, `record` keeps the numbers, `table` prints
//! them); `--compare` sets two such records side by side; `model` times the phases of a request,
//! `load` those of a start.
mod compare;
mod drive;
mod phases;
mod record;
mod rounds;
mod table;
mod workload;

use crate::{
    Failure,
    args::{BenchArgs, BenchWhat},
};

pub(crate) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    match (&args.what, &args.compare[..]) {
        (Some(BenchWhat::Workload(args)), _) => rounds::workload(args),
        (Some(BenchWhat::Model(args)), _) => phases::model(args),
        (Some(BenchWhat::Load(args)), _) => phases::load(args),
        (None, [a, b]) => compare::compare(a, b),
        (None, _) => Err(Failure::Usage("say what to measure: see photon bench --help".into())),
    }
}
