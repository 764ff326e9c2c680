//! What came out, as tables and as JSON.
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    Args,
    jobs::{Done, Job},
    routers::{Asked, Policy},
};
use crate::peers::report::machine;

#[derive(Debug)]
pub(super) struct Report {
    machine: String,
    rounds: usize,
    pictures: usize,
    pub(super) asked: Vec<(&'static Policy, Asked)>,
    pub(super) done: Vec<(Job, Done)>,
}

impl Report {
    pub(super) fn new(args: &Args) -> Self {
        let (rounds, pictures) = (args.rounds, args.pictures);
        Report { machine: machine(), rounds, pictures, asked: Vec::new(), done: Vec::new() }
    }

    pub(super) fn markdown(&self) -> String {
        let Report { machine, rounds, pictures, .. } = self;
        let mut text = format!(
            "{machine}, the demo model, two servers or workers with a thread each. Routers: {rounds} rounds of 24 pictures \
             with 6 questions each, shuffled, 4 clients; at best 0.833 of the answers find their picture in the cache.\n\n\
             | router, policy | found in the cache | busier server | p50 | p99 | requests/s |\n|---|---|---|---|---|---|\n"
        );
        // Writing to a string does not fail.
        for (policy, asked) in &self.asked {
            let busier = asked.balance.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(
                text,
                "| {policy} | {:.3} | {:.0} % | {:.1} ms | {:.0} ms | {:.0} |",
                asked.hit_rate,
                100.0 * busier,
                asked.p50_ms,
                asked.p99_ms,
                asked.requests_per_second
            );
        }
        let _ = write!(
            text,
            "\nJobs: {pictures} pictures as files, in parquet and in webdataset shards, two questions each, a worker killed half-way.\n\n\
             | job | answers | missing | twice | failed | killed after | seconds |\n|---|---|---|---|---|---|---|\n"
        );
        for (job, done) in &self.done {
            let Done { expected, missing, twice, failed, killed_after, seconds } = done;
            let killed = killed_after.map_or("-".into(), |answers| answers.to_string());
            let _ = writeln!(
                text,
                "| {job} | {expected} | {missing} | {twice} | {failed} | {killed} | {seconds:.0} |"
            );
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let asked = self.asked.iter().map(|(policy, asked)| {
            json!({"policy": policy.to_string(), "affinity": policy.affinity, "asked": asked.all})
        });
        let done = self.done.iter().map(|(job, done)| {
            json!({
                "job": job.to_string(), "answers": done.expected, "missing": done.missing, "twice": done.twice,
                "failed": done.failed, "killed_after": done.killed_after, "seconds": done.seconds,
            })
        });
        json!({
            "machine": self.machine, "rounds": self.rounds, "pictures": self.pictures,
            "routers": asked.collect::<Vec<_>>(), "jobs": done.collect::<Vec<_>>(),
        })
    }
}
