//! What there is to say about this processor, for people who ask what they are running on.
use std::fmt;

use photon_core::{Device, MemoryInfo};

use crate::{Cpu, Isa};

/// This processor, and what is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The model's name; the architecture where the system does not tell.
    pub model: String,
    /// Threads that compute.
    pub threads: usize,
    /// Instructions in use.
    pub isa: Isa,
    /// Instructions that could be used.
    pub available: Vec<Isa>,
    /// Main memory.
    pub memory: MemoryInfo,
}

/// Describes `cpu`.
pub fn describe(cpu: &Cpu) -> Description {
    Description {
        model: model_name().unwrap_or_else(|| std::env::consts::ARCH.into()),
        threads: cpu.pool().threads(),
        isa: cpu.isa(),
        available: Isa::available(),
        memory: cpu.memory(),
    }
}

fn model_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    let name = line.trim_start_matches([' ', '\t', ':']).trim();
    (!name.is_empty()).then(|| name.into())
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.available.iter().map(|isa| isa.name()).collect();
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        writeln!(f, "processor     {}", self.model)?;
        writeln!(f, "threads       {}", self.threads)?;
        writeln!(f, "instructions  {} (of {})", self.isa.name(), names.join(", "))?;
        let (free, total) = (gib(self.memory.free_bytes), gib(self.memory.total_bytes));
        write!(f, "memory        {free:.1} GiB free of {total:.1} GiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;

    #[test]
    fn a_description_names_the_instructions_in_use() {
        let options = CpuOptions { threads: Some(1), isa: Some(Isa::Portable) };
        let text = describe(&Cpu::open(options).unwrap()).to_string();
        assert!(text.contains("threads       1\n"), "{text}");
        assert!(text.contains("instructions  portable (of portable"), "{text}");
    }
}
