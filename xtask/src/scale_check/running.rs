//! Programs that end with the value that stands for them, and within a time.
//!
//! What they start in turn ends with them: Ray's processes and its workers' servers are told by the system when their
//! parent is gone, `photon batch` when its input is.
use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long a program may take to end when it is told to. Ray Serve takes some seconds.
const TO_END: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A program under way, whose output goes to a file.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        Ok(Running { child, log: log.to_owned() })
    }

    /// All that it has said.
    pub(super) fn said(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until something is found in what it says.
    pub(super) fn find<T>(
        &mut self,
        patience: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            // It may say what is looked for and end.
            let ended = self.child.try_wait()?;
            if let Some(found) = found(&self.said()?) {
                return Ok(found);
            }
            if let Some(status) = ended {
                bail!("it ended ({status}): {}", self.last_words());
            }
            if patience < begun.elapsed() {
                bail!("not in {} seconds: {}", patience.as_secs(), self.last_words());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for its end, which must be a good one.
    pub(super) fn finish(mut self, patience: Duration) -> Result<String> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return self.said(),
                Some(status) => bail!("it ended ({status}): {}", self.last_words()),
                None if patience < begun.elapsed() => {
                    bail!("not done in {} seconds: {}", patience.as_secs(), self.last_words());
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn last_words(&self) -> String {
        let said = self.said().unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        format!("{last:?} (all of it is in {})", self.log.display())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let told = Instant::now();
        // It may have ended already; if it cannot be told to end, it is killed.
        let _ = signal("TERM", self.child.id());
        while matches!(self.child.try_wait(), Ok(None)) && told.elapsed() < TO_END {
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process, by the system's own program.
pub(super) fn signal(name: &str, process: u32) -> Result<()> {
    let process = process.to_string();
    let sent = Command::new("kill").args(["-s", name, &process]).stderr(Stdio::null()).status();
    match sent.context("cannot run kill")? {
        status if status.success() => Ok(()),
        _ => bail!("there is no process {process} to send {name} to"),
    }
}

/// So many ports in a row of the loopback that nobody listens on.
pub(super) fn free_ports(count: u16) -> Result<u16> {
    for _ in 0..100 {
        let any = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let Some(last) = any.checked_add(count - 1) else { continue };
        let free = |port| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).is_ok();
        if (any..=last).all(free) {
            return Ok(any);
        }
    }
    bail!("there are no {count} free ports in a row")
}
