//! The results of a batch, on disk or on standard output.
//!
//! ## Rules
//! A file is what remembers how far a batch came; there is no other state.
//! - Each result is one write of one whole line, so a process that dies cuts the last line at most.
//!   [`Journal::open`] takes a cut line off; the request it answered runs again.
//! - A result names its request twice: `line_index`, and `input`, a digest of the line and of the
//!   options that decide its answer. A file whose results name other requests is refused.
//! - The file is locked while it is open. Trying failures again replaces the file by one without
//!   them in one step; the replacement is locked before it takes the name.
use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::line::{self, LineError};
use super::source::Item;

/// Longest line of a file of results, in bytes.
const MAX_RECORD: u64 = 64 << 20;

/// A line of the results.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    pub(super) line_index: u64,
    pub(super) id: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<String>,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
    pub(super) input: String,
}

/// What came of a line.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(super) enum Outcome {
    Ok { result: Value, usage: Usage },
    Error { error: LineError },
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    pub(super) input_tokens: usize,
    pub(super) output_tokens: usize,
}

/// What of a result matters later.
#[derive(Debug, Deserialize)]
struct Seen {
    line_index: u64,
    #[serde(default)]
    id: Value,
    status: Status,
    input: Option<String>,
    error: Option<SeenError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Error,
}

#[derive(Debug, Deserialize)]
struct SeenError {
    code: String,
}

/// How to open one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// Forget what is in the file.
    pub(super) overwrite: bool,
    /// Forget failures that may go away.
    pub(super) retry_failed: bool,
    /// Write results in the order of the input.
    pub(super) ordered: bool,
}

#[derive(Debug)]
pub(super) struct Journal {
    /// Standard output without one.
    file: Option<(PathBuf, File)>,
    seen: HashMap<u64, Seen>,
    /// Results that wait for those before them, `None` for lines that get none. Each is small and
    /// no request runs longer than its budget lets it, so they are few.
    pending: Option<BTreeMap<u64, Option<Vec<u8>>>>,
    next: u64,
}

impl Journal {
    pub(super) fn stdout(options: Options) -> Journal {
        let pending = options.ordered.then(BTreeMap::new);
        Journal { file: None, seen: HashMap::new(), pending, next: 0 }
    }

    /// Opens, locks and reads a file of results, made if there is none.
    pub(super) fn open(path: &Path, options: Options) -> anyhow::Result<Journal> {
        let name = path.display();
        let file = lock(path)?;
        if options.overwrite {
            file.set_len(0).with_context(|| format!("cannot write {name}"))?;
        }
        let mut journal = Journal { file: None, ..Journal::stdout(options) };
        let whole = journal.read(&file, path)?;
        file.set_len(whole).with_context(|| format!("cannot write {name}"))?;
        (&file).seek(SeekFrom::Start(whole)).with_context(|| format!("cannot write {name}"))?;
        let retried = |seen: &Seen| {
            let code = seen.error.as_ref().map(|error| error.code.as_str());
            options.retry_failed && code == Some("processing_error")
        };
        let file = match journal.seen.values().any(retried) {
            false => file,
            true => {
                journal.seen.retain(|_, seen| !retried(seen));
                without(file, path, &journal.seen)
                    .with_context(|| format!("cannot write {name} anew"))?
            }
        };
        journal.file = Some((path.into(), file));
        Ok(journal)
    }

    /// Reads all whole lines; gives how many bytes they are.
    fn read(&mut self, file: &File, path: &Path) -> anyhow::Result<u64> {
        let name = path.display();
        let mut reader = BufReader::new(file);
        let (mut whole, mut line) = (0, Vec::new());
        for number in 1.. {
            line.clear();
            let mut limited = (&mut reader).take(MAX_RECORD);
            limited.read_until(b'\n', &mut line).with_context(|| format!("cannot read {name}"))?;
            if line.last() != Some(&b'\n') && is_cut(&line) {
                break;
            }
            let seen: Seen = serde_json::from_slice(&line).map_err(|_| {
                anyhow::anyhow!(
                    "{name} line {number} is not a result of photon batch; give another -o, or \
                     --overwrite to lose what is in it"
                )
            })?;
            self.seen.insert(seen.line_index, seen);
            whole += line.len() as u64;
        }
        Ok(whole)
    }

    /// How many lines have results that failed.
    pub(super) fn failed(&self) -> u64 {
        self.seen.values().filter(|seen| seen.status == Status::Error).count() as u64
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.seen.is_empty()
    }

    /// Whether a line has its result.
    ///
    /// # Errors
    /// If the result there is belongs to another request.
    pub(super) fn has(&self, item: &Item, salt: &str) -> anyhow::Result<bool> {
        let Some(seen) = self.seen.get(&item.index) else { return Ok(false) };
        let same = match &seen.input {
            Some(input) => *input == item.digest(salt),
            None => seen.id == line::id(&item.line),
        };
        if same {
            return Ok(true);
        }
        let (id, index) = (line::id(&item.line), item.index);
        Err(match seen.id == id {
            true => self.foreign(&format!(
                "its result for line_index {index} is of another request, model or setting"
            )),
            false => self.foreign(&format!(
                "its result for line_index {index} has the id {}, the input {id}",
                seen.id
            )),
        })
    }

    /// Refuses results of lines the input does not have.
    pub(super) fn check_len(&self, lines: u64) -> anyhow::Result<()> {
        match self.seen.keys().max() {
            Some(last) if *last >= lines => Err(self.foreign(&format!(
                "it has a result for line_index {last}, the input has {lines} lines"
            ))),
            _ => Ok(()),
        }
    }

    fn foreign(&self, why: &str) -> anyhow::Error {
        let name = self.file.as_ref().map_or("-".into(), |(path, _)| path.display().to_string());
        anyhow::anyhow!(
            "{name} belongs to another batch: {why}; give another -o, or --overwrite to lose what is \
             in it"
        )
    }

    /// Writes a result, now or when it is its turn.
    pub(super) fn put(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        match &mut self.pending {
            None => self.write(&line),
            Some(pending) => {
                pending.insert(record.line_index, Some(line));
                self.write_turns()
            }
        }
    }

    /// Says that a line gets no result, now or ever.
    pub(super) fn pass(&mut self, index: u64) -> io::Result<()> {
        if let Some(pending) = &mut self.pending {
            pending.insert(index, None);
        }
        self.write_turns()
    }

    fn write_turns(&mut self) -> io::Result<()> {
        while let Some(line) = self.pending.as_mut().and_then(|p| p.remove(&self.next)) {
            self.next += 1;
            if let Some(line) = line {
                self.write(&line)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some((_, file)) => file.write_all(line),
            None => {
                let mut out = io::stdout().lock();
                out.write_all(line)?;
                out.flush()
            }
        }
    }

    /// Puts everything on disk.
    pub(super) fn finish(self) -> io::Result<()> {
        self.file.map_or(Ok(()), |(_, file)| file.sync_all())
    }
}

/// Whether a line without an end may be the beginning of a result, or what a system that lost power
/// leaves of one. Anything else is not ours to take off.
fn is_cut(line: &[u8]) -> bool {
    let start = br#"{"line_index":"#;
    let n = line.len().min(start.len());
    line[..n] == start[..n] || line.iter().all(|byte| *byte == 0)
}

/// Opens a file to write in, alone; others may read it. It is not opened for appending, because Windows would not let its
/// length be set then.
fn alone(path: &Path) -> Result<File, TryLockError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    share(&mut options);
    match options.open(path) {
        Err(error) if IN_USE.is_some() && error.raw_os_error() == IN_USE => {
            Err(TryLockError::WouldBlock)
        }
        Err(error) => Err(TryLockError::Error(error)),
        Ok(file) if IN_USE.is_some() => Ok(file),
        Ok(file) => file.try_lock().map(|()| file),
    }
}

/// What Windows says of a file that somebody else has for himself. Its locks would keep readers out, too, so there the
/// file is opened for one writer instead.
#[cfg(windows)]
const IN_USE: Option<i32> = Some(32);
#[cfg(not(windows))]
const IN_USE: Option<i32> = None;

#[cfg(windows)]
fn share(options: &mut OpenOptions) {
    use std::os::windows::fs::OpenOptionsExt;
    const READ: u32 = 1;
    const DELETE: u32 = 4;
    options.share_mode(READ | DELETE);
}

#[cfg(not(windows))]
fn share(_: &mut OpenOptions) {}

fn lock(path: &Path) -> anyhow::Result<File> {
    let name = path.display();
    // A run that was killed keeps its lock until the system has cleared it away.
    let patience = Instant::now() + Duration::from_secs(2);
    loop {
        match alone(path) {
            // Between opening and locking, the file may have been replaced.
            Ok(file) if is_at(&file, path) => return Ok(file),
            Ok(_) => {}
            Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                anyhow::bail!("{name} is being written by another photon batch; wait for its end");
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot open {name}"));
            }
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Replaces a file by one that has only the lines in `keep`.
fn without(old: File, path: &Path, keep: &HashMap<u64, Seen>) -> anyhow::Result<File> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new_path = path.with_file_name(name);
    let new = alone(&new_path)?;
    new.set_len(0)?;
    let mut out = io::BufWriter::new(&new);
    (&old).seek(SeekFrom::Start(0))?;
    for line in BufReader::new(&old).lines() {
        let line = line?;
        let seen: Seen = serde_json::from_str(&line)?;
        if keep.contains_key(&seen.line_index) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()?;
    drop(out);
    new.sync_all()?;
    std::fs::rename(&new_path, path)?;
    drop(old);
    Ok(new)
}

#[cfg(test)]
mod tests;
