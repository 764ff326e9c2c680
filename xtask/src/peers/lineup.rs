//! Who plays against whom, with what, and which phases are compared.
use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{Terms, setup::Found};

/// An engine with weights of one format.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    /// Whether it is Photon.
    pub(super) ours: bool,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) envs: Vec<(&'static str, PathBuf)>,
    /// Where its standard error goes.
    pub(super) log: PathBuf,
    /// Memory without which it is not started.
    pub(super) needs_bytes: u64,
}

impl Peer {
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.envs.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// Engines that are compared with one another.
#[derive(Debug)]
pub(super) struct Bout {
    pub(super) name: &'static str,
    pub(super) peers: Vec<Peer>,
}

/// A line of the tables: what of Photon is compared with what of the others.
#[derive(Debug)]
pub(super) struct Compared {
    pub(super) title: String,
    pub(super) ours: String,
    pub(super) theirs: String,
    /// Tokens of a run.
    pub(super) tokens: Option<usize>,
}

/// What is compared. Phases carry the names that workers have for them.
pub(super) fn compared(terms: &Terms) -> Vec<Compared> {
    let line = |title: &str, ours: &str, theirs: &str, tokens| Compared {
        title: title.into(),
        ours: ours.into(),
        theirs: theirs.into(),
        tokens,
    };
    let together = format!("decode {}", terms.sequences);
    let title = format!("decode of {} at context 770", terms.sequences);
    vec![
        line("vision, 1 crop", "vision 1", "vision 1", None),
        line("vision of an uncut picture, 1 crop against 2", "vision 1", "vision 2", None),
        line("prefill, 750 tokens", "prefill", "prefill", Some(750)),
        line("decode at context 770", "decode 1", "decode 1", Some(terms.decode_tokens)),
        line(&title, &together, &together, Some(terms.sequences * terms.decode_tokens)),
    ]
}

/// The phases that are run, in order.
pub(super) fn phases(terms: &Terms) -> Vec<String> {
    let mut phases: Vec<String> = compared(terms).into_iter().map(|line| line.theirs).collect();
    phases.dedup();
    phases
}

/// Who plays, with the rivals that could be installed; whom no rival is left to meet does not.
pub(super) fn bouts(terms: &Terms, found: &Found) -> Vec<Bout> {
    let mut bouts = Vec::new();
    if let Some(python) = &found.pytorch {
        let mut peers =
            vec![photon(terms, found, "bf16", None), pytorch(terms, found, python, "bf16")];
        if !multiplies_bf16() {
            peers.push(pytorch(terms, found, python, "f32"));
        }
        bouts.push(Bout { name: "16 bits", peers });
    }
    if let Some(python) = &found.llama {
        // The head as well: llama.cpp's is quantized like the rest.
        let ours = |format| {
            let quant = format!("text={format},vision={format},head={format}");
            photon(terms, found, format, Some(&quant))
        };
        let theirs = |format| llama(terms, found, python, format);
        bouts.push(Bout { name: "8 bits", peers: vec![ours("int8"), theirs("q8_0")] });
        let four = vec![ours("int4"), ours("int4-32"), theirs("q4_0")];
        bouts.push(Bout { name: "4 bits", peers: four });
    }
    bouts
}

fn photon(terms: &Terms, found: &Found, format: &str, quant: Option<&str>) -> Peer {
    // Keys and values of a sequence are 200 KB a token; an eighth is left for blocks that are not full.
    let kv = terms.sequences * 780 * terms.text_layers * 8192 * 9 / 8;
    let args = [
        ["bench", "model"],
        ["--by-name", "--device=cpu"],
        ["--dtype", "bf16"],
        ["--synthetic", &found.dimensions],
        ["--quant", quant.unwrap_or("none")],
        ["--concurrency", &format!("1,{}", terms.sequences)],
        ["--decode-tokens", &terms.decode_tokens.to_string()],
        ["--threads", &terms.threads.to_string()],
        ["--kv-memory", &format!("{}MiB", kv >> 20)],
    ];
    Peer {
        name: format!("Photon {format}"),
        ours: true,
        program: found.photon.clone(),
        args: args.concat().into_iter().map(str::to_owned).collect(),
        envs: Vec::new(),
        log: found.folder.join(format!("photon-{format}.log")),
        needs_bytes: gib(terms, if quant.is_some() { 5.0 } else { 6.5 }),
    }
}

fn pytorch(terms: &Terms, found: &Found, python: &Path, dtype: &str) -> Peer {
    let mut args = python_args(terms, "pytorch.py");
    args.extend(["--dtype".into(), dtype.into()]);
    args.extend(["--vision-layers".into(), terms.vision_layers.to_string()]);
    Peer {
        name: format!("PyTorch {dtype}"),
        ours: false,
        program: python.to_owned(),
        args,
        // What torch.compile made is found again in the next run.
        envs: vec![("TORCHINDUCTOR_CACHE_DIR", found.folder.join("inductor"))],
        log: found.folder.join(format!("pytorch-{dtype}.log")),
        needs_bytes: gib(terms, if dtype == "f32" { 16.0 } else { 9.0 }),
    }
}

fn llama(terms: &Terms, found: &Found, python: &Path, format: &str) -> Peer {
    let mut args = python_args(terms, "llama.py");
    args.extend(["--quantization".into(), format.into()]);
    args.extend(["--models".into(), found.folder.display().to_string()]);
    Peer {
        name: format!("llama.cpp {format}"),
        ours: false,
        program: python.to_owned(),
        args,
        envs: Vec::new(),
        log: found.folder.join(format!("llama-{format}.log")),
        needs_bytes: gib(terms, 7.0),
    }
}

/// What both of Python's workers are told.
fn python_args(terms: &Terms, script: &str) -> Vec<String> {
    let script = crate::root().join("tools/bench").join(script);
    let numbers = [
        ("--threads", terms.threads),
        ("--text-layers", terms.text_layers),
        ("--decode-tokens", terms.decode_tokens),
        ("--sequences", terms.sequences),
    ];
    let numbers = numbers.into_iter().flat_map(|(name, n)| [name.to_owned(), n.to_string()]);
    [script.display().to_string()].into_iter().chain(numbers).collect()
}

/// Memory of a model of all 24 layers, or of what there is of it.
fn gib(terms: &Terms, full: f64) -> u64 {
    let part = (1.0 + terms.text_layers as f64) / 25.0;
    (part * full * f64::from(1 << 30)) as u64
}

/// Whether this processor has instructions for products of bf16; without them PyTorch is faster in f32.
fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_run_once_a_round_and_photon_dedups_crops() {
        let terms =
            Terms { threads: 2, vision_layers: 4, text_layers: 4, decode_tokens: 8, sequences: 8 };
        assert_eq!(phases(&terms), ["vision 1", "vision 2", "prefill", "decode 1", "decode 8"]);
        let lines = compared(&terms);
        assert_eq!((&*lines[1].ours, &*lines[1].theirs), ("vision 1", "vision 2"));
        assert_eq!(lines[4].tokens, Some(64));
    }
}
