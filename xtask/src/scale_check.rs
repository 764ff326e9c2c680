//! `cargo xtask scale-check`: the recipes of `scale/` on this machine, as if it were several.
//!
//! Two servers with the demo model stand behind SMG, then behind Ray Serve, with a policy that keeps questions about the
//! same picture together and with those that do not; `scale/check/load.py` asks and says how often the picture was in
//! the cache. Then jobs of Ray Data and of Daft answer questions about pictures in files, parquet and webdataset, and lose
//! a worker half-way. It fails if affinity finds too little in the cache, or if an answer is missing or there twice.
//!
//! Everything listens on the loopback only, has a time by which it must be done, and is stopped at the end.
use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use self::{jobs::Job, report::Report, routers::POLICIES};

mod jobs;
mod report;
mod routers;
mod running;
mod setup;

/// Run the recipes for several machines on this one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The program; built in release mode without it
    #[arg(long)]
    photon: Option<PathBuf>,
    /// Where Python's packages are installed, or are to be (1 GB, once); target/scale/venv without it
    #[arg(long)]
    venv: Option<PathBuf>,
    /// Only these
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Rounds of 24 pictures with 6 questions each that a router is asked
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Pictures that jobs are about
    #[arg(long, default_value_t = 2000)]
    pictures: usize,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Smg,
    RayServe,
    RayData,
    Daft,
}

/// Least share of answers whose picture was in the cache, where equal keys go to the same server; 5 of 6 at best.
const LEAST_HIT_RATE: f64 = 0.8;

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = crate::root().join("target/scale");
    fs::create_dir_all(&folder)?;
    let found = setup::prepare(args, &folder)?;
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut report = Report::new(args);
    for policy in POLICIES.iter().filter(|policy| wanted(policy.part())) {
        eprintln!("== {policy}");
        report.asked.push((policy, routers::ask(policy, args.rounds, &found)?));
    }
    let jobs: Vec<Job> = Job::ALL.into_iter().filter(|job| wanted(job.part())).collect();
    if !jobs.is_empty() {
        jobs::draw(args.pictures, &found)?;
    }
    for job in jobs {
        eprintln!("== {job}");
        report.done.push((job, jobs::run(job, args.pictures, &found)?));
    }
    let (tables, record) = (report.markdown(), serde_json::to_string_pretty(&report.json())?);
    for (name, text) in [("report.md", &tables), ("report.json", &record)] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    println!("{}", if args.json { record } else { tables });
    accept(&report)
}

fn accept(report: &Report) -> Result<()> {
    for (policy, asked) in &report.asked {
        ensure!(
            !policy.affinity || LEAST_HIT_RATE <= asked.hit_rate,
            "{policy}: {:.3} of the answers had their picture in the cache, {LEAST_HIT_RATE} must",
            asked.hit_rate
        );
    }
    for (job, done) in &report.done {
        ensure!(
            done.is_whole(),
            "{job}: {} answers are missing, {} are there twice, {} failed; its worker was {}",
            done.missing,
            done.twice,
            done.failed,
            if done.killed_after.is_some() { "killed" } else { "not killed" }
        );
    }
    Ok(())
}
