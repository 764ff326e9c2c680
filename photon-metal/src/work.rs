//! What a submit gives to the device: launches in order, with barriers between them, as a list.
//!
//! A captured pass is such a list, kept; replaying it puts it into another. The driver walks the list; no
//! code of the model or of the kernels' choice runs again.
use std::{ops::Range, sync::Arc};

use crate::driver::{Launch, Layout};

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Launches.
    pub dispatches: u64,
    /// Barriers between them.
    pub barriers: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.dispatches += other.dispatches;
        self.barriers += other.barriers;
    }
}

/// One step of the work.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A kernel to run.
    Launch(Launch<'a>),
    /// What came before is done before what comes after begins.
    Barrier,
}

#[derive(Debug)]
enum Command {
    Launch {
        kernel: &'static str,
        threadgroups: [u32; 3],
        threads: [u32; 3],
        threadgroup_bytes: u32,
        args: Range<usize>,
        layout: &'static Layout,
        bytes: u64,
    },
    Barrier,
    Replay(Arc<Work>),
}

/// Launches and barriers in order.
#[derive(Debug, Default)]
pub struct Work {
    commands: Vec<Command>,
    /// The arguments of all launches, one after the other.
    args: Vec<u8>,
    counts: Counts,
}

impl Work {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// How much there is to do.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn launch(&mut self, launch: &Launch<'_>) {
        let Launch { kernel, threadgroups, threads, threadgroup_bytes, args, layout, bytes } =
            *launch;
        let start = self.args.len();
        self.args.extend_from_slice(args);
        let args = start..self.args.len();
        self.counts.dispatches += 1;
        self.commands.push(Command::Launch {
            kernel,
            threadgroups,
            threads,
            threadgroup_bytes,
            args,
            layout,
            bytes,
        });
    }

    pub(crate) fn barrier(&mut self) {
        self.counts.barriers += 1;
        self.commands.push(Command::Barrier);
    }

    pub(crate) fn replay(&mut self, work: &Arc<Work>) {
        self.counts += work.counts;
        self.commands.push(Command::Replay(Arc::clone(work)));
    }

    /// Every step in order, those of replayed work in their place.
    ///
    /// # Errors
    /// The first that `visit` gives.
    pub fn steps<'a, E>(
        &'a self,
        visit: &mut impl FnMut(Step<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        for command in &self.commands {
            match command {
                Command::Launch {
                    kernel,
                    threadgroups,
                    threads,
                    threadgroup_bytes,
                    args,
                    layout,
                    bytes,
                } => visit(Step::Launch(Launch {
                    kernel,
                    threadgroups: *threadgroups,
                    threads: *threads,
                    threadgroup_bytes: *threadgroup_bytes,
                    args: &self.args[args.clone()],
                    layout,
                    bytes: *bytes,
                }))?,
                Command::Barrier => visit(Step::Barrier)?,
                Command::Replay(work) => work.steps(visit)?,
            }
        }
        Ok(())
    }
}
