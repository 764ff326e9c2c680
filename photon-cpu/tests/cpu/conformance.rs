//! The conformance suite on every level of instructions this processor has, and on [`Tape`].
//!
//! The devices are opened once and shared by their cases, so that cases also meet on one pool.
use std::sync::LazyLock;

use photon_conformance::Options;
use photon_cpu::{Cpu, CpuOptions, Isa, Tape};

/// Dot products of bf16 pairs round activations to 8 bits of precision, those of bytes to 8 bits;
/// everything else is f32.
fn options(isa: Isa) -> Options {
    let product_error = if isa.has_pairs() { 2f64.powi(-8) } else { 0.0 };
    Options {
        batch_invariant: true,
        chunk_invariant: true,
        product_error,
        rounded_rows: isa.has_bytes(),
        rounded_shares: isa.has_pairs(),
        integer_attention: isa.has_bytes(),
        ..Options::FULL
    }
}

fn open(isa: Isa, threads: usize) -> Option<Cpu> {
    Cpu::open(CpuOptions { threads: Some(threads), isa: Some(isa) }).ok()
}

mod portable {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::Portable, 1));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::Portable));
}

mod avx2 {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::Avx2, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::Avx2));
}

mod avxvnni {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::AvxVnni, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::AvxVnni));
}

mod avx512 {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::Avx512, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::Avx512));
}

mod avx512vnni {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::Avx512Vnni, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::Avx512Vnni));
}

mod avx512bf16 {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::Avx512Bf16, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::Avx512Bf16));
}

mod neon {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::Neon, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::Neon));
}

mod neondot {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::NeonDot, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::NeonDot));
}

mod neonbf16 {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::NeonBf16, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::NeonBf16));
}

mod neoni8mm {
    use super::*;
    static CPU: LazyLock<Option<Cpu>> = LazyLock::new(|| open(Isa::NeonI8mm, 2));
    photon_conformance::suite!(optional CPU.clone(), options(Isa::NeonI8mm));
}

mod tape {
    use super::*;
    // The best instructions there are, and more threads than work for many a shape.
    static TAPE: LazyLock<Option<Tape>> = LazyLock::new(|| open(Isa::detect(), 3).map(Tape::new));
    photon_conformance::suite!(optional TAPE.clone(), options(Isa::detect()));
}
