//! Work that is counted instead of run: which kernels a step launches, of models too large to simulate too.
//!
//! `PHOTON_SIM_COUNT=FILE` makes a backend's simulator add a line of JSON to the file for every submit:
//! `{"dispatches":7,"barriers":6,"kernels":{"name":[launches,bytes named by them],...}}`. Results are whatever lies
//! in memory. Submits of up to four launches are run even then: a device that is opened is asked what it can.
use std::{
    collections::BTreeMap, env, fmt::Write, fs::OpenOptions, io, io::Write as _, path::PathBuf,
};

/// The file.
const VARIABLE: &str = "PHOTON_SIM_COUNT";
/// Launches of submits that are run.
const FEW: u64 = 4;

/// Where submits are counted.
#[derive(Clone, Debug)]
pub struct Counter(PathBuf);

/// What a submit consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Barriers between launches, of the languages that have them.
    pub barriers: u64,
    kernels: BTreeMap<&'static str, [u64; 2]>,
}

impl Count {
    /// Adds a launch that names so many bytes.
    pub fn launch(&mut self, kernel: &'static str, bytes: u64) {
        let [launches, sum] = self.kernels.entry(kernel).or_default();
        *launches += 1;
        *sum += bytes;
    }

    fn dispatches(&self) -> u64 {
        self.kernels.values().map(|[launches, _]| launches).sum()
    }

    /// Without a line end.
    fn json(&self) -> String {
        let (dispatches, barriers) = (self.dispatches(), self.barriers);
        let mut line =
            format!("{{\"dispatches\":{dispatches},\"barriers\":{barriers},\"kernels\":{{");
        for (i, (kernel, [launches, bytes])) in self.kernels.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(line, "{comma}\"{kernel}\":[{launches},{bytes}]");
        }
        line + "}}"
    }
}

impl Counter {
    /// The one that the environment asks for.
    pub fn from_env() -> Option<Counter> {
        env::var_os(VARIABLE).map(|file| Counter(file.into()))
    }

    /// Whether the submit was counted, and so must not run.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn takes(&self, submit: &Count) -> io::Result<bool> {
        if submit.dispatches() <= FEW {
            return Ok(false);
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0)?;
        file.write_all(format!("{}\n", submit.json()).as_bytes())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submit_is_a_line() {
        let mut submit = Count { barriers: 1, ..Count::default() };
        assert_eq!(submit.json(), r#"{"dispatches":0,"barriers":1,"kernels":{}}"#);
        for (kernel, bytes) in [("b", 4), ("a", 1), ("b", 6)] {
            submit.launch(kernel, bytes);
        }
        let line = r#"{"dispatches":3,"barriers":1,"kernels":{"a":[1,1],"b":[2,10]}}"#;
        assert_eq!(submit.json(), line);
    }
}
